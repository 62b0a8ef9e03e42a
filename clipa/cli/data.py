"""`clipa data`: datasets."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Datasets.", epilog="Example: clipa data demo /tmp/digits", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _group() -> None:
    """Datasets."""


@app.command(epilog="Example: clipa data demo s3://bucket/digits")
def demo(
    url: Annotated[str, typer.Argument(help="Where to write; a folder or an object store's URL.")],
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """Write the demo's data: real handwritten digits as image-text shards."""
    import subprocess
    import sys
    from pathlib import Path

    where = url if "://" in url else str(Path(url).expanduser().absolute())
    argv = [sys.executable, "-m", "clipa.data.demo", where, *(["--json"] if json else [])]
    raise typer.Exit(subprocess.run(argv, check=False).returncode)

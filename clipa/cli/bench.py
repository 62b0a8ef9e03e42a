"""`clipa bench`: benchmarks, each a program of its own that prints a table for docs/benchmarks.md."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Benchmarks.",
    epilog="Example: clipa bench stage s3://bucket/shards",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _group() -> None:
    """Benchmarks."""


@app.command(epilog="Example: clipa bench stage s3://bucket/shards --endpoint http://127.0.0.1:7480")
def stage(
    url: Annotated[str, typer.Argument(help="s3://bucket/folder with shards.")],
    endpoint: Annotated[str, typer.Option("--endpoint", help="Of a store other than AWS.")] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds.")] = 3,
) -> None:
    """CPU and wall time of staging, beside the other tools that are installed here."""
    _run("clipa.bench.stage", url, "--rounds", str(rounds), *(["--endpoint", endpoint] if endpoint else []))


def _run(module: str, *words: str) -> None:
    import subprocess
    import sys

    raise typer.Exit(subprocess.run([sys.executable, "-m", module, *words], check=False).returncode)

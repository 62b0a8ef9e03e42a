"""`clipa reduce`: what fewer tokens look like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipa.cli import words
from clipa.cli.relay import run_module

app = typer.Typer(
    help="Token reductions.", epilog="Example: clipa reduce show", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _group() -> None:
    """Token reductions."""


@app.command(epilog="Example: clipa reduce show cat.jpg --caption 'a cat on a ledge' --recipe clipa-b16-i50-t16")
def show(
    image: Annotated[
        Path | None, typer.Argument(help="A jpg, png or webp. A drawn scene where none is given.", show_default=False)
    ] = None,
    caption: Annotated[
        str | None, typer.Option(help="The image's caption. That of the drawn scene where none is given.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Whose sizes: a recipe's name or file. The one of clipa.toml, or the demo, where none is given.",
            autocompletion=words.complete_recipe,
        ),
    ] = None,
    phase: Annotated[str, typer.Option(help="Which phase of it. The first that trains where none is given.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture, a PNG.")] = Path("reductions.png"),
) -> None:
    """Draw what each reduction keeps of an image and its caption, at a recipe's sizes."""
    from clipa.spec import catalog

    named = recipe or catalog.defaults().recipe
    argv = [f"--recipe={named}", f"--phase={phase}", f"--out={out}"]
    argv += [f"--set={change}" for change in set_ or []]
    argv += [f"--caption={caption}"] if caption is not None else []
    argv += ["--", str(image)] if image is not None else []
    run_module("clipa.made.picture", *argv, what="drawing reductions")

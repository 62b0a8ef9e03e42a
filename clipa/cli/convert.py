"""`clipa convert`: a thin entry, the work needs torch."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from clipa.cli.relay import run_module
from clipa.errors import InputError
from clipa.spec.user_paths import expand_user


def convert(
    source: Annotated[str, typer.Argument(help="A run, a checkpoint, a folder or file of open_clip, a JAX .npz.")],
    folder: Annotated[str, typer.Argument(help="Where to write; must not exist.")],
    to: Annotated[str, typer.Option("--to", help="clipa or open_clip; default: the other one.")] = "",
    model: Annotated[str, typer.Option("--model", help="open_clip's configuration of a file, by name or .json.")] = "",
    family: Annotated[str, typer.Option("--family", help="Compute a v2 model as v2 or as v2-open_clip.")] = "",
    pool: Annotated[str, typer.Option("--pool", help="How the image tower of an .npz pools.")] = "",
    image_size: Annotated[int, typer.Option("--image-size", help="Pixels; positions by the family's rule.")] = 0,
    text_tokens: Annotated[int, typer.Option("--text-tokens", help="Text length; positions likewise.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Convert weights: from open_clip or CLIPA's JAX code to a checkpoint, and from a checkpoint to open_clip."""
    options = {"--to": to, "--model": model, "--family": family, "--pool": pool,
               "--image-size": image_size, "--text-tokens": text_tokens}  # fmt: skip
    words = [word for name, value in options.items() if value for word in (name, str(value))]
    words += ["--json"] if json else []
    place = _place(source)
    _require_places(place, folder)
    run_module("clipa.model.convert", place, folder, *words, what="converting weights")


def _require_places(source: str, folder: str) -> None:
    """Refuse what can be known without torch, whose import takes seconds.

    Raises:
        InputError: the source is not there, or the folder is.
    """
    if not expand_user(source).exists():
        raise InputError("no such file or folder", where=source, allowed="a run, or a path of weights")
    if os.path.lexists(expand_user(folder)):
        raise InputError("something already has this name", where=folder, hint="name a folder that does not exist")


def _place(source: str) -> str:
    """The path of a source: itself, or the folder of the run that the word means."""
    from pathlib import Path

    from clipa.cli import words

    path = expand_user(source)
    if path.exists() or os.sep in source or path.suffix:
        return str(path)
    trained = [
        status
        for status in words.chosen([source], words.everything().statuses)
        if status.kind in ("pretrain", "finetune")
    ]
    if not trained:
        raise InputError("that run trained nothing", where=source, hint="give a pretrain or finetune run")
    return str(Path(trained[-1].root) / trained[-1].run)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: clipa convert open_clip_model.safetensors /tmp/l14 --model ViT-L-14-CLIPA")(convert)

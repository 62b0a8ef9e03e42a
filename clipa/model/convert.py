"""`clipa convert`: weights of open_clip and of CLIPA's JAX code in, weights for open_clip out."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import get_args

import msgspec

from clipa.errors import ClipaError, StorageError, told
from clipa.model.sources import Wishes, read
from clipa.model.targets import Form, notes_of, write
from clipa.spec.budget import model_params
from clipa.spec.card import Card
from clipa.spec.family import FamilyName, Pool
from clipa.spec.user_paths import expand_user
from clipa.terminal import say, say_document


class Converted(msgspec.Struct, frozen=True, kw_only=True):
    """What was written: where, in which form, from which kind of source, the card, and what a person should know."""

    folder: str
    form: Form
    source: str
    card: Card
    parameters: int
    notes: tuple[str, ...]


def convert(source: Path, folder: Path, wishes: Wishes, form: Form | None = None) -> Converted:
    """Read weights, and write them as a checkpoint of clipa or as a folder of open_clip.

    Args:
        source: see clipa.model.sources.read.
        folder: must not exist.
        wishes: sizes and family, where they are to differ.
        form: by default `open_clip` for a source of clipa, and `clipa` for any other.

    Raises:
        ConfigError: the source, a wish, or the way there is wrong; nothing was written.
        StorageError: the disk failed.
    """
    found = read(source, wishes)
    form = form or ("open_clip" if found.kind == "clipa" else "clipa")
    try:
        write(found, folder, form)
    except OSError as error:
        raise StorageError(f"the folder cannot be written: {error}", where=str(folder)) from error
    model, card = found.card.model, found.card
    patches = (card.image_size // model.image.patch) ** 2
    return Converted(
        folder=str(folder),
        form=form,
        source=found.kind,
        card=card,
        parameters=model_params(model, patches, card.text_tokens),
        notes=notes_of(found, form),
    )


def _say(done: Converted) -> None:
    card, model = done.card, done.card.model
    say(f"{done.folder}: {done.parameters:,} parameters, from {done.source}, for {done.form}")
    say(f"  family {model.family}, {card.image_size} px / {model.image.patch}, {card.text_tokens} text tokens, "
          f"pool {model.image.pool}, positions {card.positions}")  # fmt: skip
    for note in done.notes:
        say(f"  note: {note}")
    if done.form == "clipa":
        say(f"try next: clipa submit finetune --from {done.folder}")
    else:
        say(f"try next: open_clip.create_model_and_transforms('local-dir:{done.folder}')")


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m clipa.model.convert`: 0 done, 1 the work failed, 2 the input is wrong."""
    parser = argparse.ArgumentParser(prog="clipa convert", description=__doc__)
    parser.add_argument("source", type=Path, help="checkpoint or run of clipa, folder or file of open_clip, JAX .npz")
    parser.add_argument("folder", type=Path, help="where to write; must not exist")
    parser.add_argument("--to", choices=get_args(Form), help="default: open_clip from clipa, clipa from all else")
    parser.add_argument("--model", default="", help="open_clip's configuration of a file of weights, by name or .json")
    parser.add_argument("--family", choices=get_args(FamilyName), help="compute a v2 model as v2 or as v2-open_clip")
    parser.add_argument("--pool", choices=get_args(Pool), help="how the image tower of an .npz pools (gap-norm)")
    parser.add_argument("--image-size", type=int, default=0, help="pixels; positions by the family's rule")
    parser.add_argument("--text-tokens", type=int, default=0, help="text length; positions by the family's rule")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    given = parser.parse_args(arguments)
    wishes = Wishes(
        model=given.model, family=given.family, pool=given.pool, image_size=given.image_size,
        text_tokens=given.text_tokens,
    )  # fmt: skip
    try:
        done = convert(expand_user(given.source), expand_user(given.folder), wishes, given.to)
    except ClipaError as error:
        if os.environ.get("CLIPA_DEBUG"):
            traceback.print_exc()
        return told(error)
    if given.json:
        say_document("clipa.weights/1", **msgspec.structs.asdict(done))
    else:
        _say(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())

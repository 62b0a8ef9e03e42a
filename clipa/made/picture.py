"""Draws what each reduction keeps of an image and a caption: python -m clipa.made.picture (`clipa reduce show`).

The choices are made by the very classes that training uses; this file only draws them. It stands here, above
`clipa.reduction`, because it needs a tokenizer and a decoder.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from clipa.data.decode import Pixels, decode_eval
from clipa.data.tokenizer import tokenizer
from clipa.errors import ClipaError, ConfigError, InputError, told
from clipa.made import scene
from clipa.made.canvas import INK, MUTED, Canvas, Chip
from clipa.reduction.image import PatchSelection
from clipa.reduction.text import Tokenizer, TokenSelection, Word
from clipa.reduction.wordclass import WordClass, class_of
from clipa.spec.catalog import DEMO_RECIPE, find_recipe
from clipa.spec.inputs import ImageInput, ImageReduction, TextInput, TextReduction
from clipa.spec.job import Recipe, TrainPhase
from clipa.spec.load import load_recipe
from clipa.spec.tokens import nearest_tokens
from clipa.terminal import say

WIDTH, MARGIN, GAP, PANEL, LABEL = 1240, 44, 20, 214, 132
POSITION, SEED = 1, 0
"""The sample that is drawn; any other number gives another choice of `random`, `grid` and `block`."""

_IMAGE_RULES: dict[ImageReduction, str] = {
    "resize": "the whole image, smaller",
    "random": "any patches",
    "grid": "the same of every window",
    "block": "one square",
}
_TEXT_RULES: dict[TextReduction, str] = {
    "truncate": "the first",
    "random": "any",
    "block": "one run",
    "syntax": "nouns first",
}
COLOURS = {
    WordClass.NOUN: (46, 110, 190),
    WordClass.ADJECTIVE: (28, 138, 104),
    WordClass.VERB: (190, 98, 28),
    WordClass.OTHER: (112, 116, 128),
}


class Sizes(NamedTuple):
    """What is drawn: images of `full` pixels in patches of `patch`, of which `tokens` are kept; the text input."""

    name: str
    patch: int
    full: int
    tokens: int
    text: TextInput
    tokenizer: str


def sizes_of(recipe: Recipe, phase_name: str = "") -> Sizes:
    """The sizes of a phase, the first one that trains by default. The whole image is the largest of all phases.

    Raises:
        ConfigError: no such phase, or one that trains nothing.
    """
    phases = {name: phase for name, phase in recipe.phases.items() if isinstance(phase, TrainPhase)}
    name = phase_name or next(iter(phases), "")
    if name not in phases:
        raise ConfigError(f"{recipe.name} has no training phase {name!r}", allowed=", ".join(phases) or "none")
    patch = recipe.model.image.patch
    return Sizes(
        name=f"{recipe.name}, {name}",
        patch=patch,
        full=max(phase.image.size for phase in phases.values()),
        tokens=phases[name].image.tokens or (phases[name].image.size // patch) ** 2,
        text=phases[name].text,
        tokenizer=recipe.model.text.tokenizer,
    )


class Kept(NamedTuple):
    """The patches that an image reduction keeps, as a mask [grid, grid] over an image of `size` pixels."""

    reduction: ImageReduction
    size: int
    mask: torch.Tensor


def kept_patches(sizes: Sizes) -> list[Kept]:
    """What each image reduction keeps: as many tokens as the phase has, or the nearest number that is possible."""
    found = []
    for reduction in _IMAGE_RULES:
        grid = sizes.full // sizes.patch
        tokens = nearest_tokens(reduction, grid, sizes.tokens)[0]
        size = round(tokens**0.5) * sizes.patch if reduction == "resize" else sizes.full
        image = ImageInput(size=size, tokens=tokens, reduction=reduction)
        chosen = PatchSelection(image, sizes.patch, SEED)(torch.tensor([POSITION]))
        mask = torch.ones((size // sizes.patch) ** 2, dtype=torch.bool)
        if chosen is not None:
            mask = torch.zeros_like(mask).index_fill(0, chosen[0], True)
        found.append(Kept(reduction, size, mask.view(size // sizes.patch, -1)))
    return found


class _Numbered:
    """A tokenizer whose ids are the numbers of a caption's tokens, so that the rows say which of them are kept."""

    start, end = -1, None

    def __init__(self, source: Tokenizer) -> None:
        self._source = source

    def words(self, text: str) -> list[Word]:
        found, first = [], 0
        for word in self._source.words(text):
            found.append(Word(word.text, tuple(range(first, first + len(word.ids)))))
            first += len(word.ids)
        return found

    def ids(self, text: str, _enough: int) -> Sequence[int]:
        return [number for word in self.words(text) for number in word.ids]


class KeptWord(NamedTuple):
    """A word of the caption, how many tokens it has, and how many of them are kept."""

    text: str
    tokens: int
    kept: int


def kept_words(sizes: Sizes, caption: str) -> dict[TextReduction, list[KeptWord]]:
    """What each text reduction keeps of a caption; `syntax` goes by the table."""
    source = tokenizer(sizes.tokenizer)
    numbered = _Numbered(source)
    room = sizes.text.tokens - (1 if source.end is None else 2)
    words = numbered.words(caption)
    count = sum(len(word.ids) for word in words)
    found: dict[TextReduction, list[KeptWord]] = {}
    for reduction in _TEXT_RULES:
        # One more than there is room for: this tokenizer has a start token, and no end.
        select = TokenSelection(numbered, TextInput(tokens=room + 1, reduction=reduction), SEED)
        kept = set(select([caption], [POSITION])[0].tolist()[1 : 1 + min(room, count)])
        found[reduction] = [KeptWord(word.text, len(word.ids), len(kept.intersection(word.ids))) for word in words]
    return found


def picture(pixels: dict[int, Pixels], sizes: Sizes, caption: str) -> Image.Image:
    """The whole picture. `pixels`: the image at every size that is drawn, uint8 [size, size, 3]."""
    canvas = Canvas(WIDTH)
    grid = sizes.full // sizes.patch
    canvas.text(MARGIN, 36, "What each token reduction keeps", 30)
    canvas.text(
        MARGIN,
        78,
        f"{sizes.name}: {sizes.tokens} of {grid * grid} image tokens (patches of {sizes.patch} px), "
        f"{sizes.text.tokens} text tokens",
        16,
        MUTED,
    )
    y = 122.0
    panels = [Kept("resize", sizes.full, torch.ones(grid, grid, dtype=torch.bool)), *kept_patches(sizes)]
    for column, kept in enumerate(panels):
        x = MARGIN + column * (PANEL + GAP)
        whole = column == 0
        canvas.text(x, y, "whole image" if whole else kept.reduction, 19)
        canvas.patches(x, y + 32, PANEL, pixels[kept.size], kept.mask.numpy())
        canvas.text(x, y + 40 + PANEL, f"{int(kept.mask.sum())} tokens, {kept.size} px", 15)
        canvas.text(x, y + 61 + PANEL, "all patches" if whole else _IMAGE_RULES[kept.reduction], 14, MUTED)
    return _texts(canvas, y + 112 + PANEL, sizes, caption)


def _texts(canvas: Canvas, y: float, sizes: Sizes, caption: str) -> Image.Image:
    marked = bool(tokenizer(sizes.tokenizer).end)  # a 0 at the end is padding
    rows = kept_words(sizes, caption)
    whole = [word._replace(kept=word.tokens) for word in rows["truncate"]]
    for name, rule, words in (
        ("whole caption", f"{sum(word.tokens for word in whole)} tokens", whole),
        *((reduction, _TEXT_RULES[reduction], words) for reduction, words in rows.items()),
    ):
        canvas.line(y - 12)
        canvas.text(MARGIN, y + 1, name, 17)
        canvas.text(MARGIN, y + 24, rule, 14, MUTED)
        chips = [Chip(word.text, COLOURS[class_of(word.text)], word.tokens, word.kept) for word in words]
        if words is not whole:
            chips = [Chip("start", INK, 1, 1), *chips, *([Chip("end", INK, 1, 1)] if marked else [])]
        y = canvas.chips(MARGIN + LABEL, y, WIDTH - MARGIN, chips) + 22
    x: float = MARGIN + LABEL
    for kind, colour in COLOURS.items():
        x = canvas.legend(x, y, kind.name.lower(), colour)
    canvas.text(x + 8, y, "dots: tokens of a word of several", 14, MUTED)
    return canvas.image(y + 44)


def write(out: Path, image: Image.Image) -> None:
    """Write a PNG, whole or not at all.

    Raises:
        InputError: the folder is not there, or cannot be written to.
    """
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    try:
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
            file.write(data.getvalue())
            os.fchmod(file.fileno(), 0o644)
        os.replace(file.name, out)
    except OSError as error:
        raise InputError(
            f"cannot write the picture: {error.strerror}", where=str(out), hint="--out FILE.png"
        ) from error


def show(image: Path | None, caption: str, recipe: str, phase: str, changes: Sequence[str], out: Path) -> Image.Image:
    """Draw and write the picture.

    Raises:
        ClipaError: the image, the recipe, the phase or the place of the picture cannot be used.
    """
    sizes = sizes_of(load_recipe(find_recipe(recipe), changes).recipe, phase)
    data = _bytes_of(image)
    wanted = {sizes.full, *(kept.size for kept in kept_patches(sizes))}
    pixels = {size: decode_eval(data, size, str(image or "the drawn scene")) for size in wanted}
    drawn = picture(pixels, sizes, caption)
    write(out, drawn)
    return drawn


def _bytes_of(image: Path | None) -> bytes:
    if image is None:
        data = io.BytesIO()
        scene.draw().save(data, "PNG")
        return data.getvalue()
    try:
        return image.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the image: {error.strerror}", where=str(image)) from error


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m clipa.made.picture`: 0 done, 1 the image cannot be decoded, 2 the input is wrong."""
    parser = argparse.ArgumentParser(prog="clipa reduce show", description="Draw what each reduction keeps.")
    parser.add_argument("image", nargs="?", type=Path)
    parser.add_argument("--caption", default=scene.CAPTION)
    parser.add_argument("--recipe", default=DEMO_RECIPE)
    parser.add_argument("--phase", default="")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--out", type=Path, default=Path("reductions.png"))
    options = parser.parse_args(arguments)
    try:
        drawn = show(options.image, options.caption, options.recipe, options.phase, options.changes, options.out)
    except ClipaError as error:
        return told(error)
    say(f"{options.out}: {drawn.width} x {drawn.height} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main())

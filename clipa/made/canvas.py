"""A page to draw on, in points of which two pixels make one: text, patches of an image, words as chips."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour: TypeAlias = tuple[int, int, int]

SCALE = 2
TALLEST = 4000
PAPER, INK, MUTED, RULE = (255, 255, 255), (30, 34, 44), (104, 110, 124), (226, 229, 235)
_FADED = 0.86
"""How far a patch that is dropped goes towards the paper."""
_CHIP, _LINES = 30, 4
"""Height of a word in points, and lines of words before the rest is only counted."""
_LATIN = 0x250
"""First character that the font in Pillow lacks."""


class Chip(NamedTuple):
    """A word in a box: full where tokens of it are kept, faint where none is; a dot for each token of several."""

    text: str
    colour: Colour
    tokens: int
    kept: int


@cache
def _font(size: int, wide: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if wide:
        try:
            return ImageFont.truetype("DejaVuSans.ttf", size * SCALE)
        except OSError:
            pass  # not installed: boxes for what the font lacks
    return ImageFont.load_default(size * SCALE)


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return _font(size, any(ord(letter) >= _LATIN for letter in text))


def _mixed(colour: Colour, share: float) -> Colour:
    """The colour, with a share of paper in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, PAPER, strict=True))
    return red, green, blue


class Canvas:
    """A page of a width in points; its height is set in the end."""

    def __init__(self, width: int) -> None:
        self._page = Image.new("RGB", (width * SCALE, TALLEST * SCALE), PAPER)
        self._pen = ImageDraw.Draw(self._page)

    def image(self, height: float) -> Image.Image:
        """What was drawn, down to a height."""
        return self._page.crop((0, 0, self._page.width, round(min(height, TALLEST) * SCALE)))

    def text(self, x: float, y: float, text: str, size: int, colour: Colour = INK) -> None:
        """Text with its upper left corner at a place."""
        self._pen.text((x * SCALE, y * SCALE), text, fill=colour, font=_font_for(text, size))

    def line(self, y: float) -> None:
        """A thin rule over the page."""
        self._pen.line((44 * SCALE, y * SCALE, self._page.width - 44 * SCALE, y * SCALE), fill=RULE, width=SCALE)

    def patches(self, x: float, y: float, side: float, pixels: NDArray[np.uint8], kept: NDArray[np.bool_]) -> None:
        """An image [s, s, 3] in a square, its patches apart; those that `kept` [g, g] lacks are faint."""
        wide, grid = round(side * SCALE), len(kept)
        # Pixels of a small image stay visible, those of a large one are smoothed.
        how = Image.Resampling.NEAREST if pixels.shape[0] < wide / 2 else Image.Resampling.LANCZOS
        shown = np.asarray(Image.fromarray(pixels).resize((wide, wide), how)).astype(np.float32)
        place = np.arange(wide) * grid // wide
        grey = shown.mean(axis=2, keepdims=True)
        faint = grey + (255 - grey) * _FADED
        edge = np.diff(place, prepend=-1) > 0
        edge[0] = False
        shown = np.where(kept[place][:, place][:, :, None], shown, faint)
        seam = np.roll(edge, -1) | edge
        shown[seam] = 255
        shown[:, seam] = 255
        self._page.paste(Image.fromarray(shown.round().astype(np.uint8)), (round(x * SCALE), round(y * SCALE)))

    def chips(self, left: float, y: float, right: float, chips: list[Chip]) -> float:
        """Words one after another, in lines between two edges. Returns where the next thing may stand."""
        x, lines = left, 1
        for place, chip in enumerate(chips):
            width = self._pen.textlength(chip.text[:40], _font_for(chip.text, 16)) / SCALE + 20
            if x + width > right:
                x, y, lines = left, y + _CHIP + 12, lines + 1
            if lines > _LINES:
                self.text(left, y, f"and {len(chips) - place} more", 15, MUTED)
                return y + _CHIP
            self._chip(x, y, width, chip)
            x += width + 7
        return y + _CHIP + 10

    def _chip(self, x: float, y: float, width: float, chip: Chip) -> None:
        box = [value * SCALE for value in (x, y, x + width, y + _CHIP)]
        fill = _mixed(chip.colour, 0.0 if chip.kept else 0.93)
        self._pen.rounded_rectangle(box, radius=8 * SCALE, fill=fill)
        ink = PAPER if chip.kept else _mixed(chip.colour, 0.55)
        self.text(x + 10, y + 5, chip.text[:40], 16, ink)
        if chip.tokens > 1:
            for number in range(min(chip.tokens, 12)):
                spot = x + width / 2 + (number - (min(chip.tokens, 12) - 1) / 2) * 8
                full = number < chip.kept
                dot = [value * SCALE for value in (spot - 2, y + _CHIP + 3, spot + 2, y + _CHIP + 7)]
                self._pen.ellipse(dot, fill=chip.colour if full else _mixed(chip.colour, 0.75))

    def legend(self, x: float, y: float, text: str, colour: Colour) -> float:
        """A colour and its meaning. Returns where the next one may stand."""
        box = [value * SCALE for value in (x, y + 2, x + 14, y + 16)]
        self._pen.rounded_rectangle(box, radius=4 * SCALE, fill=colour)
        self.text(x + 20, y, text, 14, MUTED)
        return x + 20 + self._pen.textlength(text, _font_for(text, 14)) / SCALE + 22

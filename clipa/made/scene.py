"""A drawn scene, so that there is an image to look at before there is any data: an orange cat on a ledge at dusk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

CAPTION = "An orange cat that is sitting on a ledge in the warm evening sun"

_SIDE, _FINE = 448, 3
_SKY = ((38, 52, 110), (150, 90, 140), (250, 170, 110))
_FUR, _SHADE, _LIGHT, _DARK = (232, 132, 46), (196, 98, 28), (250, 206, 150), (52, 32, 24)


def draw() -> Image.Image:
    """The scene, 448 x 448 pixels. Drawn three times as large and made smaller, for smooth edges."""
    side = _SIDE * _FINE
    image = _sky(side)
    pen = ImageDraw.Draw(image)

    def at(*xy: float) -> list[float]:
        return [value * side / 100 for value in xy]

    pen.ellipse(at(62, 30, 84, 52), fill=(255, 224, 150))
    for left, top, right, colour in ((0, 48, 16, 58), (13, 56, 30, 48), (70, 54, 88, 52), (84, 44, 101, 62)):
        pen.rectangle(at(left, top, right, 80), fill=(colour, colour - 8, colour + 34))
        for x in range(left + 3, right - 3, 5):
            for y in range(top + 4, 74, 7):
                lit = (x * 7 + y * 3) % 5 < 2
                pen.rectangle(at(x, y, x + 2, y + 3.4), fill=(252, 214, 120) if lit else (colour + 14, 60, 110))
    pen.rectangle(at(0, 77, 100, 100), fill=(120, 84, 74))
    pen.rectangle(at(0, 77, 100, 81), fill=(176, 128, 104))
    for x in range(-5, 100, 20):
        pen.line(at(x, 81, x, 90), fill=(96, 66, 60), width=_FINE * 2)
        pen.line(at(x + 10, 90, x + 10, 100), fill=(96, 66, 60), width=_FINE * 2)
    pen.line(at(0, 90, 100, 90), fill=(96, 66, 60), width=_FINE * 2)
    _cat(pen, at)
    return image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _sky(side: int) -> Image.Image:
    rows = np.linspace(0, len(_SKY) - 1, side)
    bands = np.array(_SKY, dtype=np.float64)
    column = np.stack([np.interp(rows, range(len(_SKY)), bands[:, channel]) for channel in range(3)], axis=1)
    return Image.fromarray(np.broadcast_to(column[:, None], (side, side, 3)).round().astype(np.uint8))


def _cat(pen: ImageDraw.ImageDraw, at: Callable[..., list[float]]) -> None:
    pen.arc(at(46, 66, 82, 98), 300, 110, fill=_SHADE, width=_FINE * 26)  # tail
    pen.ellipse(at(28, 44, 62, 84), fill=_FUR)  # body
    pen.ellipse(at(48, 60, 68, 82), fill=_FUR)  # haunch
    pen.ellipse(at(35, 56, 50, 82), fill=_LIGHT)
    for left in (32.0, 43.0):
        pen.rounded_rectangle(at(left, 62, left + 8, 81), radius=at(3.5)[0], fill=_FUR)
        pen.ellipse(at(left - 1, 77, left + 9, 82), fill=_LIGHT)
    for top in (52, 57, 62):
        pen.arc(at(46, top, 66, top + 14), 285, 350, fill=_SHADE, width=_FINE * 7)  # stripes
    pen.polygon(at(26, 36, 25, 18, 39, 28), fill=_FUR)
    pen.polygon(at(57, 36, 58, 18, 44, 28), fill=_FUR)
    pen.polygon(at(28.5, 33, 28, 22.5, 36, 29), fill=(226, 150, 140))
    pen.polygon(at(54.5, 33, 55, 22.5, 47, 29), fill=(226, 150, 140))
    pen.ellipse(at(24, 25, 59, 54), fill=_FUR)  # head
    for left in (36.0, 40.5, 45.0):
        pen.line(at(left, 26.5, left + 0.5, 32), fill=_SHADE, width=_FINE * 7)
    pen.ellipse(at(33, 41, 50, 53), fill=_LIGHT)
    for left in (30.5, 45.5):
        pen.ellipse(at(left, 34.5, left + 7, 42.5), fill=(220, 226, 120))
        pen.ellipse(at(left + 2.4, 35, left + 5, 42), fill=_DARK)
        pen.ellipse(at(left + 2.6, 36, left + 3.9, 37.6), fill=(255, 255, 255))
    pen.polygon(at(39.5, 43, 43.5, 43, 41.5, 45.3), fill=(206, 104, 104))
    pen.arc(at(37, 43.5, 41.5, 48), 20, 150, fill=_DARK, width=_FINE * 3)
    pen.arc(at(41.5, 43.5, 46, 48), 30, 160, fill=_DARK, width=_FINE * 3)
    for y, tilt in ((44, -2), (46, 0), (48, 2)):
        pen.line(at(23, y + tilt, 35, 46), fill=(255, 238, 214), width=_FINE)
        pen.line(at(48, 46, 60, y + tilt), fill=(255, 238, 214), width=_FINE)

"""Random crops, and the scale at which a JPEG is decoded for one: pure geometry.

A crop's edges are snapped to multiples of the denominator, or the scaled image would be shifted against the unscaled
one (31 dB instead of 42).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from clipa.reduction.draws import Draws
from clipa.spec.family import Augment
from clipa.spec.inputs import ImageInput

_TRIES = 10
_TRIES_OF_TENSORFLOW = 100


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Cut:
    """How an image becomes a square: decode at 1/`denominator`, cut `box` (in pixels of the full image), resize."""

    box: Box
    denominator: int


def random_box(height: int, width: int, image: ImageInput, draws: Draws) -> Box:
    """Draw the random crop of an image of height x width by the rules that `image.augment` names."""
    return _CROPS[image.augment](height, width, image, draws)


def _as_torchvision(height: int, width: int, image: ImageInput, draws: Draws) -> Box:
    """`RandomResizedCrop.get_params`: area uniform, aspect ratio uniform in its logarithm."""
    low, high = math.log(image.crop_ratio[0]), math.log(image.crop_ratio[1])
    for _ in range(_TRIES):
        area = height * width * draws.uniform(*image.crop_area)
        ratio = math.exp(draws.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(draws.integer(height - h + 1), draws.integer(width - w + 1), h, w)
    return _central(height, width, image.crop_ratio)


def _as_tensorflow(height: int, width: int, image: ImageInput, draws: Draws) -> Box:
    """`sample_distorted_bounding_box`: aspect ratio uniform, then the height among those that it leaves possible.

    An offset is never the last possible one; where no try succeeds the whole image is taken.
    """
    for _ in range(_TRIES_OF_TENSORFLOW):
        h, w = _size_as_tensorflow(height, width, image.crop_area, draws.uniform(*image.crop_ratio), draws)
        if 0 < w <= width and 0 < h <= height:
            top, left = draws.integer(max(1, height - h)), draws.integer(max(1, width - w))
            return Box(top, left, h, w)
    return Box(0, 0, height, width)


def _size_as_tensorflow(
    height: int, width: int, shares: tuple[float, float], ratio: float, draws: Draws
) -> tuple[int, int]:
    """Height and width of a crop of this aspect ratio; (0, 0) if rounding leaves none of an allowed area."""
    low, high = (share * height * width for share in shares)
    tallest = round(math.sqrt(high / ratio))
    if round(tallest * ratio) > width:
        tallest = int((width + 0.5) / ratio)
        tallest -= round(tallest * ratio) > width
    tallest = min(tallest, height)
    shortest = min(round(math.sqrt(low / ratio)), tallest)
    h = shortest + draws.integer(tallest - shortest + 1)
    h += round(h * ratio) * h < low
    h -= round(h * ratio) * h > high
    w = round(h * ratio)
    return (h, w) if low <= h * w <= high else (0, 0)


_CROPS: dict[Augment, Callable[[int, int, ImageInput, Draws], Box]] = {
    "torchvision": _as_torchvision,
    "tensorflow": _as_tensorflow,
}


def _central(height: int, width: int, ratio: tuple[float, float]) -> Box:
    found = width / height
    if found < ratio[0]:
        w, h = width, min(height, max(1, round(width / ratio[0])))
    elif found > ratio[1]:
        w, h = min(width, max(1, round(height * ratio[1]))), height
    else:
        w, h = width, height
    return Box((height - h) // 2, (width - w) // 2, h, w)


def scaled_cut(box: Box, height: int, width: int, size: int) -> Cut:
    """The largest denominator that leaves the box >= `size` pixels a side, and the box snapped to it.

    Edges move by at most half a denominator (at the image's last, incomplete block by less than one): half a pixel
    of the result. `height` and `width` are the image's.
    """
    for d in (8, 4, 2):
        top, left = round(box.top / d), round(box.left / d)
        rows = min(round((box.top + box.height) / d), height // d) - top
        columns = min(round((box.left + box.width) / d), width // d) - left
        if rows >= size and columns >= size:
            return Cut(Box(top * d, left * d, rows * d, columns * d), d)
    return Cut(box, 1)

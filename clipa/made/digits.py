"""The demo's digits: scikit-learn's 1,797 handwritten digits, real image-text pairs that need no download.

UCI Optical Recognition of Handwritten Digits, 8x8 pixels of 16 levels, split by scan. The one door to scikit-learn.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipa.data.order import permutation
from clipa.errors import MissingPart
from clipa.made.captions import TEMPLATES, WORDS, caption
from clipa.made.splits import Made, Maker, Sample
from clipa.reduction.draws import Draws, Purpose

VERSION = 1
"""Raise it when a byte of the output changes: then older buckets are written again."""

_SEED = 20_230_511
_SIZE = 64
_QUALITY = 90
_HELD_OUT = {"test": 360, "val": 200}
_CAPTIONS = {"train": 4, "val": 1, "test": 1}


def split_scans(digits: NDArray[np.int64]) -> dict[str, list[int]]:
    """Numbers of the scans of train, val and test: disjoint, each with every class in proportion, always the same."""
    shares: dict[str, list[int]] = {name: [] for name in _HELD_OUT}
    rest: list[int] = []
    by_class = [np.flatnonzero(digits == digit) for digit in range(10)]
    order = [scans[permutation(len(scans), _SEED, Purpose.SPLIT, epoch=d)].tolist() for d, scans in enumerate(by_class)]
    for name, count in _HELD_OUT.items():
        for scans, share in zip(order, _proportional([len(s) for s in by_class], count), strict=True):
            shares[name] += scans[:share]
            del scans[:share]
    for scans in order:
        rest += scans
    return {"train": sorted(rest), **{name: sorted(scans) for name, scans in shares.items()}}


def _proportional(sizes: list[int], total: int) -> list[int]:
    """`total` divided in proportion to sizes, by largest remainder."""
    exact = [size * total / sum(sizes) for size in sizes]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (shares[i] - exact[i], i))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


def render(scan: NDArray[np.float64]) -> Image.Image:
    """An 8x8 scan of levels 0..16, with a dark margin of one pixel, enlarged smoothly to 64x64 pixels, RGB.

    Strokes reach the scan's edge: without the margin half of the random crops would cut them.
    """
    levels = np.pad(scan * (255 / 16), 1).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC).convert("RGB")


def _jpeg(scan: NDArray[np.float64]) -> bytes:
    buffer = BytesIO()
    render(scan).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPart("scikit-learn is not installed here", hint="pip install 'clipa[train]'") from error
    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int64)


def _make() -> Made:
    """The samples of every split.

    Raises:
        MissingPart: scikit-learn is not installed.
    """
    scans, digits = _digits()
    splits = {
        split: [_sample(split, number, turn, scans, digits) for number in numbers for turn in range(_CAPTIONS[split])]
        for split, numbers in split_scans(digits).items()
    }
    return Made(splits=splits, classes=WORDS, templates=TEMPLATES)


def _sample(split: str, number: int, turn: int, scans: NDArray[np.float64], digits: NDArray[np.int64]) -> Sample:
    digit = int(digits[number])
    text = caption(digit, Draws(_SEED, number * 100 + turn, Purpose.CAPTION))
    members = {"jpg": _jpeg(scans[number]), "txt": text.encode(), "cls": str(digit).encode()}
    return f"{number:04d}_{turn}", members


MAKER = Maker(version=VERSION, source=lambda: "", captions=_CAPTIONS, make=_make)

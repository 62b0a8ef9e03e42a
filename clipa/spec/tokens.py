"""The one place that knows how many image tokens enter a tower, and for which numbers a reduction has a solution."""

from __future__ import annotations

import math

import msgspec

from clipa.spec.inputs import ImageInput

SHOWN = 4
"""Valid values that an error names."""


def kept_tokens(image: ImageInput, patch: int) -> int:
    """Patch tokens that enter the image tower; the class token is not counted. The input must be settled."""
    return image.tokens or (image.size // patch) ** 2


def settled(image: ImageInput, patch: int) -> ImageInput:
    """The input with both `size` and `tokens`.

    Raises:
        ValueError: the patch does not divide the size, or the reduction cannot keep that many tokens; the message
            names the nearest values that are possible.
    """
    size = image.size or math.isqrt(image.tokens) * patch
    if size % patch or not size:
        nearest = max(patch, round(size / patch) * patch)
        raise ValueError(f"image size {size} is not divisible by model.image.patch {patch} (nearest: {nearest})")
    grid = size // patch
    tokens = image.tokens or grid * grid
    valid = _valid(image, grid, tokens)
    if tokens not in valid:
        near = sorted(sorted(valid, key=lambda n: (abs(n - tokens), n))[:SHOWN])
        of = f"of {grid * grid} patches ({size} px / {patch})" if image.size else f"with patch {patch}"
        raise ValueError(
            f"{image.reduction} cannot keep {tokens} tokens {of} (nearest: {', '.join(str(n) for n in near)})"
        )
    return msgspec.structs.replace(image, size=size, tokens=tokens)


def _valid(image: ImageInput, grid: int, tokens: int) -> set[int]:
    """The numbers of tokens that the reduction can keep of grid x grid patches."""
    match image.reduction:
        case "resize":
            if image.size:
                return {grid * grid}
            return {n * n for n in range(1, math.isqrt(tokens) + 4)}
        case "random":
            return set(range(1, grid * grid + 1))
        case "block":
            return {n * n for n in range(1, grid + 1)}
        case "grid":
            return {window_of(grid, n).kept for n in range(1, grid * grid + 1) if window_of(grid, n).kept == n}


class Window(msgspec.Struct, frozen=True):
    """Of each `side` x `side` window of patches, `per_window` are kept: `kept` in all; 0 when there is no solution."""

    side: int
    per_window: int
    kept: int


def window_of(grid: int, tokens: int) -> Window:
    """The smallest window that keeps exactly `tokens` of grid x grid patches.

    It has 2 x 2 patches or more, and at most half of the grid's side, so that the pattern repeats.
    """
    for side in range(2, max(2, grid // 2) + 1):
        if grid % side == 0 and tokens % (grid // side) ** 2 == 0:
            per_window = tokens // (grid // side) ** 2
            if 1 <= per_window <= side * side:
                return Window(side, per_window, tokens)
    return Window(1, 1, grid * grid) if tokens == grid * grid else Window(0, 0, 0)

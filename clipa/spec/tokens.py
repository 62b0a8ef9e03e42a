"""The one place that knows how many image tokens enter a tower, and for which numbers a reduction has a solution."""

from __future__ import annotations

import math

import msgspec

from clipa.spec.inputs import ImageInput, ImageReduction

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
        raise ValueError(f"image.size must be a multiple of model.image.patch {patch} (nearest: {nearest}), got {size}")
    grid = size // patch
    tokens = image.tokens or grid * grid
    # A resized image without a size can have any grid, one with a size only its own.
    near = nearest_tokens(image.reduction, grid, tokens)
    cure = ""
    if image.reduction == "resize" and image.size:
        cure = f"; {tokens} tokens are {math.isqrt(tokens) * patch} px" if tokens in near else ""
        near = [grid * grid]
    if tokens not in near:
        of = f"of {grid * grid} patches ({size} px / {patch})" if image.size else f"with patch {patch}"
        numbers = ", ".join(str(n) for n in sorted(near))
        raise ValueError(f"{image.reduction} cannot keep {tokens} tokens {of} (nearest: {numbers}{cure})")
    return msgspec.structs.replace(image, size=size, tokens=tokens)


def nearest_tokens(reduction: ImageReduction, grid: int, tokens: int) -> list[int]:
    """Numbers of tokens that a reduction can keep of grid x grid patches, at most `SHOWN`, the nearest first.

    For `resize`, which makes the grid, those of any grid.
    """
    return sorted(_possible(reduction, grid, tokens), key=lambda n: (abs(n - tokens), n))[:SHOWN]


def _possible(reduction: ImageReduction, grid: int, tokens: int) -> set[int]:
    match reduction:
        case "resize":
            return {n * n for n in range(1, math.isqrt(tokens) + 4)}
        case "random":
            return set(range(1, grid * grid + 1))
        case "block":
            return {n * n for n in range(1, grid + 1)}
        case "grid":
            windows = ((grid // side) ** 2 for side in _sides(grid))
            return {whole * n for whole in windows for n in range(1, grid * grid // whole + 1)} | {grid * grid}


def _sides(grid: int) -> list[int]:
    """Sides of the windows that cover a grid: at most half of its side, so that the pattern repeats."""
    return [side for side in range(2, max(2, grid // 2) + 1) if grid % side == 0]


class Window(msgspec.Struct, frozen=True):
    """Of each `side` x `side` window of patches, `per_window` are kept: `kept` in all; 0 when there is no solution."""

    side: int
    per_window: int
    kept: int


def window_of(grid: int, tokens: int) -> Window:
    """The smallest window, of 2 x 2 patches or more, that keeps exactly `tokens` of grid x grid patches."""
    for side in _sides(grid):
        per_window, rest = divmod(tokens, (grid // side) ** 2)
        if not rest and 1 <= per_window <= side * side:
            return Window(side, per_window, tokens)
    return Window(1, 1, grid * grid) if tokens == grid * grid else Window(0, 0, 0)

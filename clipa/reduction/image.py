"""Image reductions: which patches of an image enter the tower.

`resize`  a smaller image, all of its patches.
`random`  any patches, drawn for each sample (FLIP's masking, arXiv 2212.00794).
`grid`    the same places of every window of patches; where the pattern lies is drawn for each sample.
`block`   one contiguous square; where it lies is drawn for each sample.

Patches are numbered row by row. What is kept is a pure function of (seed, position, reduction, grid, tokens). It is
computed on the device without reading anything back, compiles without graph breaks, and applies in training only: an
evaluated image keeps all of its patches.
"""

from __future__ import annotations

import math

import torch

from clipa.reduction.draws import Purpose, TensorDraws
from clipa.spec.inputs import ImageInput
from clipa.spec.tokens import window_of


def decoded_size(image: ImageInput) -> int:
    """Side in pixels at which the decoder must deliver an image, so that the reduction can do its work.

    `resize` delivers the reduced image itself; the others choose among the patches of the whole one. The tokens that
    follow are `clipa.spec.tokens.kept_tokens`.
    """
    return image.size


class PatchSelection:
    """Chooses the patches of training images. Made once for a device, called with every batch.

    Args:
        image: a settled input (`clipa.spec.tokens.settled`).
        patch: pixels a side of a patch; it divides `image.size`.
        seed: of the run.
        device: of the positions and the result.
    """

    def __init__(self, image: ImageInput, patch: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.grid = image.size // patch
        self.tokens = image.tokens or self.grid**2
        whole = self.tokens == self.grid**2
        rules = {"random": self._random, "grid": self._of_windows, "block": self._block}
        self._keep = None if whole else rules.get(image.reduction)
        patches = torch.arange(self.grid**2, device=device).view(self.grid, self.grid)
        self._draws = TensorDraws(
            seed, Purpose.KEPT_PATCHES, self.grid**2 if image.reduction == "random" else 2, device
        )
        if image.reduction == "random":
            self._patches = patches.flatten()
        if image.reduction == "grid":
            window = window_of(self.grid, self.tokens)
            self._side = window.side
            self._places = torch.tensor(spread(window.side)[: window.per_window], device=device)
            self._patches = patches[:: window.side, :: window.side].flatten()
        if image.reduction == "block":
            side = math.isqrt(self.tokens)
            self._patches = patches[:side, :side].flatten()

    def __call__(self, positions: torch.Tensor) -> torch.Tensor | None:
        """Kept patches of the samples at `positions` int64 [b]: int64 [b, tokens], ascending; None keeps all.

        The class token is no patch: the tower keeps it always.
        """
        return None if self._keep is None else self._keep(positions)

    def _random(self, positions: torch.Tensor) -> torch.Tensor:
        low = (1 << (self.grid**2).bit_length()) - 1
        # A random key for every patch, its number in the lowest bits: no two keys are equal, so that every device
        # and every way of sorting chooses the same ones.
        keys = (self._draws.bits(positions) & ~low) | self._patches
        return (keys.sort(dim=1).values[:, : self.tokens] & low).sort(dim=1).values

    def _of_windows(self, positions: torch.Tensor) -> torch.Tensor:
        shifts = self._draws.integer(positions, self._side)
        places = (self._places + shifts[:, None, :]) % self._side
        inside = places[:, :, 0] * self.grid + places[:, :, 1]
        return (self._patches[:, None] + inside[:, None, :]).flatten(1).sort(dim=1).values

    def _block(self, positions: torch.Tensor) -> torch.Tensor:
        corners = self._draws.integer(positions, self.grid - math.isqrt(self.tokens) + 1)
        return self._patches + (corners[:, :1] * self.grid + corners[:, 1:])


def spread(side: int) -> list[tuple[int, int]]:
    """The places (row, column) of a window in an order in which the first n are far from each other, for every n.

    Each next place is the one farthest from those before it, on the torus that equal windows side by side make:
    of a 2 x 2 window first a corner, then the opposite one.
    """
    axis = torch.arange(side)
    around = torch.minimum(axis, side - axis) ** 2
    number = axis[:, None] * side + axis[None, :]
    nearest = torch.full((side, side), 2 * side * side)
    chosen: list[tuple[int, int]] = []
    while len(chosen) < side * side:
        row, column = divmod(int((nearest * side * side - number).argmax()), side)  # of equals the first
        chosen.append((row, column))
        nearest = torch.minimum(nearest, around.roll(row)[:, None] + around.roll(column)[None, :])
        nearest[row, column] = -1
    return chosen


def gather_patches(images: torch.Tensor, kept: torch.Tensor, patch: int) -> torch.Tensor:
    """The pixels of kept patches alone, [b, k, 3 * patch * patch], of images [b, 3, size, size] and kept [b, k].

    Flattened as a convolution's weight is (channel, row, column), so that `linear` with that weight projects them.
    """
    b, channels, size, _ = images.shape
    grid = size // patch
    tiles = images.view(b, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    rows = torch.arange(b, device=images.device)[:, None]
    return tiles[rows, kept // grid, kept % grid].flatten(2)

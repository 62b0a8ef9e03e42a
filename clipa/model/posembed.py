"""Position embeddings: the fixed 2-D sin-cos table, and resizing between grids and lengths."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn import functional


def sincos2d(grid: int, width: int, frequencies: Literal["mae", "moco"] = "mae") -> torch.Tensor:
    """Fixed 2-D sin-cos positions, float32 [1 + grid^2, width]; the class token's row is zero.

    Frequencies are 10000^(-i / n) for i = 0..width/4-1, with n = width/4 (`mae`: arXiv 2111.06377, CLIPA's torch code)
    or n = width/4 - 1 (`moco`: arXiv 2104.02057, big_vision, CLIPA's JAX code).
    """
    count = width // 4
    last = count if frequencies == "mae" else max(1, count - 1)
    omega = 1.0 / 10_000 ** (torch.arange(count, dtype=torch.float64) / last)
    places = torch.arange(grid, dtype=torch.float64)
    row, column = torch.meshgrid(places, places, indexing="ij")
    # The first half of the width speaks of the column, the second of the row.
    parts = [torch.outer(axis.flatten(), omega) for axis in (column, row)]
    table = torch.cat([torch.cat([part.sin(), part.cos()], dim=1) for part in parts], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table]).float()


def grid_of(table: torch.Tensor) -> int:
    """Patches a side, of positions [1 + grid^2, width]."""
    return math.isqrt(table.shape[0] - 1)


def resize_image(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Positions [1 + g^2, width] for another grid, [1 + grid^2, width]: antialiased bicubic; the class row stays."""
    old = grid_of(table)
    if old == grid:
        return table
    cls, patches = table[:1], table[1:]
    square = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    square = functional.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([cls, square.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(table.dtype)])


def resize_text(table: torch.Tensor, tokens: int, rule: Literal["linear", "antialias"] = "linear") -> torch.Tensor:
    """Positions [t, width] for another length, [tokens, width].

    `linear` interpolates between neighbours (torch); `antialias` widens the triangle when the length shrinks
    (jax.image.resize, method bilinear). The two are equal when it grows.
    """
    if table.shape[0] == tokens:
        return table
    row = table.float().T[None]
    if rule == "linear":
        row = functional.interpolate(row, size=tokens, mode="linear", align_corners=False)
    else:  # torch has antialiasing for images alone: one of height 1 is a row
        row = functional.interpolate(row[:, :, None], size=(1, tokens), mode="bilinear", antialias=True)[:, :, 0]
    return row[0].T.to(table.dtype)

"""Position embeddings: the fixed 2-D sin-cos table, and resizing between grids and lengths."""

from __future__ import annotations

import torch
from torch.nn import functional


def sincos2d(grid: int, width: int) -> torch.Tensor:
    """Fixed 2-D sin-cos positions, float32 [1 + grid^2, width]; the class token's row is zero.

    Frequencies are 10000^(-i / (width / 4)), as in MAE (arXiv 2111.06377) and CLIPA's torch code.
    """
    omega = 1.0 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    places = torch.arange(grid, dtype=torch.float64)
    row, column = torch.meshgrid(places, places, indexing="ij")
    # The first half of the width speaks of the column, the second of the row.
    parts = [torch.outer(axis.flatten(), omega) for axis in (column, row)]
    table = torch.cat([torch.cat([part.sin(), part.cos()], dim=1) for part in parts], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table]).float()


def resize_image(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Positions [1 + g^2, width] for another grid, [1 + grid^2, width]: antialiased bicubic; the class row stays."""
    old = round((table.shape[0] - 1) ** 0.5)
    if old == grid:
        return table
    cls, patches = table[:1], table[1:]
    square = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    square = functional.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([cls, square.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(table.dtype)])


def resize_text(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """Positions [t, width] for another length, [tokens, width]: linear interpolation."""
    if table.shape[0] == tokens:
        return table
    row = table.float().T[None]
    row = functional.interpolate(row, size=tokens, mode="linear", align_corners=False)
    return row[0].T.to(table.dtype)

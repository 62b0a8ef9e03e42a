"""The contrastive loss over the global batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

ROWS_AT_ONCE = 1024
"""Rows whose similarities are in memory at once: 1,024 x 65,536 columns in fp32 are 268 MB."""


class _Gather(torch.autograd.Function):
    """All ranks' rows, in the order of ranks. The gradient of a row is the sum of what every rank says about it.

    torch has two ways of its own; both are deprecated in 2.13.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.count = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        if grads[0].is_cuda:
            own = grads[0].new_empty((ctx.count, *grads[0].shape[1:]))
            dist.reduce_scatter_tensor(own, grads[0].contiguous())
            return own
        total = grads[0].clone(memory_format=torch.contiguous_format)  # gloo of torch 2.6 has no reduce-scatter
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.count
        return total[first : first + ctx.count]


def gather(rows: torch.Tensor) -> torch.Tensor:
    """[b, d] of every rank as [world * b, d], with gradient; the rows themselves on one process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered: torch.Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric softmax cross-entropy of this rank's rows against all ranks' columns, as a mean over the rows.

    The mean of all ranks' losses is the loss of the global batch; with DDP's mean so are the gradients.
    Memory: [ROWS_AT_ONCE, world * b] similarities; those of more rows are computed again in the backward pass,
    less than 1 % of a step's FLOPs at a global batch of 32,768.

    Args:
        image: normalised features [b, d].
        text: normalised features [b, d], row i belonging to image i.
        scale: factor of the cosine similarities, shape (1,).
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    labels = torch.arange(image.shape[0], device=image.device) + rank * image.shape[0]
    by_image = _cross_entropy(image, gather(text), scale, labels)
    by_text = _cross_entropy(text, gather(image), scale, labels)
    return (by_image + by_text) / (2 * image.shape[0])


def _cross_entropy(
    rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    if len(rows) <= ROWS_AT_ONCE:
        return _part(rows, columns, scale, labels)
    parts = zip(torch.split(rows, ROWS_AT_ONCE), torch.split(labels, ROWS_AT_ONCE), strict=True)
    sums = [checkpoint(_part, part, columns, scale, wanted, use_reentrant=False) for part, wanted in parts]
    return torch.stack(sums).sum()


def _part(rows: torch.Tensor, columns: torch.Tensor, scale: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(scale * rows @ columns.T, labels, reduction="sum")

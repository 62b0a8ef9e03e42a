"""The contrastive loss over the global batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional


class _Gather(torch.autograd.Function):
    """All ranks' rows, in the order of ranks. The gradient of a row is the sum of what every rank says about it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.count = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        total = grads[0].contiguous()
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
    Memory: two [b, world * b] matrices, never [world * b, world * b].

    Args:
        image: normalised features [b, d].
        text: normalised features [b, d], row i belonging to image i.
        scale: factor of the cosine similarities, shape (1,).
    """
    all_image, all_text = gather(image), gather(text)
    rank = dist.get_rank() if dist.is_initialized() else 0
    labels = torch.arange(image.shape[0], device=image.device) + rank * image.shape[0]
    by_image = functional.cross_entropy(scale * image @ all_text.T, labels)
    by_text = functional.cross_entropy(scale * text @ all_image.T, labels)
    return (by_image + by_text) / 2

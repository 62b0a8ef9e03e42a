"""How large the gradients of a step are, for each tower and for all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor


class Norms(NamedTuple):
    """2-norms of gradients, on the device: of the image tower, of the text tower, of the whole model."""

    image: torch.Tensor
    text: torch.Tensor
    all: torch.Tensor


def norms(model: nn.Module) -> Norms:
    """The norms of a `Clip`'s gradients. Where they are sharded this is a collective, which every rank must enter."""
    of: dict[str, list[torch.Tensor]] = {"image": [], "text": [], "": []}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            of.get(name.partition(".")[0], of[""]).append(parameter.grad)
    device = next(model.parameters()).device
    image, text, rest = (_norm(grads, device) for grads in of.values())
    return Norms(image, text, torch.stack([image, text, rest]).norm())


def _norm(grads: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    if not grads:
        return torch.zeros((), device=device)  # torch's own is on the CPU
    norm = torch.nn.utils.get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm

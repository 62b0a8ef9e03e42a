"""AdamW with the published decay mask, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from clipa.spec.job import Optim

_NEVER_DECAYED = ("bn", "ln", "norm", "bias", "logit_scale", "cls_token")


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies: at least two dimensions and no norm, bias or scale in the name.

    This is open_clip's and CLIPA's torch rule; token and text position embeddings are decayed by it. The class token,
    which has one dimension there and three in timm, is not.
    """
    return parameter.ndim >= 2 and not any(word in name for word in _NEVER_DECAYED)


def make_optimizer(model: nn.Module, settings: Optim, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all trained parameters, in two groups; fused where the device has it."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if is_decayed(name, p)], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained if not is_decayed(name, p)], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=device.type in ("cuda", "cpu")
    )


def lr_at(step: int, steps: int, warmup: int, peak: float) -> float:
    """The learning rate of step 0..steps-1: linear warm-up over `warmup` steps, then cosine to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

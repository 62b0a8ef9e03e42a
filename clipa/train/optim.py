"""AdamW with the published decay masks, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import nn

from clipa.spec.job import Optim

Decay: TypeAlias = Literal["matrices", "kernels"]

_NEVER_DECAYED = ("bn", "ln", "norm", "bias", "logit_scale", "cls_token")


def _is_matrix(_: nn.Module, name: str, parameter: torch.Tensor) -> bool:
    """open_clip's and CLIPA's torch rule: token, image and text position embeddings are decayed too.

    The class token, which has one dimension there and three in timm, is not.
    """
    return parameter.ndim >= 2 and not any(word in name for word in _NEVER_DECAYED)


def _is_kernel(owner: nn.Module, name: str, _: torch.Tensor) -> bool:
    """CLIPA's JAX rule, `.*/kernel`: what flax calls a kernel is the weight of a linear layer or a convolution."""
    return isinstance(owner, nn.Linear | nn.Conv2d) and name.endswith(".weight")


_RULES: dict[Decay, Callable[[nn.Module, str, torch.Tensor], bool]] = {"matrices": _is_matrix, "kernels": _is_kernel}


def decayed(model: nn.Module, rule: Decay) -> dict[str, bool]:
    """Whether weight decay applies, for each parameter of a model by name."""
    return {
        name: _RULES[rule](model.get_submodule(name.rpartition(".")[0]), name, parameter)
        for name, parameter in model.named_parameters()
    }


def make_optimizer(model: nn.Module, settings: Optim, device: torch.device) -> torch.optim.AdamW:
    """AdamW over all trained parameters, in two groups; fused where the device has it."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    is_decayed = decayed(model, settings.decay)
    groups = [
        {"params": [p for name, p in trained if is_decayed[name]], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained if not is_decayed[name]], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=device.type in ("cuda", "cpu")
    )


def lr_at(step: int, steps: int, warmup: int, peak: float, offset: int = 1) -> float:
    """Return the learning rate of step 0..steps-1: linear warm-up over `warmup` steps, then cosine to 0.

    `offset` (Family.warmup_offset): the first step has peak * offset / warmup: 1 in open_clip and CLIPA's torch code;
    0 in its JAX code, which reaches the peak one step later.
    """
    if step < warmup:
        return peak * (step + offset) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

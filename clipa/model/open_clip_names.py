"""Our weights under open_clip's names, and back: every name of a model, in one explicit table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from clipa.spec.model import Model

_IMAGE = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj.weight": "conv1.weight",
    "norm.weight": "ln_post.weight",
    "norm.bias": "ln_post.bias",
    "head.weight": "proj",
}
_TEXT = {
    "token_embedding.weight": "token_embedding.weight",
    "positional_embedding": "positional_embedding",
    "ln_final.weight": "ln_final.weight",
    "ln_final.bias": "ln_final.bias",
    "projection.weight": "text_projection",
}
_IMAGE_BLOCK = {"norm1": "ln_1", "attn.qkv": "attn.in_proj", "attn.proj": "attn.out_proj", "norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}  # fmt: skip
_TEXT_BLOCK = {"ln_1": "ln_1", "qkv": "attn.in_proj", "proj": "attn.out_proj", "ln_2": "ln_2",
               "fc_1": "mlp.c_fc", "fc_2": "mlp.c_proj"}  # fmt: skip


class _Shapes(NamedTuple):
    """How a tensor changes its shape on the way there and back."""

    there: Callable[[torch.Tensor], torch.Tensor]
    back: Callable[[torch.Tensor], torch.Tensor]


_TURNED = _Shapes(lambda t: t.T, lambda t: t.T)
_SHAPES = {
    "image.trunk.cls_token": _Shapes(lambda t: t[0, 0], lambda t: t[None, None]),
    "image.trunk.pos_embed": _Shapes(lambda t: t[0], lambda t: t[None]),
    "image.trunk.head.weight": _TURNED,
    "text.projection.weight": _TURNED,
    "logit_scale": _Shapes(lambda t: t.reshape(()), lambda t: t.reshape(1)),
    "logit_bias": _Shapes(lambda t: t.reshape(()), lambda t: t.reshape(1)),
}


def names(model: Model) -> dict[str, str]:
    """Our name -> open_clip's, for every weight of a model (class CLIP there), without the logit bias."""
    found = {f"image.trunk.{mine}": f"visual.{theirs}" for mine, theirs in _IMAGE.items()}
    if model.traits.norm_pre:
        found |= {f"image.trunk.norm_pre.{part}": f"visual.ln_pre.{part}" for part in ("weight", "bias")}
    found |= {f"text.{mine}": theirs for mine, theirs in _TEXT.items()}
    towers = (
        (model.image.layers, _IMAGE_BLOCK, "image.trunk.blocks", "visual.transformer.resblocks"),
        (model.text.layers, _TEXT_BLOCK, "text.blocks", "transformer.resblocks"),
    )
    for layers, block, here, there in towers:
        for number in range(layers):
            for mine, theirs in block.items():
                for part in ("weight", "bias"):
                    joint = "_" if theirs == "attn.in_proj" else "."
                    found[f"{here}.{number}.{mine}.{part}"] = f"{there}.{number}.{theirs}{joint}{part}"
    return found | {"logit_scale": "logit_scale"}


def to_open_clip(model: Model, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights as the state of open_clip's CLIP.

    Raises:
        KeyError: a weight is missing.
    """
    table = names(model) | ({"logit_bias": "logit_bias"} if "logit_bias" in weights else {})
    return {
        theirs: (_SHAPES[mine].there(weights[mine]) if mine in _SHAPES else weights[mine]).contiguous()
        for mine, theirs in table.items()
    }


def from_open_clip(model: Model, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of open_clip's CLIP as our weights.

    Raises:
        KeyError: a weight is missing.
    """
    table = names(model) | ({"logit_bias": "logit_bias"} if "logit_bias" in state else {})
    return {
        mine: (_SHAPES[mine].back(state[theirs]) if mine in _SHAPES else state[theirs]).contiguous()
        for mine, theirs in table.items()
    }

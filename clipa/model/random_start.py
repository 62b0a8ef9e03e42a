"""Random weights of both towers, drawn as the code that a family follows draws them.

`open_clip`  OpenCLIP and CLIPA's torch code: torch's own defaults in the image tower, normal weights in the text tower.
`jax`        CLIPA's JAX code (master): xavier-uniform image blocks, a normal text tower, zero biases and class token.
`jax-t5x`    its branch t5x, which trained bigG/14: the blocks of the image tower are normal too.

Sources: open_clip 3.3.0 and clipa_torch `open_clip/transformer.py`; clipa_jax `models/{vit,text_transformer}.py`, and
`models_t5x/{vit,text_transformer}.py` on the branch t5x. LayerNorms start at one and zero in all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from clipa.spec.family import InitName

_JAX_DEPTH = 12
"""Depth that scales the residual projections in JAX: a block there never gets its tower's, and takes this default."""
_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal distribution truncated at two."""


class BlockLinears(NamedTuple):
    """The linear layers of a transformer block."""

    qkv: nn.Linear
    proj: nn.Linear
    fc_1: nn.Linear
    fc_2: nn.Linear


class ImageParts(NamedTuple):
    """What is drawn of an image tower."""

    patches: nn.Conv2d
    cls: nn.Parameter
    positions: nn.Parameter
    blocks: tuple[BlockLinears, ...]
    head: nn.Linear


class TextParts(NamedTuple):
    """What is drawn of a text tower."""

    words: nn.Embedding
    positions: nn.Parameter
    blocks: tuple[BlockLinears, ...]
    head: nn.Linear


@torch.no_grad()
def init_image(tower: ImageParts, init: InitName) -> None:
    """Draw the weights of an image tower."""
    if init == "open_clip":
        _as_torch(tower)
    else:
        _as_flax(tower, xavier=init == "jax")
    for table in (tower.positions, tower.head.weight):
        nn.init.normal_(table, std=tower.head.in_features**-0.5)


def _as_torch(tower: ImageParts) -> None:
    tower.patches.reset_parameters()
    for block in tower.blocks:
        for linear in (block.proj, block.fc_1, block.fc_2):
            linear.reset_parameters()
        nn.init.xavier_uniform_(block.qkv.weight)  # nn.MultiheadAttention._reset_parameters
        _zero_biases(block.qkv, block.proj)
    nn.init.normal_(tower.cls, std=tower.head.in_features**-0.5)


def _as_flax(tower: ImageParts, *, xavier: bool) -> None:
    """Patches have flax's default: LeCun-normal, truncated at two standard deviations."""
    fan_in = tower.patches.weight[0].numel()
    std = fan_in**-0.5 / _TRUNCATED_STD
    nn.init.trunc_normal_(tower.patches.weight, std=std, a=-2 * std, b=2 * std)
    for block in tower.blocks:
        if xavier:
            _xavier(block)
        else:
            _normal(block, _JAX_DEPTH)
        _zero_biases(*block)
    nn.init.zeros_(tower.cls)


@torch.no_grad()
def init_text(tower: TextParts, init: InitName) -> None:
    """Draw the weights of a text tower.

    In OpenCLIP the biases of the feed-forward layers keep torch's default, which their constructors have drawn.
    """
    nn.init.normal_(tower.words.weight, std=0.02)
    nn.init.normal_(tower.positions, std=0.01)
    for block in tower.blocks:
        _normal(block, len(tower.blocks) if init == "open_clip" else _JAX_DEPTH)
        _zero_biases(block.qkv, block.proj)
        if init != "open_clip":
            _zero_biases(block.fc_1, block.fc_2)
    nn.init.normal_(tower.head.weight, std=tower.head.in_features**-0.5)


def _xavier(block: BlockLinears) -> None:
    """Query, key and value are three matrices in JAX, so each has a fan of its own."""
    for weight in (*block.qkv.weight.chunk(3), block.proj.weight, block.fc_1.weight, block.fc_2.weight):
        nn.init.xavier_uniform_(weight)


def _normal(block: BlockLinears, depth: int) -> None:
    """Normal weights, smaller where they write to the residual stream of a tower of this depth."""
    width = block.qkv.in_features
    nn.init.normal_(block.qkv.weight, std=width**-0.5)
    nn.init.normal_(block.proj.weight, std=width**-0.5 * (2 * depth) ** -0.5)
    nn.init.normal_(block.fc_1.weight, std=(2 * width) ** -0.5)
    nn.init.normal_(block.fc_2.weight, std=width**-0.5 * (2 * depth) ** -0.5)


def _zero_biases(*linears: nn.Linear) -> None:
    for linear in linears:
        nn.init.zeros_(linear.bias)

"""The two encoders of every family. The one door to timm, which provides the image tower."""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from clipa.errors import MissingPart
from clipa.model.attention import SelfAttention, attend, heads_of, joined
from clipa.model.posembed import grid_of, resize_image, resize_text, sincos2d
from clipa.model.random_start import BlockLinears, ImageParts, TextParts, init_image, init_text
from clipa.model.torchvision_guard import import_torchvision
from clipa.reduction.image import gather_patches
from clipa.spec.family import FAMILIES, Family
from clipa.spec.model import ImageTower, TextTower

try:
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer
except ImportError as error:
    raise MissingPart(
        f"the image tower needs timm, which cannot be imported: {error}", hint="pip install 'clipa[train]'"
    ) from error

Positions: TypeAlias = Literal["sincos2d", "learnable"]

_FIXED_TO_ROUNDING = 1e-3
"""A table this close to the formula was never trained: JAX computes it in float32, 2e-5 off at 24 patches a side."""


def _gelu(family: Family) -> nn.GELU:
    return nn.GELU(approximate="tanh" if family.activation == "gelu-tanh" else "none")


class ImageEncoder(nn.Module):
    """A vision transformer of a family, see clipa.spec.family. Its patches are embedded without a bias.

    Images [b, 3, size, size] -> features [b, embed_dim]. Any size that the patch divides: positions are those of
    `positions`. How the tokens are pooled is said in clipa.spec.model.ImageTower.
    """

    def __init__(
        self, tower: ImageTower, size: int, embed_dim: int, positions: Positions, family: Family = FAMILIES["v1"]
    ) -> None:
        super().__init__()
        self.patch = tower.patch
        self.pool = tower.pool
        self.family = family
        self.fixed = positions == "sincos2d"
        self.trunk = VisionTransformer(
            img_size=size,
            patch_size=tower.patch,
            embed_dim=tower.width,
            depth=tower.layers,
            num_heads=tower.heads,
            mlp_ratio=tower.mlp_ratio,
            num_classes=embed_dim,
            global_pool="token",
            pre_norm=True,  # timm couples two things to it: the LayerNorm, and that the patches have no bias
            fc_norm=False,
            norm_layer=partial(nn.LayerNorm, eps=family.eps),
            act_layer=partial(_gelu, family),
        )
        for block in self.trunk.blocks:
            block.attn = SelfAttention(block.attn.qkv, block.attn.proj, tower.heads)
        if not family.norm_pre:
            self.trunk.norm_pre = nn.Identity()
        self.trunk.head = nn.Linear(tower.width, embed_dim, bias=False)
        init_image(_parts(self.trunk), family.init)
        if self.fixed:
            table = sincos2d(size // tower.patch, tower.width, family.sincos)
            self.trunk.pos_embed = nn.Parameter(table[None], requires_grad=False)

    def forward(self, images: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Features that are not yet normalised.

        Args:
            images: [b, 3, size, size].
            kept: patches that enter, int64 [b, k], in training only (`clipa.reduction.image`); None: all. Each keeps
                its own position, and the class token enters always.
        """
        trunk = self.trunk
        x = torch.cat([trunk.cls_token.expand(images.shape[0], -1, -1), self._patches(images, kept)], dim=1)
        positions = self.positions(images.shape[-1] // self.patch)
        if kept is not None:
            cls = positions[:1].expand(images.shape[0], -1, -1)
            positions = torch.cat([cls, positions[1:][kept]], dim=1)
        features: torch.Tensor = trunk.head(self._pooled(trunk.blocks(trunk.norm_pre(x + positions))))
        return features

    def _patches(self, images: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        """Embedded patches without positions, [b, k, width]; a patch that is dropped is not projected either."""
        project = self.trunk.patch_embed.proj
        if kept is None:
            embedded: torch.Tensor = project(images).flatten(2).transpose(1, 2)
            return embedded
        assert self.training, "evaluation keeps every patch"
        return functional.linear(gather_patches(images, kept, self.patch), project.weight.flatten(1), project.bias)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.trunk.norm
        match self.pool:
            case "cls":
                pooled = norm(x[:, 0])
            case "gap":
                pooled = norm(x[:, 1:]).mean(dim=1)
            case "gap-norm":
                pooled = norm(x[:, 1:].mean(dim=1))
            case "gap-all":
                pooled = norm(x.mean(dim=1))
        result: torch.Tensor = pooled
        return result

    def positions(self, grid: int) -> torch.Tensor:
        """Positions [1 + grid^2, width] of images of grid x grid patches, by the family's rule (Family.new_grid)."""
        table = self.trunk.pos_embed[0]
        if self.fixed and grid_of(table) != grid and self.family.new_grid == "recomputed":
            return sincos2d(grid, table.shape[1], self.family.sincos).to(table.device)
        return resize_image(table, grid)

    def fitted(self, stored: torch.Tensor) -> torch.Tensor:
        """Stored positions [1, 1 + g^2, width] for this tower's grid, by the family's rule.

        Where the formula is recomputed, that holds for a fixed table also when it is trained from now on.
        """
        table, grid = stored[0], grid_of(self.trunk.pos_embed[0])
        if self.family.new_grid == "recomputed" and (self.fixed or self._is_the_formula(table)):
            return sincos2d(grid, table.shape[1], self.family.sincos).to(table)[None]
        return resize_image(table, grid)[None]

    def _is_the_formula(self, table: torch.Tensor) -> bool:
        formula = sincos2d(grid_of(table), table.shape[1], self.family.sincos)
        return table.shape == formula.shape and torch.allclose(table.float().cpu(), formula, 0.0, _FIXED_TO_ROUNDING)


def _parts(trunk: VisionTransformer) -> ImageParts:
    blocks = tuple(BlockLinears(b.attn.qkv, b.attn.proj, b.mlp.fc1, b.mlp.fc2) for b in trunk.blocks)
    return ImageParts(trunk.patch_embed.proj, trunk.cls_token, trunk.pos_embed, blocks, trunk.head)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, family: Family) -> None:
        super().__init__()
        self.heads = heads
        self.causal = family.causal
        self.ln_1 = nn.LayerNorm(width, eps=family.eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width, eps=family.eps)
        self.fc_1 = nn.Linear(width, mlp)
        self.act = _gelu(family)
        self.fc_2 = nn.Linear(mlp, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = attend(*heads_of(self.qkv(self.ln_1(x)), self.heads), causal=self.causal)
        x = x + self.proj(joined(attended))
        mixed: torch.Tensor = x + self.fc_2(self.act(self.fc_1(self.ln_2(x))))
        return mixed


class TextEncoder(nn.Module):
    """A text transformer of a family: causal and pooled at the end-of-text token (the largest id of a row), or with
    full attention, padding included, and pooled at the last position whatever stands there (CLIPA-v2).

    Token ids [b, tokens] -> features [b, embed_dim].
    """

    def __init__(self, tower: TextTower, tokens: int, embed_dim: int, family: Family = FAMILIES["v1"]) -> None:
        super().__init__()
        width, mlp = tower.width, int(tower.width * tower.mlp_ratio)
        self.family = family
        self.pool = family.text_pool
        self.token_embedding = nn.Embedding(family.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        blocks = [_Block(width, tower.heads, mlp, family) for _ in range(tower.layers)]
        self.blocks = nn.ModuleList(blocks)
        self.ln_final = nn.LayerNorm(width, eps=family.eps)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        linears = tuple(BlockLinears(b.qkv, b.proj, b.fc_1, b.fc_2) for b in blocks)
        init_text(TextParts(self.token_embedding, self.positional_embedding, linears, self.projection), family.init)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Features that are not yet normalised."""
        x = self.token_embedding(tokens) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        x = self.ln_final(x)
        pooled = x[:, -1]
        if self.pool == "eot":
            pooled = x[torch.arange(x.shape[0], device=x.device), tokens.argmax(dim=-1)]
        features: torch.Tensor = self.projection(pooled)
        return features

    def fitted(self, stored: torch.Tensor) -> torch.Tensor:
        """Stored positions [t, width] for this tower's length, by the family's rule (Family.new_length)."""
        return resize_text(stored, self.positional_embedding.shape[0], self.family.new_length)

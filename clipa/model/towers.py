"""The two encoders. The one door to timm, which provides the image tower."""

from __future__ import annotations

from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from clipa.errors import MissingPart
from clipa.model.posembed import resize_image, sincos2d
from clipa.model.torchvision_guard import import_torchvision
from clipa.reduction.image import gather_patches
from clipa.spec.family import VOCABULARY
from clipa.spec.model import ImageTower, TextTower

try:
    import_torchvision()
    from timm.models.vision_transformer import VisionTransformer
except ImportError as error:
    raise MissingPart(
        f"the image tower needs timm, which cannot be imported: {error}", hint="pip install 'clipa[train]'"
    ) from error

EPS = 1e-5
"""LayerNorm's epsilon, in both towers, as in open_clip (timm's own default is 1e-6)."""

Positions: TypeAlias = Literal["sincos2d", "learnable"]


class ImageEncoder(nn.Module):
    """A vision transformer in OpenCLIP's style: LayerNorm before the blocks, exact GELU, no patch bias.

    Images [b, 3, size, size] -> features [b, embed_dim]. Any size that the patch divides: positions are resized
    from the grid that the tower was built for. `gap` is the mean over the patches after the last LayerNorm, as
    open_clip's `pool_type: avg` has it (CLIPA's own torch code counts the class token in, and normalises after).
    """

    def __init__(self, tower: ImageTower, size: int, embed_dim: int, positions: Positions) -> None:
        super().__init__()
        self.patch = tower.patch
        self.fixed = positions == "sincos2d"
        self.trunk = VisionTransformer(
            img_size=size,
            patch_size=tower.patch,
            embed_dim=tower.width,
            depth=tower.layers,
            num_heads=tower.heads,
            mlp_ratio=tower.mlp_ratio,
            num_classes=embed_dim,
            global_pool="token" if tower.pool == "cls" else "avg",
            pre_norm=True,
            fc_norm=False,
            norm_layer=partial(nn.LayerNorm, eps=EPS),
        )
        self.trunk.head = nn.Linear(tower.width, embed_dim, bias=False)
        self._init(tower.width)
        if self.fixed:
            self.trunk.pos_embed = nn.Parameter(sincos2d(size // tower.patch, tower.width)[None], requires_grad=False)

    def _init(self, width: int) -> None:
        """OpenCLIP's initialisation: what torch's own layers do there, and width^-0.5 for the four tables."""
        self.trunk.patch_embed.proj.reset_parameters()
        for block in self.trunk.blocks:
            for linear in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                linear.reset_parameters()
            nn.init.xavier_uniform_(block.attn.qkv.weight)  # nn.MultiheadAttention._reset_parameters
            nn.init.zeros_(block.attn.qkv.bias)
            nn.init.zeros_(block.attn.proj.bias)
        for table in (self.trunk.cls_token, self.trunk.pos_embed, self.trunk.head.weight):
            nn.init.normal_(table, std=width**-0.5)

    def forward(self, images: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Features that are not yet normalised.

        Args:
            images: [b, 3, size, size].
            kept: patches that enter, int64 [b, k], in training only (`clipa.reduction.image`); None: all. Each keeps
                its own position, and the class token enters always.
        """
        trunk = self.trunk
        x = torch.cat([trunk.cls_token.expand(images.shape[0], -1, -1), self._patches(images, kept)], dim=1)
        positions = resize_image(trunk.pos_embed[0], images.shape[-1] // self.patch)
        if kept is not None:
            cls = positions[:1].expand(images.shape[0], -1, -1)
            positions = torch.cat([cls, positions[1:][kept]], dim=1)
        x = x + positions
        x = trunk.norm(trunk.blocks(trunk.norm_pre(x)))
        pooled = x[:, 0] if trunk.global_pool == "token" else x[:, 1:].mean(dim=1)
        features: torch.Tensor = trunk.head(pooled)
        return features

    def _patches(self, images: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        """Embedded patches without positions, [b, k, width]; a patch that is dropped is not projected either."""
        project = self.trunk.patch_embed.proj
        if kept is None:
            embedded: torch.Tensor = project(images).flatten(2).transpose(1, 2)
            return embedded
        assert self.training, "evaluation keeps every patch"
        return functional.linear(gather_patches(images, kept, self.patch), project.weight.flatten(1), project.bias)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width, eps=EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width, eps=EPS)
        self.fc_1 = nn.Linear(width, mlp)
        self.fc_2 = nn.Linear(mlp, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(b, n, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, n, width))
        mixed: torch.Tensor = x + self.fc_2(functional.gelu(self.fc_1(self.ln_2(x))))
        return mixed


class TextEncoder(nn.Module):
    """A causal transformer in OpenCLIP's style, pooled at the end-of-text token (the largest id of a row).

    Token ids [b, tokens] -> features [b, embed_dim].
    """

    def __init__(self, tower: TextTower, tokens: int, embed_dim: int) -> None:
        super().__init__()
        width, mlp = tower.width, int(tower.width * tower.mlp_ratio)
        self.token_embedding = nn.Embedding(VOCABULARY[tower.tokenizer], width)
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.blocks = nn.ModuleList([_Block(width, tower.heads, mlp) for _ in range(tower.layers)])
        self.ln_final = nn.LayerNorm(width, eps=EPS)
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self._init(width, tower.layers)

    def _init(self, width: int, layers: int) -> None:
        """OpenCLIP's initialisation (open_clip/transformer.py, TextTransformer.init_parameters)."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in self.blocks:
            assert isinstance(block, _Block)
            nn.init.normal_(block.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.fc_1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.fc_2.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            for linear in (block.qkv, block.proj, block.fc_1, block.fc_2):
                nn.init.zeros_(linear.bias)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Features that are not yet normalised."""
        x = self.token_embedding(tokens) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        x = self.ln_final(x)
        pooled = x[torch.arange(x.shape[0], device=x.device), tokens.argmax(dim=-1)]
        features: torch.Tensor = self.projection(pooled)
        return features

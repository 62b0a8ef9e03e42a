"""CLIP: two towers into one space, and a temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from clipa.errors import TrainError
from clipa.model.posembed import resize_image, resize_text
from clipa.model.towers import ImageEncoder, Positions, TextEncoder
from clipa.spec.model import Model

_IMAGE_POSITIONS = "image.trunk.pos_embed"
_TEXT_POSITIONS = "text.positional_embedding"
INIT_SCALE = math.log(1 / 0.07)
MAX_SCALE = math.log(100.0)


class Clip(nn.Module):
    """Images and captions to normalised features, and the factor of their products.

    The logit scale is stored as a logarithm, of shape (1,), starts at ln(1/0.07) and is kept in [0, ln 100]
    (Radford et al., arXiv 2103.00020, section 2.5).
    """

    def __init__(self, model: Model, image_size: int, text_tokens: int, positions: Positions) -> None:
        super().__init__()
        self.image = ImageEncoder(model.image, image_size, model.embed_dim, positions)
        self.text = TextEncoder(model.text, text_tokens, model.embed_dim)
        self.logit_scale = nn.Parameter(torch.full((1,), INIT_SCALE))

    def encode_image(self, images: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised features [b, embed_dim] of normalised images [b, 3, size, size] and their kept patches [b, k]."""
        return functional.normalize(self.image(images, kept).float(), dim=-1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normalised features [b, embed_dim] of token ids [b, text tokens]."""
        return functional.normalize(self.text(tokens).float(), dim=-1)

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, kept: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Image features, text features, and the scale (not its logarithm), all in one call for DDP's sake."""
        return self.encode_image(images, kept), self.encode_text(tokens), self.logit_scale.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the logit scale in its range; called after every optimizer step."""
        self.logit_scale.clamp_(0.0, MAX_SCALE)

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take weights that were trained at another image size or text length: positions are resized.

        Fixed sin-cos positions stay those of this model's own grid; a fixed table becomes the start of a learnable
        one, and is trained from there.

        Raises:
            TrainError: the weights are of another model.
        """
        own = self.state_dict()
        if set(weights) != set(own):
            odd = sorted(set(weights) ^ set(own))
            raise TrainError(f"{len(odd)} weights are missing or unknown, the first is {odd[0]}")
        fitted = dict(weights)
        if self.image.fixed:
            fitted[_IMAGE_POSITIONS] = own[_IMAGE_POSITIONS]
        else:
            grid = round((own[_IMAGE_POSITIONS].shape[1] - 1) ** 0.5)
            fitted[_IMAGE_POSITIONS] = resize_image(fitted[_IMAGE_POSITIONS][0], grid)[None]
        fitted[_TEXT_POSITIONS] = resize_text(fitted[_TEXT_POSITIONS], own[_TEXT_POSITIONS].shape[0])
        for name, weight in fitted.items():
            if weight.shape != own[name].shape:
                raise TrainError(f"{name} is {list(weight.shape)}, the model's is {list(own[name].shape)}")
        self.load_state_dict(fitted)

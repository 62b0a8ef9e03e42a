"""CLIP: two towers into one space, and a temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from clipa.errors import TrainError
from clipa.model.loss import ClipOutput, LossName
from clipa.model.towers import ImageEncoder, Positions, TextEncoder
from clipa.spec.model import Model

_IMAGE_POSITIONS = "image.trunk.pos_embed"
_TEXT_POSITIONS = "text.positional_embedding"
_LOGITS = ("logit_scale", "logit_bias")


class _Start(NamedTuple):
    scale: float
    bias: float | None


_STARTS: dict[LossName, _Start] = {
    "softmax": _Start(scale=1 / 0.07, bias=None),  # arXiv 2103.00020, section 2.5
    "sigmoid": _Start(scale=10.0, bias=-10.0),  # arXiv 2303.15343, section 3.2
}


class Clip(nn.Module):
    """Images and captions to normalised features, and what makes logits of their products.

    The logit scale is stored as a logarithm, of shape (1,), and kept in [0, ln(the family's largest scale)]. A model
    that is trained with the sigmoid loss has a logit bias too.
    """

    def __init__(
        self, model: Model, image_size: int, text_tokens: int, positions: Positions, loss: LossName = "softmax"
    ) -> None:
        super().__init__()
        self.max_scale = model.traits.max_scale
        self.image = ImageEncoder(model.image, image_size, model.embed_dim, positions, model.traits)
        self.text = TextEncoder(model.text, text_tokens, model.embed_dim, model.traits)
        start = _STARTS[loss]
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(start.scale)))
        self.logit_bias = None if start.bias is None else nn.Parameter(torch.full((1,), start.bias))

    def encode_image(self, images: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Normalised features [b, embed_dim] of normalised images [b, 3, size, size] and their kept patches [b, k]."""
        return _unit(self.image(images, kept))

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normalised features [b, embed_dim] of token ids [b, text tokens]."""
        return _unit(self.text(tokens))

    def forward(self, images: torch.Tensor, tokens: torch.Tensor, kept: torch.Tensor | None = None) -> ClipOutput:
        """Features, the scale (not its logarithm) and the bias, all in one call for DDP's sake."""
        image, text = self.encode_image(images, kept), self.encode_text(tokens)
        return ClipOutput(image, text, self.logit_scale.exp(), self.logit_bias)

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the logit scale in the family's range; called after every optimizer step."""
        if self.max_scale is not None:
            self.logit_scale.clamp_(0.0, math.log(self.max_scale))

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take weights that were trained at another image size or text length, see `fitted`.

        Raises:
            TrainError: the weights are of another model.
        """
        self.load_state_dict(self.fitted(weights))

    def fitted(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights of another image size or text length for this model's: positions are resized.

        Image positions follow the family's rule (ImageEncoder.fitted); a fixed table becomes the start of a learnable
        one, and is trained from there. Text positions are interpolated (TextEncoder.fitted). Weights of another loss
        bring no scale and bias: those start anew.

        Raises:
            TrainError: the weights are of another model.
        """
        own = self.state_dict()
        if ("logit_bias" in weights) != ("logit_bias" in own):
            kept = {name: own[name] for name in _LOGITS if name in own}
            weights = {name: weight for name, weight in weights.items() if name not in _LOGITS} | kept
        if set(weights) != set(own):
            odd = sorted(set(weights) ^ set(own))
            raise TrainError(f"{len(odd)} weights are missing or unknown, the first is {odd[0]}")
        fitted = dict(weights)
        fitted[_IMAGE_POSITIONS] = self.image.fitted(fitted[_IMAGE_POSITIONS])
        fitted[_TEXT_POSITIONS] = self.text.fitted(fitted[_TEXT_POSITIONS])
        for name, weight in fitted.items():
            if weight.shape != own[name].shape:
                raise TrainError(f"{name} is {list(weight.shape)}, the model's is {list(own[name].shape)}")
        _require_finite(fitted)
        return fitted


def _require_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights with NaN or infinity: their scores would be numbers that mean nothing.

    Raises:
        TrainError: with the names of the tensors.
    """
    bad = [name for name, weight in weights.items() if not weight.is_meta and not weight.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise TrainError(f"{len(bad)} tensors hold NaN or infinity: {', '.join(bad[:5])}{more}")


def _unit(features: torch.Tensor) -> torch.Tensor:
    """Of length 1, in float32 or better: half precision is too coarse for similarities."""
    return functional.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)

"""One converter between samples, steps, tokens, parameters and FLOPs. Closed formulas, no torch.

FLOPs count a multiply-add as two and the backward pass as twice the forward pass, as is usual (Kaplan et al.,
arXiv 2001.08361, section 2.1); softmax, norms and activations are left out.
"""

from __future__ import annotations

import msgspec

from clipa.spec.family import VOCABULARY
from clipa.spec.job import Eval, Phase
from clipa.spec.model import ImageTower, Model, TextTower
from clipa.spec.tokens import kept_tokens


def steps_of(samples: int, batch: int) -> int:
    """Optimizer steps for a budget in samples: rounded up, so that the budget is always spent."""
    return -(-samples // batch)


def _blocks_params(width: int, layers: int, mlp_ratio: float) -> int:
    mlp = int(width * mlp_ratio)
    attention = 4 * width * width + 4 * width
    feed_forward = 2 * width * mlp + mlp + width
    norms = 4 * width
    return layers * (attention + feed_forward + norms)


def image_params(tower: ImageTower, tokens: int, embed_dim: int) -> int:
    """Parameters of the image tower with learnable positions for `tokens` patches and a class token."""
    patch = 3 * tower.patch**2 * tower.width
    positions = (tokens + 1) * tower.width
    class_token = tower.width
    norms = 4 * tower.width
    blocks = _blocks_params(tower.width, tower.layers, tower.mlp_ratio)
    return patch + class_token + positions + norms + blocks + tower.width * embed_dim


def text_params(tower: TextTower, tokens: int, embed_dim: int) -> int:
    """Parameters of the text tower with learnable positions for `tokens`."""
    table = VOCABULARY[tower.tokenizer] * tower.width
    blocks = _blocks_params(tower.width, tower.layers, tower.mlp_ratio)
    return table + tokens * tower.width + 2 * tower.width + blocks + tower.width * embed_dim


def model_params(model: Model, image_tokens_: int, text_tokens: int) -> int:
    """Parameters of both towers and the logit scale."""
    return (
        image_params(model.image, image_tokens_, model.embed_dim)
        + text_params(model.text, text_tokens, model.embed_dim)
        + 1
    )


def _blocks_flops(width: int, layers: int, mlp_ratio: float, tokens: int) -> int:
    mlp = int(width * mlp_ratio)
    linear = 2 * tokens * (4 * width * width + 2 * width * mlp)
    attention = 2 * 2 * tokens * tokens * width
    return layers * (linear + attention)


def image_flops(tower: ImageTower, tokens: int, embed_dim: int) -> int:
    """Forward FLOPs of the image tower for one image of `tokens` patches."""
    patch = 2 * tokens * 3 * tower.patch**2 * tower.width
    blocks = _blocks_flops(tower.width, tower.layers, tower.mlp_ratio, tokens + 1)
    return patch + blocks + 2 * tower.width * embed_dim


def text_flops(tower: TextTower, tokens: int, embed_dim: int) -> int:
    """Forward FLOPs of the text tower for one caption of `tokens`."""
    return _blocks_flops(tower.width, tower.layers, tower.mlp_ratio, tokens) + 2 * tower.width * embed_dim


class PhaseBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What a training phase costs. FLOPs are forward + backward."""

    image_tokens: int
    text_tokens: int
    batch: int
    steps: int
    samples: int
    params: int
    flops_per_sample: int

    @property
    def flops(self) -> int:
        """Train FLOPs of the whole phase."""
        return self.flops_per_sample * self.samples


def phase_budget(model: Model, phase: Phase) -> PhaseBudget | None:
    """The budget of a training phase; None for an evaluation."""
    if isinstance(phase, Eval):
        return None
    patches = kept_tokens(phase.image, model.image.patch)
    text = phase.text.tokens
    forward = image_flops(model.image, patches, model.embed_dim) + text_flops(model.text, text, model.embed_dim)
    steps = steps_of(phase.samples, phase.batch)
    return PhaseBudget(
        image_tokens=patches,
        text_tokens=text,
        batch=phase.batch,
        steps=steps,
        samples=steps * phase.batch,
        params=model_params(model, patches, text),
        flops_per_sample=3 * forward,
    )

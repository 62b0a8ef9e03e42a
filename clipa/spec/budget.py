"""One converter between samples, steps, tokens, parameters and FLOPs. Closed formulas, no torch.

FLOPs count a multiply-add as two, as torch's FLOP counter and open_clip's model profile do, and the backward pass as
twice the forward pass, as is usual (Kaplan et al., arXiv 2001.08361, section 2.1). Softmax, norms, activations and the
products of the loss (2 x global batch x embed_dim a sample: 0.7 % of a B/16's forward pass at 49 tokens and 65,536)
are left out. What CLIPA-v2 (arXiv 2306.15658) calls GFLOPs are multiply-adds, half of ours.
"""

from __future__ import annotations

import msgspec

from clipa.spec.family import VOCABULARY
from clipa.spec.job import Phase, Stage, TrainPhase
from clipa.spec.model import ImageTower, Model, TextTower
from clipa.spec.tokens import kept_tokens

BACKWARD = 3
"""Train FLOPs over forward FLOPs: the forward pass, and a backward pass of twice as many."""


def steps_of(samples: int, batch: int) -> int:
    """Optimizer steps for a budget in samples: rounded up, so that the budget is always spent."""
    return -(-samples // batch)


def blocks_params(width: int, layers: int, mlp_ratio: float) -> int:
    """Parameters of the blocks of a tower."""
    mlp = int(width * mlp_ratio)
    attention = 4 * width * width + 4 * width
    feed_forward = 2 * width * mlp + mlp + width
    norms = 4 * width
    return layers * (attention + feed_forward + norms)


def image_params(tower: ImageTower, patches: int, embed_dim: int, norm_pre: bool = True) -> int:
    """Parameters of the image tower, its table of positions for `patches` patches and a class token included.

    The table counts whether it is trained or fixed: it is a part of the weights. `norm_pre`: see Family.
    """
    patch = 3 * tower.patch**2 * tower.width
    positions = (patches + 1) * tower.width
    class_token = tower.width
    norms = (4 if norm_pre else 2) * tower.width
    blocks = blocks_params(tower.width, tower.layers, tower.mlp_ratio)
    return patch + class_token + positions + norms + blocks + tower.width * embed_dim


def text_params(tower: TextTower, tokens: int, embed_dim: int) -> int:
    """Parameters of the text tower with learnable positions for `tokens`."""
    table = VOCABULARY[tower.tokenizer] * tower.width
    blocks = blocks_params(tower.width, tower.layers, tower.mlp_ratio)
    return table + tokens * tower.width + 2 * tower.width + blocks + tower.width * embed_dim


def model_params(model: Model, patches: int, text_tokens: int) -> int:
    """Parameters of both towers and the logit scale, for images of `patches` patches before any is dropped."""
    return (
        image_params(model.image, patches, model.embed_dim, model.traits.norm_pre)
        + text_params(model.text, text_tokens, model.embed_dim)
        + 1
    )


def _blocks_flops(width: int, layers: int, mlp_ratio: float, tokens: int) -> int:
    mlp = int(width * mlp_ratio)
    linear = 2 * tokens * (4 * width * width + 2 * width * mlp)
    attention = 2 * 2 * tokens * tokens * width
    return layers * (linear + attention)


def image_flops(tower: ImageTower, patches: int, embed_dim: int, kept: int = 0) -> int:
    """Forward FLOPs of the image tower for one image of `patches` patches, of which `kept` (0: all) enter.

    A patch that is dropped is not embedded either; the class token passes the blocks whatever pools.
    """
    entering = kept or patches
    patch = 2 * entering * 3 * tower.patch**2 * tower.width
    blocks = _blocks_flops(tower.width, tower.layers, tower.mlp_ratio, entering + 1)
    return patch + blocks + 2 * tower.width * embed_dim


def text_flops(tower: TextTower, tokens: int, embed_dim: int) -> int:
    """Forward FLOPs of the text tower for one caption of `tokens`. A causal mask saves none: the products are made."""
    return _blocks_flops(tower.width, tower.layers, tower.mlp_ratio, tokens) + 2 * tower.width * embed_dim


def forward_flops(model: Model, patches: int, text_tokens: int, kept: int = 0) -> int:
    """Forward FLOPs of both towers for one image and its caption."""
    image = image_flops(model.image, patches, model.embed_dim, kept)
    return image + text_flops(model.text, text_tokens, model.embed_dim)


class PhaseBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What a training phase costs. `image_tokens` enter the tower, `patches` is what the image has before any is
    dropped; both leave out the class token. `flops_per_sample` is forward + backward.
    """

    image_tokens: int
    patches: int
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

    @property
    def macs_per_sample(self) -> int:
        """Multiply-adds of one forward pass: what CLIPA-v2 calls FLOPs."""
        return self.flops_per_sample // (BACKWARD * 2)

    @property
    def compute(self) -> int:
        """Forward multiply-adds of the whole phase: the horizontal axis of the papers' scaling pictures."""
        return self.macs_per_sample * self.samples


def phase_budget(model: Model, phase: Phase | Stage) -> PhaseBudget | None:
    """The budget of a training phase; None for one that trains nothing."""
    return train_budget(model, phase) if isinstance(phase, TrainPhase) else None


def train_budget(model: Model, phase: TrainPhase) -> PhaseBudget:
    """The budget of a training phase."""
    patches = (phase.image.size // model.image.patch) ** 2
    kept = kept_tokens(phase.image, model.image.patch)
    text = phase.text.tokens
    steps = steps_of(phase.samples, phase.batch)
    return PhaseBudget(
        image_tokens=kept,
        patches=patches,
        text_tokens=text,
        batch=phase.batch,
        steps=steps,
        samples=steps * phase.batch,
        params=model_params(model, patches, text),
        flops_per_sample=BACKWARD * forward_flops(model, patches, text, kept),
    )

"""The model card: what a checkpoint's weights are, readable without torch.

`card.json` lies in every checkpoint folder, so that a fine-tune or an evaluation can be refused before it is queued.

A checkpoint folder holds `model.safetensors`, `optimizer.safetensors`, `state.json`, `card.json` and, written last,
`COMPLETE` (JSON: file name -> size and SHA-256).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from clipa.errors import ConfigError
from clipa.spec.job import Eval
from clipa.spec.model import Model
from clipa.spec.plan import Plan, Record

SCHEMA = 1
CARD_NAME = "card.json"
WEIGHTS_NAME = "model.safetensors"
COMPLETE_NAME = "COMPLETE"


class Card(Record, frozen=True, kw_only=True):
    """Model and inputs that the weights were trained with. `image_size` in pixels, `text_tokens` with start and end.

    `loss` says how logits are made: the weights of `sigmoid` hold a bias beside the scale.
    """

    model: Model
    image_size: int
    text_tokens: int
    positions: Literal["sincos2d", "learnable"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    loss: Literal["softmax", "sigmoid"] = "softmax"
    run: str = ""
    step: int = 0
    schema: int = SCHEMA


def decode(raw: bytes) -> Card:
    """A card from JSON.

    Raises:
        msgspec.MsgspecError: not a card.
    """
    return msgspec.json.decode(raw, type=Card)


def card_of(plan: Plan, step: int = 0) -> Card:
    """The card of a training run's checkpoints."""
    settings = plan.settings
    if isinstance(settings, Eval):
        raise ValueError(f"phase {plan.phase} trains nothing, so it has no card")
    return Card(
        model=plan.model,
        image_size=settings.image.size,
        text_tokens=settings.text.tokens,
        positions=settings.positions,
        mean=settings.image.mean,
        std=settings.image.std,
        loss=settings.loss,
        run=plan.run,
        step=step,
    )


def require_same_model(wanted: Model, found: Model, where: str) -> None:
    """Refuse weights of another model before anything is queued.

    Raises:
        ConfigError: naming the first field that differs, with both values.
    """
    left, right = msgspec.to_builtins(wanted), msgspec.to_builtins(found)
    for tower in ("family", "embed_dim", "image", "text"):
        a, b = left[tower], right[tower]
        if a == b:
            continue
        key = tower
        if isinstance(a, dict):
            key, a, b = next((f"{tower}.{k}", a[k], b[k]) for k in a if a[k] != b[k])
        raise ConfigError(
            f"the starting weights are of another model: {key} is {b}, the recipe's model has {a}",
            where=where,
            hint="start from weights of the same model, or change [model] in the recipe",
        )

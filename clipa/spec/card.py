"""The model card: what a checkpoint's weights are, readable without torch.

`card.json` lies in every checkpoint folder, so that a fine-tune or an evaluation can be refused before it is queued.

A checkpoint folder holds `model.safetensors`, `optimizer.safetensors` (or `optimizer-*`, one a rank), `state.json`,
`card.json` and, written last, `COMPLETE` (JSON: file name -> size and SHA-256).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from clipa.errors import ConfigError
from clipa.spec.inputs import TextInput, TextReduction
from clipa.spec.job import TrainPhase
from clipa.spec.model import Model
from clipa.spec.plan import Plan, Record

SCHEMA = 1
CARD_NAME = "card.json"
WEIGHTS_NAME = "model.safetensors"
COMPLETE_NAME = "COMPLETE"


class Card(Record, frozen=True, kw_only=True):
    """Model and inputs that the weights were trained with. `image_size` in pixels, `text_tokens` with start and end.

    `loss` says how logits are made: the weights of `sigmoid` hold a bias beside the scale. `text_reduction` and
    `tagger`: what was kept of captions. `origin`: the file that converted weights come from.
    """

    model: Model
    image_size: int
    text_tokens: int
    positions: Literal["sincos2d", "learnable"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    loss: Literal["softmax", "sigmoid"] = "softmax"
    text_reduction: TextReduction = "truncate"
    tagger: Literal["table", "nltk"] = "table"
    run: str = ""
    step: int = 0
    origin: str = ""
    schema: int = SCHEMA


def prompt_input(card: Card) -> TextInput:
    """How prompts enter at evaluation: by `syntax` where captions did, or the class would be cut off ("a bad photo of
    a golden" of 8 tokens); as CLIPA's torch code and its H/14 and G/14 configs do. `random` and `block` are masking, of
    training alone: a prompt is truncated.
    """
    if card.text_reduction != "syntax":
        return TextInput(tokens=card.text_tokens)
    return TextInput(tokens=card.text_tokens, reduction="syntax", tagger=card.tagger)


def decode(raw: bytes) -> Card:
    """A card from JSON.

    Raises:
        msgspec.MsgspecError: not a card.
    """
    return msgspec.json.decode(raw, type=Card)


def card_of(plan: Plan, step: int = 0) -> Card:
    """The card of a training run's checkpoints."""
    settings = plan.settings
    if not isinstance(settings, TrainPhase):
        raise ValueError(f"phase {plan.phase} trains nothing, so it has no card")
    return Card(
        model=plan.model,
        image_size=settings.image.size,
        text_tokens=settings.text.tokens,
        positions=settings.positions,
        mean=settings.image.mean,
        std=settings.image.std,
        loss=settings.loss,
        text_reduction=settings.text.reduction,
        tagger=settings.text.tagger,
        run=plan.run,
        step=step,
    )


def require_same_model(wanted: Model, found: Model, where: str) -> None:
    """Refuse weights of another model before anything is queued.

    Raises:
        ConfigError: naming the first field that differs, with both values and the cure.
    """
    left, right = _fields(wanted), _fields(found)
    for key, value in left.items():
        if right[key] != value:
            raise ConfigError(
                f"the starting weights are of another model: {key} is {right[key]}, the recipe's model has {value}",
                where=where,
                hint=_cure(key, wanted, found, where),
            )


def _fields(model: Model) -> dict[str, object]:
    """Every field by its key in a recipe; mlp_ratio as that of the hidden width it makes."""
    found: dict[str, object] = {"family": model.family, "embed_dim": model.embed_dim}
    for name, tower in (("image", model.image), ("text", model.text)):
        table = {f"{name}.{field}": getattr(tower, field) for field in tower.__struct_fields__}
        found |= table | {f"{name}.mlp_ratio": round(int(tower.width * tower.mlp_ratio) / tower.width, 4)}
    return found


def _cure(key: str, wanted: Model, found: Model, where: str) -> str:
    own, other = wanted.traits, found.traits
    if key != "family":
        return f"--set model.{key}={_fields(found)[key]} makes the recipe's model that of the weights, if you want that"
    if (own.norm_pre, own.vocabulary) == (other.norm_pre, other.vocabulary):
        folder = where if "/" in where and "://" not in where else "CHECKPOINT"
        return f"clipa convert {folder} NEW_FOLDER --to clipa --family {wanted.family}, then --from NEW_FOLDER"
    return f"families are not mixed: give weights of {wanted.family}, or a recipe whose model.family is {found.family}"

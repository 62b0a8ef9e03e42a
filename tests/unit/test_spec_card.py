"""Weights of another model are refused before anything is queued, with both values and the cure."""

from __future__ import annotations

import msgspec
import pytest

from clipa.errors import ConfigError
from clipa.spec.card import Card, decode, prompt_input, require_same_model
from clipa.spec.model import ImageTower, Model, TextTower

REPLACE = msgspec.structs.replace
BASE = Model(
    embed_dim=64, image=ImageTower(patch=8, width=48, layers=2, heads=3), text=TextTower(width=32, layers=2, heads=2)
)


def published(family: str) -> Model:
    words = {"v2": "bert-wordpiece", "v2-open_clip": "bert-wordpiece-sep"}[family]
    image, text = REPLACE(BASE.image, pool="gap-norm"), REPLACE(BASE.text, tokenizer=words)
    return Model(embed_dim=64, family=family, image=image, text=text)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("embed_dim", {"embed_dim": 32}),
        ("image.patch", {"image": REPLACE(BASE.image, patch=4)}),
        ("image.width", {"image": REPLACE(BASE.image, width=96)}),
        ("image.layers", {"image": REPLACE(BASE.image, layers=3)}),
        ("image.heads", {"image": REPLACE(BASE.image, heads=4)}),
        ("image.mlp_ratio", {"image": REPLACE(BASE.image, mlp_ratio=2.0)}),
        ("image.pool", {"image": REPLACE(BASE.image, pool="gap")}),
        ("text.width", {"text": REPLACE(BASE.text, width=64)}),
        ("text.layers", {"text": REPLACE(BASE.text, layers=1)}),
        ("text.heads", {"text": REPLACE(BASE.text, heads=4)}),
        ("text.mlp_ratio", {"text": REPLACE(BASE.text, mlp_ratio=3.0)}),
    ],
)
def test_both_values_and_the_cure(key: str, change: dict[str, object]) -> None:
    found = REPLACE(BASE, **change)
    part, _, last = key.rpartition(".")
    a, b = ((getattr(getattr(m, part) if part else m, last)) for m in (BASE, found))
    with pytest.raises(ConfigError) as caught:
        require_same_model(BASE, found, "run:x@final")
    assert f"{key} is {b}, the recipe's model has {a}" in str(caught.value)
    assert f"--set model.{key}={b}" in str(caught.value)


def test_another_family() -> None:
    with pytest.raises(ConfigError) as caught:
        require_same_model(BASE, published("v2"), "/weights")
    assert "family is v2, the recipe's model has v1" in str(caught.value)
    assert "families are not mixed" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        require_same_model(published("v2"), published("v2-open_clip"), "/weights")
    assert "clipa convert /weights NEW_FOLDER --to clipa --family v2" in str(caught.value)


def test_the_same_model_passes_however_its_ratio_is_written() -> None:
    require_same_model(BASE, BASE, "here")
    exact = REPLACE(BASE, image=REPLACE(BASE.image, width=1664, heads=16, mlp_ratio=8192 / 1664))
    require_same_model(exact, REPLACE(exact, image=REPLACE(exact.image, mlp_ratio=4.9231)), "here")


@pytest.mark.parametrize(
    ("trained", "shown"),
    [("truncate", "truncate"), ("syntax", "syntax"), ("random", "truncate"), ("block", "truncate")],
)
def test_prompts_enter_as_captions_did_but_are_never_masked(trained: str, shown: str) -> None:
    card = Card(
        model=BASE, image_size=32, text_tokens=8, positions="sincos2d", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        text_reduction=trained, tagger="nltk" if trained == "syntax" else "table",  # type: ignore[arg-type]
    )  # fmt: skip
    found = prompt_input(decode(msgspec.json.encode(card)))
    assert (found.tokens, found.reduction, found.tagger) == (8, shown, card.tagger)


def test_a_card_of_before_says_nothing_of_prompts_and_they_are_truncated() -> None:
    card = Card(
        model=BASE, image_size=32, text_tokens=8, positions="sincos2d", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    old = msgspec.json.decode(msgspec.json.encode(card))
    old.pop("text_reduction", None), old.pop("tagger", None)
    assert prompt_input(decode(msgspec.json.encode(old))).reduction == "truncate"

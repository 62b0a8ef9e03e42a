"""Which tokens of a prompt the text tower sees."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from clipa.attempt.devices import Ranks
from clipa.data.open_clip_file import open_clip_file
from clipa.eval.job import Bench
from clipa.spec.card import Card
from clipa.spec.model import ImageTower, Model, TextTower

MODEL = Model(
    embed_dim=4, image=ImageTower(patch=8, width=48, layers=2, heads=3), text=TextTower(width=32, layers=2, heads=2)
)
CARD = Card(model=MODEL, image_size=32, text_tokens=8, positions="sincos2d", mean=(0.5,) * 3, std=(0.5,) * 3)


class _Ear:
    """Stands where the model does, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[torch.Tensor] = []

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        self.heard.append(tokens)
        return torch.zeros(len(tokens), 4)

    def beat(self) -> None:
        pass


@pytest.mark.parametrize(
    ("reduction", "seen"),
    [
        ("syntax", "a bad photo of golden retriever"),
        ("truncate", "a bad photo of the golden"),
        ("random", "a bad photo of the golden"),
    ],
)
def test_a_prompt_of_eight_tokens_keeps_its_class_where_captions_kept_nouns(reduction: str, seen: str) -> None:
    card, ear = msgspec.structs.replace(CARD, text_reduction=reduction), _Ear()
    anything: Any = ear
    ranks = Ranks(0, 1, torch.device("cpu"))
    bench = Bench(
        run=anything, plan=anything, ranks=ranks, precision="fp32", model=anything, card=card, digest="", batch=1,
        pulse=anything,
    )  # fmt: skip
    assert bench.text_features(["a bad photo of the golden retriever ."]).shape == (1, 4)
    [row] = ear.heard[0].tolist()
    assert open_clip_file("tokenizer.py").SimpleTokenizer().decode(row[1:-1]).strip() == seen

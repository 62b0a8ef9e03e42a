"""What token reductions cost: python -m clipa.bench.reductions. One thread, processor time, the best of several runs.

Captions are made of nine random words of the table of word classes, as long as WordNet's examples are.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch

from clipa.data.tokenizer import tokenizer
from clipa.errors import MissingPart
from clipa.reduction.image import PatchSelection
from clipa.reduction.text import TokenSelection
from clipa.reduction.wordclass import word_classes
from clipa.spec.inputs import ImageInput, ImageReduction, TextInput, TextReduction
from clipa.terminal import say

CAPTIONS, WORDS, VOCABULARY, BATCH = 10_000, 9, 3_000, 8_192
_IMAGE: tuple[ImageReduction, ...] = ("random", "grid", "block")
_TEXT: tuple[TextReduction, ...] = ("truncate", "random", "block", "syntax")


def best_seconds(work: Callable[[], object], times: int = 10) -> float:
    """The least processor time of several runs, after one that warms the memories."""
    work()
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def captions() -> list[str]:
    """Captions of random words, the same ones every time."""
    chance = random.Random(0)  # noqa: S311
    words = chance.sample(sorted(word_classes()), VOCABULARY)
    return [" ".join(chance.choices(words, k=WORDS)) for _ in range(CAPTIONS)]


def main() -> None:
    """Print the rates."""
    torch.set_num_threads(1)
    texts, words = captions(), tokenizer("clip-bpe")
    for tokens in (8, 16, 32):
        for reduction in _TEXT:
            select = TokenSelection(words, TextInput(tokens=tokens, reduction=reduction))
            seconds = best_seconds(lambda: select(texts))  # noqa: B023
            say(f"text {tokens:2} {reduction:9} {CAPTIONS / seconds:10,.0f} captions/s")
    try:
        select = TokenSelection(words, TextInput(tokens=8, reduction="syntax", tagger="nltk"))
        say(f"text  8 nltk      {500 / best_seconds(lambda: select(texts[:500])):10,.0f} captions/s")
    except MissingPart as error:
        say(f"text  8 nltk      {error.what}")
    positions = torch.arange(BATCH)
    for kind in _IMAGE:
        chosen = PatchSelection(ImageInput(size=224, tokens=49, reduction=kind), 16, 0)
        seconds = best_seconds(lambda: chosen(positions), 3)  # noqa: B023
        say(f"image 49 of 196 {kind:6} {seconds / BATCH * 1e6:6.2f} us a sample")


if __name__ == "__main__":
    main()

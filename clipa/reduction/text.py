"""Text reductions: which tokens of a caption are kept. Their order always stays (arXiv 2305.07017, section 3.1).

`truncate`  the first ones.
`random`    any, drawn for each sample.
`block`     a contiguous run; where it starts is drawn for each sample, the last possible start included.
`syntax`    whole words, nouns before adjectives before verbs before all others, and of equals the first.

A caption that fits is kept whole. What is kept is a pure function of (seed, position, caption, input).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch

from clipa.reduction.draws import Draws, Purpose
from clipa.reduction.nltk_tagger import Tagger, nltk_tagger
from clipa.reduction.wordclass import ClassMemory, WordClass
from clipa.spec.inputs import TextInput


class Word(NamedTuple):
    """A word as its tokenizer splits a text (in lower case, punctuation apart), and its token ids."""

    text: str
    ids: tuple[int, ...]


class Tokenizer(Protocol):
    """What the reductions need of a tokenizer. `end` is None where the family has no end token (CLIPA-v2)."""

    @property
    def start(self) -> int:
        """Id of the first token of every row."""

    @property
    def end(self) -> int | None:
        """Id of the token behind the last word."""

    def ids(self, text: str, enough: int) -> Sequence[int]:
        """At least the first `enough` ids of a text, or all that it has, without start and end token."""

    def words(self, text: str) -> Sequence[Word]:
        """All words of a text; their ids, one after another, are the ids of the text."""


class TokenSelection:
    """Captions to rows of token ids. Made once, called with every batch.

    A row is the start token, the ids that are kept, the end token where there is one, then zeros. Ids that do not fit
    are cut, and the last entry is the end token, as in CLIP's own tokenizer.

    Args:
        tokenizer: of the model's family.
        text: length of a row, start and end token included, and the reduction.
        seed: of the run.
    """

    def __init__(self, tokenizer: Tokenizer, text: TextInput, seed: int = 0) -> None:
        self._tokenizer = tokenizer
        self._tokens = text.tokens
        self._room = text.tokens - (1 if tokenizer.end is None else 2)
        self._seed = seed
        self._keep: Callable[[str, int], Sequence[int]] = {
            "truncate": self._truncate,
            "random": self._random,
            "block": self._block,
            "syntax": self._by_table,
        }[text.reduction]
        self._classes = ClassMemory()
        if text.reduction == "syntax" and text.tagger == "nltk":
            self._keep = partial(self._by_sentence, nltk_tagger())

    def __call__(self, captions: Sequence[str], positions: Sequence[int] = ()) -> torch.Tensor:
        """Token ids, int64 [len(captions), tokens].

        Args:
            captions: any text, also none, emoji, or far too much of it.
            positions: of the samples in the stream; `random` and `block` draw by them. None: 0, 1, 2, ...
        """
        start, end = self._tokenizer.start, self._tokenizer.end
        places = positions if len(positions) else range(len(captions))
        flat: list[int] = []
        ends: list[int] = []
        for caption, place in zip(captions, places, strict=True):
            flat.append(start)
            flat += self._keep(caption, place)[: self._room]
            if end is not None:
                flat.append(end)
            ends.append(len(flat))
        # All rows at once, and by way of numpy: with zeros as Python's numbers a row of 77 takes twice as long.
        rows = np.zeros((len(captions), self._tokens), dtype=np.int64)
        lengths = np.diff(np.array(ends, dtype=np.int64), prepend=0)
        rows[np.arange(self._tokens) < lengths[:, None]] = np.array(flat, dtype=np.int64)
        return torch.from_numpy(rows)

    def _truncate(self, caption: str, _position: int) -> Sequence[int]:
        return self._tokenizer.ids(caption, self._room)

    def _random(self, caption: str, position: int) -> Sequence[int]:
        ids = self._tokenizer.ids(caption, sys.maxsize)
        if len(ids) <= self._room:
            return ids
        return [ids[place] for place in _some(len(ids), self._room, self._draws(position))]

    def _block(self, caption: str, position: int) -> Sequence[int]:
        ids = self._tokenizer.ids(caption, sys.maxsize)
        first = self._draws(position).integer(len(ids) - self._room + 1) if len(ids) > self._room else 0
        return ids[first : first + self._room]

    def _by_table(self, caption: str, _position: int) -> Sequence[int]:
        words = self._tokenizer.words(caption)
        if len(words) > self._room:
            classes = self._classes
            places = foremost([classes[word.text] for word in words], self._room)
            words = [words[place] for place in places]
        ids: list[int] = []
        for word in words:
            ids += word.ids
        return ids

    def _by_sentence(self, tag: Tagger, caption: str, _position: int) -> Sequence[int]:
        tagged = tag(caption)
        places = foremost([kind for _, kind in tagged], self._room)
        return self._tokenizer.ids(" ".join(tagged[place][0] for place in places), sys.maxsize)

    def _draws(self, position: int) -> Draws:
        return Draws(self._seed, position, Purpose.KEPT_WORDS)


def _some(count: int, kept: int, draws: Draws) -> list[int]:
    """`kept` of the numbers 0..count-1, every set as likely, in order (Floyd; Bentley, CACM 1987)."""
    chosen: set[int] = set()
    for last in range(count - kept, count):
        place = draws.integer(last + 1)
        chosen.add(last if place in chosen else place)
    return sorted(chosen)


def foremost(classes: Sequence[WordClass], kept: int) -> list[int]:
    """Places of the `kept` words that come first by class, and of one class by place; in the order of the text."""
    return sorted(sorted(range(len(classes)), key=classes.__getitem__)[:kept])

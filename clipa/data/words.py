"""What tokenizers share: a text is cleaned and split at spaces, and what stands between two spaces is remembered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TypeVar

import torch

from clipa.reduction.text import TokenSelection, Word
from clipa.spec.inputs import TextInput

T = TypeVar("T")

_CACHED_WORDS = 200_000
"""Words whose ids are remembered (about 40 MB); the memory is emptied when full, which changes no id."""

_SHORT_WORD = 64
"""Characters of a word that is remembered."""


class WordTokenizer(ABC):
    """A tokenizer none of whose rules reaches over a space, so that it can remember words (clipa.reduction.text).

    `start` is the id that begins a row, `end` the one that ends it, or None.
    """

    start: int
    end: int | None

    def __init__(self) -> None:
        self._known = Memory(self._split)
        self._known_ids = Memory(self._split_to_ids)

    @property
    def remembered(self) -> int:
        """How many words are remembered, each in one or two forms."""
        return len(self._known.keys() | self._known_ids.keys())

    def encode(self, captions: Sequence[str], tokens: int) -> torch.Tensor:
        """Token ids of captions, int64 [len(captions), tokens]: start, the first words, end, zeros."""
        return TokenSelection(self, TextInput(tokens=tokens))(captions)

    def ids(self, text: str, enough: int) -> list[int]:
        """At least the first `enough` ids of a text, or all that it has."""
        words = self._cleaned(text).split()
        found = list(chain.from_iterable(map(self._known_ids.__getitem__, words[:enough])))
        if len(found) < enough < len(words):  # of words that have no id: control characters in WordPiece
            return list(chain.from_iterable(map(self._known_ids.__getitem__, words)))
        return found

    def words(self, text: str) -> list[Word]:
        """All words of a text, as the tokenizer's own rule splits it."""
        return list(chain.from_iterable(map(self._known.__getitem__, self._cleaned(text).split())))

    @abstractmethod
    def _cleaned(self, text: str) -> str:
        """The text as the reference tokenizer cleans it first."""

    @abstractmethod
    def _split(self, run: str) -> tuple[Word, ...]:
        """The words in what stands between two spaces."""

    def _split_to_ids(self, run: str) -> tuple[int, ...]:
        words = self._split(run)
        return words[0].ids if len(words) == 1 else tuple(chain.from_iterable(word.ids for word in words))


def is_plain(text: str) -> bool:
    """Whether open_clip's cleaning (ftfy, html.unescape twice) leaves all but the spaces as they are.

    In printable ASCII without "&" there is no mojibake, no entity and no control character: 0.1 us to know instead of
    15 to clean.
    """
    return text.isascii() and text.isprintable() and "&" not in text


class Memory(dict[str, T]):
    """What `learn` says of a word, remembered: looking up and learning are one step, in C for a word that is known.

    It has a bound, and is emptied when full; long words are not kept.
    """

    def __init__(self, learn: Callable[[str], T]) -> None:
        self._learn = learn

    def __missing__(self, word: str) -> T:
        found = self._learn(word)
        if len(word) <= _SHORT_WORD:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = found
        return found

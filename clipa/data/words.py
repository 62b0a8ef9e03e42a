"""What tokenizers share: a text is cleaned and split at spaces, and what stands between two spaces is remembered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch

from clipa.reduction.text import TokenSelection, Word
from clipa.spec.inputs import TextInput

T = TypeVar("T")

_CACHED_WORDS = 200_000
"""Words whose ids are remembered (about 40 MB); the memory is emptied when full, which changes no id."""

SHORT_WORD = 64
"""Characters of a word that is remembered."""


class WordTokenizer(ABC):
    """A tokenizer none of whose rules reaches over a space, so that it can remember words (clipa.reduction.text).

    `start` is the id that begins a row, `end` the one that ends it, or None.
    """

    start: int
    end: int | None

    def __init__(self) -> None:
        self._known: dict[str, tuple[Word, ...]] = {}
        self._known_ids: dict[str, tuple[int, ...]] = {}

    @property
    def remembered(self) -> int:
        """How many words are remembered, each in one or two forms."""
        return len(self._known.keys() | self._known_ids.keys())

    def encode(self, captions: Sequence[str], tokens: int) -> torch.Tensor:
        """Token ids of captions, int64 [len(captions), tokens]: start, the first words, end, zeros."""
        return TokenSelection(self, TextInput(tokens=tokens))(captions)

    def ids(self, text: str, enough: int) -> list[int]:
        """At least the first `enough` ids of a text, or all that it has."""
        found: list[int] = []
        for word in self._cleaned(text).split():
            ids = self._known_ids.get(word)
            found.extend(self._learn_ids(word) if ids is None else ids)
            if len(found) >= enough:
                break
        return found

    def words(self, text: str) -> list[Word]:
        """All words of a text, as the tokenizer's own rule splits it."""
        found: list[Word] = []
        for word in self._cleaned(text).split():
            known = self._known.get(word)
            found.extend(self._learn(word) if known is None else known)
        return found

    @abstractmethod
    def _cleaned(self, text: str) -> str:
        """The text as the reference tokenizer cleans it first."""

    @abstractmethod
    def _split(self, run: str) -> tuple[Word, ...]:
        """The words in what stands between two spaces."""

    def _learn(self, run: str) -> tuple[Word, ...]:
        found = self._split(run)
        remember(self._known, run, found)
        return found

    def _learn_ids(self, run: str) -> tuple[int, ...]:
        ids = tuple(id_ for word in self._learn(run) for id_ in word.ids)
        remember(self._known_ids, run, ids)
        return ids


def is_plain(text: str) -> bool:
    """Whether open_clip's cleaning (ftfy, html.unescape twice) leaves all but the spaces as they are.

    In printable ASCII without "&" there is no mojibake, no entity and no control character: 2 us to know instead of
    15 to clean.
    """
    return text.isascii() and text.isprintable() and "&" not in text


def remember(memory: dict[str, T], word: str, value: T) -> None:
    """Keep what a word is, in a memory that has a bound; long words are not kept."""
    if len(word) <= SHORT_WORD:
        if len(memory) >= _CACHED_WORDS:
            memory.clear()
        memory[word] = value

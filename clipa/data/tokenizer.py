"""Captions to token ids, by the tokenizer's file of open_clip."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol, TypeVar

import torch

from clipa.data.open_clip_file import open_clip_file
from clipa.errors import ConfigError, did_you_mean
from clipa.reduction.text import TokenSelection, Word
from clipa.spec.inputs import TextInput

T = TypeVar("T")

_CACHED_WORDS = 200_000
"""Words whose ids are remembered (about 40 MB); the memory is emptied when full, which changes no id."""

_SHORT_WORD = 64
"""Characters of a word that is remembered, and up to which open_clip's own merging is used: it is quadratic, 10,000
letters take it a minute."""


class _OpenClip(Protocol):
    """What is used of open_clip's SimpleTokenizer."""

    bpe_ranks: dict[tuple[str, str], int]
    byte_encoder: dict[int, str]
    encoder: dict[str, int]
    cache: dict[str, str]
    sot_token_id: int
    eot_token_id: int


class Tokenizer:
    """CLIP's byte-pair encoding: the ids of open_clip's SimpleTokenizer, with a bounded memory of words."""

    def __init__(self) -> None:
        source = open_clip_file("tokenizer.py").SimpleTokenizer()
        self._source: _OpenClip = source
        self._clean: Callable[[str], str] = source.clean_fn
        self._merge: Callable[[str], str] = source.bpe
        self._pieces = source.pat.finditer
        self._special = dict(source.cache)
        self._known: dict[str, tuple[Word, ...]] = {}
        self._known_ids: dict[str, tuple[int, ...]] = {}
        self.start = int(source.sot_token_id)
        self.end = int(source.eot_token_id)
        self.vocabulary = int(source.vocab_size)

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
        """All words of a text: runs of letters, single digits, runs of other signs, as CLIP's pattern has them."""
        found: list[Word] = []
        for word in self._cleaned(text).split():
            known = self._known.get(word)
            found.extend(self._learn(word) if known is None else known)
        return found

    def _cleaned(self, text: str) -> str:
        # In printable ASCII without "&" there is no mojibake, no entity and no control character, so that open_clip's
        # cleaning (ftfy, html.unescape, lower) only lowers it: 2 us instead of 15.
        if text.isascii() and text.isprintable() and "&" not in text:
            return text.lower()
        return self._clean(text)

    def _learn(self, word: str) -> tuple[Word, ...]:
        """The words in what stands between two spaces: no piece of open_clip's pattern reaches over a space."""
        found = tuple(Word(match.group(), tuple(self._piece_ids(match.group()))) for match in self._pieces(word))
        _remember(self._known, word, found)
        return found

    def _learn_ids(self, word: str) -> tuple[int, ...]:
        ids = tuple(id_ for piece in self._learn(word) for id_ in piece.ids)
        _remember(self._known_ids, word, ids)
        return ids

    def _piece_ids(self, piece: str) -> list[int]:
        symbols = "".join(self._source.byte_encoder[byte] for byte in piece.encode("utf-8"))
        if len(symbols) > _SHORT_WORD:
            parts = merged(symbols, self._source.bpe_ranks)
        else:
            parts = self._merge(symbols).split(" ")
            if symbols not in self._special:
                self._source.cache.pop(symbols, None)  # it has no bound, and the word is remembered here
        return [self._source.encoder[part] for part in parts]


def _remember(memory: dict[str, T], word: str, value: T) -> None:
    if len(word) <= _SHORT_WORD:
        if len(memory) >= _CACHED_WORDS:
            memory.clear()
        memory[word] = value


def merged(symbols: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair merges of a word in O(n log n), equal to merging all of the best pair, left to right, again and again.

    A merge makes only pairs of a higher rank (they were learned later), so a queue ordered by (rank, place) visits
    the pairs in the same order.
    """
    parts: list[str | None] = [*symbols[:-1], symbols[-1] + "</w>"]
    after = list(range(1, len(parts) + 1))
    before = list(range(-1, len(parts) - 1))
    queue: list[tuple[int, int, str, str]] = []

    def offer(left: int) -> None:
        if left < 0 or after[left] >= len(parts):
            return
        first, second = parts[left], parts[after[left]]
        if first is not None and second is not None and (rank := ranks.get((first, second))) is not None:
            heapq.heappush(queue, (rank, left, first, second))

    for place in range(len(parts)):
        offer(place)
    while queue:
        _, left, first, second = heapq.heappop(queue)
        right = after[left]
        if parts[left] != first or right >= len(parts) or parts[right] != second:
            continue
        parts[left], parts[right] = first + second, None
        after[left] = after[right]
        if after[left] < len(parts):
            before[after[left]] = left
        offer(left)
        offer(before[left])
    return [part for part in parts if part is not None]


_TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"clip-bpe": Tokenizer}


@lru_cache(maxsize=4)
def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of that name; one per process.

    Raises:
        ConfigError: an unknown name.
        MissingPart: open_clip is not installed.
    """
    if name not in _TOKENIZERS:
        raise ConfigError(
            f"unknown tokenizer {name!r}",
            allowed=", ".join(_TOKENIZERS),
            hint=did_you_mean(name, _TOKENIZERS),
        )
    return _TOKENIZERS[name]()

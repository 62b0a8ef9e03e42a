"""Captions to token ids, by the tokenizer's file of open_clip."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import torch

from clipa.data.open_clip_file import open_clip_file
from clipa.errors import ConfigError, did_you_mean
from clipa.reduction.text import truncate

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
        self._known: dict[str, tuple[int, ...]] = {}
        self.start = int(source.sot_token_id)
        self.end = int(source.eot_token_id)
        self.vocabulary = int(source.vocab_size)

    def encode(self, captions: Sequence[str], tokens: int) -> torch.Tensor:
        """Token ids of captions, int64 [len(captions), tokens]: start, words, end, zeros (see `truncate`)."""
        rows = [truncate(self._ids(text, tokens - 2), tokens, start=self.start, end=self.end) for text in captions]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), tokens)

    def _ids(self, text: str, enough: int) -> list[int]:
        """At least `enough` ids of a text's start, or all that it has."""
        found: list[int] = []
        for word in self._cleaned(text).split():
            ids = self._known.get(word)
            found.extend(self._learn(word) if ids is None else ids)
            if len(found) >= enough:
                break
        return found

    def _cleaned(self, text: str) -> str:
        # In printable ASCII without "&" there is no mojibake, no entity and no control character, so that open_clip's
        # cleaning (ftfy, html.unescape, lower) only lowers it: 2 us instead of 15.
        if text.isascii() and text.isprintable() and "&" not in text:
            return text.lower()
        return self._clean(text)

    def _learn(self, word: str) -> tuple[int, ...]:
        """The ids of what stands between two spaces: no piece of open_clip's pattern reaches over a space."""
        ids = tuple(id_ for match in self._pieces(word) for id_ in self._piece_ids(match.group()))
        if len(word) <= _SHORT_WORD:
            if len(self._known) >= _CACHED_WORDS:
                self._known.clear()
            self._known[word] = ids
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

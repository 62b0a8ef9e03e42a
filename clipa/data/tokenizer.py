"""Captions to token ids, by the tokenizer's file of open_clip."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Protocol

from clipa.data.open_clip_file import open_clip_file
from clipa.data.wordpiece import PAD, WordPiece
from clipa.data.words import SHORT_WORD, WordTokenizer, is_plain, remember
from clipa.errors import ConfigError, did_you_mean
from clipa.reduction.text import Word


class _OpenClip(Protocol):
    """What is used of open_clip's SimpleTokenizer."""

    bpe_ranks: dict[tuple[str, str], int]
    byte_encoder: dict[int, str]
    encoder: dict[str, int]
    cache: dict[str, str]
    sot_token_id: int
    eot_token_id: int


class Tokenizer(WordTokenizer):
    """CLIP's byte-pair encoding: the ids of open_clip's SimpleTokenizer, with a bounded memory of words.

    Words are runs of letters, single digits, and runs of other signs, as CLIP's pattern has them.
    """

    def __init__(self) -> None:
        super().__init__()
        source = open_clip_file("tokenizer.py").SimpleTokenizer()
        self._source: _OpenClip = source
        self._clean: Callable[[str], str] = source.clean_fn
        self._merge: Callable[[str], str] = source.bpe
        self._pieces = source.pat.finditer
        self._special = dict(source.cache)
        self._known_pieces: dict[str, Word] = {}
        self.start = int(source.sot_token_id)
        self.end = int(source.eot_token_id)
        self.vocabulary = int(source.vocab_size)

    def _cleaned(self, text: str) -> str:
        return text.lower() if is_plain(text) else self._clean(text)

    def _split(self, run: str) -> tuple[Word, ...]:
        # No piece of open_clip's pattern reaches over a space.
        return tuple(self._word(match.group()) for match in self._pieces(run))

    def _word(self, piece: str) -> Word:
        # "(genus" is new, "(" and "genus" are not: of the pieces of runs that are new two in three are known.
        known = self._known_pieces.get(piece)
        if known is None:
            known = Word(piece, tuple(self._piece_ids(piece)))
            remember(self._known_pieces, piece, known)
        return known

    def _piece_ids(self, piece: str) -> list[int]:
        symbols = "".join(self._source.byte_encoder[byte] for byte in piece.encode("utf-8"))
        if len(symbols) > SHORT_WORD:  # open_clip's own merging is quadratic: 10,000 letters take it a minute
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


_TOKENIZERS: dict[str, Callable[[], WordTokenizer]] = {
    "clip-bpe": Tokenizer,
    "bert-wordpiece": WordPiece,
    "bert-wordpiece-sep": partial(WordPiece, end=PAD),
}


@lru_cache(maxsize=4)
def tokenizer(name: str) -> WordTokenizer:
    """The tokenizer of that name; one per process.

    Raises:
        ConfigError: an unknown name, or BERT's vocabulary is not there (clipa.storage.vocabulary.find_vocabulary).
        MissingPart: open_clip or tokenizers is not installed.
    """
    if name not in _TOKENIZERS:
        raise ConfigError(
            f"unknown tokenizer {name!r}",
            allowed=", ".join(_TOKENIZERS),
            hint=did_you_mean(name, _TOKENIZERS),
        )
    return _TOKENIZERS[name]()

"""Captions to token ids, by the tokenizer's file of open_clip."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Protocol

from clipa.data.open_clip_file import open_clip_file
from clipa.data.wordpiece import PAD, WordPiece, byte_pairs
from clipa.data.words import Memory, WordTokenizer, is_plain
from clipa.errors import ConfigError, did_you_mean
from clipa.reduction.text import Word


class _OpenClip(Protocol):
    """What is used of open_clip's SimpleTokenizer."""

    bpe_ranks: dict[tuple[str, str], int]
    byte_encoder: dict[int, str]
    cache: dict[str, str]
    clean_fn: Callable[[str], str]
    encoder: dict[str, int]
    pat: re.Pattern[str]
    vocab_size: int
    sot_token_id: int
    eot_token_id: int


class Tokenizer(WordTokenizer):
    """CLIP's byte-pair encoding: the ids of open_clip's SimpleTokenizer, with a bounded memory of words.

    Words are runs of letters, single digits, and runs of other signs, as CLIP's pattern has them.
    """

    def __init__(self) -> None:
        super().__init__()
        source: _OpenClip = open_clip_file("tokenizer.py").SimpleTokenizer()
        self._clean: Callable[[str], str] = source.clean_fn
        self._pieces = source.pat.findall
        self._letters = source.byte_encoder
        self._merged = byte_pairs(source.encoder, list(source.bpe_ranks))
        # "(genus" is new, "(" and "genus" are not: of the pieces of runs that are new two in three are known.
        self._known_pieces = Memory(self._word)
        # The special tokens, which a caption may hold too, are no bytes to merge.
        self._special = {text: Word(text, (source.encoder[text],)) for text in source.cache}
        self.start = int(source.sot_token_id)
        self.end = int(source.eot_token_id)
        self.vocabulary = int(source.vocab_size)

    def _cleaned(self, text: str) -> str:
        return text.lower() if is_plain(text) else self._clean(text)

    def _split(self, run: str) -> tuple[Word, ...]:
        # No piece of open_clip's pattern reaches over a space, and a run of letters is one.
        if run.isascii() and run.isalpha():
            return (self._known_pieces[run],)
        return tuple(map(self._known_pieces.__getitem__, self._pieces(run)))

    def _word(self, piece: str) -> Word:
        if piece in self._special:
            return self._special[piece]
        if piece.isascii() and piece.isprintable():  # CLIP's letters for these bytes are these letters
            return Word(piece, tuple(self._merged(piece)))
        letters = self._letters
        return Word(piece, tuple(self._merged("".join([letters[byte] for byte in piece.encode("utf-8")]))))


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

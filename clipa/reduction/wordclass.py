"""The usual class of an English word, looked up in a table: what `syntax` goes by where no sentence is tagged.

CLIPA-v2 too tags each entry of its vocabulary once, in isolation (UCSC-VLAA/CLIPA, clipa_jax, `noun_tokenize`). Its
tagger's data cannot be had everywhere; this table is made from a lexicon instead (`clipa.reduction.lexicon`).
docs/reductions.md says how far it agrees with taggers of sentences.
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from pathlib import Path

TABLE = Path(__file__).parent / "tables" / "word_classes.txt"


class WordClass(IntEnum):
    """Classes in the order in which words are kept: CLIPA's code has verbs third, its text does not name them."""

    NOUN = 1
    ADJECTIVE = 2
    VERB = 3
    OTHER = 4


def read_classes(path: Path) -> dict[str, WordClass]:
    """Words and their class, from a file with a section a class; lines that start with # are comments."""
    found: dict[str, WordClass] = {}
    kind = WordClass.OTHER
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            kind = WordClass[line.strip("[]").upper()]
        elif not line.startswith("#"):
            found |= dict.fromkeys(line.split(), kind)
    return found


@cache
def word_classes() -> dict[str, WordClass]:
    """Word forms in lower case that are no nouns, and their class."""
    return read_classes(TABLE)


def class_of(word: str) -> WordClass:
    """The usual class of a word in lower case. An unknown one with a letter in it is a noun: most of them are names."""
    known = word_classes().get(word)
    if known is not None:
        return known
    return WordClass.NOUN if any(map(str.isalpha, word)) else WordClass.OTHER


class ClassMemory(dict[str, WordClass]):
    """Classes of the words that were asked for: a third of the time of `class_of`, in the loader's hot path."""

    _LONGEST, _MOST = 64, 200_000

    def __missing__(self, word: str) -> WordClass:
        found = class_of(word)
        if len(word) <= self._LONGEST:
            if len(self) >= self._MOST:
                self.clear()
            self[word] = found
        return found

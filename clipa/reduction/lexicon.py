"""Makes `tables/word_classes.txt` from WordNet's sense counts: python -m clipa.reduction.lexicon [FOLDER].

FOLDER holds WordNet 3.0's files as Debian's `wordnet-base` installs them (/usr/share/wordnet). A sense's count says how
often it was met in SemCor, 234,000 tagged words of English. WordNet knows lemmas: their inflected forms are made here,
and a lemma's count is shared among them. What a form is most often is its class. No tagger and no tagged sentence is
needed, here or later, so the result is a word's usual class, not its part of speech in a sentence.
"""

from __future__ import annotations

import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from clipa.errors import InputError
from clipa.reduction.wordclass import TABLE, WordClass, read_classes
from clipa.terminal import say

WORDNET = Path("/usr/share/wordnet")
CLOSED = TABLE.parent / "closed_class.txt"

_SHARES = {
    WordClass.NOUN: {"": 0.75, "s": 0.25},
    WordClass.VERB: {"": 0.3, "s": 0.15, "ed": 0.3, "ing": 0.25},
    WordClass.ADJECTIVE: {"": 0.9, "er": 0.05, "est": 0.05},
    WordClass.OTHER: {"": 1.0},
}
"""How a lemma's count is shared among its forms: round figures, as English text has them."""

_UNSEEN = 0.3
"""Weight of a sense that SemCor does not have, beside 1 for a sense that was met once."""

_FILES = {
    "noun": WordClass.NOUN,
    "verb": WordClass.VERB,
    "adj": WordClass.ADJECTIVE,
    "adv": WordClass.OTHER,
}
_SENSE_TYPES = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
_VOWELS = "aeiou"
_LONGEST_COMPARED = 7
"""Letters of an adjective that has -er and -est: longer ones take "more" and "most"."""


def lemma_weights(folder: Path) -> dict[tuple[str, str], float]:
    """How often each (lemma, file) is met, for lemmas of letters alone."""
    counts: dict[tuple[str, str], float] = defaultdict(float)
    for line in _lines(folder / "cntlist.rev"):
        key, _, count = line.split()
        lemma, _, sense = key.partition("%")
        counts[lemma, _SENSE_TYPES[sense[0]]] += int(count)
    weights = {}
    for name in _FILES:
        for line in _lines(folder / f"index.{name}"):
            words = line.split()
            lemma, senses = words[0], int(words[2])
            if lemma.isalpha():
                weights[lemma, name] = counts[lemma, name] + _UNSEEN * senses
    return weights


def _lines(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read WordNet's {path.name}: {error.strerror}", where=str(path), hint="apt install wordnet-base"
        ) from error
    # The licence stands before the entries, indented.
    return (line for line in text.splitlines() if line and not line.startswith(" "))


def exceptions(folder: Path, name: str) -> dict[str, list[str]]:
    """Irregular forms of each lemma."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in _lines(folder / f"{name}.exc"):
        form, *lemmas = line.split()
        for lemma in lemmas:
            found[lemma].append(form)
    return found


def inflected(lemma: str, ending: str) -> str:
    """The regular form of a lemma: `s`, `ed`, `ing`, `er` or `est` put behind it as English spells it."""
    if not ending:
        return lemma
    if ending == "s":
        if lemma.endswith(("s", "x", "z", "ch", "sh")):
            return lemma + "es"
        return lemma[:-1] + "ies" if _consonant_y(lemma) else lemma + "s"
    if ending == "ing":
        return (lemma[:-1] if lemma.endswith("e") and not lemma.endswith(("ee", "oe", "ye")) else lemma) + "ing"
    if _consonant_y(lemma):
        return lemma[:-1] + "i" + ending
    return lemma + (ending[1:] if lemma.endswith("e") else ending)


def _consonant_y(lemma: str) -> bool:
    return len(lemma) > 1 and lemma.endswith("y") and lemma[-2] not in _VOWELS


def _forms(lemma: str, kind: WordClass, irregular: list[str]) -> Iterator[tuple[str, float]]:
    """The forms of a lemma, each with its share. An irregular form takes the place of the regular one."""
    for ending, share in _SHARES[kind].items():
        if ending in ("er", "est") and len(lemma) > _LONGEST_COMPARED:
            continue
        own = [form for form in irregular if ending and _ending_of(form, kind) == ending]
        for form in own or [inflected(lemma, ending)]:
            yield form, share


def _ending_of(form: str, kind: WordClass) -> str:
    """The regular ending in whose place an irregular form stands: feet has that of s, sat that of ed."""
    others = {WordClass.VERB: ("ing", "s"), WordClass.ADJECTIVE: ("est", "er")}.get(kind, ())
    usual = {WordClass.NOUN: "s", WordClass.VERB: "ed"}.get(kind, "")
    return next((ending for ending in others if form.endswith(ending)), usual)


def classes(folder: Path) -> dict[str, WordClass]:
    """The usual class of every word form that is no noun; what is not here is taken for a noun."""
    weights: dict[str, dict[WordClass, float]] = defaultdict(lambda: defaultdict(float))
    irregular = {name: exceptions(folder, name) for name in _FILES}
    for (lemma, name), weight in lemma_weights(folder).items():
        for form, share in _forms(lemma, _FILES[name], irregular[name][lemma]):
            weights[form][_FILES[name]] += share * weight
    # Of equal weights the first class wins: noun before adjective before verb.
    usual = {form: max(sorted(by_class), key=by_class.__getitem__) for form, by_class in weights.items()}
    usual |= read_classes(CLOSED)
    return {form: kind for form, kind in usual.items() if kind is not WordClass.NOUN}


def rendered(table: dict[str, WordClass]) -> str:
    """The file's text: a section a class, words in order."""
    head = (
        "# The usual class of English word forms, for the text reduction `syntax`. A word that is not here is a noun.",
        "# Not a part-of-speech tagger: it looks at no sentence. Made by python -m clipa.reduction.lexicon from the",
        "# sense counts of WordNet 3.0 and a list of closed-class words. WordNet's licence: LICENSE-WordNet beside it.",
    )
    parts = ["\n".join(head)]
    for kind in sorted(set(table.values())):
        words = " ".join(sorted(word for word, of in table.items() if of is kind))
        parts.append(f"[{kind.name.lower()}]\n" + textwrap.fill(words, 120, break_on_hyphens=False))
    return "\n".join(parts) + "\n"


def main() -> None:
    """Write the table."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else WORDNET
    table = classes(folder)
    TABLE.write_text(rendered(table), encoding="utf-8")
    say(f"{TABLE}: {len(table):,} words, {TABLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

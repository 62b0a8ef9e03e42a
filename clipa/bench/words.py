"""Tokenisers on captions that they have not seen: clipa's and open_clip's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from clipa.bench.sources import captions
from clipa.data.open_clip_file import open_clip_file
from clipa.data.tokenizer import tokenizer
from clipa.errors import MissingPart
from clipa.reduction.text import TokenSelection
from clipa.spec.inputs import TextInput

_BATCH = 512
_HELD_OUT = 10_000
_ROUNDS = 3
"""The best one counts, of each side; each with a memory that knows the same captions."""
_SENTENCES = 500
"""Of nltk's, which takes milliseconds for each."""


def compared(name: str, inputs: Sequence[TextInput]) -> Iterator[str]:
    """Lines of a table: captions a second, how many times open_clip's, and the words that were not remembered."""
    what, texts = captions()
    known, unseen = texts[_HELD_OUT:], texts[:_HELD_OUT]
    yield f"Captions: {what}; {len(known):,} seen before, {len(unseen):,} that are not among them.\n"
    yield "| text | clipa, captions/s | open_clip's SimpleTokenizer | times | words not remembered |"
    yield "|---|---|---|---|---|"
    for text in dict.fromkeys((TextInput(tokens=77), *inputs)):
        mine, missed = min(_ours(name, text, known, unseen) for _ in range(_ROUNDS if name == "clip-bpe" else 1))
        rates = f"| {text.tokens} {text.reduction} | {len(unseen) / mine:,.0f} |"
        theirs = _theirs(text, known, unseen)
        if isinstance(theirs, str):
            yield f"{rates} {theirs} | - | {missed:.2%} |"
        else:
            yield f"{rates} {theirs:,.0f} | {len(unseen) / mine / theirs:.1f} | {missed:.2%} |"


def _ours(name: str, text: TextInput, known: Sequence[str], unseen: Sequence[str]) -> tuple[float, float]:
    """Processor seconds for the unseen captions, and the share of their words that were not remembered."""
    source = type(tokenizer(name))() if name == "clip-bpe" else tokenizer(name)
    select = TokenSelection(source, text)
    _spent(select, known)
    before = source.remembered
    spent = _spent(select, unseen)
    return spent, (source.remembered - before) / sum(len(caption.split()) for caption in unseen)


def _theirs(text: TextInput, known: Sequence[str], unseen: Sequence[str]) -> float | str:
    """Captions a second of open_clip's tokenizer; for `syntax` it asks nltk for every one."""
    if text.reduction == "syntax":
        try:
            select = TokenSelection(
                tokenizer("clip-bpe"), TextInput(tokens=text.tokens, reduction="syntax", tagger="nltk")
            )
        except MissingPart as error:
            return error.what
        return _SENTENCES / _spent(select, unseen[:_SENTENCES])
    mask = "" if text.reduction == "truncate" else {"random": "random", "block": "simple"}[text.reduction]
    source = open_clip_file("tokenizer.py").SimpleTokenizer(context_length=text.tokens, reduction_mask=mask)
    _spent(source, known)
    remembered, spent = dict(source.cache), []
    for _ in range(_ROUNDS):
        source.cache = dict(remembered)
        spent.append(_spent(source, unseen))
    return len(unseen) / min(spent)


def _spent(work: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    """Processor seconds for all of them, in batches, in one pass: a second one would have seen them."""
    began = time.process_time()
    for at in range(0, len(texts), _BATCH):
        work(texts[at : at + _BATCH])
    return time.process_time() - began

"""Captions for the demo's digits: a small grammar. Every sentence is true of every scan of its digit.

Most captions name the digit among their first six tokens, so that a text of 8 tokens keeps it; some name it late.
"""

from __future__ import annotations

from clipa.reduction.draws import Draws

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The names of the classes."""

TEMPLATES = ("{c}", "a handwritten {c}", "the digit {c}", "the number {c}", "a scan of the number {c}")
"""Prompts of the zero-shot classifier: plain English, all of the kind that the grammar below makes."""

_NAMES = ("{w}", "{w}", "{n}")  # words twice as often as numerals

_NOUNS = (
    "{x}",
    "the digit {x}",
    "the number {x}",
    "digit {x}",
    "number {x}",
    "the numeral {x}",
    "a handwritten {x}",
    "a {x}",
    "the figure {x}",
    "one digit, {x}",
)

_FRAMES = (
    "{d}",
    "{d}.",
    "this is {d}",
    "{d}, written by hand",
    "{d} in handwriting",
    "{d} written by a person",
    "{d}, scanned",
    "{d} on a dark background",
    "{d}, bright on dark",
    "{d} in grey levels",
    "scan of {d}",
    "a scan of {d}",
    "a small scan of {d}",
    "a grey picture of {d}",
    "an image of {d}",
    "a blurry image of {d}",
    "handwriting: {d}",
    "somebody wrote {d}",
    "it shows {d}",
    "{d}, {p}",
    "{d}, which is {p}",
    "{p}: {d}",
    "a low resolution scan that shows {d}",
    "a smooth enlargement of a tiny scan of {d}",
    "from a form that was filled in by hand: {d}",
    "a single handwritten character, and it is {d}",
)

_PROPERTIES = (
    "{parity} number",
    "{parity} digit",
    "{half}",
    "{parity} number, {half}",
)


def caption(digit: int, draws: Draws) -> str:
    """A caption of a digit 0..9."""

    def pick(options: tuple[str, ...]) -> str:
        return options[draws.integer(len(options))]

    facts = pick(_PROPERTIES).format(
        parity="an odd" if digit % 2 else "an even",
        half="more than four" if digit > 4 else "less than five",
    )
    name = pick(_NAMES).format(w=WORDS[digit], n=digit)
    noun = pick(_NOUNS).format(x=name)
    # "a eight" is no English; numerals follow the sound of their words.
    if digit == 8:
        noun = noun.replace(f"a {name}", f"an {name}") if noun.startswith(f"a {name}") else noun
    return pick(_FRAMES).format(d=noun, p=facts)

"""SLURM's short form of a list of hosts, without asking `scontrol show hostnames`: it may not be there."""

from __future__ import annotations

import itertools
import re

LONGEST = 100_000
_PART = re.compile(r"[^,\[\]]+|\[[^\[\]]*\]")


def expand(text: str) -> list[str]:
    """`node[1-3,07],login` as names, in order.

    Raises:
        ValueError: not such a list.
    """
    names: list[str] = []
    for word in _words(text):
        parts = [_ranges(part[1:-1]) if part.startswith("[") else [part] for part in _PART.findall(word)]
        names += ["".join(chosen) for chosen in itertools.islice(itertools.product(*parts), LONGEST)]
    return names


def _words(text: str) -> list[str]:
    """The list at its top-level commas."""
    words, depth = [""], 0
    for mark in text.strip():
        depth += (mark == "[") - (mark == "]")
        if depth not in (0, 1):
            raise ValueError(f"not a list of hosts: {text!r}")
        if mark == "," and not depth:
            words.append("")
        else:
            words[-1] += mark
    if depth:
        raise ValueError(f"not a list of hosts: {text!r}")
    return [word for word in words if word]


def _ranges(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not dash:
            found.append(part)
            continue
        if not (first.isdecimal() and last.isdecimal() and int(last) - int(first) < LONGEST):
            raise ValueError(f"not a range of numbers: {part!r}")
        found += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return found

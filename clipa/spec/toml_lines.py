"""Line numbers of keys in a TOML file, for error messages: `tomllib` does not report them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

_HEADER = re.compile(r"^\s*\[\[?(?P<path>[^\[\]]+)\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*(?P<key>(?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


def line_of(text: str, path: str) -> int | None:
    """Return the line, from 1, that sets a dotted key, or the table that should hold it; None if neither is found.

    A key in an inline table is found at the line of that table.
    """
    wanted = path.split(".")
    best, depth = None, 0
    for number, found in _assignments(text):
        shared = len(found) if wanted[: len(found)] == found else 0
        if shared > depth and _begins_a_statement(text, number):
            best, depth = number, shared
    return best


def _assignments(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the full dotted path of each table header and each key."""
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if (header := _HEADER.match(line)) and _begins_a_statement(text, number):
            table = _parts(header.group("path"))
            yield number, table
        elif key := _KEY.match(line):
            yield number, [*table, *_parts(key.group("key"))]


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]


def _begins_a_statement(text: str, number: int) -> bool:
    """Return False for a line inside a multi-line string or list, where the text before it is not valid TOML."""
    try:
        tomllib.loads("\n".join(text.splitlines()[: number - 1]))
    except (ValueError, RecursionError):  # TOMLDecodeError, or a number of too many digits
        return False
    return True

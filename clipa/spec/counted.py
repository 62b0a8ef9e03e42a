"""Numbers of things, for people: `1 shard`, `2 shards`."""

from __future__ import annotations


def counted(number: int, thing: str, things: str = "") -> str:
    """A number and its noun, with separators of thousands; `things` where the plural is more than an `s`."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"

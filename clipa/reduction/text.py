"""Text reductions: which tokens of a caption are kept. `truncate` keeps the first ones (arXiv 2305.07017, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence


def truncate(ids: Sequence[int], tokens: int, *, start: int, end: int) -> list[int]:
    """Start token, the caption's first ids, end token, then zeros: exactly `tokens` entries.

    A caption that is too long is cut, and its last entry is the end token, as in CLIP's own tokenizer.

    Args:
        ids: the caption without start and end token; entries beyond `tokens - 2` are not looked at.
        tokens: length of the row, start and end included; at least 2.
        start: id of the start token.
        end: id of the end token.
    """
    row = [start, *ids[: tokens - 2], end]
    return row + [0] * (tokens - len(row))

"""Samples that cannot be used: counted by kind and shard, told in the log and the events, and too many refused."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

from clipa.errors import DataError

_log = logging.getLogger(__name__)

STRETCH = 1_000
"""Samples of one rank after which their share of unusable ones is judged."""

_EXAMPLES = 3
_SHARDS = 20

Kind: TypeAlias = Literal["image", "bomb", "caption", "size"]


class Fault(NamedTuple):
    """A sample that cannot be used: `image` (broken), `bomb` (too many pixels), `caption` (none, empty), `size`."""

    kind: Kind
    shard: str
    what: str


class Bad(NamedTuple):
    """What one rank has met so far: samples that it saw, and those that could not be used, by kind and by shard."""

    seen: int
    kinds: dict[str, int]
    shards: dict[str, int]
    examples: tuple[str, ...]

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.items())
        shards = ", ".join(f"{shard} {count}" for shard, count in self.shards.items())
        return f"{kinds}; by shard: {shards}; such as {'; '.join(self.examples)}"


class Faults:
    """The unusable samples that one rank met.

    The log hears of the 1st, 10th, 100th, ..., so that it stays readable, and `tell` of those and of the rest at
    the end of each stretch.

    Args:
        dataset: where they are from, for messages.
        limit: the largest share of a stretch that may be unusable.
        tell: is told what was met.
    """

    def __init__(self, dataset: str, limit: float, tell: Callable[[Bad], None]) -> None:
        self._dataset, self._limit, self._tell = dataset, limit, tell
        self._all: Counter[tuple[str, str]] = Counter()  # bounded by the shards
        self._examples: tuple[str, ...] = ()
        self._here: list[Fault] = []
        self._seen = self._seen_here = self._count = self._told = 0
        self._log_at = 1

    def add(self, samples: int, faults: Sequence[Fault]) -> None:
        """Count a batch.

        Raises:
            DataError: more than the limit of a stretch of STRETCH samples could not be used.
        """
        self._seen += samples
        self._seen_here += samples
        self._count += len(faults)
        self._all.update((fault.kind, fault.shard) for fault in faults)
        self._here += faults
        self._examples = _examples(faults) or self._examples
        if self._count >= self._log_at:
            bad = self._say()
            _log.warning(
                "%s: %d of %d samples could not be used and were replaced: %s",
                self._dataset,
                self._count,
                bad.seen,
                bad,
            )
            while self._log_at <= self._count:
                self._log_at *= 10
        if self._seen_here >= STRETCH:
            if self._count > self._told:
                self._say()
            self._judge()
            self._seen_here, self._here = 0, []

    def _say(self) -> Bad:
        bad = _bad(self._seen, self._all, self._examples)
        self._told = self._count
        self._tell(bad)
        return bad

    def _judge(self) -> None:
        if len(self._here) <= self._limit * self._seen_here:
            return
        found: Counter[tuple[str, str]] = Counter((fault.kind, fault.shard) for fault in self._here)
        raise DataError(
            f"{len(self._here)} of the last {self._seen_here} samples cannot be used: "
            f"{_bad(self._seen_here, found, _examples(self._here))}",
            where=self._dataset,
            allowed=f"at most {self._limit:.0%} (bad_samples of the phase)",
            hint="clipa data doctor lists them; images must be jpg, png or webp, captions txt or json",
        )


def _bad(seen: int, found: Counter[tuple[str, str]], examples: tuple[str, ...]) -> Bad:
    kinds: Counter[str] = Counter()
    shards: Counter[str] = Counter()
    for (kind, shard), count in found.items():
        kinds[kind] += count
        shards[shard] += count
    return Bad(seen, dict(kinds.most_common()), dict(shards.most_common(_SHARDS)), examples)


def _examples(faults: Sequence[Fault]) -> tuple[str, ...]:
    return tuple(fault.what for fault in faults[:_EXAMPLES])


@cache
def tell_skipped(dataset: str, skipped: int, usable: int) -> None:
    """Say once in a process that a dataset has samples without an image, or with neither caption nor label."""
    if skipped:
        _log.warning(
            "%s: %d samples have no image, or neither caption nor label, and are left out; %d remain",
            dataset,
            skipped,
            usable,
        )

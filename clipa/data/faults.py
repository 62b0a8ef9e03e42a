"""Samples that cannot be used: counted, told in the log, and too many of them refused."""

from __future__ import annotations

import logging
from functools import cache

from clipa.errors import DataError

_log = logging.getLogger(__name__)

STRETCH = 1_000
"""Samples of one rank after which their share of unusable ones is judged."""
LIMIT = 0.1
"""The largest share of unusable samples. Web data sets have well below 1 %: more is a fault of whoever wrote them."""


class Faults:
    """The unusable samples that one rank met. Tells of the 1st, 10th, 100th, ..., so that a log stays readable."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._seen = self._replaced = 0
        self._seen_here = self._replaced_here = 0
        self._told_at = 1
        self._examples = ""

    def add(self, samples: int, replaced: int, examples: str) -> None:
        """Count a batch.

        Raises:
            DataError: more than LIMIT of a stretch of STRETCH samples could not be used.
        """
        self._seen += samples
        self._replaced += replaced
        self._seen_here += samples
        self._replaced_here += replaced
        self._examples = examples or self._examples
        if self._replaced >= self._told_at:
            self._tell()
        if self._seen_here >= STRETCH:
            self._judge()
            self._seen_here = self._replaced_here = 0

    def _tell(self) -> None:
        _log.warning(
            "%s: %d of %d samples could not be used and were replaced, such as %s",
            self._dataset,
            self._replaced,
            self._seen,
            self._examples,
        )
        while self._told_at <= self._replaced:
            self._told_at *= 10

    def _judge(self) -> None:
        if self._replaced_here > LIMIT * self._seen_here:
            raise DataError(
                f"{self._replaced_here} of the last {self._seen_here} samples cannot be used, such as {self._examples}",
                where=self._dataset,
                allowed=f"at most {LIMIT:.0%}",
                hint="check the shards: images must be jpg, png or webp, captions txt or json",
            )


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

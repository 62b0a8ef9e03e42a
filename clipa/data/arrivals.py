"""Shards that arrive in the staging cache while a run trains: indexed as they come, and what holds them up is said."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.data.index import load_counts
from clipa.data.order import Mixture
from clipa.errors import DataError
from clipa.staging.fill import Stopped
from clipa.staging.meeting import STUCK, WORKING, Life
from clipa.storage.manifest import Shard

_LOOK_S = 0.1
_AT_ONCE = 32
"""Names that are looked for at a time: more than are on their way at a time (`clipa.staging.fill.THREADS`)."""
_SILENT_S = 180.0
"""After so long without a sign of life nobody stages any more. NFS clients may not see a new name for 60 s (nfs(5))."""


class Arrival(NamedTuple):
    """A shard, the URL of its dataset, and its name in the cache."""

    shard: Shard
    url: str
    path: Path


class Arrivals:
    """Waits for shards, in an order in which they come, and makes their indexes: readers wait for these."""

    def __init__(self, place: Path, wanted: Sequence[Arrival]) -> None:
        self._wanted = deque(wanted)
        self._leave = threading.Event()
        self._life = Life(place / WORKING, place / STUCK, _SILENT_S, "the process that stages shards is gone")

    def leave(self) -> None:
        """Stop soon."""
        self._leave.set()

    def tell(self, _step: int) -> None:
        """It does not matter how far the training is: all of them come, and stay."""

    def run(self) -> None:
        """Until all are there.

        Raises:
            Stopped: it was asked to leave.
            StorageError: nobody stages them any more.
            DataError: a shard is not what its manifest says.
        """
        while self._wanted:
            if self._leave.is_set():
                raise Stopped
            head = [self._wanted.popleft() for _ in range(min(_AT_ONCE, len(self._wanted)))]
            here = [one for one in head if one.path.exists()]
            self._wanted.extendleft(reversed([one for one in head if one not in here]))
            for one in here:
                require_counted(load_counts(one.path).captioned, one.shard, one.url)
            if not here:
                self._life.require(self._wanted[0].path)
                self._leave.wait(_LOOK_S)


def first_needs(mixture: Mixture, lanes: range, step: int, shards: Mapping[int, int]) -> list[tuple[int, int]]:
    """(dataset, shard) of every shard of some datasets, as a node that reads these lanes comes to it from a step on.

    `shards`: their numbers of shards, by their places in the mixture.

    What it does not come to within two epochs (others read it, or nobody: it has no sample) is last.
    """
    total = sum(mixture.weights)
    left = {(number, shard) for number, count in shards.items() for shard in range(count)}
    epochs = [mixture.orders[n].samples * total / mixture.weights[n] / mixture.batch for n in shards]
    found: list[tuple[int, int]] = []
    for reading in mixture.readings(step, lanes, shards):
        if reading.first > step + 2 * max(epochs) or not left:
            break
        new = {(reading.dataset, shard): None for shard in reading.shards if (reading.dataset, shard) in left}
        left -= new.keys()
        found += new
    return [*found, *sorted(left)]


def require_counted(found: int, shard: Shard, url: str) -> None:
    """Refuse a shard that holds another number of samples than its manifest says: the order of samples rests on that.

    Raises:
        DataError: naming it.
    """
    if found != shard.samples:
        raise DataError(
            f"{found} samples have an image and a caption, the manifest says {shard.samples}",
            where=f"{url}/{shard.name}",
            hint="clipa data index URL --scan counts them; then submit a new run",
        )

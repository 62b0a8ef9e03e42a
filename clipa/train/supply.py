"""Whether the data keep up with the training, and what they lack where they don't: measured, not assumed."""

from __future__ import annotations

import math
import multiprocessing
import os
from pathlib import Path
from typing import NamedTuple

JUDGE_S = 60.0
"""Seconds of training that a judgement is made of: the first batches always wait for the workers to start."""
STALLED = 0.25
"""Share of the time from which a training is called stalled."""
_BUSY = 0.7
"""Share of its workers' time, running or ready to run, from which a loader is limited by cores and not by a disk."""


class Work(NamedTuple):
    """What the loader's processes did in `seconds` of training: seconds of computing, and of readiness without a core.

    `waited`: seconds that the training stood still for them.
    """

    seconds: float
    waited: float
    computed: float
    queued: float


def diagnosis(work: Work, workers: int, local: int, cores: int) -> str:
    """What a stalled loader lacks, in a sentence; empty where it is not stalled.

    Without waiting, training would be 1 / (1 - share) times as fast, and need so many times the cores that the loader
    kept busy.

    Args:
        work: of one rank's workers.
        workers: their number; 0: the data are made in the training process.
        local: ranks of the node, taken to be alike.
        cores: that the node's processes may use.
    """
    share = work.waited / work.seconds
    if share < STALLED:
        return ""
    said = f"waiting for data {share:.0%} of the time"
    if not workers:
        return f"{said}: it makes them itself; give loader_workers in the cluster profile"
    if work.computed + work.queued < _BUSY * workers * work.seconds:
        busy = work.computed / work.seconds / workers
        return f"{said}, and its {workers * local} loader workers are busy {busy:.0%}: the disk or the network is slow"
    used = local * work.computed / work.seconds
    needs = math.ceil(used / max(0.01, 1 - share))
    said += f": needs about {needs} cores for its loader workers, has {max(1, round(used))}"
    if workers * local < cores:
        more = min(math.ceil(needs / local), max(1, cores // local))
        return f"{said}; loader_workers = {workers}, and this node has {cores} cores: raise it to {more}"
    return f"{said}; this node has {cores}"


class Supply:
    """Watches one rank's loader.

    Args:
        workers: loader processes of a rank.
        local: ranks of this node.
    """

    def __init__(self, workers: int, local: int) -> None:
        self._workers = workers
        self._local = local
        self._said = False
        self._sum = Work(0.0, 0.0, 0.0, 0.0)
        self._before: dict[int, tuple[float, float]] = {}

    def begin(self) -> None:
        """Training goes on after something else: what the workers did meanwhile does not count."""
        self._before = _spent()

    def add(self, seconds: float, waited: float) -> str:
        """Count a stretch of training; what to say of a stalled loader, once."""
        now = _spent()
        both = [(now[pid], self._before.get(pid, (0.0, 0.0))) for pid in now]
        self._before = now
        computed = sum(after[0] - before[0] for after, before in both)
        queued = sum(after[1] - before[1] for after, before in both)
        self._sum = Work(*(a + b for a, b in zip(self._sum, (seconds, waited, computed, queued), strict=True)))
        if self._said or self._sum.seconds < JUDGE_S:
            return ""
        said = diagnosis(self._sum, self._workers, self._local, len(os.sched_getaffinity(0)))
        self._said, self._sum = bool(said), Work(0.0, 0.0, 0.0, 0.0)
        return said


def _spent() -> dict[int, tuple[float, float]]:
    """Seconds on a core, and ready without one, of every thread of the processes that this one has started.

    From /proc/PID/task/TID/schedstat (Documentation/scheduler/sched-stats.rst of the kernel); nothing where it is off.
    """
    found = {}
    for child in multiprocessing.active_children():
        for path in Path(f"/proc/{child.pid}/task").glob("*/schedstat"):
            try:
                ran, ready, _ = path.read_text().split()
                found[int(path.parent.name)] = (int(ran) / 1e9, int(ready) / 1e9)
            except (OSError, ValueError):
                continue  # it ended just now
    return found

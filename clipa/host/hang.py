"""An attempt that stands still: seen by its signs of life, made to show its stacks, and then ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from clipa.host.children import Child, group_of
from clipa.registry.run_dir import WAITING, RunDir

STACKS = signal.SIGUSR1
"""What makes a rank write its stacks (clipa.attempt.pulse)."""
DUMP_S = 5.0
"""Seconds from the request for stacks to the end: more than LOOK_S, so that the supervisors of all nodes have seen the
same silence and asked their own ranks before the first rank is gone, which would end the others' waiting."""
LOOK_S = 2.0
_LONGEST_LOOK_S = 10.0
_APART_S = 0.1


class Watch:
    """Looks at the sign of life of an attempt's first rank, whichever node that is on.

    A loader that waits for a shard on its way says so too, and as long as it does, nothing hangs: who brings the shards
    has time-outs of its own.

    What counts is that it changes, by this host's own clock: the clocks of a file server and of other hosts do not
    matter, and opening the file makes an NFS client ask its server (close-to-open consistency, nfs(5)). Time in which
    this process itself stood still (SLURM's suspend stops everything) does not count.

    Args:
        run: whose.
        attempt: the attempt's number.
        limit_s: the longest time without a change; 0: any.
    """

    def __init__(self, run: RunDir, attempt: int, limit_s: float, now: float) -> None:
        self._path = run.heartbeat(attempt, "train")
        self._attempt = attempt
        self._limit_s = limit_s
        self._seen: tuple[int, str] | None = None
        self._waiting = 0
        self._looked = now
        self._silent_s = 0.0

    def stuck(self, now: float) -> str:
        """What to say of an attempt that stands still; empty while it does not."""
        if not self._limit_s or now - self._looked < LOOK_S:
            return ""
        passed, self._looked = min(now - self._looked, _LONGEST_LOOK_S), now
        seen, waiting = self._look(), self._look_at_waiting()
        still = seen == self._seen and waiting == self._waiting
        self._silent_s = self._silent_s + passed if still else 0.0
        self._seen, self._waiting = seen, waiting
        if self._silent_s < self._limit_s:
            return ""
        step, _, doing = (seen[1] if seen else "").partition(" ")
        last = f"its last was at step {step} ({doing or 'training'})" if step else "there was none at all"
        return (
            f"it hangs: no sign of progress for {self._limit_s / 60:,.4g} minutes, {last}; "
            f"the stacks of all ranks are in logs/{self._attempt}/rank-*.err"
        )

    def _look_at_waiting(self) -> int:
        """When a loader last said that it waits for a shard."""
        found = 0
        for path in self._path.parent.glob(f"{self._attempt}-{WAITING}*"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                found = max(found, os.fstat(file.fileno()).st_mtime_ns)
        return found

    def _look(self) -> tuple[int, str] | None:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                return os.fstat(file.fileno()).st_mtime_ns, file.read().strip()
        except OSError:
            return None


def dump(children: Sequence[Child]) -> None:
    """Ask every process of every rank that can for its stacks; one that was stopped goes on for it.

    A rank and its loader workers share one log, so they are asked one after the other: stacks that are written at the
    same time cannot be read. The clients of container runtimes pass the signal on to the process inside.
    """
    groups = [
        [pid for pid in group_of(child.pid) if pid == child.pid or _answers(pid)]
        for child in children
        if child.poll() is None
    ]
    for pids in zip_longest(*groups):
        for pid in filter(None, pids):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, STACKS)
                os.kill(pid, signal.SIGCONT)
        time.sleep(_APART_S)


def _answers(pid: int) -> bool:
    """Whether a process has a handler for STACKS (SigCgt of proc(5)): it would end another one, and its children."""
    try:
        caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line[:7] == "SigCgt:")
    except (OSError, StopIteration):
        return False
    return bool(int(caught[7:], 16) >> (STACKS - 1) & 1)

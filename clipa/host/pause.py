"""The pause before an attempt: a back-off that grows with each failure, and as long as the run's disk is bad.

A supervisor outlives a disk that is full, over quota or read-only: it waits, says so, and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from clipa.host.blame import blame
from clipa.host.decide import COUNTED, Verdict
from clipa.registry.disk_errors import disk_words, is_disk_error, write_trouble
from clipa.registry.run_dir import RunDir

_FIRST_S = 1.0
_LONGEST_S = 60.0
_PROBE_S = 2.0
_LONGEST_PROBE_S = 30.0
_TICK_S = 0.1
_SPARE_BYTES = 1 << 24
"""Free bytes that an attempt needs after one that failed for want of space, besides its next checkpoint."""


class Watch(NamedTuple):
    """What a pause looks after: `asked` why the run should not go on, `tick` signs of life, `tell` why it waits."""

    asked: Callable[[], Verdict | None]
    tick: Callable[[], None]
    tell: Callable[[str], None]


Taken: TypeAlias = bool | Verdict
"""Whether this supervisor has the attempt now; or why none follows."""


def backoff_s(outcomes: list[str]) -> float:
    """Return the seconds before the next attempt: 1, 2, 4 ... 60 by the failures so far; 0 after a stop."""
    if not outcomes or outcomes[-1] not in COUNTED:
        return 0.0
    failures = sum(outcome in COUNTED for outcome in outcomes)
    return float(min(_LONGEST_S, _FIRST_S * 2.0 ** min(failures - 1, 10)))


def space_needed(run: RunDir, before: Verdict | None) -> int:
    """Return the free bytes that an attempt needs: none, or after a failure of the disk room for a checkpoint."""
    if before is None or before.outcome != "failed" or blame(before.error, []).cause != "storage":
        return 0
    newest = run.complete_checkpoints()[-1:]
    files = [path for _, folder in newest for path in folder.iterdir()]
    return _SPARE_BYTES + sum(path.stat().st_size for path in files)


def take_when_possible(
    run: RunDir,
    take: Callable[[], bool],
    watch: Watch,
    seconds: float = 0.0,
    need: int = 0,
    limit_s: float = float("inf"),
) -> Taken:
    """Take an attempt as soon as the back-off is over and the run's disk can be written.

    Args:
        run: whose disk.
        take: writes the intent and claims the attempt; False: another supervisor has it.
        watch: what is looked after meanwhile.
        seconds: the back-off.
        need: bytes that must be free.
        limit_s: how long a bad disk is waited for.
    """
    began = time.monotonic()
    probe_at, every, trouble = began + seconds, _PROBE_S, ""
    while True:
        if why := watch.asked():
            return why
        now = time.monotonic()
        if now >= probe_at:
            before, found = trouble, _try(run, take, need)
            if not isinstance(found, str):
                if before:
                    watch.tell("")
                return found
            trouble = found
            if not before:
                watch.tell(f"{trouble}: the next attempt waits until it can be written")
            if now - began > limit_s:
                return Verdict("failed", trouble, retry=True)
            probe_at, every = now + every, min(2 * every, _LONGEST_PROBE_S)
        watch.tick()
        time.sleep(_TICK_S)


def _try(run: RunDir, take: Callable[[], bool], need: int) -> Taken | str:
    """Take the attempt; a sentence where the disk does not allow it."""
    if trouble := write_trouble(run.path, need):
        return trouble
    try:
        return take()
    except OSError as error:
        if is_disk_error(error):
            return disk_words(error, run.path)
        return Verdict("failed", f"the attempt cannot be taken: {error}")

"""`python -m clipa.tell RUN_DIR --attempt N --tracker NAME --until FILE`: a child of the supervisor, one a tracker.

It reads the run's events as they come and passes them on until FILE is there, then what is left. A tracker that fails
is named in an event; the training never waits for one, and never ends with one. Without --until: what is there, once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path
from typing import Protocol

import msgspec

from clipa.registry import events
from clipa.registry.log_streams import survive_full_logs
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.plan import Plan
from clipa.spec.trackers import TRACKERS
from clipa.tell.stream import Back, Place, Told, not_yet, read_on
from clipa.terminal import say

_POLL_S = 1.0
_TICK_S = 0.1


class Tracker(Protocol):
    """Where values go. `told` of its constructor: the newest step that it has been told before."""

    def __init__(self, run: RunDir, plan: Plan, told: int) -> None: ...

    def back(self, back: Back) -> None:
        """An attempt begins after a step that may be older than the newest one."""

    def tell(self, told: Told) -> None:
        """Values at a step."""

    def flush(self) -> None:
        """All that was told may be looked at now."""

    def close(self) -> None:
        """No more is told by this process."""


class Telling:
    """Tells one tracker what a run records."""

    def __init__(self, run: RunDir, plan: Plan, attempt: int, name: str) -> None:
        known = TRACKERS[name]
        self.run = run
        self.attempt = attempt
        self._file = run.tracker(name) / "place.json"
        self._place = _read(self._file)
        self._repeats = known.repeats
        kind: type[Tracker] = getattr(importlib.import_module(known.module), known.door)
        self._tracker = kind(run, plan, self._place.step)

    def pass_on(self) -> None:
        """Tell what has come since the last time."""
        before = self._place
        for item, place in read_on(self.run, before, self.attempt):
            if isinstance(item, Back):
                self._tracker.back(item)
            elif (told := item if self._repeats else not_yet(item, self._place.steps)).values:
                self._tracker.tell(told)
            self._place = place
        if self._place != before:
            self._tracker.flush()
            write_whole(self._file, msgspec.json.encode(self._place))

    def close(self) -> None:
        """The last of it."""
        self.pass_on()
        self._tracker.close()


def _read(path: Path) -> Place:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Place)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return Place()


def main() -> int:
    """Entry of the module: the exit code, 1 where the tracker failed."""
    survive_full_logs()
    parser = argparse.ArgumentParser(prog="clipa.tell", description="tell a tracker what a run records")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--tracker", choices=sorted(TRACKERS), required=True)
    parser.add_argument("--until", type=Path, help="go on until this file is there")
    given = parser.parse_args()
    run = RunDir(given.run_dir.absolute())
    try:
        telling = Telling(run, plans.decode(run.plan.read_bytes()), given.attempt, given.tracker)
        while given.until is not None and not given.until.exists():
            telling.pass_on()
            _pause(given.until)
        telling.close()
    except Exception as error:  # whatever a tracker raises, the run is told of it and goes on
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        log = events.EventWriter(run, given.attempt, f"tell-{given.tracker}")
        log.write(events.Noted, text=f"{given.tracker} is told no more in this attempt: {reason}")
        log.close()
        say(f"{type(error).__name__}: {error}", err=True)
        return 1
    return 0


def _pause(until: Path) -> None:
    ends = time.monotonic() + _POLL_S
    while time.monotonic() < ends and not until.exists():
        time.sleep(_TICK_S)


if __name__ == "__main__":
    sys.exit(main())

"""Following runs until they are over: a live table for a person, plain lines for a log."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Group
from rich.live import Live
from rich.text import Text

from clipa.cli import show
from clipa.host.container import ask_to_leave
from clipa.launch.look import look_and_settle
from clipa.registry.state import RunStatus, State
from clipa.terminal import say

TICK_S = 0.5
LINE_S = 10.0
SAME_S = 60.0
"""Seconds after which a line is said again though nothing in it has changed."""


class Followed(NamedTuple):
    """How following ended: the exit code of the command, and the runs as they were seen last."""

    code: int
    runs: list[RunStatus]


def follow(runs: Sequence[str], root: Path, quiet: bool = False, holds: bool = False) -> Followed:
    """Follow runs of one root until none is live. The exit code is 0 when all are DONE, else 1.

    Ctrl-C stops following; the work goes on (exit code 130). Where this process `holds` the work (the first one of a
    container), Ctrl-C and TERM ask the work to save and leave, and the exit code is 128 and the signal's number.

    Args:
        runs: ids.
        root: their run root.
        quiet: print nothing to stdout: the caller prints a document.
        holds: the work ends with this process.
    """
    asked = _ask_on_signal(runs, root) if holds else []
    try:
        found = _live(runs, root) if sys.stdout.isatty() and not quiet else _lines(runs, root, quiet)
    except KeyboardInterrupt:
        show.note("\nno longer following; the work goes on. To see it: clipa status   to stop it: clipa cancel "
                  + " ".join(runs[:1]))  # fmt: skip
        return Followed(130, _states(runs, root))
    if not quiet:
        show.results(found)
    for line in show.reasons(found):
        show.note(line)
    done = all(s.state is State.DONE for s in found)
    return Followed(0 if done else 128 + asked[0] if asked else 1, found)


def _ask_on_signal(runs: Sequence[str], root: Path) -> list[int]:
    """Turn the first TERM or Ctrl-C into "please leave", the second into an end; the list fills with what came."""
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        ask_to_leave(runs, root)
        show.note(f"{signal.Signals(number).name}: asked to save and leave; clipa resume {runs[0]} goes on later")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
    return came


def _states(runs: Sequence[str], root: Path) -> list[RunStatus]:
    wanted = set(runs)
    return [s for s in look_and_settle([root]).statuses if s.run in wanted]


def _over(found: Sequence[RunStatus]) -> bool:
    return not any(s.state.is_live or (s.state is State.UNKNOWN and s.job) for s in found)


def _live(runs: Sequence[str], root: Path) -> list[RunStatus]:
    found = _states(runs, root)
    with Live(_view(found), console=show.console(), refresh_per_second=4, transient=True) as live:
        while not _over(found):
            time.sleep(TICK_S)
            found = _states(runs, root)
            live.update(_view(found))
    return found


def _view(found: Sequence[RunStatus]) -> Group:
    parts = [Text(line) for line in show.reasons(found)]
    bars = [Text(_bar(s)) for s in found if s.state is State.RUNNING and s.steps]
    return Group(show.statuses(found), *bars, *parts)


def _bar(s: RunStatus, width: int = 50) -> str:
    full = int(width * s.percent / 100)
    return f"{s.phase} [{'█' * full}{'·' * (width - full)}] {s.percent:.0f} %"


def _lines(runs: Sequence[str], root: Path, quiet: bool) -> list[RunStatus]:
    said: dict[str, tuple[State, float, str]] = {}
    while True:
        found = _states(runs, root)
        for s in found:
            before, when, last = said.get(s.run, (None, 0.0, ""))
            line, age = _line(s), time.monotonic() - when
            if before is not s.state or (s.state is State.RUNNING and age > (SAME_S if line == last else LINE_S)):
                said[s.run] = (s.state, time.monotonic(), line)
                if not quiet:
                    say(line)
        if _over(found):
            return found
        time.sleep(TICK_S)


def _line(s: RunStatus) -> str:
    parts = [f"{s.run} {s.state.value}"]
    if s.state is State.RUNNING and s.step:
        parts.append(f"step {s.step}/{s.steps}")
        parts.append(f"{s.samples_per_s:,.0f} samples/s" if s.samples_per_s else "")
        parts.append(f"loss {s.loss:.3f}" if s.loss is not None else "")
        parts.append(f"ETA {show.span(s.eta_s)}" if s.eta_s is not None else "")
    if s.scores and s.state is State.DONE:
        parts.append(show.score(s))
    if s.why and s.state is not State.DONE:
        parts.append(s.why.splitlines()[0])
    return "  ".join(part for part in parts if part)

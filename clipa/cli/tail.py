"""The end of a run's log, and what is added to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from clipa.cli import show
from clipa.errors import InputError
from clipa.host.children import last_lines
from clipa.launch.look import look
from clipa.registry.run_dir import RunDir
from clipa.registry.state import RunStatus, State
from clipa.terminal import LogText, log_line, send

_CHUNK = 1 << 20


def telling(phases: Sequence[RunStatus]) -> RunStatus:
    """Of the phases of a pipeline the one whose log says most: at work, else failed, else the last that has a log."""
    begun = [s for s in phases if _newest(RunDir(Path(s.root) / s.run))]
    for wanted in ({State.RUNNING, State.STAGING}, {State.FAILED}):
        if found := [s for s in begun if s.state in wanted]:
            return found[0]
    waiting = [s for s in phases if s.state.is_live]
    return waiting[0] if waiting else begun[-1] if begun else phases[0]


def tail(paths: Sequence[Path], lines: int, follow: bool) -> None:
    """Print the last lines of the newest attempt's log of the first run; with `follow`, go on until all are over."""
    try:
        for number, path in enumerate(paths if follow else paths[:1]):
            _tail(RunDir(path), lines, follow, later=number > 0)
    except KeyboardInterrupt:
        return


def _tail(run: RunDir, lines: int, follow: bool, later: bool) -> None:
    log = _newest(run)
    while log is None and follow and _is_live(run):
        time.sleep(0.2)
        log = _newest(run)
    if log is None and later:
        return
    if log is None:
        raise InputError("no log yet", where=run.id, hint=f"clipa status {run.id}")
    show.note(f"{log}")
    for line in last_lines(log, lines):
        send(log_line(line) + "\n")
    error = log.with_suffix(".err")
    for line in last_lines(error, 20):
        send(log_line(line) + "\n", err=True)
    if follow:
        _follow(run, log)


def _newest(run: RunDir) -> Path | None:
    for attempt in reversed(run.claimed()):
        for name in ("rank-0.log", "stage.log"):
            if (run.logs(attempt) / name).is_file():
                return run.logs(attempt) / name
    return None


def _is_live(run: RunDir) -> bool:
    return any(s.run == run.id and s.state.is_live for s in look([run.path.parent]).statuses)


def _follow(run: RunDir, log: Path) -> None:
    file = log.open("rb")
    shown = LogText()
    try:
        file.seek(0, 2)
        while True:
            chunk = file.read(_CHUNK)
            send(shown.add(chunk) if chunk else shown.rest())
            if chunk:
                continue
            newest = _newest(run)
            if newest is not None and newest != log:
                file.close()
                log, file = newest, newest.open("rb")
                show.note(f"{log}")
            elif not _is_live(run):
                return
            else:
                time.sleep(0.3)
    finally:
        file.close()

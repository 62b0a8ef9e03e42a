"""The processes of a run on this machine, found so that none escapes, and ended together.

A supervisor that is stopped (SIGSTOP) neither leaves nor ends its ranks. So its processes are found by parent, by
process group, by session, and by a variable that only ranks of this run and what they start have (`CLIPA_STOP_FILE`).
Each is known by its start time: a number that another process has by now is never signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from clipa.host.scratch import mark_of
from clipa.registry.liveness import same_process
from clipa.registry.run_dir import RunDir

_TICK_S = 0.05
Known: TypeAlias = tuple[int, int]
"""A process: its pid and its start time in clock ticks."""


class _Process(NamedTuple):
    state: str
    parent: int
    group: int
    session: int
    start_ticks: int


class ProcessTree:
    """All processes of one run: those that its events name, and whatever belongs to them.

    Args:
        run: the run.
        named: its supervisor and its ranks.
    """

    def __init__(self, run: RunDir, named: Iterable[Known]) -> None:
        self._mark = b"CLIPA_STOP_FILE=", f"/{mark_of(run)}".encode()
        self._known = {pid: ticks for pid, ticks in named if same_process(pid, ticks)}
        self._groups: set[int] = set()
        self._sessions: set[int] = set()

    def members(self) -> list[Known]:
        """Return the processes that run now; a zombie does not."""
        found = _snapshot()
        mine = {pid for pid, ticks in self._known.items() if pid in found and found[pid].start_ticks == ticks}
        mine |= {pid for pid in found if pid not in mine and self._is_marked(pid)}
        while True:
            self._groups |= {found[pid].group for pid in mine if found[pid].group in mine}
            self._sessions |= {found[pid].session for pid in mine if _is_detached(found[pid].session, found)}
            more = {pid for pid, process in found.items() if pid not in mine and self._belongs(process, mine)}
            if not more:
                break
            mine |= more
        mine -= {os.getpid()}
        self._known |= {pid: found[pid].start_ticks for pid in mine}
        return sorted((pid, found[pid].start_ticks) for pid in mine)

    def wake(self) -> None:
        """Let every process go on that is stopped by a signal, so that it hears what it is asked."""
        for process in self.members():
            _send(process, signal.SIGCONT)

    def end(self, patience: float) -> list[Known]:
        """End all processes: TERM (and CONT, for those that are stopped), then KILL. Return those that are left.

        Args:
            patience: seconds for each of the two.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + patience
            told: set[Known] = set()
            while (left := self.members()) and time.monotonic() < deadline:
                for process in left:
                    if process not in told or number == signal.SIGKILL:
                        _send(process, number)
                        _send(process, signal.SIGCONT)
                told |= {*left}
                time.sleep(_TICK_S)
        return self.members()

    def _belongs(self, process: _Process, mine: set[int]) -> bool:
        return process.parent in mine or process.group in self._groups or process.session in self._sessions

    def _is_marked(self, pid: int) -> bool:
        name, folder = self._mark
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return any(word.startswith(name) and folder in word for word in variables)
        return False


def _is_detached(session: int, found: dict[int, _Process]) -> bool:
    """Whether a session is a submission's own: the process that made it has left, as clipa.launch.submit does.

    The session of a shell has that shell in it: a supervisor that somebody started there by hand must not take the
    shell with it.
    """
    return session > 0 and session not in found and session != os.getsid(0)


def _snapshot() -> dict[int, _Process]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                raw = Path(f"/proc/{name}/stat").read_bytes()
                fields = raw[raw.rfind(b")") + 1 :].split()  # a process's name may hold anything (proc(5))
                state = fields[0].decode("ascii", "replace")
                if state not in ("Z", "X", "x"):
                    numbers = (int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))
                    found[int(name)] = _Process(state, *numbers)
    return found


def _send(process: Known, number: signal.Signals) -> None:
    """Signal a process that may be gone; not another one that has its number by now."""
    pid, ticks = process
    with contextlib.suppress(ProcessLookupError, PermissionError):
        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):  # a kernel before 5.3
            descriptor = -1
        try:
            if same_process(pid, ticks):
                if descriptor >= 0:
                    signal.pidfd_send_signal(descriptor, number)
                else:
                    os.kill(pid, number)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

"""Child processes of the supervisor: they die with it, are told to leave by a file, and are ended group by group."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipa.spec.child_environment import child_environment

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG)."""
    parent = os.getppid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class Child:
    """One child with a process group of its own, its output in two files."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], out: Path, err: Path) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "ab") as stdout, open(err, "ab") as stderr:
            self._process = subprocess.Popen(
                argv,
                env=child_environment(env),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd="/",
                process_group=0,
                preexec_fn=die_with_parent,
            )
        self.pid = self._process.pid
        self.err = err
        self.signalled = False

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Signal the whole group. What follows is our doing, not an accident."""
        self.signalled = True
        signal_group(self.pid, number)

    def sweep(self) -> None:
        """Kill what the child left behind in its group, for example loader workers."""
        signal_group(self.pid, signal.SIGKILL)


def signal_group(group: int, number: int) -> None:
    """Signal a process group that may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def group_of(leader: int) -> list[int]:
    """The processes of a process group that are seen here, its leader first."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if name.isdecimal() and os.getpgid(int(name)) == leader:
                found.append(int(name))
    return sorted(found, key=lambda pid: (pid != leader, pid))


def last_lines(path: Path, count: int = 5) -> list[str]:
    """The last non-empty lines of a log."""
    window = 8192
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            while True:
                file.seek(max(0, size - window))
                lines = file.read().decode(errors="replace").splitlines()
                found = [line for line in lines[window < size :] if line.strip()]  # without one that is cut
                if len(found) >= count or window >= size:
                    return found[-count:]
                window *= 4
    except OSError:
        return []

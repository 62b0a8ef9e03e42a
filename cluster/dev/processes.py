"""Processes below a subreaper: found in /proc, ended one by one by their pid, never by a name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)
PORTS = (20000, 32000)
"""Below the ephemeral range (32768 and up on Linux), so that no client's socket sits on a port of ours."""


class DevError(Exception):
    """Something that the person who called can mend; the message is for them."""


class Process(NamedTuple):
    """A process beyond doubt: a pid alone is reused, its start time (clock ticks, proc(5)) is not."""

    pid: int
    start: int


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (PR_SET_CHILD_SUBREAPER)."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def stat(pid: int) -> tuple[int, int, str] | None:
    """(parent, start time, state) of a process; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[1]), int(fields[19]), fields[0]
    except (OSError, IndexError):
        return None


def command_of(pid: int) -> str:
    """The name of the program that a process runs, as the kernel keeps it (proc(5)); empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def identify(pid: int) -> Process | None:
    """The process that has this pid now."""
    found = stat(pid)
    return Process(pid, found[1]) if found else None


def is_alive(process: Process) -> bool:
    """Whether it still is that process, and no zombie."""
    found = stat(process.pid)
    return found is not None and found[1] == process.start and found[2] != "Z"


def descendants(root: int) -> list[int]:
    """Every living process below one, at any depth."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (found := stat(int(name))) and found[2] != "Z":
            children.setdefault(found[0], []).append(int(name))
    below: list[int] = []
    todo = [root]
    while todo:
        for child in children.get(todo.pop(), []):
            below.append(child)
            todo.append(child)
    return below


def send(pid: int, number: int) -> None:
    """Signal a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_below(root: int) -> None:
    """SIGKILL everything below a process, and what that leaves, until nothing is there."""
    while below := descendants(root):
        for pid in below:
            send(pid, signal.SIGKILL)
        reap()
        time.sleep(0.01)


def reap() -> None:
    """Collect the children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def wait_for(what: str, test: Callable[[], bool], seconds: float = 20.0, step: float = 0.02) -> None:
    """Poll until the test holds.

    Raises:
        DevError: not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not test():
        if time.monotonic() > deadline:
            raise DevError(f"{what}: not ready after {seconds:g} s")
        time.sleep(step)


def ask(*argv: str, env: Mapping[str, str], timeout: float = 30.0) -> str:
    """The output of a command; empty when it fails or takes too long."""
    try:
        done = subprocess.run(argv, env=env, text=True, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def answers(address: str | tuple[str, int]) -> bool:
    """Whether somebody listens on a unix socket or a TCP port."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(1)
        return probe.connect_ex(address) == 0


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that are free on this host."""
    for _ in range(200):
        base = random.randrange(PORTS[0], PORTS[1] - count)  # noqa: S311 - not a secret
        try:
            for port in range(base, base + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return base
    raise DevError(f"no {count} free ports in a row between {PORTS[0]} and {PORTS[1]}")

"""The lock of a run root: whoever submits, resumes or carries runs on there holds it, wherever it runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from clipa.errors import ConfigError
from clipa.host.container import IN_CONTAINER
from clipa.registry.liveness import is_stopped_process
from clipa.registry.ownership import run_files
from clipa.terminal import say

LOCK = ".submit.lock"
_SIGNATURE = re.compile(r"process (?P<pid>\d{1,10}) on (?P<host>[\w.-]{1,100})")


SAID_AFTER_S = 2.0


@contextlib.contextmanager
def only_one(run_root: Path) -> Iterator[None]:
    """Hold the lock of a run root: one submission at a time, so that a `--name` is never taken twice.

    If another process holds it for more than two seconds, say which one, and go on waiting.
    """
    with _opened(run_root) as lock:
        _wait(lock, run_root)
        _sign(lock)
        try:
            with run_files():
                yield
        finally:
            with contextlib.suppress(OSError):
                lock.truncate(0)


@contextlib.contextmanager
def submit_lock_if_free(run_root: Path) -> Iterator[bool]:
    """Hold the lock of a run root if no other process does; yield whether it is held. Never waits."""
    with _opened(run_root) as lock:
        if not _take(lock):
            yield False
            return
        _sign(lock)
        try:
            with run_files():
                yield True
        finally:
            with contextlib.suppress(OSError):
                lock.truncate(0)


def _opened(run_root: Path) -> TextIO:
    try:
        run_root.mkdir(parents=True, exist_ok=True)
        return open(run_root / LOCK, "a+")
    except OSError as error:
        raise ConfigError(
            f"the run root cannot be written: {error.strerror}", where=str(run_root), hint=_cure(run_root)
        ) from error


def _take(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(lock: TextIO, run_root: Path) -> None:
    began, said = time.monotonic(), False
    while not _take(lock):
        if not said and time.monotonic() - began >= SAID_AFTER_S:
            said = True
            say(f"waiting for the lock of {run_root}, held by {_holder(lock)}", err=True)
        time.sleep(0.05)


def _sign(lock: TextIO) -> None:
    """Write into the lock who holds it, for those who wait; a full disk does not matter."""
    with contextlib.suppress(OSError):
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()


def _holder(lock: TextIO) -> str:
    """Return what the holder wrote, with the state of a process of this machine that is stopped."""
    lock.seek(0)
    found = _SIGNATURE.fullmatch(lock.read(200))
    if found is None:
        return "another process"
    pid, host = int(found["pid"]), found["host"]
    if host != socket.gethostname():
        return f"process {pid} on {host}"
    stopped = f", which is stopped (kill -CONT {pid} lets it go on)" if is_stopped_process(pid) else ""
    return f"process {pid}{stopped}"


def _cure(run_root: Path) -> str:
    """In a container it is most often the user: a folder that Docker made for a mount, or one with another's runs."""
    cure = "set CLIPA_RUN_ROOT, or run_root in clipa.toml or in the cluster profile"
    lock = run_root / LOCK
    if os.environ.get(IN_CONTAINER) != "1" or not run_root.exists():
        return cure
    made = (lock if lock.exists() else run_root).stat()
    owner = f"{made.st_uid}:{made.st_gid}"
    return f"it belongs to user {owner}, and this is {os.geteuid()}: docker run --user {owner} ...; or {cure}"

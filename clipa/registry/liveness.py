"""Is a process alive? Asked beyond doubt: pid, start time, boot, pid namespace and host must all match."""

from __future__ import annotations

import os
import socket

from clipa.spec.plan import Record


class Identity(Record, frozen=True, kw_only=True):
    """One process, for ever: a pid alone is reused. `start_ticks` is field 22 of /proc/<pid>/stat (proc(5))."""

    host: str
    pid: int
    start_ticks: int
    boot_id: str
    pid_namespace: str


def identity_of(pid: int) -> Identity | None:
    """The identity of a process on this host; None when it is gone (or a zombie)."""
    found = _state_and_start(pid)
    if found is None or found[0] in "ZX":
        return None
    return Identity(
        host=socket.gethostname(),
        pid=pid,
        start_ticks=found[1],
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
    )


def own_identity() -> Identity:
    """The identity of this process."""
    identity = identity_of(os.getpid())
    assert identity is not None, "this process has no entry in /proc"
    return identity


def is_alive(identity: Identity) -> bool | None:
    """Whether the process runs; None when that cannot be told from here (another host or pid namespace)."""
    if identity.host != socket.gethostname():
        return None
    if identity.boot_id != _boot_id():
        return False
    if identity.pid_namespace != _pid_namespace():
        return None
    return same_process(identity.pid, identity.start_ticks)


def same_process(pid: int, start_ticks: int) -> bool:
    """Whether the process with this pid and start time runs here; a zombie does not."""
    found = _state_and_start(pid)
    return found is not None and found[0] not in "ZX" and found[1] == start_ticks


def _state_and_start(pid: int) -> tuple[str, int] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            raw = file.read()
    except OSError:
        return None
    # The name in parentheses may hold spaces and parentheses itself: the fields start after the last one.
    fields = raw[raw.rfind(b")") + 2 :].split()
    return (fields[0].decode(), int(fields[19])) if len(fields) > 19 else None


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""

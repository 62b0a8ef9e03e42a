"""Is a process alive? Asked beyond doubt: pid, start time, boot and pid namespace must all match."""

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
    if found is None or found[0] in _DEAD:
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
    """Whether the process runs; None when that cannot be told from here.

    The boot id names the running kernel, so it decides before the host's name, which differs between containers and
    changes with the network. The same name with another boot id is a machine that was started again.
    """
    here = _boot_id()
    if not here or not identity.boot_id:
        return None
    if identity.boot_id != here:
        return False if identity.host == socket.gethostname() else None
    if identity.pid_namespace != _pid_namespace():
        return None
    if same_process(identity.pid, identity.start_ticks):
        return True
    return None if _is_hidden(identity.pid) else False


def same_process(pid: int, start_ticks: int) -> bool:
    """Whether the process with this pid and start time runs here; a zombie does not."""
    found = _state_and_start(pid)
    return found is not None and found[0] not in _DEAD and found[1] == start_ticks


def is_stopped(identity: Identity) -> bool:
    """Return whether a process that runs here is stopped by a signal or a debugger."""
    return is_alive(identity) is True and is_stopped_process(identity.pid)


def is_stopped_process(pid: int) -> bool:
    """Return whether the process with this pid is stopped by a signal or a debugger."""
    found = _state_and_start(pid)
    return found is not None and found[0] in ("T", "t")


_DEAD = ("Z", "X", "x")


def _state_and_start(pid: int) -> tuple[str, int] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse_stat(file.read())
    except OSError:
        return None


def parse_stat(raw: bytes) -> tuple[str, int] | None:
    """(state, start time in clock ticks) of a /proc/<pid>/stat; None when it is not one.

    The process's name stands in parentheses and may hold spaces, newlines and parentheses itself: the fields that
    can be trusted start after the last one.
    """
    fields = raw[raw.rfind(b")") + 1 :].split()
    if len(fields) < 20 or not fields[19].isdigit():
        return None
    return fields[0].decode("ascii", "replace"), int(fields[19])


def _is_hidden(pid: int) -> bool:
    """Whether a process runs that we may not look at: /proc mounted with hidepid shows only the user's own."""
    if os.path.exists(f"/proc/{pid}") or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return False


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

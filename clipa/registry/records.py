"""A run's plan, and the two records that commands leave in it: the intent to start it, the request to stop it."""

from __future__ import annotations

import getpass
import os
import socket
import time
from typing import Literal

import msgspec

from clipa.errors import LaunchError
from clipa.registry.disk_errors import is_disk_error
from clipa.registry.jobs import Element
from clipa.registry.liveness import Identity, own_identity
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.plan import Plan, Record

SCHEMA = 1
UNREADABLE = (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What reading and decoding JSON that anybody may have written can raise."""


class Intent(Record, frozen=True, kw_only=True):
    """Written before an attempt is submitted. `submission` is the first attempt of the same submission: the limit
    of attempts counts from it, and a request to stop any attempt since then stops the submission. `element`: the job
    array of SLURM that the attempt is handed over in, and its place there.
    """

    attempt: int
    submission: int
    t: float
    reason: Literal["submit", "restart", "resume"]
    by: Identity
    element: Element | None = None
    schema: int = SCHEMA


class Stop(Record, frozen=True, kw_only=True):
    """A request to leave. `why` is `cancel` when a person asked."""

    why: str
    by: str
    t: float
    schema: int = SCHEMA


def read_plan(run: RunDir) -> Plan:
    """The plan of a run.

    Raises:
        LaunchError: it cannot be read.
    """
    try:
        return plans.decode(run.plan.read_bytes())
    except UNREADABLE as error:
        raise LaunchError(f"the plan cannot be read: {error}", where=str(run.plan)) from error


def write_intent(
    run: RunDir,
    attempt: int,
    submission: int,
    reason: Literal["submit", "restart", "resume"],
    element: Element | None = None,
) -> None:
    """Record that this process is about to start an attempt."""
    intent = Intent(
        attempt=attempt, submission=submission, t=time.time(), reason=reason, by=own_identity(), element=element
    )
    write_whole(run.intent(attempt), msgspec.json.encode(intent))


def read_intent(run: RunDir, attempt: int) -> Intent | None:
    """The intent of an attempt; None when there is none that can be read."""
    try:
        return msgspec.json.decode(run.intent(attempt).read_bytes(), type=Intent)
    except UNREADABLE:
        return None


def write_stop(run: RunDir, attempt: int, why: str) -> None:
    """Ask an attempt to leave."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    stop = Stop(why=why, by=f"{user}@{socket.gethostname()}", t=time.time())
    write_whole(run.stop_file(attempt), msgspec.json.encode(stop))


def read_stop(run: RunDir, attempt: int) -> Stop | None:
    """Return the request to stop an attempt; None without one.

    A file that this user cannot read is a request all the same (somebody typed `touch`); a disk that fails is none.
    """
    path = run.stop_file(attempt)
    try:
        return decode_stop(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        return None if is_disk_error(error) else decode_stop(b"")


def decode_stop(raw: bytes) -> Stop:
    """The content of a stop file, whatever it is."""
    try:
        return msgspec.json.decode(raw, type=Stop)
    except UNREADABLE:
        return Stop(why="stop file", by="unknown", t=0.0)


def asked_to_cancel(run: RunDir, submission: int) -> Stop | None:
    """The newest request by a person to stop any attempt of a submission."""
    try:
        names = os.listdir(run.path / "control")
    except OSError:
        return None
    numbers = sorted(int(name[5:]) for name in names if name.startswith("stop-") and name[5:].isdecimal())
    for attempt in reversed(numbers):
        if attempt >= submission and (stop := read_stop(run, attempt)) and stop.why == "cancel":
            return stop
    return None

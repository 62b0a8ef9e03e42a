"""Errands: what the command line asks a staging process to do, and what that process says while it does it.

The process is `python -m clipa.staging.bring`: one of its own, because a process that has used obstore must not fork,
and the command line does. It gets one request as JSON on its standard input and answers a JSON line an event.
"""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from typing import Literal

import msgspec

from clipa.errors import ClipaError, InputError, StorageError, WorkError
from clipa.interpreter import module_argv
from clipa.spec.child_environment import child_environment
from clipa.spec.cluster import Dataset
from clipa.spec.plan import Record


class Request(Record, frozen=True, kw_only=True, tag_field="do"):
    """Base of all requests."""


class Stage(Request, frozen=True, kw_only=True, tag="stage"):
    """Bring a dataset to `to`, or into the cache where `to` is empty. `limit` is the cache's in bytes, 0 for none."""

    source: Dataset
    to: str = ""
    cache: str = ""
    limit: int = 0
    verify: bool = False
    check: Literal["auto", "size"] = "auto"


class Index(Request, frozen=True, kw_only=True, tag="index"):
    """Write the manifest of a dataset; with `scan`, read the shards that nothing is known of. `journal`: where what
    was scanned is kept until it is done.
    """

    source: Dataset
    journal: str
    scan: bool = False


class Verify(Request, frozen=True, kw_only=True, tag="verify"):
    """Hash the staged files in a folder."""

    folder: str


AnyRequest = Stage | Index | Verify


class Doctor(Record, frozen=True, kw_only=True):
    """Read every shard of a dataset and say what is wrong: for `python -m clipa.data.doctor`, on its standard input."""

    source: Dataset
    workers: int = 0
    json: bool = False


class Shrink(Record, frozen=True, kw_only=True):
    """Rewrite a dataset's shards smaller, at `target`: for `python -m clipa.data.shrink`, on its standard input."""

    source: Dataset
    target: Dataset
    short_side: int
    quality: int
    workers: int = 0
    json: bool = False


class Event(Record, frozen=True, kw_only=True, tag_field="event"):
    """Base of all events."""


class Found(Event, frozen=True, kw_only=True, tag="found"):
    """What there is to do. `digest` is the manifest's."""

    url: str
    shards: int
    bytes: int
    digest: str = ""


class Progress(Event, frozen=True, kw_only=True, tag="progress"):
    """So many bytes of so many."""

    done: int
    total: int
    seconds: float


class Staged(Event, frozen=True, kw_only=True, tag="staged"):
    """The dataset is there, whole. `verified` counts what downloads were held against (`xxh3`, `etag`, `size`, ...)."""

    folder: str
    shards: int
    bytes: int
    fetched_bytes: int
    seconds: float
    digest: str
    verified: dict[str, int]


class Indexed(Event, frozen=True, kw_only=True, tag="indexed"):
    """The manifest was written. `samples` is none where the samples of a shard are not known."""

    manifest: str
    shards: int
    bytes: int
    samples: int | None
    digest: str
    scanned: int


class Verified(Event, frozen=True, kw_only=True, tag="verified"):
    """What a folder's files are: names that hold other bytes, that are missing, and that nothing is known of."""

    folder: str
    right: int
    wrong: tuple[str, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    seconds: float


class Failed(Event, frozen=True, kw_only=True, tag="failed"):
    """It ended with an error, in the parts of `ClipaError`."""

    what: str
    where: str = ""
    allowed: str = ""
    hint: str = ""
    code: int = 1


AnyEvent = Found | Progress | Staged | Indexed | Verified | Failed
_EVENT: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)
_REQUEST: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)


def run(request: AnyRequest) -> Generator[AnyEvent, None, None]:
    """Do an errand in a process of its own, and tell what it says. Closing the iterator ends the process.

    Raises:
        InputError: what the user can mend.
        WorkError: it failed, or its process died.
    """
    argv = module_argv("clipa.staging.bring")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment())
    assert process.stdin
    assert process.stdout
    try:
        process.stdin.write(msgspec.json.encode(request))
        process.stdin.close()
        for line in process.stdout:
            event = _EVENT.decode(line)
            if isinstance(event, Failed):
                process.wait()
                raise _error(event)
            yield event
        if process.wait():
            raise StorageError(f"the staging process ended with code {process.returncode}")
    finally:
        process.stdout.close()
        if process.poll() is None:
            process.terminate()
            process.wait()


def _error(event: Failed) -> ClipaError:
    kind = InputError if event.code == InputError.exit_code else WorkError
    return kind(event.what, where=event.where, allowed=event.allowed, hint=event.hint)


def read_request(raw: bytes) -> AnyRequest:
    """A request from JSON.

    Raises:
        msgspec.MsgspecError: not a request.
    """
    return _REQUEST.decode(raw)

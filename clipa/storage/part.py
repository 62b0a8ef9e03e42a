"""Part files: private, unfinished copies of shards, and what can be taken over from those that were left behind."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clipa.storage.manifest import Shard
from clipa.storage.store import PART

if TYPE_CHECKING:
    from hashlib import _Hash

_ABANDONED_S = 3600.0
"""Age after which a part file of another host counts as left behind: a living writer adds a range far more often."""
_HOST = socket.gethostname().replace(".", "-")


class Part:
    """One shard on its way: a file of its own, and a journal with the SHA-256 of all bytes so far after each range.

    No two processes ever write one part file, whatever their file system's locks are worth: what another one left is
    copied, checked against its journal, and never continued in place.
    """

    def __init__(self, target: Path, shard: Shard) -> None:
        stem = f".{tag(shard)}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}"
        self.path = target.with_name(f"{stem}.part")
        self.size = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> Part:
        self._file = open(self.path, "xb")
        _lock(self._file.fileno())
        self._journal = open(journal_of(self.path), "xb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        self._file.close()

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes so far."""
        return self._digest.hexdigest()

    def append(self, chunk: bytes) -> None:
        """Add a range."""
        digest = self._digest.copy()
        digest.update(chunk)
        self._add(chunk, digest)

    def take_over(self, left: Path) -> None:
        """Copy the ranges of a part that was left behind, up to the first that is not as its journal says."""
        try:
            lines = journal_of(left).read_bytes().splitlines()
        except FileNotFoundError:
            return
        with open(left, "rb") as old:
            for line in lines:
                chunk = old.read(PART)
                digest = self._digest.copy()
                digest.update(chunk)
                if not chunk or line != _line(self.size + len(chunk), digest):
                    return
                self._add(chunk, digest)

    def sync(self) -> None:
        """Make the bytes durable, so that a rename can give them their name."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _add(self, chunk: bytes, digest: _Hash) -> None:
        self._file.write(chunk)
        self._file.flush()
        self._digest, self.size = digest, self.size + len(chunk)
        self._journal.write(_line(self.size, digest) + b"\n")


def _line(size: int, digest: _Hash) -> bytes:
    return b"%d %s" % (size, digest.hexdigest().encode())


def journal_of(part: Path) -> Path:
    """The journal beside a part file."""
    return part.with_suffix(".sums")


def discard(part: Path) -> None:
    """Remove a part file and its journal."""
    part.unlink(missing_ok=True)
    journal_of(part).unlink(missing_ok=True)


def tag(shard: Shard) -> str:
    """Which bytes a part file is for: the same tag means the same name, size and checksum or version."""
    pinned = [shard.name, shard.size, shard.sha256 or shard.version]
    return hashlib.sha256(msgspec.json.encode(pinned)).hexdigest()[:16]


def left_behind(folder: Path) -> dict[str, list[Path]]:
    """Part files whose writers are gone (killed here, or silent for an hour on another host) by tag, largest first."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for part in folder.rglob(".*.part"):
        try:
            if _is_left(part):
                found.setdefault(part.name.split(".")[1], []).append((part.stat().st_size, part))
        except (OSError, ValueError):
            continue
    return {word: [path for _, path in sorted(parts, reverse=True)] for word, parts in found.items()}


def _is_left(part: Path) -> bool:
    if time.time() - part.stat().st_mtime > _ABANDONED_S:
        return True
    host, pid = part.name.split(".")[-4:-2]
    if host != _HOST or not pid.isdecimal() or (int(pid) != os.getpid() and _is_alive(int(pid))):
        return False
    # The number is not the last word: a container that starts again gives it to a new process, and two containers may
    # share a host's name. The kernel knows whether somebody still writes.
    with open(part, "rb") as file:
        return _lock(file.fileno())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _lock(descriptor: int) -> bool:
    """Take a lock without waiting; True also where the file system has none, because nothing rests on it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def one_at_a_time(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Wait until no other process fills this folder, so that no byte is fetched twice. `check` is called in between.

    Nothing rests on the lock: without it both write private part files and rename the same content to the same name.
    """
    with open(folder / ".lock", "a") as file:
        while not _lock(file.fileno()):
            check()
            time.sleep(0.1)
        yield

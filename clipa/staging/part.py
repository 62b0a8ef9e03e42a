"""Part files: private, unfinished copies of shards, and what can be taken over from those that were left behind."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.staging.blocks import Blocks
from clipa.storage.digest import Pinned, Running, xxh3
from clipa.storage.manifest import Shard
from clipa.storage.store import PART

_ABANDONED_S = 3600.0
"""Age after which a part file of another host counts as left behind: a living writer adds a range far more often."""
_NOTHING = Pinned("", "")
_HOST = socket.gethostname().replace(".", "-")


class Part:
    """One shard on its way: a file of its own, and a journal with the XXH3 of all bytes so far every `PART` bytes.

    No two processes ever write one part file, whatever their file system's locks are worth: what another one left is
    copied, checked against its journal, and never continued in place.
    """

    def __init__(self, target: Path, shard: Shard, wanted: Pinned = _NOTHING) -> None:
        stem = f".{tag(shard)}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}"
        self.path = target.with_name(f"{stem}.part")
        self.size = 0
        self.running = Running(wanted)
        self._written = self._journalled = 0

    def __enter__(self) -> Part:
        self._file = Blocks(self.path, self._wrote)
        _lock(self._file.descriptor)
        self._journal = open(journal_of(self.path), "xb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        self._file.close()

    def append(self, chunk: bytes | memoryview) -> None:
        """Add bytes. They are hashed and written a block at a time; the last ones by `sync`."""
        self.size += len(chunk)
        self._file.append(chunk)

    def _wrote(self, block: memoryview) -> None:
        self.running.update(block)
        self._written += block.nbytes
        if self._written - self._journalled >= PART:
            self._journal.write(_line(self._written, self.running.xxh3) + b"\n")
            self._journalled = self._written

    def take_over(self, left: Path) -> None:
        """Copy the ranges of a part that was left behind, up to the first that is not as its journal says."""
        try:
            lines = journal_of(left).read_bytes().splitlines()
        except FileNotFoundError:
            return
        so_far = xxh3()
        with open(left, "rb") as old:
            for line in lines:
                word = line.split(b" ")[0]
                count = int(word) - self.size if word.isdigit() and len(word) < 19 else 0
                chunk = old.read(count) if 0 < count <= 2 * PART else b""
                so_far.update(chunk)
                if not chunk or line != _line(self.size + len(chunk), so_far.hexdigest()):
                    return
                self.append(chunk)

    def sync(self) -> None:
        """Make the bytes durable, so that a rename can give them their name."""
        self._file.flush()
        os.fsync(self._file.descriptor)


def _line(size: int, digest: str) -> bytes:
    return f"{size} {digest}".encode()


def journal_of(part: Path) -> Path:
    """The journal beside a part file."""
    return part.with_suffix(".sums")


def discard(part: Path) -> None:
    """Remove a part file and its journal."""
    part.unlink(missing_ok=True)
    journal_of(part).unlink(missing_ok=True)


def tag(shard: Shard) -> str:
    """Which bytes a part file is for: the same tag means the same name, size and checksum or version."""
    pinned = [shard.name, shard.size, shard.pin]
    return hashlib.sha256(msgspec.json.encode(pinned)).hexdigest()[:16]


class Parts(NamedTuple):
    """Part files in a folder: those whose writers are gone by tag, largest first, and the bytes of those that live."""

    left: dict[str, list[Path]]
    living_bytes: int


def parts_in(folder: Path) -> Parts:
    """All part files below a folder. Writers are gone when killed here, or silent for an hour on another host."""
    return _sorted(folder.rglob(".*.part"))


def left_of(target: Path, word: str) -> list[Path]:
    """Part files with this tag beside their target whose writers are gone, largest first."""
    return _sorted(target.parent.glob(f".{word}.*.part")).left.get(word, [])


def _sorted(parts: Iterable[Path]) -> Parts:
    found: dict[str, list[tuple[int, Path]]] = {}
    living = 0
    for part in parts:
        try:
            if _is_left(part):
                found.setdefault(part.name.split(".")[1], []).append((part.stat().st_size, part))
            else:
                living += part.stat().st_size
        except (OSError, ValueError):
            continue
    return Parts({word: [path for _, path in sorted(paths, reverse=True)] for word, paths in found.items()}, living)


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

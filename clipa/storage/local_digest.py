"""Digests of local files: the identity of shards for which no store gives a word of its own.

A path and a modification time say nothing about bytes: the same folder copied, or mounted elsewhere, has others. So
local shards are read once, and their XXH3 is remembered with their size, modification time and change time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from clipa.errors import ConfigError, StorageError
from clipa.spec.plan import Record
from clipa.spec.user_paths import user_folder
from clipa.storage.digest import Pinned, Running, pinned
from clipa.storage.manifest import Shard
from clipa.terminal import say

_THREADS = 4
_BLOCK = 1 << 20
_YOUNG_NS = 2 * 10**9
"""A file changed less than this before it was read may change again within the same tick of the clock."""
_SILENT_S = 3.0

Tick = Callable[[int, int], None]


class _Seen(Record, frozen=True, kw_only=True):
    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    xxh3: str


class LocalDigests:
    """XXH3 of the files of one folder, remembered in the user's cache folder where that can be written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        word = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
        try:
            self._file: Path | None = user_folder("cache") / "digests" / f"{word}.jsonl"
        except ConfigError:
            self._file = None
        self._known = {seen.path: seen for seen in _read(self._file)} if self._file else {}
        self._guard = threading.Lock()

    def known(self, name: str) -> str:
        """Return the remembered XXH3 of an unchanged file; empty if there is none."""
        seen = self._known.get(name)
        return seen.xxh3 if seen and seen == _stamp(self._folder / name, name, seen.xxh3) else ""

    def of(self, name: str, arrived: Callable[[int], None] = lambda count: None) -> str:
        """Return the XXH3 of a file, remembered or computed now. `arrived(bytes)` is called after every block.

        Raises:
            OSError: the file cannot be read.
        """
        if found := self.known(name):
            return found
        before = _stamp(self._folder / name, name, "")
        found = _hash(self._folder / name, Pinned("", ""), arrived).xxh3
        after = _stamp(self._folder / name, name, "")
        if before == after and time.time_ns() - max(after.mtime_ns, after.ctime_ns) > _YOUNG_NS:
            self._remember(msgspec.structs.replace(after, xxh3=found))
        return found

    def _remember(self, seen: _Seen) -> None:
        self._known[seen.path] = seen
        if self._file is None:
            return
        # Without the memory the file is read again, and nothing else happens.
        with contextlib.suppress(OSError), self._guard:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with open(self._file, "ab", buffering=0) as file:
                file.write(b"\n" + msgspec.json.encode(seen) + b"\n")


def _stamp(path: Path, name: str, xxh3: str) -> _Seen:
    stat = path.stat()
    return _Seen(path=name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, ctime_ns=stat.st_ctime_ns, xxh3=xxh3)


def _hash(path: Path, wanted: Pinned, arrived: Callable[[int], None]) -> Running:
    running = Running(wanted)
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_BLOCK):
            running.update(chunk)
            arrived(len(chunk))
    return running


def _read(path: Path) -> list[_Seen]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            found.append(msgspec.json.decode(line, type=_Seen))
    return found


def is_current(folder: Path, row: Shard) -> bool:
    """Whether a local file still has the bytes of a manifest's row.

    Raises:
        StorageError: it cannot be read.
    """
    wanted = pinned(row)
    try:
        if wanted.kind == "xxh3":
            return LocalDigests(folder).of(row.name) == wanted.value
        return bool(wanted.kind) and _hash(folder / row.name, wanted, lambda count: None).fits
    except OSError as error:
        raise _unreadable(error, folder) from error


def with_digests(folder: Path, rows: Sequence[Shard], tick: Tick | None = None) -> tuple[Shard, ...]:
    """Return the rows of a local folder, each with a digest and none with a modification time.

    Rows with a digest, or an ETag that their bytes can be held against, keep it: a copy is the same dataset.

    Args:
        folder: the local folder of the shards.
        rows: shards in it.
        tick: called with (bytes done, bytes in total); without it, a long reading is said on standard error.

    Raises:
        StorageError: a file cannot be read.
    """
    digests = LocalDigests(folder)
    todo = [row for row in rows if not has_content_digest(row)]
    progress = _Progress(sum(row.size for row in todo), folder, tick)

    def read(row: Shard) -> tuple[str, Shard]:
        found = f"xxh3:{digests.of(row.name, progress.arrived)}"
        return row.name, msgspec.structs.replace(row, digest=found, version="")

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            read_now = dict(pool.map(read, todo))
    except OSError as error:
        raise _unreadable(error, folder) from error
    return tuple(read_now.get(row.name) or _without_version(row) for row in rows)


def has_content_digest(row: Shard) -> bool:
    """Whether a row says something that its bytes alone can be held against, whatever is installed here."""
    return bool(row.sha256 or row.digest or pinned(row).kind)


def _without_version(row: Shard) -> Shard:
    return msgspec.structs.replace(row, version="") if row.sha256 or row.digest else row


def _unreadable(error: OSError, folder: Path) -> StorageError:
    return StorageError(f"cannot be read: {error.strerror}", where=str(error.filename or folder))


class _Progress:
    def __init__(self, total: int, folder: Path, tick: Tick | None) -> None:
        self._total, self._folder, self._tick = total, folder, tick
        self._done = 0
        self._said = time.monotonic() + _SILENT_S
        self._guard = threading.Lock()

    def arrived(self, count: int) -> None:
        with self._guard:
            self._done += count
            if self._tick is not None:
                self._tick(self._done, self._total)
            elif time.monotonic() > self._said:
                self._said = time.monotonic() + 10 * _SILENT_S
                gib = f"{self._done / 2**30:.1f} of {self._total / 2**30:.1f} GiB"
                say(f"{self._folder}: {gib} read for its digests, which is done once", err=True)

"""Filling a folder with shards: what is there already, room for the rest, a few downloads at a time."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from clipa.errors import InputError, StorageError
from clipa.storage.fetch import fetch
from clipa.storage.manifest import Shard
from clipa.storage.part import discard, left_behind, one_at_a_time, tag
from clipa.storage.receipt import Receipts
from clipa.storage.store import Store

THREADS = 8
RESERVE = 64 << 20
"""Bytes that stay free on the disk."""


class Stopped(Exception):
    """Asked to leave."""


Tick = Callable[[int, int], None]
"""Called a few times a second with (bytes done, bytes in total); what it raises ends the staging."""


def fill(store: Store, folder: Path, shards: Sequence[Shard], tick: Tick, verify: bool = False) -> int:
    """Bring what a folder lacks; the bytes that were read from the store.

    Args:
        store: where the shards lie.
        folder: where they go, under their names.
        shards: what must be there at the end; their names are safe.
        tick: told of the progress.
        verify: hash what is there already even where a receipt says that it was verified.

    Raises:
        InputError: not enough space, or a shard that is not there.
        StorageError: the bytes could not be read or written, or are not those that are pinned.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder, lambda: tick(0, 0)):
            filling = _Filling(store, folder, tick)
            lacking = filling.lacking(shards, verify)
            filling.make_room(lacking)
            return filling.bring(lacking)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(folder)) from error


class _Filling:
    """One call of `fill`. Threads do the work; the caller's only watches, so that a hanging store cannot keep it."""

    def __init__(self, store: Store, folder: Path, tick: Tick) -> None:
        self.store, self.folder, self.tick = store, folder, tick
        self.receipts = Receipts(folder)
        self.left = left_behind(folder)
        self.done = self.total = self.fetched = 0
        self._leave = threading.Event()
        self._guard = threading.Lock()

    def lacking(self, shards: Sequence[Shard], verify: bool) -> list[Shard]:
        """The shards whose final name is not there, or does not hold them."""
        absent = [shard for shard in shards if not _has_size(self.folder / shard.name, shard.size)]
        names = {shard.name for shard in absent}
        doubtful = [s for s in shards if s.name not in names and (verify or not self.receipts.vouches(s.name))]
        wrong: list[Shard] = []

        def check(shard: Shard) -> None:
            # Without a checksum anywhere: only a rename of whole, pinned bytes ever made this name.
            pinned = shard.sha256.lower() or self.receipts.sha256(shard.name)
            if pinned and self._hash(self.folder / shard.name) != pinned:
                wrong.append(shard)
            elif pinned:
                self.receipts.add(shard.name, pinned)

        self._in_threads(check, doubtful)
        return absent + wrong

    def make_room(self, lacking: Sequence[Shard]) -> None:
        """Drop what was left behind and is of no use, and check that the rest fits."""
        wanted = {tag(shard) for shard in lacking}
        for word in self.left.keys() - wanted:
            self._drop(word)
        need = sum(shard.size for shard in lacking)
        if need and need + RESERVE > shutil.disk_usage(self.folder).free:
            for word in [*self.left]:
                self._drop(word)
        free = shutil.disk_usage(self.folder).free
        if need and need + RESERVE > free:
            raise InputError(
                f"{need:,} bytes to fetch, {free:,} bytes free: {need + RESERVE - free:,} short "
                f"(with {RESERVE:,} in reserve)",
                where=str(self.folder),
                hint="free some space, or set cache in the cluster profile to a larger disk",
            )

    def bring(self, lacking: Sequence[Shard]) -> int:
        """Fetch; the bytes that were read from the store."""
        self.total = sum(shard.size for shard in lacking)
        self.tick(0, self.total)

        def one(shard: Shard) -> None:
            left = self.left.get(tag(shard), [])
            came = fetch(self.store, self.folder / shard.name, shard, left, self._arrived)
            self.receipts.add(shard.name, came.sha256)
            with self._guard:
                self.fetched += came.bytes

        self._in_threads(one, lacking)
        return self.fetched

    def _drop(self, word: str) -> None:
        for part in self.left.pop(word):
            discard(part)

    def _arrived(self, count: int) -> None:
        if self._leave.is_set():
            raise Stopped
        with self._guard:
            self.done += count

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                if self._leave.is_set():
                    raise Stopped
                digest.update(chunk)
        return digest.hexdigest()

    def _in_threads(self, job: Callable[[Shard], None], shards: Sequence[Shard]) -> None:
        # A queue and a few workers, not a future a shard: `wait` looks at every future each time one ends.
        todo = deque(shards)

        def work() -> None:
            while todo and not self._leave.is_set():
                try:
                    shard = todo.popleft()
                except IndexError:
                    return
                job(shard)

        pool = ThreadPoolExecutor(THREADS)
        try:
            running = {pool.submit(work) for _ in range(min(THREADS, len(shards)))}
            while running:
                ended, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                self.tick(self.done, self.total)
        except BaseException:
            self._leave.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False

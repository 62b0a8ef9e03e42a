"""Filling a folder with shards: what is there already, room for the rest, a few downloads at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from clipa.errors import InputError, StorageError
from clipa.staging.claims import Claims
from clipa.staging.fetch import fetch
from clipa.staging.part import discard, left_of, parts_in, tag
from clipa.staging.receipt import Receipts
from clipa.storage.digest import Check, Pinned, Running, pinned
from clipa.storage.manifest import Shard
from clipa.storage.store import Store

THREADS = 8
RESERVE = 64 << 20
"""Bytes that stay free on the disk."""
_AGAIN_S = 0.2
"""After so long it is looked again at a shard that another process was bringing: should that die, it is the next one.
As many times longer as others wait too: with a hundred nodes most looks are in vain.
"""
VANISHES = 100
"""Times that a folder may vanish between its making and its first use before it counts as one that cannot be made."""


_T = TypeVar("_T")


class Stopped(Exception):
    """Asked to leave."""


Tick = Callable[[int, int], None]
"""Called a few times a second with (bytes done, bytes in total); what it raises ends the staging."""


class Filled(NamedTuple):
    """Shards that were brought, and bytes that were read from the store for them."""

    shards: int
    fetched_bytes: int


def fill(
    store: Store,
    folder: Path,
    shards: Sequence[Shard],
    tick: Tick,
    verify: bool = False,
    check: Check = "auto",
    present: Callable[[], None] = lambda: None,
) -> Filled:
    """Bring what a folder lacks. Several processes may fill one folder: they share the work.

    Args:
        store: where the shards lie.
        folder: where they go, under their names.
        shards: what must be there at the end; their names are safe.
        tick: told of the progress.
        verify: hash what is there already even where a receipt says that it was verified.
        check: how a download is verified.
        present: called when the folder is safe from removal, before anything is looked at.

    Raises:
        InputError: not enough space, or a shard that is not there.
        StorageError: the bytes could not be read or written, or are not those that are pinned.
    """
    if not verify and _has_all_for_good(folder, shards):
        return Filled(0, 0)
    with filling(store, folder, tick, check, present) as work:
        lacking = work.lacking(shards, verify)
        work.make_room(lacking)
        work.bring(lacking)
        return Filled(work.brought, work.fetched)


def begin(
    store: Store, folder: Path, shards: Sequence[Shard], tick: Tick, present: Callable[[], None] = lambda: None
) -> list[Shard]:
    """All of `fill` but the long part: what a folder lacks is not brought but returned. Room for it is there, and no
    final name holds anything but its shard.

    Arguments and errors are those of `fill`.
    """
    if _has_all_for_good(folder, shards):
        return []
    with filling(store, folder, tick, present=present) as work:
        lacking = work.lacking(shards, verify=False)
        work.make_room(lacking)
        work.bring([shard for shard in lacking if (folder / shard.name).exists()])
        return [shard for shard in lacking if not (folder / shard.name).exists()]


def _has_all_for_good(folder: Path, shards: Sequence[Shard]) -> bool:
    """Whether all of it lies, verified, where nothing can be written: a cache that is mounted read-only. Nobody who
    fills or removes it can be told of us, and nobody need be.
    """
    if not folder.is_dir() or os.access(folder, os.W_OK):
        return False
    receipts = Receipts(folder)
    return all(_has_size(folder / s.name, s.size) and receipts.vouches(s.name) for s in shards)


@contextlib.contextmanager
def filling(
    store: Store, folder: Path, tick: Tick, check: Check = "auto", present: Callable[[], None] = lambda: None
) -> Iterator[Filling]:
    """Work on a folder that nobody removes meanwhile.

    Raises:
        StorageError: it cannot be written, at any moment of the block.
    """
    try:
        claims = _present(folder, tick)
        try:
            present()
            yield Filling(store, folder, tick, claims, check)
        finally:
            claims.close()
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(folder)) from error


def _present(folder: Path, tick: Tick) -> Claims:
    """Claims on a folder that nobody is about to remove.

    Raises:
        OSError: the folder cannot be made.
    """
    vanished = 0
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            claims = Claims(folder)
        except FileNotFoundError:
            # Somebody removed it between the two, or, where it happens each time, nothing can be made here (/proc).
            vanished += 1
            if vanished == VANISHES:
                raise
            continue
        if claims.be_present():
            return claims
        claims.close()
        tick(0, 0)
        threading.Event().wait(0.1)


class Filling:
    """Work on one folder. Threads do it; the caller's only watches, so that a hanging store cannot keep it."""

    def __init__(self, store: Store, folder: Path, tick: Tick, claims: Claims, check: Check) -> None:
        self.store, self.folder, self.tick, self.check = store, folder, tick, check
        self.claims = claims
        self.receipts = Receipts(folder)
        self.left, self.living_bytes = parts_in(folder)
        self.done = self.total = self.fetched = self.brought = 0
        self._waited: set[str] = set()
        self._wrong: set[str] = set()
        self.leave = threading.Event()
        self._guard = threading.Lock()

    def lacking(self, shards: Sequence[Shard], verify: bool) -> list[Shard]:
        """The shards whose final name is not there, or does not hold them."""
        absent = [shard for shard in shards if not _has_size(self.folder / shard.name, shard.size)]
        names = {shard.name for shard in absent}
        doubtful = [s for s in shards if s.name not in names and (verify or not self.receipts.vouches(s.name))]
        wrong: list[Shard] = []

        def look(shard: Shard) -> bool:
            # Without a digest anywhere: only a rename of whole, pinned bytes ever made this name.
            wanted = pinned(self.receipts.shard(shard), self.check)
            if not wanted.kind:
                return True
            running = self._hashed(self.folder / shard.name, wanted)
            if running.fits:
                self.receipts.add(shard.name, running.xxh3, wanted.kind)
            else:
                wrong.append(shard)
            return True

        in_threads(look, doubtful, self.leave, lambda: self.tick(self.done, self.total))
        self._wrong = {shard.name for shard in wrong}
        return absent + wrong

    def make_room(self, lacking: Sequence[Shard]) -> None:
        """Drop what was left behind and is of no use, and check that the rest fits."""
        wanted = {tag(shard) for shard in lacking}
        for word in self.left.keys() - wanted:
            self._drop(word)
        # What others are bringing right now need not be brought again.
        need = max(0, sum(shard.size for shard in lacking) - self.living_bytes)
        if need and need + RESERVE > shutil.disk_usage(self.folder).free:
            for word in [*self.left]:
                self._drop(word)
        free = shutil.disk_usage(self.folder).free
        if need and need + RESERVE > free:
            raise InputError(
                f"{need:,} bytes to fetch, {free:,} bytes free: {need + RESERVE - free:,} short "
                f"(with {RESERVE:,} in reserve)",
                where=str(self.folder),
                hint="free some space (clipa data gc), or set cache in the cluster profile to a larger disk",
            )

    def bring(self, lacking: Sequence[Shard]) -> None:
        """Fetch what is lacking, or wait until another process has."""
        self.total = sum(shard.size for shard in lacking)
        self.tick(0, self.total)
        in_threads(self.one, lacking, self.leave, lambda: self.tick(self.done, self.total))

    def one(self, shard: Shard) -> bool:
        """Bring a shard; False while another process is about it."""
        word, target = tag(shard), self.folder / shard.name
        if not self.claims.take(word):
            self._waited.add(word)
            return False
        try:
            if shard.name not in self._wrong and _has_size(target, shard.size):
                self._arrived(shard.size)
                return True
            left = left_of(target, word) if word in self._waited else self.left.get(word, [])
            came = fetch(self.store, target, shard, left, self._arrived, self.check)
            self.receipts.add(shard.name, came.xxh3, came.how)
            with self._guard:
                self.fetched += came.bytes
                self.brought += 1
        finally:
            self.claims.release(word)
        return True

    def _drop(self, word: str) -> None:
        for part in self.left.pop(word):
            discard(part)

    def _arrived(self, count: int) -> None:
        if self.leave.is_set():
            raise Stopped
        with self._guard:
            self.done += count

    def _hashed(self, path: Path, wanted: Pinned) -> Running:
        running = Running(wanted)
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                if self.leave.is_set():
                    raise Stopped
                running.update(chunk)
        return running


class _Queue(Generic[_T]):
    """Items in their order. What could not be done yet comes again before those that were not tried."""

    def __init__(self, items: Sequence[_T]) -> None:
        self._todo, self._again = deque(items), deque[tuple[float, _T]]()

    def next(self) -> _T | None:
        """None when there is nothing left to do."""
        with contextlib.suppress(IndexError):
            if self._again and self._again[0][0] <= time.monotonic():
                return self._again.popleft()[1]
        with contextlib.suppress(IndexError):
            return self._todo.popleft()
        with contextlib.suppress(IndexError):
            return self._again.popleft()[1]
        return None

    def later(self, item: _T) -> float:
        """It could not be done yet. Returns the seconds for which there is nothing better to do."""
        self._again.append((time.monotonic() + _AGAIN_S * (1 + len(self._again) / THREADS), item))
        return 0.0 if self._todo else 0.05


def in_threads(
    job: Callable[[_T], bool], items: Sequence[_T], leave: threading.Event, tick: Callable[[], None]
) -> None:
    """Do a job with every item, in their order as far as it can be done; False from it: not yet.

    `tick` is called a few times a second. What it raises, or the job, ends it all, by `leave`.
    """
    # A queue and a few workers, not a future an item: `wait` looks at every future each time one ends.
    queue = _Queue(items)

    def work() -> None:
        while not leave.is_set() and (item := queue.next()) is not None:
            if not job(item):
                leave.wait(queue.later(item))

    pool = ThreadPoolExecutor(THREADS)
    try:
        running = {pool.submit(work) for _ in range(min(THREADS, len(items)))}
        while running:
            ended, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in ended:
                future.result()
            tick()
    except BaseException:
        leave.set()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False

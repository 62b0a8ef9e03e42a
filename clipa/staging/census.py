"""What a dataset's listing does not say: the samples of its shards, and their digests.

Counts come from img2dataset's `<shard>_stats.json` where they lie beside the shards. `scan` reads the rest, several
shards at a time, and keeps what it has in a journal: interrupted, it goes on where it was.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import msgspec

from clipa.errors import StorageError
from clipa.registry.run_dir import write_whole
from clipa.spec.plan import Record
from clipa.staging.fill import Stopped, Tick
from clipa.storage.digest import Pinned, Running
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Changed, Store
from clipa.storage.tars import Census, NotATar

THREADS = 8
STATS_THREADS = 32
"""Small files: a thread waits for its answer nearly all of the time."""
_STATS = "_stats.json"


class _Stats(Record, frozen=True, kw_only=True):
    """What img2dataset 1.x writes beside each shard; `successes` samples are in it."""

    successes: int


def stats_name(shard: str) -> str:
    """The name of img2dataset's statistics of a shard."""
    return shard.removesuffix(".tar") + _STATS


def with_stats(store: Store, manifest: Manifest, names: Sequence[str], tick: Tick) -> Manifest:
    """The manifest with the counts that img2dataset left beside the shards. `names`: what lies there."""
    there = set(names)
    wanted = [s for s in manifest.shards if s.samples is None and stats_name(s.name) in there]
    counts: dict[str, int] = {}

    def read(shard: Shard) -> None:
        try:
            stats = msgspec.json.decode(store.read(stats_name(shard.name)), type=_Stats)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        counts[shard.name] = stats.successes

    _in_threads(read, wanted, STATS_THREADS, lambda: tick(0, 0))
    return _replaced(manifest, [msgspec.structs.replace(s, samples=counts[s.name]) for s in wanted if s.name in counts])


def scanned(store: Store, manifest: Manifest, journal: Path, tick: Tick) -> tuple[Manifest, int]:
    """The manifest with samples and XXH3 of every shard, and how many shards were read for it.

    Raises:
        StorageError: a shard cannot be read, has changed, or is no whole tar file.
    """
    known = {(s.name, s.size, s.version): s for s in _read(journal)}
    done = [known[key] for s in manifest.shards if (key := (s.name, s.size, s.version)) in known]
    names = {shard.name for shard in done}
    wanted = [s for s in manifest.shards if s.name not in names and (s.samples is None or not (s.digest or s.sha256))]
    counter = _Counter(sum(shard.size for shard in wanted), tick)
    journal.parent.mkdir(parents=True, exist_ok=True)
    found: list[Shard] = []
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def read(shard: Shard) -> None:
        row = _counted(store, shard, counter)
        os.write(descriptor, b"\n" + msgspec.json.encode(row) + b"\n")
        found.append(row)

    try:
        _in_threads(read, wanted, THREADS, counter.tell)
    finally:
        counter.leave.set()
        os.close(descriptor)
    return _replaced(manifest, [*done, *found]), len(wanted)


def forget(journal: Path) -> None:
    """Remove a journal whose manifest was written."""
    journal.unlink(missing_ok=True)


def keep(path: Path, manifest_bytes: bytes) -> None:
    """Write a manifest to a local file, whole or not at all."""
    try:
        write_whole(path, manifest_bytes)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror}", where=str(path)) from error


class _Counter:
    def __init__(self, total: int, tick: Tick) -> None:
        self.total, self._tick, self._done = total, tick, 0
        self.leave = threading.Event()
        self._guard = threading.Lock()

    def add(self, count: int) -> None:
        if self.leave.is_set():
            raise Stopped
        with self._guard:
            self._done += count

    def tell(self) -> None:
        self._tick(self._done, self.total)


def _counted(store: Store, shard: Shard, counter: _Counter) -> Shard:
    where = f"{store.url}/{shard.name}"
    running, census = Running(Pinned("", "")), Census()
    try:
        for chunk in store.chunks(shard.name, shard.size, version=shard.version):
            running.update(chunk)
            census.feed(chunk)
            counter.add(len(chunk))
        samples = census.samples
    except NotATar as error:
        raise StorageError(
            f"not a whole, uncompressed tar file: {error}", where=where, hint="write the shard again, or remove it"
        ) from error
    now = store.entry(shard.name)
    if (now.size, now.version) != (shard.size, shard.version or now.version):
        raise Changed("it changed while it was read", where=where, hint="index the dataset once it is written")
    digest = shard.digest or f"xxh3:{running.xxh3}"
    return msgspec.structs.replace(shard, digest=digest, samples=samples if shard.samples is None else shard.samples)


def _replaced(manifest: Manifest, rows: Sequence[Shard]) -> Manifest:
    by_name = {row.name: row for row in rows}
    return msgspec.structs.replace(manifest, shards=tuple(by_name.get(s.name, s) for s in manifest.shards))


def _read(journal: Path) -> list[Shard]:
    try:
        lines = journal.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(msgspec.json.decode(line, type=Shard))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue  # torn by a kill: the shard is read again
    return rows


def _in_threads(job: Callable[[Shard], None], shards: Sequence[Shard], threads: int, tell: Callable[[], None]) -> None:
    pool = ThreadPoolExecutor(threads)
    try:
        running = set()
        todo = iter(shards)
        for shard in todo:
            running.add(pool.submit(job, shard))
            if len(running) < 2 * threads:
                continue
            running = _some(running, tell)
        while running:
            running = _some(running, tell)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _some(running: set, tell: Callable[[], None]) -> set:  # type: ignore[type-arg]
    ended, rest = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
    for future in ended:
        future.result()
    tell()
    return rest

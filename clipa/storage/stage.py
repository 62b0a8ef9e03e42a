"""Staging: from a store to a local folder, whole or not at all, verified.

`python -m clipa.storage.stage RUN_DIR --attempt N` stages what a run needs. It is a process of its own, started by the
supervisor, so that no transfer library ever lives in a trainer.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.errors import ClipaError, InputError, StorageError
from clipa.registry import events
from clipa.registry.run_dir import RunDir, sync_folder
from clipa.spec import card, plan
from clipa.spec.cluster import Dataset
from clipa.storage import manifest as manifests
from clipa.storage.dataset import require_safe
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Store

THREADS = 8
RESERVE = 64 << 20
"""Bytes that stay free on the disk."""


class Staged(NamedTuple):
    """What staging did."""

    shards: int
    fetched_bytes: int
    seconds: float


class Stopped(Exception):
    """Asked to leave."""


def stage(
    manifest: Manifest, source: Dataset, cache: str, tick: Callable[[int, int], None] = lambda done, total: None
) -> Staged:
    """Bring every shard to `staged_folder(cache, manifest.digest)`.

    `tick(done_bytes, total_bytes)` is called as bytes arrive; what it raises ends the staging cleanly.

    Raises:
        InputError: not enough space, or a shard that is not there.
        StorageError: the bytes could not be read or are not those of the manifest.
    """
    began = time.monotonic()
    folder = manifests.staged_folder(cache, manifest.digest)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in manifest.shards:
        require_safe(shard.name)
    # The lock keeps two processes from fetching the same bytes twice. Correctness does not rest on it: where locks
    # do nothing, both write private part files and rename the same content to the same name.
    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [shard for shard in manifest.shards if not _is_here(folder / shard.name, shard)]
        _drop_leftovers(folder)
        need = sum(shard.size for shard in missing)
        _require_space(folder, need)
        _fetch_all(Store(_folder_of(source)), folder, missing, need, tick)
    return Staged(len(manifest.shards), need, time.monotonic() - began)


def _folder_of(source: Dataset) -> Dataset:
    """The dataset's folder: names in a manifest are relative to it, also where its URL was a pattern."""
    base, _, last = source.url.rpartition("/")
    return msgspec.structs.replace(source, url=base) if any(mark in last for mark in "*?{[") else source


def _is_here(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.size
    except OSError:
        return False


def _drop_leftovers(folder: Path) -> None:
    """Part files of processes that were killed; we hold the lock, so nobody writes them."""
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)


def _require_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need and need + RESERVE > free:
        raise InputError(
            f"{need:,} bytes to fetch, {free:,} bytes free: {need + RESERVE - free:,} short ({RESERVE:,} stay free)",
            where=str(folder),
            hint="free some space, or set cache in the cluster profile to a larger disk",
        )


def _fetch_all(
    store: Store, folder: Path, shards: Sequence[Shard], total: int, tick: Callable[[int, int], None]
) -> None:
    done = 0
    guard = threading.Lock()
    failed = threading.Event()

    def arrived(count: int) -> None:
        nonlocal done
        with guard:
            done += count
            if failed.is_set():
                raise Stopped
            tick(done, total)

    def fetch(shard: Shard) -> None:
        try:
            _fetch(store, folder / shard.name, shard, arrived)
        except BaseException:
            failed.set()
            raise

    if not shards:
        return
    with ThreadPoolExecutor(min(THREADS, len(shards))) as pool:
        futures = [pool.submit(fetch, shard) for shard in shards]
        errors = [error for future in futures if (error := future.exception())]
    if errors:
        raise next((error for error in errors if isinstance(error, ClipaError)), errors[0])


def _fetch(store: Store, target: Path, shard: Shard, arrived: Callable[[int], None]) -> None:
    """One object under a private name, checked while it is written, then renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    digest = hashlib.sha256()
    try:
        with open(part, "xb") as file:
            for chunk in store.chunks(shard.name, shard.size):
                file.write(chunk)
                digest.update(chunk)
                arrived(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if shard.sha256 and digest.hexdigest() != shard.sha256:
            raise StorageError(
                f"its SHA-256 is {digest.hexdigest()}, the manifest says {shard.sha256}",
                where=f"{store.url}/{shard.name}",
                hint="the object was changed after the manifest was written: write the dataset again",
            )
        os.replace(part, target)
        sync_folder(target.parent)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror}", where=str(target)) from error
    finally:
        part.unlink(missing_ok=True)


class _File(plan.Record, frozen=True, kw_only=True):
    size: int
    sha256: str


def stage_weights(url: str, cache: str) -> Path:
    """Bring a checkpoint folder at a URL to `staged_weights(cache, url)`, COMPLETE last.

    Raises:
        InputError: no checkpoint there.
        StorageError: it could not be read, or is not what its COMPLETE says.
    """
    target = manifests.staged_weights(cache, url)
    store = Store(url)
    raw = store.read(card.COMPLETE_NAME)
    try:
        files = msgspec.json.decode(raw, type=dict[str, _File])
    except msgspec.MsgspecError as error:
        raise StorageError(f"cannot be read: {error}", where=f"{store.url}/{card.COMPLETE_NAME}") from error
    wanted = [name for name in files if name in (card.WEIGHTS_NAME, card.CARD_NAME)]
    target.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        shard = Shard(name=name, size=files[name].size, sha256=files[name].sha256)
        _fetch(store, target / name, shard, lambda count: None)
    from clipa.registry.run_dir import write_whole

    write_whole(target / card.COMPLETE_NAME, msgspec.json.encode({name: files[name] for name in wanted}))
    return target


class _Reporter:
    """Plain progress lines for a log, and the check whether to leave."""

    def __init__(self, stop_file: Path) -> None:
        self.stop_file = stop_file
        self.began = self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.stop_file.exists():
            raise Stopped
        if now - self.said < 2.0 and done < total:
            return
        self.said = now
        rate = done / max(1e-9, now - self.began)
        left = (total - done) / rate if rate else 0.0
        print(f"{done / 2**20:.1f} of {total / 2**20:.1f} MiB, {rate / 2**20:.1f} MiB/s, {left:.0f} s left", flush=True)


def stage_run(run: RunDir, attempt: int) -> None:
    """Stage everything that a run reads, and record it."""
    the_plan = plan.decode(run.plan.read_bytes())
    stop_file = Path(os.environ.get("CLIPA_STOP_FILE") or run.stop_file(attempt))
    wanted = {data.manifest: data for data in [the_plan.data, *(e.data for e in the_plan.evals.values())] if data}
    shards = fetched = 0
    began = time.monotonic()
    for digest, data in wanted.items():
        print(f"{data.name}: {data.shards} shard(s), {data.bytes / 2**20:.1f} MiB", flush=True)
        manifest = manifests.decode(run.manifest(digest).read_bytes())
        staged = stage(manifest, data.source, the_plan.cache, _Reporter(stop_file))
        shards += staged.shards
        fetched += staged.fetched_bytes
    init = the_plan.init
    if init and not init.is_run and "://" in init.ref and not init.ref.startswith("file://"):
        stage_weights(init.ref, the_plan.cache)
    log = events.EventWriter(run, attempt, "stage")
    log.write(events.Staged, shards=shards, fetched_bytes=fetched, seconds=time.monotonic() - began)
    log.close()


def main() -> int:
    """Entry of `python -m clipa.storage.stage`."""
    parser = argparse.ArgumentParser(prog="clipa.storage.stage", description="stage what a run reads")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args()
    try:
        stage_run(RunDir(arguments.run_dir), arguments.attempt)
    except Stopped:
        return 75
    except ClipaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

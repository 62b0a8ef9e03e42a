"""Staging: from a store to a local folder, whole or not at all, verified.

`python -m clipa.staging.stage RUN_DIR --attempt N` stages what a run needs. It is a process of its own, started by the
supervisor, so that no transfer library ever lives in a trainer.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from clipa.errors import ClipaError, InputError, StorageError
from clipa.registry import events
from clipa.registry.log_streams import survive_full_logs
from clipa.registry.ownership import restore_umask
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import card, plan
from clipa.spec.cluster import Dataset
from clipa.spec.counted import counted
from clipa.staging.cache import About, sweep, use
from clipa.staging.fill import Stopped, Tick, begin, fill
from clipa.storage import fast
from clipa.storage import manifest as manifests
from clipa.storage.dataset import require_safe
from clipa.storage.leave import ends_at_once
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.pattern import redacted
from clipa.storage.store import Store
from clipa.terminal import say

RESUMABLE = 75
"""Exit code: asked to leave, the next call goes on."""
_MIB = float(1 << 20)
_T = TypeVar("_T")


class Staged(NamedTuple):
    """What staging did."""

    shards: int
    fetched_bytes: int
    seconds: float


def stage(
    manifest: Manifest,
    source: Dataset,
    cache: str,
    tick: Tick = lambda done, total: None,
    verify: bool = False,
    open_store: Callable[[Dataset], Store] = Store,
    run: Path | None = None,
) -> Staged:
    """Bring every shard to `staged_folder(cache, manifest.digest)`; those that are there already are kept.

    Args:
        manifest: what to bring.
        source: where from.
        cache: the cache folder.
        tick: told of the progress.
        verify: hash what is there already, also where a receipt says that it was verified.
        open_store: how the source is opened.
        run: the run that needs it: nothing is removed from the cache while that lives.

    Raises:
        InputError: not enough space, a hostile name, or a shard that is not there.
        StorageError: the bytes could not be read or written, or are not those of the manifest.
    """
    began = time.monotonic()
    folder = _safe_folder(manifest, cache)
    store = open_store(source)
    filled = fill(store, folder, manifest.shards, tick, verify, present=lambda: say_used(folder, manifest, run))
    _leave_manifest(folder, manifest)
    return Staged(len(manifest.shards), filled.fetched_bytes, time.monotonic() - began)


def begin_to_stage(manifest: Manifest, source: Dataset, cache: str, tick: Tick, run: Path) -> Staged:
    """All of `stage` but the bringing of shards that are not there: training begins, and they come meanwhile.

    Arguments and errors are those of `stage`; what is returned are the shards that are there. A store that does not
    answer, or refuses, is found out here, by the first of those that are not: no rank has started yet.
    """
    began = time.monotonic()
    folder = _safe_folder(manifest, cache)
    store = fast.open_store(source)
    lacking = begin(store, folder, manifest.shards, tick, lambda: say_used(folder, manifest, run))
    if lacking:
        store.entry(lacking[0].name)
    _leave_manifest(folder, manifest)
    return Staged(len(manifest.shards) - len(lacking), 0, time.monotonic() - began)


def say_used(folder: Path, manifest: Manifest, run: Path | None) -> None:
    """Say that a dataset is in use, and by which run."""
    use(folder, About(url=manifest.url, bytes=manifest.bytes, shards=len(manifest.shards)), run)


def _safe_folder(manifest: Manifest, cache: str) -> Path:
    for shard in manifest.shards:
        require_safe(shard.name)
    return manifests.staged_folder(cache, manifest.digest)


def _leave_manifest(folder: Path, manifest: Manifest) -> None:
    hidden = folder / f".{manifests.MANIFEST_NAME}"
    if not hidden.exists():
        write_whole(hidden, manifests.encode(manifest))


def make_room_in_cache(cache: Path, limit: int, folder: Path, manifest: Manifest) -> None:
    """Have the cache hold at most `limit` bytes once a manifest is in it too, as far as nobody needs the rest.

    Raises:
        InputError: the manifest alone is larger than the limit.
    """
    if manifest.bytes > limit:
        raise InputError(
            f"{manifest.bytes:,} bytes, the cache may hold {limit:,}",
            where=manifest.url,
            hint='raise cache_limit_gib in the cluster profile, or set access = "stream" for this dataset',
        )
    lacking = sum(shard.size for shard in manifest.shards if not (folder / shard.name).exists())
    for gone in sweep(cache, limit - lacking, keep=[str(folder)]).removed:
        say(f"removed from the cache: {gone.url}, {gone.on_disk / _MIB:.1f} MiB", err=True)


class _File(plan.Record, frozen=True, kw_only=True):
    size: int
    sha256: str


def stage_weights(
    source: Dataset | str,
    cache: str,
    tick: Tick = lambda done, total: None,
    open_store: Callable[[Dataset], Store] = Store,
    run: Path | None = None,
) -> Path:
    """Bring the weights and the card of a checkpoint folder at a URL to `staged_weights(cache, url)`, COMPLETE last.

    Arguments are those of `stage`.

    Raises:
        InputError: no whole checkpoint there, or not enough space.
        StorageError: it could not be read, or is not what its COMPLETE says.
    """
    source = Dataset(url=source) if isinstance(source, str) else source
    store = Store(source)
    where = f"{store.url}/{card.COMPLETE_NAME}"
    try:
        files = msgspec.json.decode(store.read(card.COMPLETE_NAME), type=dict[str, _File])
        # Only these two are read here, and only under these names: a foreign COMPLETE chooses no path.
        wanted = {name: files[name] for name in (card.WEIGHTS_NAME, card.CARD_NAME)}
    except KeyError as error:
        raise InputError(f"it does not list {error}", where=where, hint="give the folder of a checkpoint") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot be read: {error}", where=where) from error
    marker = msgspec.json.encode(wanted)
    target = manifests.staged_weights(cache, source.url)
    complete = target / card.COMPLETE_NAME
    shards = [Shard(name=name, size=file.size, sha256=file.sha256) for name, file in wanted.items()]
    try:
        if complete.is_file() and complete.read_bytes() != marker:
            # Other weights lie at this URL now: no mix of both may ever look whole.
            complete.unlink()
        if not complete.is_file():
            for shard in shards:
                (target / shard.name).unlink(missing_ok=True)
        about = About(url=store.url, bytes=sum(shard.size for shard in shards), shards=len(shards))
        fill(open_store(source), target, shards, tick, present=lambda: use(target, about, run))
        write_whole(complete, marker)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(target)) from error
    return target


class Reporter:
    """Plain progress lines for a log, and the check whether to leave."""

    def __init__(self, stop_file: Path) -> None:
        self.stop_file = stop_file
        self.began = self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """A `Tick`."""
        now = time.monotonic()
        if self.stop_file.exists():
            raise Stopped
        if not total or (now - self.said < 2.0 and done < total):
            return
        self.said = now
        rate = done / max(1e-9, now - self.began)
        left = f"{(total - done) / rate:.0f} s left" if rate else "nothing yet"
        say(f"{done / _MIB:.1f} of {total / _MIB:.1f} MiB, {rate / _MIB:.1f} MiB/s, {left}")


def stage_run(run: RunDir, attempt: int, writer: str = "stage", early: bool = False) -> None:
    """Stage everything that a run reads, and record it in the event file of `writer`.

    `early`: of what the plan has staged while the run trains (`clipa.staging.arrive`) only what comes before.
    """
    the_plan = read_record(run.plan, plan.decode)
    stop_file = Path(os.environ.get("CLIPA_STOP_FILE") or run.stop_file(attempt))
    datasets = [data for data in the_plan.datasets if data.layout == "shards" and data.access == "stage"]
    wanted = {data.manifest: data for data in datasets}
    later = {data.manifest for data in the_plan.early} if early else ()
    shards = fetched = 0
    began = time.monotonic()
    for digest, data in wanted.items():
        say(f"{data.name}: {counted(data.shards, 'shard')}, {data.bytes / _MIB:.1f} MiB")
        manifest = read_record(run.manifest(digest), manifests.decode)
        if the_plan.cache_limit:
            folder = manifests.staged_folder(the_plan.cache, digest)
            make_room_in_cache(Path(the_plan.cache), the_plan.cache_limit, folder, manifest)
        reporter = Reporter(stop_file)
        if digest in later:
            staged = begin_to_stage(manifest, data.source, the_plan.cache, reporter, run.path)
            say(
                f"{counted(staged.shards, 'shard is', 'shards are')} there, training begins on the first of the others",
            )
        else:
            staged = stage(manifest, data.source, the_plan.cache, reporter, open_store=fast.open_store, run=run.path)
        shards += staged.shards
        fetched += staged.fetched_bytes
    init = the_plan.init
    if init and not init.is_run and "://" in init.ref and not init.ref.startswith("file://"):
        say(f"weights: {redacted(init.ref)}")
        source = init.source or Dataset(url=init.ref)
        stage_weights(source, the_plan.cache, Reporter(stop_file), open_store=fast.open_store, run=run.path)
    log = events.EventWriter(run, attempt, writer)
    log.write(events.Staged, shards=shards, fetched_bytes=fetched, seconds=time.monotonic() - began)
    log.close()


def read_record(path: Path, decode: Callable[[bytes], _T]) -> _T:
    """A file of a run.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), hint="give a run directory") from error


def main() -> int:
    """Entry of `python -m clipa.staging.stage`: the exit code."""
    survive_full_logs()
    parser = argparse.ArgumentParser(prog="clipa.staging.stage", description="stage what a run reads")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--writer", default="stage", help="whose event file it is, where several nodes stage")
    parser.add_argument("--early", action="store_true", help="leave to `clipa.staging.arrive` what can come later")
    arguments = parser.parse_args()
    restore_umask()
    try:
        stage_run(RunDir(arguments.run_dir), arguments.attempt, arguments.writer, arguments.early)
    except Stopped:
        return RESUMABLE
    except ClipaError as error:
        say(error, err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    ends_at_once(main)

"""`python -m clipa.data.shrink < request`: a dataset written anew with smaller images, for phases of low resolution.

Keys, captions and the order of members stay; so do images that are small enough or cannot be decoded, and the files
beside the shards that say how to read them. Each shard is whole or not there, with a receipt beside it
(`shrunk/<name>.json`), so that the same command goes on where it was. The manifest is written last.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from clipa.data.doctor import Progress
from clipa.data.rewrite import FOLDER, Failure, Receipt, Rewrite, receipt_name
from clipa.data.spread import spread
from clipa.errors import ClipaError, DataError, InputError, told
from clipa.spec.cluster import Dataset
from clipa.spec.plan import Record
from clipa.staging import errand
from clipa.staging.census import STATS_THREADS
from clipa.storage import manifest as manifests
from clipa.storage.dataset import index, publish_manifest, require_safe
from clipa.storage.evaluation import DATASET_TYPE, NSHARDS
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Entry, Store
from clipa.terminal import say, say_document

SCHEMA = 1
SIDES = (16, 4096)
"""The smallest and largest shorter side, in pixels."""
_ABOUT = f"{FOLDER}/about.json"
_SHOWN = 10
SIDE_FILES = (manifests.CLASSNAMES, manifests.TEMPLATES, DATASET_TYPE, NSHARDS)
"""Files beside shards that evaluations read (clipa.storage.evaluation)."""


class About(Record, frozen=True, kw_only=True):
    """What a folder of smaller shards is made from, and how. Shards that were made otherwise never mix with them."""

    source: str
    digest: str
    short_side: int
    quality: int
    schema: int = SCHEMA


class Shrunk(Record, frozen=True, kw_only=True):
    """What is there now. `kept` images have their very bytes, `broken` ones too."""

    url: str
    shards: int
    written: int
    samples: int
    bytes_before: int
    bytes: int
    images: int
    shrunk: int
    kept: int
    broken: int
    digest: str
    seconds: float


def shrink(
    source: Dataset, target: Dataset, short_side: int, quality: int, workers: int, told: Callable[[int, int], None]
) -> Shrunk:
    """Write every shard of `source` at `target` with images whose shorter side is at most `short_side`.

    Args:
        source: where the shards are; never touched.
        target: an empty place, or one where the same work was begun.
        short_side: pixels.
        quality: of JPEG and WebP, 1..100.
        workers: processes.
        told: called with (shards done, shards in all).

    Raises:
        InputError: the target holds something else, or is in the source; a number out of range.
        StorageError: a store fails, or the source has changed.
        DataError: some shards are no whole tar files: all others are written, and no manifest.
    """
    began = time.monotonic()
    _require_numbers(short_side, quality)
    old, new = Store(source), Store(target)
    manifest = index(source, old)
    for shard in manifest.shards:
        require_safe(shard.name)
    _require_place(old, new)
    about = About(source=old.url, digest=manifest.digest, short_side=short_side, quality=quality)
    receipts = {receipt.shard.name: receipt for receipt in _begun(new, manifest, about)}
    todo = [shard for shard in manifest.shards if shard.name not in receipts]
    failures: list[Failure] = []
    told(len(receipts), len(manifest.shards))
    work = Rewrite(source=source, target=target, short_side=short_side, quality=quality)
    for shard, done in spread(work, todo, workers):
        if isinstance(done, Failure):
            failures.append(done)
        else:
            receipts[shard.name] = done
        told(len(receipts) + len(failures), len(manifest.shards))
    _require_all(failures, old)
    _sweep(new, manifest)
    for name in _side_files(old, manifest):
        new.write(name, old.read(name))
    rows = [receipts[shard.name] for shard in manifest.shards]
    return _finished(new, rows, len(todo), time.monotonic() - began)


def _require_numbers(short_side: int, quality: int) -> None:
    low, high = SIDES
    if not low <= short_side <= high:
        raise InputError(f"a shorter side of {short_side} pixels", where="--short-side", allowed=f"{low}..{high}")
    if not 1 <= quality <= 100:
        raise InputError(f"a quality of {quality}", where="--quality", allowed="1..100")


def _require_place(old: Store, new: Store) -> None:
    if new.pattern:
        raise InputError("shards are written to a folder", where=f"{new.url}/{new.pattern}", allowed=new.url)
    if new.scheme in ("http", "https"):
        raise InputError("a web server is only read from", where=new.url, allowed="a folder or an object store")
    mine, theirs = f"{new.url}/", f"{old.url}/"
    if mine.startswith(theirs) or theirs.startswith(mine):
        raise InputError(
            "source and target lie in each other", where=new.url, hint="write the smaller shards beside the source"
        )


def _begun(new: Store, manifest: Manifest, about: About) -> list[Receipt]:
    """Receipts of the shards that are there already; the first act at an empty target is to say what it is for."""
    there = {entry.name: entry for entry in _listed(new)}
    if _ABOUT not in there:
        if any(name.endswith(".tar") for name in there):
            raise InputError("the target holds shards of something else", where=new.url, hint="give an empty folder")
        new.write(_ABOUT, msgspec.json.format(msgspec.json.encode(about), indent=1))
        return []
    _require_same(new, about)

    def read(shard: Shard) -> Receipt | None:
        if receipt_name(shard.name) not in there or shard.name not in there:
            return None
        try:
            found = msgspec.json.decode(new.read(receipt_name(shard.name)), type=Receipt)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        entry = there[shard.name]
        return found if (found.shard.size, found.shard.version) == (entry.size, entry.version) else None

    with ThreadPoolExecutor(STATS_THREADS) as pool:
        return [receipt for receipt in pool.map(read, manifest.shards) if receipt]


def _listed(new: Store) -> list[Entry]:
    try:
        return new.list()
    except InputError:
        return []  # an object store has no empty folders; a place that cannot be written shows at the first write


def _require_same(new: Store, about: About) -> None:
    try:
        before = msgspec.json.decode(new.read(_ABOUT), type=About)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"not written by clipa data shrink ({error})", where=f"{new.url}/{_ABOUT}") from error
    named = {
        "source": "from another place",
        "digest": "from another version of the source",
        "short_side": "with another shorter side",
        "quality": "with another quality",
        "schema": "by another clipa",
    }
    for key, what in named.items():
        if getattr(before, key) != getattr(about, key):
            raise InputError(
                f"the target was begun {what}: {getattr(before, key)}, now {getattr(about, key)}",
                where=new.url,
                hint="give an empty folder",
            )


def _side_files(old: Store, manifest: Manifest) -> list[str]:
    """What says how the shards are read (class names, templates, ...), at the source and in folders of its shards."""
    if old.pattern:  # a part of the shards: how many there are is another number then
        return [name for name in SIDE_FILES if name != NSHARDS and old.exists(name)]
    folders = {"", *(shard.name.rpartition("/")[0] for shard in manifest.shards)}
    names = [entry.name for entry in old.list()]
    return [name for name in names if name.rpartition("/")[2] in SIDE_FILES and name.rpartition("/")[0] in folders]


def _require_all(failures: Sequence[Failure], old: Store) -> None:
    if not failures:
        return
    shown = "; ".join(f"{failure.name}: {failure.what}" for failure in sorted(failures, key=lambda f: f.name)[:_SHOWN])
    raise DataError(
        f"{len(failures)} shards cannot be rewritten: {shown}" + ("; ..." if len(failures) > _SHOWN else ""),
        where=old.url,
        hint="write them again or take them out of the source's manifest, and shrink to an empty folder",
    )


def _sweep(new: Store, manifest: Manifest) -> None:
    """Remove what a killed process left of a local write: every shard is there by now."""
    if new.scheme != "file":
        return
    for shard in manifest.shards:
        path = Path(new.address.removeprefix("file://")) / shard.name
        for part in path.parent.glob(f".{path.name}.*.part"):
            part.unlink(missing_ok=True)


def _finished(new: Store, receipts: Sequence[Receipt], written: int, seconds: float) -> Shrunk:
    rows = tuple(msgspec.structs.replace(receipt.shard, version="") for receipt in receipts)
    manifest = Manifest(url=new.url, shards=rows)
    publish_manifest(new, manifest)
    images, shrunk, broken = (sum(getattr(r, key) for r in receipts) for key in ("images", "shrunk", "broken"))
    return Shrunk(
        url=f"{new.url}/{manifests.MANIFEST_NAME}",
        shards=len(rows),
        written=written,
        samples=manifest.samples or 0,
        bytes_before=sum(receipt.before for receipt in receipts),
        bytes=manifest.bytes,
        images=images,
        shrunk=shrunk,
        kept=images - shrunk - broken,
        broken=broken,
        digest=manifest.digest,
        seconds=seconds,
    )


def text_of(done: Shrunk) -> str:
    """The result for people."""
    mib = 2.0**20
    share = f" ({done.bytes / done.bytes_before:.0%})" if done.bytes_before else ""
    broken = f", {done.broken:,} that cannot be decoded kept as they are (clipa data doctor)" if done.broken else ""
    return (
        f"{done.url}\n{done.shards:,} shards, {done.written:,} written now in {done.seconds:.1f} s, "
        f"{done.samples:,} samples, {done.bytes_before / mib:,.1f} MiB to {done.bytes / mib:,.1f} MiB{share}\n"
        f"{done.images:,} images: {done.shrunk:,} made smaller, {done.kept:,} small enough{broken}\n"
        f"manifest {done.digest}"
    )


def main() -> int:
    """The exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=errand.Shrink)
    workers = request.workers or len(os.sched_getaffinity(0))
    try:
        done = shrink(request.source, request.target, request.short_side, request.quality, workers, Progress())
    except ClipaError as error:
        return told(error)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here", err=True)
        return 130
    say_document("clipa.data-shrink/1", **msgspec.structs.asdict(done)) if request.json else say(text_of(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())

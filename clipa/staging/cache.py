"""The cache of staged data: what lies in it, who needs it, and what goes when there is too much.

    <cache>/staged/<digest>/      the shards of one manifest, under their names
    <cache>/weights/<hash>/       the weights of one URL
    <cache>/streamed/<run>.<...>/ what a node of a run has while it trains (`clipa.staging.meeting`)
        .about.json               where it came from
        .used                     its modification time is the last use: file systems lie about access times
        .pins/<run>               holds the path of a run that needs it
        .lock                     held while somebody fills it

Nothing is removed that a live run has pinned, that somebody is filling, or that could not be fetched again. What a node
had of a run is of no use to anybody once the run is over, or its next attempt has begun: a sweep always removes that.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from clipa.errors import StorageError
from clipa.registry.run_dir import write_whole
from clipa.registry.scan import scan
from clipa.spec.plan import Record
from clipa.staging.claims import Claims
from clipa.staging.meeting import ALIVE, WORKING, owner_of, places

Kind = Literal["staged", "weights", "streamed"]
KINDS: tuple[Kind, ...] = ("staged", "weights", "streamed")
_ABOUT, _USED, _PINS = ".about.json", ".used", ".pins"
_GONE = ".evicted-"
_TORN_S = 60.0
_READ_S = 600.0
"""A node that reads touches its folder every second: after so long without, nobody does, whatever clocks differ by."""
_NOWHERE = ("", "memory")
"""Schemes from which nothing can be fetched again."""

IsLive = Callable[[Path], bool]
"""Whether the run in this folder may still need its data."""


class About(Record, frozen=True, kw_only=True):
    """Where a cached dataset came from. `bytes` and `shards` are those of its manifest."""

    url: str
    bytes: int
    shards: int


class Cached(Record, frozen=True, kw_only=True):
    """One dataset, the weights of one URL, or what a node has of a run that streams, in the cache.

    `bytes` and `shards` are what belongs there, `on_disk` what it takes up in bytes, `used` its last use in Unix time,
    `pinned_by` the ids of the live runs that need it. `url` is empty for what an older clipa staged; of what is
    streamed it is the folder of the run.
    """

    kind: Kind
    path: str
    url: str
    bytes: int
    shards: int
    on_disk: int
    used: float
    pinned_by: tuple[str, ...]


class Swept(Record, frozen=True, kw_only=True):
    """What a sweep did, or would do: what it removed, the bytes that are left, and why the rest stays."""

    removed: tuple[Cached, ...]
    left_bytes: int
    kept: dict[str, str]


def use(folder: Path, about: About, run: Path | None = None) -> None:
    """Say that a dataset is about to be used, by a run where one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    if _about(folder) != about:
        _drop_torn(folder, f".{_ABOUT}.*.part")
        write_whole(folder / _ABOUT, msgspec.json.encode(about) + b"\n")
    if run is not None:
        (folder / _PINS).mkdir(exist_ok=True)
        _drop_torn(folder / _PINS, ".*.part")
        write_whole(folder / _PINS / run.name, os.fsencode(run) + b"\n")
    (folder / _USED).touch()


def _drop_torn(folder: Path, pattern: str) -> None:
    """Remove what writers that were killed left; a young one's writer may live."""
    for torn in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            if time.time() - torn.stat().st_mtime > _TORN_S:
                torn.unlink()


def listing(cache: Path, is_live: IsLive | None = None) -> list[Cached]:
    """What lies in the cache, least recently used first."""
    live = is_live or _is_live
    found = [_look(kind, folder, live) for kind in KINDS for folder in _folders(cache / kind)]
    return sorted(found, key=lambda cached: cached.used)


def sweep(
    cache: Path, limit: int, dry_run: bool = False, keep: Collection[str] = (), by: IsLive | None = None
) -> Swept:
    """Remove the least recently used until at most `limit` bytes are left; before it what killed runs left behind that
    streamed, and what earlier sweeps left half removed.

    Args:
        cache: the cache folder.
        limit: bytes.
        dry_run: only say what would go.
        keep: paths that are about to be used.
        by: tells whether a run is live.
    """
    live = by or _is_live
    if not dry_run:
        for kind in KINDS:
            for gone in (cache / kind).glob(f"{_GONE}*"):
                shutil.rmtree(gone, ignore_errors=True)
    found = listing(cache, live)
    total = sum(cached.on_disk for cached in found)
    # A live run may be staging while it trains: the room that it was promised is taken.
    limit -= sum(
        max(0, cached.bytes - cached.on_disk) for cached in found if cached.pinned_by and cached.path not in keep
    )
    removed, kept = [], {}
    for cached in sorted(found, key=lambda cached: cached.kind != "streamed"):
        if total <= limit and cached.kind != "streamed":
            break
        why = _needed(cached, keep) or ("" if dry_run else _remove(Path(cached.path), live))
        if why:
            kept[cached.path] = why
            continue
        total -= cached.on_disk
        removed.append(cached)
    return Swept(removed=tuple(removed), left_bytes=total, kept=kept)


def _needed(cached: Cached, keep: Collection[str]) -> str:
    if cached.path in keep:
        return "about to be used"
    if cached.pinned_by:
        return f"needed by {', '.join(cached.pinned_by)}"
    if cached.kind == "streamed":
        return "somebody reads it" if time.time() - cached.used < _READ_S else ""
    if cached.url.partition("://")[0] in _NOWHERE:
        return "could not be fetched again: where it came from is not known"
    return ""


def _remove(folder: Path, live: IsLive) -> str:
    """Remove one dataset, by a rename first; why it stays otherwise."""
    if folder.parent.name == places(Path()).name:
        return _removed(folder)
    try:
        claims = Claims(folder)
    except OSError as error:
        return f"cannot be locked: {error.strerror}"
    try:
        # Pins are written before a stager says that it is present: whoever comes now sees a folder that is gone.
        if not claims.alone():
            return "somebody is filling it"
        if pins := _pins(folder, live):
            return f"needed by {', '.join(pins)}"
        return _removed(folder)
    finally:
        claims.close()


def _removed(folder: Path) -> str:
    gone = folder.with_name(f"{_GONE}{secrets.token_hex(8)}")
    try:
        os.rename(folder, gone)
    except FileNotFoundError:
        return ""  # its attempt has just ended
    except OSError as error:
        raise StorageError(f"cannot be removed: {error.strerror}", where=str(folder)) from error
    shutil.rmtree(gone, ignore_errors=True)
    return ""


def _folders(kind: Path) -> list[Path]:
    try:
        return [path for path in kind.iterdir() if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []


def _look(kind: Kind, folder: Path, live: IsLive) -> Cached:
    if kind == "streamed":
        return _look_at_streamed(folder, live)
    about = _about(folder)
    return Cached(
        kind=kind,
        path=str(folder),
        url=about.url if about else "",
        bytes=about.bytes if about else 0,
        shards=about.shards if about else 0,
        on_disk=sum(_sizes(folder)),
        used=_used(folder),
        pinned_by=tuple(_pins(folder, live)),
    )


def _look_at_streamed(folder: Path, live: IsLive) -> Cached:
    run = owner_of(folder)
    signs = [path for name in (ALIVE, WORKING) for path in (folder / name, *folder.glob(f"*/{name}"))]
    return Cached(
        kind="streamed",
        path=str(folder),
        url=str(run) if run else "",
        bytes=0,
        shards=sum(1 for _ in folder.rglob("*.tar")),
        on_disk=sum(_sizes(folder)),
        used=max((_touched(path) for path in (folder, *signs)), default=0.0),
        pinned_by=(run.name,) if run and live(run) else (),
    )


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _about(folder: Path) -> About | None:
    try:
        return msgspec.json.decode((folder / _ABOUT).read_bytes(), type=About)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _used(folder: Path) -> float:
    for path in (folder / _USED, folder):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return 0.0


def _sizes(folder: Path) -> Iterator[int]:
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                yield os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue


def _pins(folder: Path, live: IsLive) -> list[str]:
    pins = []
    for pin in sorted((folder / _PINS).glob("[!.]*")):
        try:
            run = Path(os.fsdecode(pin.read_bytes().strip()))
        except OSError:
            continue
        if live(run):
            pins.append(pin.name)
    return pins


def _is_live(run: Path) -> bool:
    """A run that is queued, waits or works; one that cannot be judged counts too. One that is gone does not."""
    if not run.is_dir():
        return False
    found = scan([run.parent], only=[run.name]).statuses
    return not found or not found[0].state.is_over

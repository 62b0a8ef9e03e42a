"""One object from a store to a local file: private name, checked while written, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.errors import StorageError
from clipa.registry.run_dir import sync_folder
from clipa.staging.part import Part, discard
from clipa.storage.digest import Check, Pinned, is_etag, pinned
from clipa.storage.manifest import Shard
from clipa.storage.store import Changed, Store
from clipa.storage.tars import tar_fault

_TRIES = 3
"""Downloads of a shard whose bytes are wrong: the first, and two more."""


class Fetched(NamedTuple):
    """What came: XXH3 of the file, what it was held against (`xxh3`, `sha256`, `md5`, `etag`, `tar`, `size`), and the
    bytes that were read from the store (less than all after a resume, more after a wrong download).
    """

    xxh3: str
    how: str
    bytes: int


class _Once(NamedTuple):
    xxh3: str
    how: str
    bytes: int
    wrong: str


def fetch(
    store: Store,
    target: Path,
    shard: Shard,
    left: Sequence[Path],
    arrived: Callable[[int], None],
    check: Check = "auto",
) -> Fetched:
    """Bring one object to `target`, whole or not at all. `arrived(bytes)` is called after every piece.

    Wrong bytes are thrown away and read again, twice at most. An object that has changed since it was pinned is an
    error at once.

    Args:
        store: where it lies.
        target: its final name.
        shard: its name in the store, size, and what pins its bytes.
        left: part files of the same shard whose writers are gone, largest first. They are used up.
        arrived: what it raises ends the download; the part stays, for the next call to go on from.
        check: by its digest, or by its size and version alone.

    Raises:
        InputError: it is not there, or access is refused.
        StorageError: it cannot be read or written, or its bytes are not those that are pinned.
    """
    wanted = pinned(shard, check)
    walk = check == "auto"
    read = 0
    seen: list[str] = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            once = _once(store, target, shard, left, arrived, wanted, seen, walk)
            read += once.bytes
            if not once.wrong:
                return Fetched(once.xxh3, once.how, read)
            if wanted.kind in ("md5", "etag") and not shard.digest and not store.etag_is_md5(shard.name):
                wanted = pinned(shard, "size")
            elif len(seen) == _TRIES:
                raise _hopeless(store, shard, wanted, once, len(set(seen)) == 1)
            left = ()
            arrived(-shard.size)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(target)) from error


def _once(
    store: Store,
    target: Path,
    shard: Shard,
    left: Sequence[Path],
    arrived: Callable[[int], None],
    wanted: Pinned,
    seen: list[str],
    walk: bool,
) -> _Once:
    """One download: its digest, and what is wrong with it. Only what is right gets the final name."""
    part = Part(target, shard, wanted)
    try:
        with part:
            if left:
                part.take_over(left[0])
            for old in left:
                discard(old)
            kept = part.size
            arrived(kept)
            for chunk in store.blocks(shard.name, shard.size, start=kept, version=shard.version):
                part.append(chunk)
                arrived(len(chunk))
            part.sync()
            digest = part.running.xxh3
            how, wrong = _judged(store, shard, part, seen, walk)
            seen.append(digest)
            if not wrong:
                os.replace(part.path, target)
        discard(part.path)
    except (OSError, Changed):
        discard(part.path)
        raise
    if not wrong:
        sync_folder(target.parent)
    return _Once(digest, how, shard.size - kept, wrong)


def _judged(store: Store, shard: Shard, part: Part, seen: Sequence[str], walk: bool) -> tuple[str, str]:
    """(what the bytes were held against, what is wrong with them). Raises where the object has changed.

    `walk`: go over the headers of a tar without a digest.
    """
    wanted = part.running.wanted
    if wanted.kind and part.running.fits:
        return wanted.kind, ""
    _require_unchanged(store, shard)
    if wanted.kind:
        return wanted.kind, f"its {wanted.kind.upper()} is not {wanted.value}"
    if not walk or not shard.name.endswith(".tar") or part.size == 0:
        return "size", ""
    fault = tar_fault(str(part.path))
    if not fault:
        return "tar", ""
    # Broken in the store, or on the way? What arrives the same twice is what lies there: the loader's matter.
    return "size", "" if part.running.xxh3 in seen else fault


def _require_unchanged(store: Store, shard: Shard) -> None:
    """Ranges of two versions must not be mixed: the version after the last range is the one that was pinned, so it
    was so before the first. The size is part of it, because an object may have grown behind the last range.
    """
    now = store.entry(shard.name)
    if now.size == shard.size and (not shard.version or now.version == shard.version):
        return
    if now.size == shard.size and store.local_folder is not None and is_etag(shard.version):
        return  # copied from a bucket: the bytes are held against it, a file has no version to compare
    raise Changed(
        f"it is {now.size} bytes, version {now.version}; pinned were {shard.size} bytes, version {shard.version}",
        where=f"{store.url}/{shard.name}",
        hint="the object was changed: write the dataset again, or submit a new run",
    )


def _hopeless(store: Store, shard: Shard, wanted: Pinned, once: _Once, always: bool) -> StorageError:
    names = {"sha256": "SHA-256", "xxh3": "XXH3", "md5": "MD5", "etag": "ETag", "crc32c": "CRC32C"}
    word = names.get(wanted.kind, "tar structure")
    hint = (
        "the object is not what was pinned: write it again, and index the dataset again"
        if always
        else "the way from the store changes bytes (memory, proxy, network card): try another machine"
    )
    what = f"{word} {wanted.value} is pinned, other bytes came" if wanted.kind else once.wrong
    return StorageError(
        f"{what} in {_TRIES} downloads ({'the same' if always else 'different ones'} each time)",
        where=f"{store.url}/{shard.name}",
        hint=hint,
    )

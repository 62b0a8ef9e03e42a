"""One object from a store to a local file: private name, checked while written, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.errors import StorageError
from clipa.registry.run_dir import sync_folder
from clipa.storage.manifest import Shard
from clipa.storage.part import Part, discard
from clipa.storage.store import Store


class Fetched(NamedTuple):
    """What came: SHA-256 of the file, and the bytes that were read from the store (less than all after a resume)."""

    sha256: str
    bytes: int


def fetch(store: Store, target: Path, shard: Shard, left: Sequence[Path], arrived: Callable[[int], None]) -> Fetched:
    """Bring one object to `target`, whole or not at all. `arrived(bytes)` is called after every range.

    Args:
        store: where it lies.
        target: its final name.
        shard: its name in the store, size, and checksum or version.
        left: part files of the same shard whose writers are gone, largest first. They are used up.
        arrived: what it raises ends the download; the part stays, for the next call to go on from.

    Raises:
        InputError: it is not there, or access is refused.
        StorageError: it cannot be read or written, or its bytes are not those that the manifest pins.
    """
    part = Part(target, shard)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part:
            if left:
                part.take_over(left[0])
            for old in left:
                discard(old)
            kept = part.size
            arrived(kept)
            for chunk in store.chunks(shard.name, shard.size, start=kept):
                part.append(chunk)
                arrived(len(chunk))
            part.sync()
            if why := _not_pinned(store, shard, part.sha256):
                discard(part.path)
                raise why
            os.replace(part.path, target)
        discard(part.path)
        sync_folder(target.parent)
    except OSError as error:
        discard(part.path)
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(target)) from error
    return Fetched(part.sha256, shard.size - kept)


def _not_pinned(store: Store, shard: Shard, sha256: str) -> StorageError | None:
    where, hint = f"{store.url}/{shard.name}", "the object was changed: write the dataset again, or submit a new run"
    if shard.sha256:
        if sha256 == shard.sha256.lower():
            return None
        return StorageError(f"its SHA-256 is {sha256}, the manifest says {shard.sha256}", where=where, hint=hint)
    # Ranges of two versions must not be mixed: the version after the last range is the one that was pinned, so it
    # was so before the first. The size is part of it, because an object may have grown behind the last range.
    now = store.entry(shard.name)
    if now.size == shard.size and (not shard.version or now.version == shard.version):
        return None
    return StorageError(
        f"it is {now.size} bytes, version {now.version}; pinned were {shard.size} bytes, version {shard.version}",
        where=where,
        hint=hint,
    )

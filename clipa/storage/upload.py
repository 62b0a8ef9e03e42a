"""A local file to a store: whole, and held against what the store says of it afterwards."""

from __future__ import annotations

from pathlib import Path

from clipa.errors import StorageError
from clipa.storage.digest import Running, pinned
from clipa.storage.manifest import Shard
from clipa.storage.store import Entry, Store

_TRIES = 3
_CHUNK = 1 << 20


def upload(store: Store, path: Path, name: str) -> Entry:
    """Write an object from a file, and look whether it has arrived: its size, and its digest where the store has one.

    Raises:
        InputError: the store refuses access.
        StorageError: it could not be written, or other bytes arrived, three times.
        FileNotFoundError: the file is gone.
    """
    size = path.stat().st_size
    for _ in range(_TRIES):
        store.write(name, path)
        now = store.entry(name)
        if now.size == size and _is(path, Shard(name=name, size=size, version=now.version, digest=now.digest)):
            return now
    raise StorageError(f"what arrived is not what was sent, {_TRIES} times", where=f"{store.url}/{name}")


def _is(path: Path, remote: Shard) -> bool:
    """Whether a file has the digest that the store has of the object; true where the store has none."""
    running = Running(pinned(remote))
    if not running.wanted.kind:
        return True
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            running.update(chunk)
    return running.fits

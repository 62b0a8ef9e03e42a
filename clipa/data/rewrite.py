"""One shard, written anew with smaller images: to a private file first, then to the store, whole or not at all."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import msgspec

from clipa.data.decode import shrink_image
from clipa.data.wds import split_name
from clipa.errors import DataError
from clipa.spec.cluster import Dataset
from clipa.spec.plan import Record
from clipa.storage import fast
from clipa.storage.digest import Pinned, Running, pinned
from clipa.storage.manifest import Shard
from clipa.storage.members import BrokenTar, Member, members
from clipa.storage.store import Changed, Store
from clipa.storage.tars import IMAGES, Census
from clipa.storage.upload import upload

FOLDER = "shrunk"
"""Beside the new shards: what was asked for, and a receipt for each shard that is there."""
_TRIES = 3
_LARGEST = 1 << 30
"""Bytes of the largest member: it is held in memory."""


class Receipt(Record, frozen=True, kw_only=True):
    """A shard that was written. `shard.version` is the store's word for what lies there."""

    shard: Shard
    before: int
    images: int
    shrunk: int
    broken: int


class Failure(Record, frozen=True, kw_only=True):
    """A shard that cannot be rewritten, and why."""

    name: str
    what: str


class Rewrite(Record, frozen=True, kw_only=True):
    """Rewrites one shard. A value, so that it can be sent to other processes."""

    source: Dataset
    target: Dataset
    short_side: int
    quality: int

    def __call__(self, shard: Shard) -> Receipt | Failure:
        """Write `shard.name` at the target, then its receipt.

        Raises:
            InputError: access is refused.
            StorageError: a store fails, or the shard is not what is pinned.
        """
        store, target = _store(self.source), _store(self.target)
        with tempfile.TemporaryFile(prefix="clipa-shrink-") as file:
            try:
                written = self._right(store, shard, file)
            except (BrokenTar, DataError) as error:
                return Failure(name=shard.name, what=error.what if isinstance(error, DataError) else str(error))
            file.flush()
            # A file without a name: kill -9 leaves nothing behind.
            entry = upload(target, Path(f"/proc/self/fd/{file.fileno()}"), shard.name)
        row = msgspec.structs.replace(written.shard, size=entry.size, version=entry.version)
        receipt = msgspec.structs.replace(written, shard=row)
        target.write(receipt_name(shard.name), msgspec.json.encode(receipt))
        return receipt

    def _right(self, store: Store, shard: Shard, file: IO[bytes]) -> Receipt:
        """The shard from the bytes that are pinned. Wrong or broken ones are read again, twice at most."""
        for _ in range(_TRIES):
            running = Running(pinned(shard))
            chunks = _told(store.chunks(shard.name, shard.size, version=shard.version), running)
            file.seek(0)
            file.truncate()
            try:
                done: Receipt | BrokenTar = self._write(chunks, shard, file)
            except BrokenTar as error:
                done = error
            for _ in chunks:
                pass  # the rest, for the digest
            if running.fits and isinstance(done, Receipt):
                break
        now = store.entry(shard.name)
        if not running.fits or (now.size, now.version) != (shard.size, shard.version or now.version):
            raise Changed(
                "it is not, or no longer, what was pinned when the shrinking began",
                where=f"{store.url}/{shard.name}",
                hint="clipa data index the source again, and shrink it to an empty folder",
            )
        if isinstance(done, BrokenTar):
            raise done
        return done

    def _write(self, chunks: Iterator[bytes], shard: Shard, file: IO[bytes]) -> Receipt:
        sink, census = _Sink(file), Census()
        images = shrunk = broken = 0
        with tarfile.open(
            fileobj=sink, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for member in members(chunks, _LARGEST):
                if not member.regular:
                    continue
                data, word = self._smaller(member)
                images, shrunk, broken = images + bool(word), shrunk + (word == "shrunk"), broken + (word == "broken")
                entry = tarfile.TarInfo(member.name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
                census.count(member.name)
        row = Shard(name=shard.name, size=0, digest=f"xxh3:{sink.running.xxh3}", samples=census.samples)
        return Receipt(shard=row, before=shard.size, images=images, shrunk=shrunk, broken=broken)

    def _smaller(self, member: Member) -> tuple[bytes, str]:
        """The content that is written, and for images `shrunk`, `kept` or `broken` (kept too: its slot must stay)."""
        if member.data is None:
            raise DataError(f"member {member.name!a} has {member.size:,} bytes", allowed=f"at most {_LARGEST:,}")
        name = split_name(member.name)
        if name is None or name[1] not in IMAGES:
            return member.data, ""
        try:
            data = shrink_image(member.data, self.short_side, self.quality, member.name)
        except DataError:
            return member.data, "broken"
        return data, "kept" if data is member.data else "shrunk"


def receipt_name(shard: str) -> str:
    """Where the receipt of a shard lies at the target."""
    return f"{FOLDER}/{shard}.json"


def _told(chunks: Iterator[bytes], running: Running) -> Iterator[bytes]:
    for chunk in chunks:
        running.update(chunk)
        yield chunk


class _Sink(io.RawIOBase):
    """A file that is only written to, and its digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self.running = Running(Pinned("", ""))
        self._file = file

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.running.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


@lru_cache(maxsize=4)
def _store(source: Dataset) -> Store:
    return fast.open_store(source)

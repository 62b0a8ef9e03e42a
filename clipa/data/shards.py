"""Samples of local tar shards by random access: an index of offsets for each shard, kept beside it."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import msgspec

from clipa.data.tars import split_name
from clipa.errors import DataError
from clipa.registry.run_dir import write_whole
from clipa.spec.plan import Record
from clipa.storage.manifest import Manifest

SCHEMA = 1
IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
LABEL = "cls"


class Members(Record, frozen=True, kw_only=True):
    """One sample of a shard: (offset, size) in bytes of each of its members, by extension."""

    key: str
    at: dict[str, tuple[int, int]]


class ShardIndex(Record, frozen=True, kw_only=True):
    """The samples of one shard with an image, and how many had none. Valid for a file of this size and time."""

    size: int
    mtime_ns: int
    samples: tuple[Members, ...]
    without_image: int = 0
    schema: int = SCHEMA


class ShardSet:
    """The staged shards of one manifest."""

    def __init__(self, paths: list[Path], indices: list[ShardIndex]) -> None:
        self.paths = paths
        self.indices = indices
        self._descriptors: dict[int, int] = {}

    @property
    def sizes(self) -> list[int]:
        """Samples of each shard."""
        return [len(index.samples) for index in self.indices]

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(self.sizes)

    def key(self, shard: int, index: int) -> str:
        """A sample's name for people: shard and key."""
        return f"{self.paths[shard].name}: {self.indices[shard].samples[index].key}"

    def member(self, shard: int, index: int, extensions: tuple[str, ...]) -> tuple[str, bytes] | None:
        """The first of these members that the sample has: its extension and its bytes."""
        at = self.indices[shard].samples[index].at
        for extension in extensions:
            if extension in at:
                offset, size = at[extension]
                return extension, self._read(shard, offset, size)
        return None

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            if len(self._descriptors) >= 64:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))
            descriptor = self._descriptors[shard] = os.open(self.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(descriptor, size, offset)
        if len(data) != size:
            raise DataError(f"got {len(data)} of {size} bytes at {offset}", where=str(self.paths[shard]))
        return data


def open_shards(manifest: Manifest, folder: Path) -> ShardSet:
    """The staged shards of a manifest, with their indices; missing ones are made.

    Raises:
        DataError: a shard is missing, is not a tar, is cut short, or no shard holds a sample with an image.
    """
    paths = [folder / shard.name for shard in manifest.shards]
    indices = [_index(path) for path in paths]
    if not any(index.samples for index in indices):
        raise DataError(
            f"no sample with an image in {len(paths)} shard(s)",
            where=str(folder),
            allowed="KEY.jpg (or jpeg, png, webp) with KEY.txt (or json) for captions, KEY.cls for labels",
        )
    return ShardSet(paths, indices)


def _index(path: Path) -> ShardIndex:
    side = path.with_name(path.name + ".index")
    try:
        status = path.stat()
        found = msgspec.json.decode(side.read_bytes(), type=ShardIndex)
        if (found.size, found.mtime_ns, found.schema) == (status.st_size, status.st_mtime_ns, SCHEMA):
            return found
    except (OSError, msgspec.MsgspecError):
        pass
    if not path.is_file():
        raise DataError("the shard is not staged", where=str(path), hint="python -m clipa.storage.stage RUN_DIR")
    made = _walk(path)
    write_whole(side, msgspec.json.encode(made))
    return made


def _walk(path: Path) -> ShardIndex:
    status = path.stat()
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = split_name(member.name)
                if not member.isreg() or name is None:
                    continue
                if member.offset_data + member.size > status.st_size:
                    raise tarfile.ReadError("unexpected end of data")
                key, extension = name
                samples.setdefault(key, {}).setdefault(extension, (member.offset_data, member.size))
    except (tarfile.TarError, OSError, UnicodeError, ValueError) as error:
        raise DataError(f"not a whole tar file: {error}", where=str(path), hint="write the shard again") from error
    with_image = {key: at for key, at in samples.items() if any(extension in at for extension in IMAGES)}
    return ShardIndex(
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        samples=tuple(Members(key=key, at=at) for key, at in with_image.items()),
        without_image=len(samples) - len(with_image),
    )

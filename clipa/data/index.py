"""The index of one shard: where the parts of each sample lie in the tar file. One walk over the headers.

It is kept beside the staged shard as `<shard>.index`: a line of JSON (counts, the shard's size and modification time,
a checksum), one fixed-size row a sample, then the keys. A torn or outdated file is rebuilt.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from enum import IntEnum
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from clipa.data.wds import split_name
from clipa.errors import DataError
from clipa.registry.run_dir import write_whole
from clipa.spec.plan import Record
from clipa.storage.tars import CAPTIONS, IMAGES, LABELS, TARGETS, Entry, NotATar, walk

SCHEMA = 3


class Part(IntEnum):
    """The parts of a sample, and their places in a row of the index."""

    IMAGE = 0
    CAPTION = 1
    LABEL = 2
    TARGET = 3
    JSON = 4
    """The json member, whether the caption is in it or in a txt beside it."""


_PARTS = {
    Part.IMAGE: IMAGES, Part.CAPTION: CAPTIONS, Part.LABEL: LABELS, Part.TARGET: TARGETS, Part.JSON: ("json",)
}  # fmt: skip
_RANKS: dict[str, dict[Part, int]] = {}
for _part, _names in _PARTS.items():
    for _rank, _name in enumerate(_names):
        _RANKS.setdefault(_name, {})[_part] = _rank

_N = len(Part)
_ROW = np.dtype([("offset", "<i8", (_N,)), ("size", "<i8", (_N,)), ("kind", "u1", (_N,)), ("key_end", "<u4")])
_ABSENT = 255
_EXTENSIONS, _LONGEST = 1000, 40
"""Extensions that are counted: the first ones, of so many characters at most."""


class Counts(Record, frozen=True, kw_only=True):
    """What a shard holds: samples with an image and a caption, a label or a target, and those with none of these pairs.

    `members` counts the files by extension, the 20 most frequent ones.
    """

    captioned: int
    labelled: int
    targeted: int
    skipped: int
    members: dict[str, int]


class _Header(Record, frozen=True, kw_only=True):
    schema: int
    shard_size: int
    shard_mtime: int
    rows: int
    key_bytes: int
    crc: int
    counts: Counts


class ShardIndex:
    """The samples of one shard, in the order of the tar file. Only those with an image and something to it."""

    def __init__(self, shard: Path, rows: NDArray[np.void], keys: bytes, counts: Counts) -> None:
        self.shard = shard
        self.counts = counts
        self._rows = rows
        self._keys = keys
        self._offset, self._size, self._kind = (
            rows["offset"],
            rows["size"],
            rows["kind"],
        )  # views: 0.3 us a look, not 1.2

    def having(self, part: Part) -> NDArray[np.int64]:
        """Numbers of the samples that have a part (besides the image)."""
        return np.flatnonzero(self._rows["kind"][:, part] != _ABSENT).astype(np.int64)

    def has(self, row: int, part: Part) -> bool:
        """Whether a sample has a part."""
        return bool(self._rows["kind"][row, part] != _ABSENT)

    def key(self, row: int) -> str:
        """The sample's key."""
        start = int(self._rows["key_end"][row - 1]) if row else 0
        return self._keys[start : int(self._rows["key_end"][row])].decode("utf-8", "replace")

    def place(self, row: int, part: Part) -> tuple[int, int, str]:
        """(offset, size, extension) of a part's bytes in the tar file."""
        kind = self._kind.item(row, part)
        return self._offset.item(row, part), self._size.item(row, part), _PARTS[part][kind]

    def encode(self, stat: os.stat_result) -> bytes:
        """The sidecar's bytes for a shard of that size and modification time."""
        body = self._rows.tobytes() + self._keys
        header = _Header(
            schema=SCHEMA,
            shard_size=stat.st_size,
            shard_mtime=stat.st_mtime_ns,
            rows=len(self._rows),
            key_bytes=len(self._keys),
            crc=zlib.crc32(body),
            counts=self.counts,
        )
        return msgspec.json.encode(header) + b"\n" + body


def sidecar(shard: Path) -> Path:
    """Where a shard's index lies."""
    return shard.with_name(f"{shard.name}.index")


def load_index(shard: Path) -> ShardIndex:
    """The index of a shard: from its sidecar where that is whole and up to date, else built and written.

    Raises:
        DataError: the shard is missing or no usable tar file, or its sidecar can't be written.
    """
    stat = _stat(shard)
    known = _read_sidecar(shard, stat)
    if known is not None:
        return known
    built = build_index(shard)
    try:
        write_whole(sidecar(shard), built.encode(stat))
    except OSError as error:
        raise DataError(
            f"the index cannot be written beside the shard: {error.strerror}",
            where=str(sidecar(shard)),
            hint="free space in the staging cache, or make it writable",
        ) from error
    return built


def load_counts(shard: Path) -> Counts:
    """What a shard holds. Reads only the first line of a sidecar that is up to date (60 us; the whole: 1 ms).

    Raises:
        DataError: as `load_index`.
    """
    try:
        with open(sidecar(shard), "rb") as file:
            header = _header(file.readline(), _stat(shard))
            if header is not None and os.fstat(file.fileno()).st_size == file.tell() + _body_size(header):
                return header.counts
    except OSError:
        pass
    return load_index(shard).counts


def _stat(shard: Path) -> os.stat_result:
    try:
        return shard.stat()
    except OSError as error:
        raise DataError(f"the shard cannot be read: {error.strerror}", where=str(shard)) from error


def _header(line: bytes, stat: os.stat_result) -> _Header | None:
    """A sidecar's first line; None where it is torn, or about other bytes than the shard's."""
    try:
        header = msgspec.json.decode(line, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    found = (header.schema, header.shard_size, header.shard_mtime)
    return header if found == (SCHEMA, stat.st_size, stat.st_mtime_ns) else None


def _body_size(header: _Header) -> int:
    return header.rows * _ROW.itemsize + header.key_bytes


def _read_sidecar(shard: Path, stat: os.stat_result) -> ShardIndex | None:
    try:
        line, _, body = sidecar(shard).read_bytes().partition(b"\n")
    except OSError:
        return None
    header = _header(line, stat)
    if header is None or len(body) != _body_size(header) or zlib.crc32(body) != header.crc:
        return None
    split = header.rows * _ROW.itemsize
    return ShardIndex(shard, np.frombuffer(body[:split], dtype=_ROW), body[split:], header.counts)


class _Sample:
    """The members of one key, while the tar file is walked."""

    __slots__ = ("kind", "offset", "seen", "size")

    def __init__(self) -> None:
        self.offset, self.size, self.kind = [0] * _N, [0] * _N, [_ABSENT] * _N
        self.seen: set[str] = set()

    def add(self, extension: str, member: Entry) -> bool:
        """Take a member; False when this sample has had one of that extension."""
        if extension in self.seen:
            return False
        self.seen.add(extension)
        for part, rank in _RANKS[extension].items():
            if rank < self.kind[part]:
                self.offset[part], self.size[part], self.kind[part] = member.offset, member.size, rank
        return True

    @property
    def usable(self) -> bool:
        return self.kind[Part.IMAGE] != _ABSENT and min(self.kind[Part.CAPTION :]) != _ABSENT


def build_index(shard: Path) -> ShardIndex:
    """Walk over the headers of a tar file.

    The members of a sample may lie anywhere in the shard: they are grouped by key, not by neighbourhood.

    Raises:
        DataError: not a tar file, a truncated one, or two members of the same name.
    """
    samples, members = _walk(shard)
    usable = [(key, sample) for key, sample in samples.items() if sample.usable]
    rows = np.zeros(len(usable), dtype=_ROW)
    keys = bytearray()
    for row, (key, sample) in enumerate(usable):
        keys += key.encode("utf-8", "surrogateescape")
        rows[row] = (sample.offset, sample.size, sample.kind, len(keys))
    counts = Counts(
        captioned=int(np.count_nonzero(rows["kind"][:, Part.CAPTION] != _ABSENT)),
        labelled=int(np.count_nonzero(rows["kind"][:, Part.LABEL] != _ABSENT)),
        targeted=int(np.count_nonzero(rows["kind"][:, Part.TARGET] != _ABSENT)),
        skipped=len(samples) - len(usable),
        members={_shown(extension): number for extension, number in members.most_common(20)},
    )
    return ShardIndex(shard, rows, bytes(keys), counts)


def _shown(name: str) -> str:
    """Bytes that are no UTF-8 as escapes: neither JSON nor a terminal takes them."""
    return name.encode("utf-8", "backslashreplace").decode()


def _walk(shard: Path) -> tuple[dict[str, _Sample], Counter[str]]:
    samples: dict[str, _Sample] = {}
    members: Counter[str] = Counter()
    last = ""

    def take(member: Entry) -> None:
        nonlocal last
        last = member.name
        if member.regular:
            _take(shard, member, samples, members)

    try:
        if not walk(shard, take) and not shard.stat().st_size:
            raise NotATar("empty file")
    except (NotATar, OSError) as error:
        raise DataError(
            f"the shard is not a whole, uncompressed tar file ({error})" + (f", after member {last!r}" if last else ""),
            where=str(shard),
            hint="write the shard again; compressed shards (.tar.gz) must be unpacked to .tar",
        ) from error
    return samples, members


def _take(shard: Path, member: Entry, samples: dict[str, _Sample], members: Counter[str]) -> None:
    name = split_name(member.name)
    if name is None:
        return
    key, extension = name
    if extension in members or (len(members) < _EXTENSIONS and len(extension) <= _LONGEST):
        members[extension] += 1
    sample = samples.setdefault(key, _Sample())
    if extension in _RANKS and not sample.add(extension, member):
        raise DataError(
            f"sample {key!r} has two members with the extension .{extension}",
            where=str(shard),
            hint="give every sample its own key: the member's name up to its first dot",
        )

"""The reader of clipa's own small files: one error for every way in which such a file can be broken.

A record may be cut by a kill or a full disk, changed by a bad disk or a person, or be no file at all. Whoever reads one
gets a valid value or a `BrokenRecord` that names the file and a cure, and never waits for the writer of a pipe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, TypeAlias, TypeVar

import msgspec

from clipa.errors import StorageError

LARGEST = 16 << 20
"""Bytes of a record; manifests have a limit of their own."""
LARGEST_JOURNAL = 1 << 28
"""Bytes of a file with a record in each line."""
LONGEST_LINE = 1 << 20
"""Bytes of a line of a record that is appended to."""
LARGEST_NUMBER = 1 << 53
"""Counts above it are not counts, and a float no longer holds them."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=LARGEST_NUMBER)]
Moment: TypeAlias = Annotated[float, msgspec.Meta(ge=-(1 << 40), le=1 << 40)]
"""Unix time in seconds."""

UNREADABLE = (OSError, ValueError, RecursionError)
"""What reading and decoding JSON can raise, if anybody may have written it: msgspec's errors and those of UTF-8 are
ValueErrors."""

_T = TypeVar("_T")
_CURE = "restore it from a copy, or remove it if nothing of yours is in it"


class BrokenRecord(StorageError):
    """A file of clipa's own that cannot be read, or does not hold what it must."""


class MissingRecord(BrokenRecord):
    """A file of clipa's own that is not there."""


class UnreadableRecord(BrokenRecord):
    """A file of clipa's own that a disk or its permissions do not let us read now: nothing is known of its content."""


_KINDS = {
    errno.ENOENT: MissingRecord, errno.ENOTDIR: MissingRecord,
    errno.EINVAL: BrokenRecord, errno.EFBIG: BrokenRecord, errno.EISDIR: BrokenRecord, errno.ELOOP: BrokenRecord,
    errno.ENXIO: BrokenRecord,
}  # fmt: skip


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; never wait for the writer of a pipe.

    Raises:
        OSError: not there, not readable, or not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def read_lines_of(file: BinaryIO, longest: int = LONGEST_LINE) -> Iterator[bytes | None]:
    """Yield the lines of a file without their ends, and None in the place of one that is too long, in bounded memory.

    Empty lines are passed over.
    """
    while line := file.readline(longest + 1):
        if len(line) > longest and not line.endswith(b"\n"):
            while (rest := file.readline(longest)) and not rest.endswith(b"\n"):
                pass
            yield None
        elif line.strip():
            yield line.rstrip(b"\n")


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: not there, not readable, larger than `largest` bytes, or not a regular file.
    """
    with open_regular(path) as file:
        is_small = os.fstat(file.fileno()).st_size <= largest
        raw = file.read(largest + 1) if is_small else b""
    if not is_small or len(raw) > largest:
        raise OSError(errno.EFBIG, f"larger than {largest >> 20} MiB", str(path))
    return raw


def read_record(path: Path, kind: type[_T], cure: str = _CURE, largest: int = LARGEST) -> _T:
    """Read a JSON file of clipa's own.

    Raises:
        MissingRecord: it is not there.
        UnreadableRecord: the disk, or a permission.
        BrokenRecord: it holds anything else.
    """
    return decode_record(read_raw(path, cure, largest), kind, str(path), cure)


def read_raw(path: Path, cure: str = _CURE, largest: int = LARGEST) -> bytes:
    """Return the content of a file of clipa's own.

    Raises:
        MissingRecord: it is not there.
        UnreadableRecord: the disk, or a permission.
        BrokenRecord: it is no regular file, or far too large.
    """
    try:
        return read_bytes(path, largest)
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, UnreadableRecord)
        why = "not found" if kind is MissingRecord else error.strerror or error
        raise kind(f"cannot be read: {why}", where=str(path), hint=cure) from error


def decode_record(raw: bytes, kind: type[_T], where: str, cure: str = _CURE) -> _T:
    """Decode the content of a JSON file of clipa's own, wherever it came from.

    Raises:
        BrokenRecord: it holds anything else.
    """
    try:
        _refuse_repeated(raw)
        return msgspec.json.decode(raw, type=kind)
    except RecursionError as error:
        raise BrokenRecord("cannot be read: nested too deeply", where=where, hint=cure) from error
    except ValueError as error:
        raise BrokenRecord(f"cannot be read: {error}", where=where, hint=cure) from error


def find_record(path: Path, kind: type[_T]) -> _T | None:
    """Return what `read_record` reads; None where a missing or broken record costs nothing but time."""
    try:
        return read_record(path, kind)
    except BrokenRecord:
        return None


def read_lines(path: Path, kind: type[_T]) -> Iterator[_T]:
    """Yield the records of a file with a JSON document in each line, where a lost one costs nothing but time.

    Lines that are torn, changed or too long are passed over, and so is a file that is too large or cannot be read.
    """
    decoder = msgspec.json.Decoder(kind)
    try:
        with open_regular(path) as file:
            for line in read_lines_of(file) if os.fstat(file.fileno()).st_size <= LARGEST_JOURNAL else ():
                with contextlib.suppress(ValueError, RecursionError):
                    yield decoder.decode(line or b"")
    except OSError:
        return


def _refuse_repeated(raw: bytes) -> None:
    """Refuse a key that an object has twice: decoders take the last one in silence.

    Raises:
        ValueError: naming the key, or the document is no JSON.
    """

    def pairs(found: list[tuple[str, object]]) -> None:
        if len({key for key, _ in found}) != len(found):
            keys = [key for key, _ in found]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")

    json.loads(raw.decode(), object_pairs_hook=pairs, parse_int=_not_parsed, parse_float=_not_parsed)


def _not_parsed(number: str) -> None:
    """Skip a number: its digits are the typed decoder's to judge."""

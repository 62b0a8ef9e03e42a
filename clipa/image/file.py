"""An image as one file: written once under a lock, whole or not at all, with a record of what it was made from."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from clipa.errors import ConfigError, StorageError
from clipa.registry.run_dir import write_whole
from clipa.spec.plan import Record

_digests: dict[tuple[int, int, int, int], str] = {}
_CANNOT_BE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


class Exported(Record, frozen=True, kw_only=True):
    """What a file was made from, beside it as FILE.json: an image's id, or `HOST/NAME@sha256:...` of a registry;
    the file's own digest, and the code in it.
    """

    image: str
    digest: str
    bytes: int
    revision: str = ""
    code: str = ""
    content: str = ""


class Inside(msgspec.Struct, frozen=True):
    """What the labels of an image say of the code in it."""

    revision: str = ""
    code: str = ""
    content: str = ""


def sidecar(file: Path) -> Path:
    """The record beside an exported file."""
    return file.with_name(f"{file.name}.json")


def read(file: Path) -> Exported | None:
    """The record of an exported file; None where there is none that can be read."""
    try:
        return msgspec.json.decode(sidecar(file).read_bytes(), type=Exported)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def file_digest(path: Path) -> str:
    """`sha256:...` of a file; read once while it stays as it is, since a sweep asks for every point."""
    with open(path, "rb") as file:
        now = os.fstat(file.fileno())
        known = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns)
        if known not in _digests:
            _digests[known] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        return _digests[known]


def once(
    target: Path, image: str, is_it: Callable[[str], bool], make: Callable[[Path], Inside]
) -> tuple[Exported, bool]:
    """The file of an image: the one that is there and whole, else a new one.

    Args:
        target: where it lies.
        image: what goes into its record.
        is_it: whether what a record names is this image.
        make: writes the file that it is given, and returns what is inside; nothing of that name is there before.

    Returns:
        Its record, and whether it had to be made.

    Raises:
        ConfigError: a file of this name cannot be here.
        StorageError: the disk is full, or it fails.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target) as is_alone:
            known = read(target)
            if known and is_it(known.image) and target.is_file() and file_digest(target) == known.digest:
                return known, False
            if is_alone:
                _sweep(target)
            return _write(target, image, make), True
    except OSError as error:
        kind = ConfigError if error.errno in _CANNOT_BE else StorageError
        raise kind(f"the file cannot be written: {error.strerror or error}", where=str(target)) from error


def _write(target: Path, image: str, make: Callable[[Path], Inside]) -> Exported:
    # Two hosts may have processes of the same number.
    part = target.with_name(f".{target.name}.{socket.gethostname()}.{os.getpid()}.part{target.suffix}")
    try:
        inside = make(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())  # a network disk that is full says so here
        record = Exported(image=image, digest=file_digest(part), bytes=part.stat().st_size, revision=inside.revision,
                          code=inside.code, content=inside.content)  # fmt: skip
        sidecar(target).unlink(missing_ok=True)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    write_whole(sidecar(target), msgspec.json.format(msgspec.json.encode(record), indent=2))
    return record


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[bool]:
    """Wait until nobody else writes this file. False where the file system has no locks: then it may be written twice,
    and the last one stays, whole.
    """
    with open(target.with_name(f".{target.name}.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True


def _sweep(target: Path) -> None:
    """Remove what writers who were killed have left; the lock says that none is at work."""
    for left in target.parent.glob(f".{target.name}.*.part*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)

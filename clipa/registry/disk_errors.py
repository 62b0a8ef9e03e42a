"""Errors of a disk that may pass: full, over quota, read-only, failing, or a file server that lost sight of a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_WORDS = {
    errno.ENOSPC: "no space left on the disk of {folder}",
    errno.EDQUOT: "the disk quota of {folder} is used up",
    errno.EROFS: "{folder} is on a read-only file system",
    errno.EIO: "the disk of {folder} fails (input/output error)",
    errno.ESTALE: "stale file handle in {folder}: its file server has lost it",
    errno.ETIMEDOUT: "the file server of {folder} does not answer",
    errno.ENOTCONN: "the file server of {folder} is not connected",
    errno.EHOSTDOWN: "the file server of {folder} is down",
    errno.EREMOTEIO: "the file server of {folder} fails (remote input/output error)",
    errno.ENODEV: "the disk of {folder} is gone",
    errno.ENXIO: "the disk of {folder} is gone",
    errno.ENOMEM: "no memory left for writing to {folder}",
}


def is_disk_error(error: OSError) -> bool:
    """Return whether an error is the disk's own, so that the same write may succeed later."""
    return error.errno in _WORDS


def disk_words(error: OSError, folder: Path | str) -> str:
    """Return one sentence about a disk error that names the folder."""
    return _WORDS.get(error.errno or 0, f"{error.strerror or error} in {{folder}}").format(folder=folder)


def write_trouble(folder: Path, need: int = 0) -> str:
    """Return why files cannot be written to a folder now; empty where a probe of 64 KiB could.

    Args:
        folder: where.
        need: bytes that must be free beyond the probe.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, b"\0" * _PROBE) < _PROBE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            os.unlink(probe)
        found = os.statvfs(folder)
    except OSError as error:
        return disk_words(error, folder) if is_disk_error(error) else ""  # others are for the write itself to raise
    free = found.f_bavail * found.f_frsize
    if free < need:
        return f"{free / 2**20:,.0f} MiB left on the disk of {folder}, {need / 2**20:,.0f} are needed"
    return ""


_PROBE = 1 << 16
_FULL = 1 << 16


def mount_trouble(folder: Path) -> str:
    """Return what is wrong with the disk of a folder as far as a reader can tell: full, or read-only; else empty."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return disk_words(error, folder) if is_disk_error(error) else ""
    if found.f_flag & os.ST_RDONLY:
        return _WORDS[errno.EROFS].format(folder=folder)
    if found.f_blocks and found.f_bavail * found.f_frsize < _FULL:
        return _WORDS[errno.ENOSPC].format(folder=folder)
    return ""

"""Who does what in a staging folder that several processes, jobs and nodes fill: one lock a shard.

The locks die with their holder, however it dies. They only save work: where a file system has none, or grants every
lock to everybody (some NFS and Lustre mounts), a shard is fetched twice and renamed to the same name.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

_FILE = ".lock"
_PRESENCE = 0
"""The byte of the lock file that every stager holds, shared: who wants the folder gone needs it alone."""
_FLOCK = "hhqqi4x"
"""struct flock of fcntl(2) on 64-bit Linux."""


class Claims:
    """The claims of one process on one folder.

    Open file description locks (fcntl(2)) on single bytes of one file: of this file object, not of the process, so
    that closing the file elsewhere in the process releases nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._path = folder / _FILE

    def close(self) -> None:
        """Give everything up."""
        os.close(self._file)

    def be_present(self) -> bool:
        """Say that a stager is here; False where somebody is about to remove the folder, or has."""
        return self._lock(fcntl.F_RDLCK, _PRESENCE) and self._is_there()

    def alone(self) -> bool:
        """Whether no stager is here; from now on none can come."""
        return self._lock(fcntl.F_WRLCK, _PRESENCE) and self._is_there()

    def take(self, word: str) -> bool:
        """Claim the shard with this tag; False where another process has it."""
        return self._lock(fcntl.F_WRLCK, _byte(word))

    def release(self, word: str) -> None:
        """Give a shard up."""
        self._lock(fcntl.F_UNLCK, _byte(word))

    def _is_there(self) -> bool:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._file))

    def _lock(self, kind: int, byte: int) -> bool:
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            return True
        return True


def _byte(word: str) -> int:
    return 1 + int(word, 16) % (1 << 62)

"""Append lines to a file so that a bad disk loses none: lines are kept in memory and tried again, in order.

A line that a full disk has cut is completed before the next one is written, or ended by a newline where the file was
opened again; so no line is ever glued to another. Where the file system can (`fallocate`), space for the last words is
reserved beyond the end of the file: they are written although the disk is full.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clipa.registry.disk_errors import disk_words, is_disk_error

RESERVE = 1 << 16
"""Bytes that are kept free for the last words."""
RETRY_S = 1.0
"""Between two tries to write to a bad disk."""
KEPT = 20_000
"""Lines kept in memory. Beyond that every second one that is `minor` is dropped."""
_FALLOC_FL_KEEP_SIZE = 1  # fallocate(2)
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or getattr(_libc, "fallocate", None)  # musl has the second alone

Write = Callable[[int, bytes], int]


class _Line(NamedTuple):
    raw: bytes
    minor: bool
    last: bool


class LineWriter:
    """The one writer of a file of lines. Threads may share it.

    Args:
        path: the file; its folder is made.
        reserve: whether space for the last words is reserved.
        write: the system call, for tests of disks that fail in ways that no mount here can.

    Raises:
        OSError: the file cannot be opened for a reason that is not the disk's (permissions, a file in the way).
    """

    def __init__(self, path: Path, reserve: bool = False, write: Write = os.write) -> None:
        self.trouble = ""
        """Why lines are waiting in memory; empty while none are."""
        self._path = path
        self._write = write
        self._reserves = reserve
        self._reserved = 0
        self._size = 0
        self._descriptor = -1
        self._lines: list[_Line] = []
        self._sent = 0
        self._retry_at = 0.0
        self._lock = threading.Lock()
        try:
            self._open()
            self._reserve(0)
        except OSError as error:
            if not is_disk_error(error):
                raise
            self._failed(error)

    def add(self, raw: bytes, minor: bool = False, last: bool = False) -> None:
        """Append one line. Never raises because of the disk.

        Args:
            raw: the line with its newline.
            minor: may be dropped where more lines wait than memory is meant for.
            last: may use the reserved space; it goes before lines that wait.
        """
        with self._lock:
            line = _Line(raw, minor, last)
            self._lines.insert(self._place_of(line), line)
            if len(self._lines) > KEPT:
                self._thin()
            if last:
                self._flush(lambda first: first.last or bool(self._sent))
            self._flush()

    def flush(self) -> bool:
        """Try again to write what waits. Return whether nothing waits any more."""
        with self._lock:
            return self._flush()

    def close(self, patience: float = 30.0) -> None:
        """Write what waits, for `patience` seconds at most, make it durable and close the file.

        Raises:
            OSError: lines are left that could not be written.
        """
        deadline = time.monotonic() + patience
        with self._lock:
            while not self._flush(lambda _: True) and time.monotonic() < deadline:
                time.sleep(min(0.2, RETRY_S))
            left, trouble = len(self._lines), self.trouble
            if self._descriptor >= 0:
                with contextlib.suppress(OSError):  # the kernel has the lines, and no second try could do more
                    if self._reserved > self._size:
                        os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size)
                    os.fsync(self._descriptor)
                self._drop_descriptor()
        if left:
            raise OSError(f"{self._path}: {left} lines could not be written: {trouble}")

    def _place_of(self, line: _Line) -> int:
        """Last words go before other lines that wait, but neither before earlier ones nor into a line that is cut."""
        if not line.last:
            return len(self._lines)
        return next((n for n, other in enumerate(self._lines) if not other.last and not (n == 0 and self._sent)),
                    len(self._lines))  # fmt: skip

    def _flush(self, may_use_reserve: Callable[[_Line], bool] | None = None) -> bool:
        """Write lines, or only those that may use the reserved space. Return whether none wait any more."""
        if not self._lines:
            return True
        if may_use_reserve is None and self._retry_at and time.monotonic() < self._retry_at:
            return False
        try:
            if self._descriptor < 0:
                self._open()
            while self._lines:
                if may_use_reserve is None:
                    self._reserve(len(self._lines[0].raw))
                elif not may_use_reserve(self._lines[0]):
                    return False
                self._put(self._lines[0].raw)
                self._lines.pop(0)
        except OSError as error:
            self._failed(error)
            return False
        self.trouble, self._retry_at = "", 0.0
        return True

    def _put(self, raw: bytes) -> None:
        while self._sent < len(raw):
            written = self._write(self._descriptor, raw[self._sent :])
            if not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._sent += written
            self._size += written
        self._sent = 0

    def _open(self) -> None:
        """Open the file, ending a line that was cut by a writer before us, or by us before the file was lost."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._descriptor).st_size
        self._reserved = 0
        try:
            if not self._continues():
                self._sent = 0
                if self._size and os.pread(self._descriptor, 1, self._size - 1) != b"\n":
                    self._size += self._write(self._descriptor, b"\n")
        except OSError:
            self._drop_descriptor()  # or the next line would be glued to what is there
            raise

    def _continues(self) -> bool:
        """Whether the file ends with what was written of the first line before the file was lost."""
        if not self._sent or self._size < self._sent:
            return False
        part = b"\n" + self._lines[0].raw[: self._sent]
        start = max(0, self._size - len(part))
        return os.pread(self._descriptor, len(part), start) == part[-(self._size - start) :]

    def _reserve(self, length: int) -> None:
        """Have the file system set space aside for a line and the last words behind it.

        Raises:
            OSError: there is none left.
        """
        if not self._reserves or _fallocate is None or self._size + length + RESERVE <= self._reserved:
            return
        wanted = length + 2 * RESERVE
        fd, start, size = ctypes.c_int(self._descriptor), ctypes.c_int64(self._size), ctypes.c_int64(wanted)
        if _fallocate(fd, ctypes.c_int(_FALLOC_FL_KEEP_SIZE), start, size) == 0:
            self._reserved = self._size + wanted
            return
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        if is_disk_error(error):
            raise error
        self._reserves = False  # this file system cannot (NFS), or a limit of the process does not allow it

    def _failed(self, error: OSError) -> None:
        self.trouble = disk_words(error, self._path.parent)
        self._retry_at = time.monotonic() + RETRY_S
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            self._drop_descriptor()  # a stale or broken one stays so: the next try opens the file again

    def _drop_descriptor(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = -1

    def _thin(self) -> None:
        first, *rest = self._lines  # the first may be written in part
        minor = [line for line in rest if line.minor]
        dropped = {id(line) for line in minor[::2]}
        self._lines = [first, *(line for line in rest if id(line) not in dropped)]

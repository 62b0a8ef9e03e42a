"""Output of processes whose log is a file: a full disk loses lines of a log, it does not end the process."""

from __future__ import annotations

import io
import os
import stat
import sys

from clipa.registry.disk_errors import is_disk_error


class _LossyLog(io.RawIOBase):
    """A descriptor on which a write that the disk refuses counts as done."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        try:
            return os.write(self._descriptor, view)
        except OSError as error:
            if not is_disk_error(error):
                raise
            return len(view)


def survive_full_logs() -> None:
    """Let stdout and stderr lose lines where they are files on a disk that is full, read-only or failing.

    `print` raises there otherwise, and a training would end because of a line that says how well it goes.
    """
    for name in ("stdout", "stderr"):
        try:
            descriptor = getattr(sys, name).fileno()
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                continue
            getattr(sys, name).flush()
        except (AttributeError, ValueError, OSError):
            continue  # closed, replaced by a test, or not a file
        raw = io.BufferedWriter(_LossyLog(descriptor))
        setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True))

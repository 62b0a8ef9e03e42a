"""A folder for temporary files in which sockets can be made: their paths have at most 107 bytes (unix(7))."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

LONGEST = 75
"""Bytes of a folder's path in which multiprocessing can make its sockets: it adds 32 (`/pymp-xxxx/listener-xxxx`)."""
_OTHERS = ("/tmp", "/dev/shm", "/var/tmp")  # noqa: S108 - folders of our own in them, made by mkdtemp


def candidates(more: int = 0) -> list[Path]:
    """Return the folders that could be used, the best first: the user's own (TMPDIR), then those that always exist.

    Args:
        more: bytes that names in the folder take.
    """
    own = tempfile.gettempdir()
    found = [own, *(name for name in _OTHERS if os.access(name, os.W_OK | os.X_OK))]
    short = [name for name in dict.fromkeys(found) if len(os.fsencode(name)) + 1 + more <= LONGEST]
    return [Path(name) for name in short or [own]]

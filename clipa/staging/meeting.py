"""Where the ranks of a node, and the processes that bring them shards while they train, find each other.

<cache>/streamed/<run>.<host>.<node>.<attempt>/
  .run           the path of the run that it belongs to
  .alive         touched every second by the process that readers wait for (`clipa.data.streamer`)
  .failed        why it has given up
  wanted.json    what the ranks want staged, and in which order
  .working       touched every second by the process that stages it (`clipa.staging.arrive`)
  .stuck         why that has given up
  <number>/      shards of a dataset that is streamed
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import msgspec

from clipa.errors import StorageError
from clipa.registry.run_dir import write_whole
from clipa.spec.plan import Record

FOLDER = "CLIPA_COMING"
"""Variable that names the folder to the ranks, where their supervisor has made it."""
OWNER, ALIVE, FAILED, WORKING, STUCK = ".run", ".alive", ".failed", ".working", ".stuck"
_WANTED = "wanted.json"
_BEAT_S = 1.0


def meeting_place(cache: Path, run: Path, node: str, attempt: int) -> Path:
    """Where one node has what it needs while an attempt of a run lasts. `node` tells several of one host apart."""
    return places(cache) / f"{run.name}.{socket.gethostname()}.{node}.{attempt}"


def make(folder: Path, run: Path) -> None:
    """Make a meeting place anew, and remove what earlier attempts left on this node when they were killed."""
    for left in folder.parent.glob(f"{glob.escape(folder.stem)}.*"):
        shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(parents=True)
    write_whole(folder / OWNER, os.fsencode(run) + b"\n")


def places(cache: Path) -> Path:
    """The folder of all these folders."""
    return cache / "streamed"


def owner_of(folder: Path) -> Path | None:
    """The run that a meeting place belongs to; None where that is not known."""
    try:
        return Path(os.fsdecode((folder / OWNER).read_bytes().strip()))
    except OSError:
        return None


def beat(path: Path) -> None:
    """Touch a file every second, in a thread, for as long as the process works or the folder is there."""

    def work() -> None:
        with contextlib.suppress(OSError):  # the folder is removed at the end
            while True:
                path.touch()
                time.sleep(_BEAT_S)

    threading.Thread(target=work, daemon=True).start()


class Life:
    """Whether a process that others wait for still works.

    Args:
        alive: the file that it touches (`beat`).
        failed: the file in which it says why it has given up.
        silent_s: seconds without a sign of life after which it counts as gone.
        gone: what to say then.
    """

    def __init__(self, alive: Path, failed: Path, silent_s: float, gone: str) -> None:
        self._alive, self._failed, self._silent_s, self._gone = alive, failed, silent_s, gone
        self._seen, self._since = 0, time.monotonic()

    def require(self, where: Path) -> None:
        """Look at its signs.

        Raises:
            StorageError: it has given up, or is gone; `where` is what is waited for.
        """
        with contextlib.suppress(FileNotFoundError):
            raise StorageError(self._failed.read_text())
        now = time.monotonic()
        with contextlib.suppress(FileNotFoundError):
            if (beat := self._alive.stat().st_mtime_ns) != self._seen:
                self._seen, self._since = beat, now
        if now - self._since > self._silent_s:
            raise StorageError(self._gone, where=str(where))


class Wanted(Record, frozen=True, kw_only=True):
    """The shards that a node reads, the first one first: of the dataset with that digest, the shard with that number in
    its manifest.
    """

    digests: tuple[str, ...]
    shards: tuple[tuple[int, int], ...]

    def leave_in(self, folder: Path) -> None:
        """Say it to the process that brings them."""
        write_whole(folder / _WANTED, msgspec.json.encode(self))


def wanted_in(folder: Path) -> Wanted | None:
    """What was said; None where nothing was said yet."""
    try:
        return msgspec.json.decode((folder / _WANTED).read_bytes(), type=Wanted)
    except FileNotFoundError:
        return None

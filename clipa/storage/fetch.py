"""One object from a store to a local file: private name, checked while written, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clipa.errors import StorageError
from clipa.registry.run_dir import sync_folder
from clipa.storage.manifest import Shard
from clipa.storage.store import Store

_ABANDONED_S = 3600.0
"""Age after which a part file of another host counts as left behind: a living writer adds a range far more often."""
_HOST = socket.gethostname().replace(".", "-")


def fetch(store: Store, target: Path, shard: Shard, arrived: Callable[[int], None]) -> None:
    """Bring one object to `target`, whole or not at all. `arrived(bytes)` is called after every range.

    Raises:
        InputError: it is not there, or access is refused.
        StorageError: it cannot be read or written, or its bytes are not those that the manifest pins.
    """
    part = target.with_name(f".{target.name[:40]}.{_HOST}.{os.getpid()}.{threading.get_native_id()}.part")
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            _lock(file.fileno())
            for chunk in store.chunks(shard.name, shard.size):
                file.write(chunk)
                digest.update(chunk)
                arrived(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            _require_pinned(store, shard, digest.hexdigest())
            os.replace(part, target)
        sync_folder(target.parent)
    except OSError as error:
        raise StorageError(f"cannot write: {error.strerror or error}", where=str(target)) from error
    finally:
        part.unlink(missing_ok=True)


def _require_pinned(store: Store, shard: Shard, sha256: str) -> None:
    where, hint = f"{store.url}/{shard.name}", "the object was changed: write the dataset again, or submit a new run"
    if shard.sha256:
        if sha256 != shard.sha256.lower():
            raise StorageError(f"its SHA-256 is {sha256}, the manifest says {shard.sha256}", where=where, hint=hint)
        return
    # Ranges of two versions must not be mixed: the version after the last range is the one that was pinned, so it
    # was so before the first. The size is part of it, because an object may have grown behind the last range.
    now = store.entry(shard.name)
    if now.size != shard.size or (shard.version and now.version != shard.version):
        raise StorageError(
            f"it is {now.size} bytes, version {now.version}; pinned were {shard.size} bytes, version {shard.version}",
            where=where,
            hint=hint,
        )


def drop_leftovers(folder: Path) -> None:
    """Remove the part files whose writers are gone: killed here, or silent for an hour on another host."""
    for part in folder.rglob(".*.part"):
        try:
            if _is_left(part):
                part.unlink(missing_ok=True)
        except OSError:
            continue


def _is_left(part: Path) -> bool:
    if time.time() - part.stat().st_mtime > _ABANDONED_S:
        return True
    host, pid = part.name.split(".")[-4:-2]
    if host != _HOST or not pid.isdecimal() or (int(pid) != os.getpid() and _is_alive(int(pid))):
        return False
    # The number is not the last word: a container that starts again gives it to a new process, and two containers may
    # share a host's name. The kernel knows whether somebody still writes.
    with open(part, "rb") as file:
        return _lock(file.fileno())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _lock(descriptor: int) -> bool:
    """Take a lock without waiting; True also where the file system has none, because nothing rests on it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def one_at_a_time(folder: Path, check: Callable[[], None]) -> Iterator[None]:
    """Wait until no other process fills this folder, so that no byte is fetched twice. `check` is called in between.

    Nothing rests on the lock: without it both write private part files and rename the same content to the same name.
    """
    with open(folder / ".lock", "a") as file:
        while not _lock(file.fileno()):
            check()
            time.sleep(0.1)
        yield

"""The lock of a run root: whoever submits, resumes or carries runs on there holds it, wherever it runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from clipa.errors import ConfigError
from clipa.host.container import IN_CONTAINER
from clipa.registry.ownership import run_files

LOCK = ".submit.lock"


@contextlib.contextmanager
def only_one(run_root: Path) -> Iterator[None]:
    """One submission at a time in a run root, so that a `--name` is never taken twice."""
    try:
        run_root.mkdir(parents=True, exist_ok=True)
        lock = open(run_root / LOCK, "a")  # noqa: SIM115 - closed below, where its lock ends
    except OSError as error:
        raise ConfigError(
            f"the run root cannot be written: {error.strerror}", where=str(run_root), hint=_cure(run_root)
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with run_files():
            yield


def _cure(run_root: Path) -> str:
    """In a container it is most often the user: a folder that Docker made for a mount, or one with another's runs."""
    cure = "set CLIPA_RUN_ROOT, or run_root in clipa.toml or in the cluster profile"
    lock = run_root / LOCK
    if os.environ.get(IN_CONTAINER) != "1" or not run_root.exists():
        return cure
    made = (lock if lock.exists() else run_root).stat()
    owner = f"{made.st_uid}:{made.st_gid}"
    return f"it belongs to user {owner}, and this is {os.geteuid()}: docker run --user {owner} ...; or {cure}"

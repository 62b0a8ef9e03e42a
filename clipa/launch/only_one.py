"""The lock of a run root: whoever submits, resumes or carries runs on there holds it, wherever it runs."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from clipa.errors import ConfigError


@contextlib.contextmanager
def only_one(run_root: Path) -> Iterator[None]:
    """One submission at a time in a run root, so that a `--name` is never taken twice."""
    try:
        run_root.mkdir(parents=True, exist_ok=True)
        lock = open(run_root / ".submit.lock", "a")  # noqa: SIM115 - closed below, where its lock ends
    except OSError as error:
        raise ConfigError(
            f"the run root cannot be written: {error.strerror}",
            where=str(run_root),
            hint="set CLIPA_RUN_ROOT, or run_root in clipa.toml or in the cluster profile",
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

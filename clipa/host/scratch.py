"""The node-local folder of an attempt: its stop file, and what its processes leave while they run."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from clipa.registry.run_dir import RunDir
from clipa.registry.socket_folder import candidates

_NAME_BYTES = 32


def mark_of(run: RunDir) -> str:
    """Return how the names of all folders of a run begin; on one machine no other run's do."""
    return f"clipa-{hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:8]}-"


def make(run: RunDir, attempt: int) -> Path:
    """Make a private folder, and remove those that killed supervisors of earlier attempts of this run have left here.

    Its path is short, because sockets are made in it: a TMPDIR that is too long for them is passed over.
    """
    mark, places = mark_of(run), candidates(_NAME_BYTES)
    for left in (path for place in places for path in place.glob(f"{mark}*")):
        number = left.name.removeprefix(mark).partition("-")[0]
        if number.isdecimal() and int(number) < attempt:  # this attempt may have several nodes on one machine
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{mark}{attempt}-", dir=places[0]))

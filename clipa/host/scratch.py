"""The node-local folder of an attempt: its stop file, and what its processes leave while they run."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from clipa.registry.run_dir import RunDir


def make(run: RunDir, attempt: int) -> Path:
    """A private folder, in the place of those that killed supervisors of earlier attempts of this run have left here.

    Its name is short: sockets are made in it, whose paths have at most 107 bytes (unix(7)).
    """
    mark = f"clipa-{hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:8]}-"
    for left in Path(tempfile.gettempdir()).glob(f"{mark}*"):
        number = left.name.removeprefix(mark).partition("-")[0]
        if number.isdecimal() and int(number) < attempt:  # this attempt may have several nodes on one machine
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{mark}{attempt}-"))

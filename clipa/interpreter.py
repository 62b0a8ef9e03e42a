"""How clipa starts Python: never with the current folder, or anything relative, among the places it imports from.

`python -m` puts the current folder first on `sys.path`, and an empty entry of PYTHONPATH (`PYTHONPATH=:/x`) means
the current folder too. A `msgspec.py` in a folder of somebody else's data would then run.
"""

from __future__ import annotations

import os
import sys


def module_argv(module: str, *words: str) -> list[str]:
    """Return the command that runs a module of clipa with this interpreter, without the current folder on its path."""
    return [sys.executable, "-P", "-m", module, *words]


def protect() -> None:
    """Keep the current folder and other relative entries off the import path of this process and of its children."""
    os.environ["PYTHONSAFEPATH"] = "1"
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    relative = [entry for entry in entries if not os.path.isabs(entry)]
    if "PYTHONPATH" not in os.environ or not relative:
        return
    kept = [entry for entry in entries if os.path.isabs(entry)]
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    gone = {_absolute(entry) for entry in relative} - set(kept)
    sys.path[:] = [entry for entry in sys.path if os.path.isabs(entry) and entry not in gone]


def _absolute(entry: str) -> str:
    try:
        return os.path.abspath(entry)
    except FileNotFoundError:  # the current folder was deleted
        return entry

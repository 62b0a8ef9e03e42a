"""Paths that depend on who runs a command and where: the home folder, the current folder, XDG folders.

A home folder may be missing (a container that runs as a bare number), and the current folder may have been deleted.
Commands that need neither go on without; the others say what to set.
"""

from __future__ import annotations

import os
from pathlib import Path

from clipa.errors import ConfigError

_XDG = {
    "config": ("XDG_CONFIG_HOME", ".config"),
    "cache": ("XDG_CACHE_HOME", ".cache"),
    "data": ("XDG_DATA_HOME", ".local/share"),
}


def current_folder() -> Path | None:
    """Return the current folder; None if it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with a leading `~` replaced; unchanged if that user has no home folder."""
    return Path(os.path.expanduser(path))


def user_folder(kind: str) -> Path:
    """Return the user's `config`, `cache` or `data` folder for clipa (XDG Base Directory Specification).

    The folder is not created.

    Raises:
        ConfigError: the user has no home folder, and the XDG variable is not set.
    """
    variable, default = _XDG[kind]
    base = Path(os.environ.get(variable, ""))
    if base.is_absolute():
        return base / "clipa"
    home = expand_user("~")
    if not home.is_absolute():
        raise ConfigError(
            f"no home folder: HOME is not set, and user {os.getuid()} has no entry in the password database",
            where=f"the user's {kind} folder",
            hint=f"export HOME=/path/to/folder, or {variable}=/path/to/folder",
        )
    return home / default / "clipa"

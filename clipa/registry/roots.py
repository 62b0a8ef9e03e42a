"""Every run root ever used is remembered, so that `clipa status` works from any directory: one small file each."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from clipa.errors import ConfigError
from clipa.registry.run_dir import write_whole
from clipa.spec.user_paths import user_folder


def _folder() -> Path:
    """Raises ConfigError where the user has no home (a container run as a number)."""
    return user_folder("config") / "roots"


def remember(root: Path) -> bool:
    """Remember a run root; False when the user's config folder cannot be written: say so, and go on."""
    path = os.fsencode(os.path.abspath(root))
    try:
        target = _folder() / hashlib.sha256(path).hexdigest()[:16]
        if not target.is_file():
            write_whole(target, path + b"\n")
    except (OSError, ConfigError):
        return False
    return True


def reason_not_remembered() -> str:
    """Return why run roots cannot be remembered for this user, in a few words; empty if they can."""
    try:
        folder = _folder()
    except ConfigError as error:
        return error.what
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


def known_roots() -> list[Path]:
    """All remembered run roots, in the order of their paths; those that are gone for now are among them."""
    try:
        files = [path for path in _folder().iterdir() if not path.name.startswith(".")]
    except (OSError, ConfigError):
        return []
    found = set()
    for file in files:
        try:
            raw = file.read_bytes() if file.is_file() else b""
        except OSError:
            continue
        path = raw.removesuffix(b"\n")
        # Its name is the digest of its content: a torn or foreign file is none of ours.
        if path.startswith(b"/") and file.name == hashlib.sha256(path).hexdigest()[:16]:
            found.add(Path(os.fsdecode(path)))
    return sorted(found)

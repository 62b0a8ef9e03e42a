"""Every run root ever used is remembered, so that `clipa status` works from any directory: one small file each."""

from __future__ import annotations

import hashlib
from pathlib import Path

from clipa.registry.run_dir import write_whole
from clipa.spec.catalog import user_folder


def _folder() -> Path:
    return user_folder("config") / "roots"


def remember(root: Path) -> bool:
    """Remember a run root; False when the user's config folder cannot be written."""
    name = hashlib.sha256(str(root).encode()).hexdigest()[:16]
    target = _folder() / name
    try:
        if not target.is_file():
            write_whole(target, f"{root}\n".encode())
    except OSError:
        return False
    return True


def known_roots() -> list[Path]:
    """All remembered run roots, in the order of their paths; those that are gone for now are among them."""
    try:
        files = sorted(path for path in _folder().iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        return []
    found = set()
    for file in files:
        try:
            text = file.read_text(errors="replace").strip()
        except OSError:
            continue
        if text.startswith("/") and "\n" not in text and "\0" not in text:
            found.add(Path(text))
    return sorted(found)

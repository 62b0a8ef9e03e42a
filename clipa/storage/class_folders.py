"""Images in class folders, `<root>/<class>/*.JPEG`: read where they are, never staged. Which images there are, pinned.

A manifest of class folders has one entry a class: its name, the bytes and the number of its images, and a digest over
their names and sizes. 50,000 rows of ImageNet would be 5 MB in every run's folder.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from clipa.errors import InputError
from clipa.spec.cluster import Dataset
from clipa.spec.counted import counted
from clipa.storage.manifest import Manifest, Shard

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_LOOKED_AT = 20
"""Folders that are looked into to tell classes from splits and shards: to list all of ImageNet takes minutes."""


def local_folder(source: Dataset) -> Path | None:
    """The local folder that a dataset's URL means, if it is one."""
    scheme, marker, rest = source.url.partition("://")
    if marker and scheme != "file":
        return None
    path = Path(os.path.abspath(os.path.expanduser(rest if marker else source.url)))
    return path if path.is_dir() else None


def class_names(root: Path) -> list[str]:
    """Names of the folders below a root, sorted; hidden ones are none.

    Raises:
        InputError: the folder cannot be read, or a name that no class can have.
    """
    names = sorted(each.name for each in _entries(root) if each.is_dir() and not each.name.startswith("."))
    if odd := next((name for name in names if not name.isprintable()), None):
        raise InputError(f"a class folder called {odd!r}", where=str(root), allowed="names of printable characters")
    return names


def looks_like_classes(root: Path) -> bool:
    """Whether images lie in folders below a root.

    Raises:
        InputError: they lie one level deeper, so that the folders are splits, not classes.
    """
    names = class_names(root)[:_LOOKED_AT]
    if any(_has_images(root / name) for name in names):
        return True
    for name in names:
        if any(_has_images(root / name / inner) for inner in class_names(root / name)[:_LOOKED_AT]):
            raise InputError(
                f"the class folders lie one level deeper, in {name}", where=str(root), hint=f"give {root / name}"
            )
    return False


def images(root: Path, name: str) -> list[tuple[str, int]]:
    """(file name, bytes) of the images of one class, sorted by name.

    Raises:
        InputError: no image there, or a file that is none: a score over other files would be another score.
    """
    found = []
    where = root / name
    for each in _entries(where):
        if each.name.startswith("."):
            continue
        if not each.is_file() or not _is_image(each.name):
            raise InputError(
                f"{each.name} in a class folder is no image",
                where=str(where),
                allowed=", ".join(SUFFIXES),
                hint="move it away, or give the folder whose folders are the classes",
            )
        found.append((each.name, each.stat().st_size))
    if not found:
        raise InputError("a class folder without an image", where=str(where), hint="the class would never be scored")
    return sorted(found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"the folder cannot be read: {error.strerror}", where=str(folder)) from error


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _has_images(folder: Path) -> bool:
    return any(_is_image(each.name) for each in _entries(folder))


def index_folders(root: Path) -> Manifest:
    """The manifest of a folder of class folders.

    Raises:
        InputError: no class folders, an empty one, or a file that is no image.
    """
    names = class_names(root)
    if len(names) < 2:
        raise InputError(f"{counted(len(names), 'class folder')} here", where=str(root), allowed="two or more")
    return Manifest(url=f"file://{root}", shards=tuple(entry(root, name) for name in names))


def entry(root: Path, name: str) -> Shard:
    """One class of the manifest: its `version` changes with any image's name or size.

    Raises:
        InputError: an empty class, or a file that is no image.
    """
    rows = images(root, name)
    digest = hashlib.sha256("".join(f"{file}\0{size}\n" for file, size in rows).encode("utf-8", "surrogateescape"))
    return Shard(
        name=name, size=sum(size for _, size in rows), version=f"images:{digest.hexdigest()}", samples=len(rows)
    )

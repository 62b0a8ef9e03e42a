"""The code that a job runs: copied once, under the digest of its content, so that it cannot change under a queued job.

It is what lies on the disk, committed or not, tracked or not; the diff to the last commit is in provenance/.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from pathlib import Path

from clipa.errors import ConfigError, LaunchError
from clipa.registry.ownership import close, own_folder
from clipa.spec.trust import distrust, distrust_of_tree
from clipa.terminal import say

FOLDER = ".code"
LARGEST = 64 << 20
"""Bytes: a package of sources that is larger has data in it that do not belong there."""
_LEFT_OUT = {"__pycache__"}


_OWN = Path(__file__).resolve().parent.parent


def place(run_root: Path, package: Path | None = None) -> Path:
    """The folder that `take` would make."""
    package = package or _OWN
    return own_folder(run_root, FOLDER) / _digest(package, _files(package))


def take(run_root: Path, package: Path | None = None) -> Path:
    """Return the folder below the run root that holds a copy of the package; it goes onto PYTHONPATH.

    A copy that is there already is used only if it is this user's, nobody else can write to it, and its content still
    has the digest that its name says. Otherwise it is set aside, and a new copy is made.

    Raises:
        ConfigError: the package is larger than 64 MiB.
        LaunchError: it cannot be written.
    """
    package = package or _OWN
    files = _files(package)
    target = place(run_root, package)
    digest = target.name
    if target.is_dir():
        if not (why := _altered(target, package.name)):
            return target
        _set_aside(target, why)
    part = target.with_name(f".{digest}.{uuid.uuid4().hex[:8]}.part")
    try:
        part.mkdir(parents=True)
        close(part.parent)
        close(part)
        for name in files:
            copy = part / package.name / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package / name, copy)
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():  # else another clipa was quicker
                raise
    except OSError as error:
        raise LaunchError(f"the code cannot be copied: {error.strerror or error}", where=str(target)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _altered(target: Path, name: str) -> str:
    """Return why a copy is not what its name says; an empty string if it is."""
    try:
        if why := distrust(target.parent) or distrust_of_tree(target):
            return why
        if os.listdir(target) != [name] or _digest(target / name, _files(target / name)) != target.name:
            return "its content has changed"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return ""


def _set_aside(target: Path, why: str) -> None:
    """Rename a copy that no job may run.

    Raises:
        LaunchError: it cannot be renamed.
    """
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.altered")
    try:
        close(target.parent)
        target.rename(aside)
    except OSError as error:
        raise LaunchError(
            f"this copy of the code is not to be trusted, and cannot be set aside: {why}",
            where=str(target),
            hint=f"set another run_root, or ask the owner of {target.parent}",
        ) from error
    say(f"{target}: set aside as {aside.name}: {why}", err=True)


def _files(package: Path) -> list[str]:
    found: list[str] = []
    size = 0
    for folder, folders, names in os.walk(package):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT and not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and not name.endswith(".pyc") and path.is_file():
                size += path.stat().st_size
                found.append(str(path.relative_to(package)))
    if size > LARGEST:
        raise ConfigError(
            f"the package has {size / 2**20:.0f} MiB, and every job would get a copy",
            where=str(package),
            allowed=f"{LARGEST >> 20} MiB",
            hint="move data out of the package",
        )
    return found


def _digest(package: Path, files: list[str]) -> str:
    digest = hashlib.sha256()
    for name in files:
        content = hashlib.sha256((package / name).read_bytes()).digest()
        digest.update(os.fsencode(name) + b"\0" + content)
    return digest.hexdigest()[:24]

"""Whose a run is, and how its files are protected.

Of another user's run only data are read; nothing of it is executed, and no command acts on it. Files of a run can never
be written by others, whatever the umask, because plans, tasks and scripts decide what is executed later. Who may read
them follows the umask, or the profile's `readers`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from clipa.errors import InputError
from clipa.registry.run_dir import RunDir
from clipa.spec.trust import distrust, user_name

Readers: TypeAlias = Literal["", "me", "group", "all"]

_MASKS: dict[str, int] = {"": 0o022, "all": 0o022, "group": 0o027, "me": 0o077}
UMASK = "CLIPA_UMASK"
"""Variable that holds the user's own umask for the processes of a run."""


def other_owner(path: Path | str) -> str:
    """Return the name of the user that a run belongs to; an empty string if that is this user, or cannot be told."""
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return ""
    return "" if owner == os.geteuid() else user_name(owner)


def distrust_run(path: Path | str) -> str:
    """Return why nothing of a run is executed and no command acts on it; an empty string if it is this user's own."""
    if owner := other_owner(path):
        return f"it belongs to user {owner}"
    return distrust(path) or distrust(RunDir(path).plan)


def require_own(paths: Sequence[Path], act: str) -> None:
    """Refuse to act on runs that are another user's, or that others may have changed.

    Raises:
        InputError: there is one among them; nothing has been done to any.
    """
    for path in paths:
        if owner := other_owner(path):
            raise InputError(f"this run belongs to user {owner}, and only {owner} can {act} it",
                             where=str(path), hint=f"ask {owner}; clipa runs show {path.name} shows it")  # fmt: skip
        if why := distrust_run(path):
            raise InputError(f"{why}, so its plan may not be yours, and clipa does not {act} it",
                             where=str(path), hint=f"look at it, then: chmod -R go-w {path}")  # fmt: skip


def close(folder: Path) -> None:
    """Keep others from writing to a new folder and to what will be made in it, whatever default ACL it has inherited.

    Raises:
        OSError: it is not this user's.
    """
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~0o022)
    with contextlib.suppress(OSError, AttributeError):  # none, or not Linux
        os.removexattr(folder, "system.posix_acl_default")


def own_folder(run_root: Path, name: str) -> Path:
    """Return a folder of a run root for what jobs execute: NAME, or NAME-UID if NAME is another user's."""
    try:
        found = os.lstat(run_root / name)
    except OSError:
        return run_root / name
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    return run_root / (name if is_own else f"{name}-{os.geteuid()}")


@contextlib.contextmanager
def run_files(readers: Readers = "") -> Iterator[None]:
    """Create files that others cannot write and only `readers` can read, in this process and those that it starts."""
    with _umask(_MASKS[readers]):
        yield


@contextlib.contextmanager
def files_like(run: Path) -> Iterator[None]:
    """Create files that nobody can read who cannot read the folder of this run."""
    try:
        mode = os.stat(run).st_mode
    except OSError:
        mode = 0o755
    with _umask(0o022 | (~mode & 0o077)):
        yield


@contextlib.contextmanager
def _umask(more: int) -> Iterator[None]:
    before = os.umask(0o077)
    os.umask(before | more)
    is_first = UMASK not in os.environ
    if is_first:
        os.environ[UMASK] = f"{before:03o}"
    try:
        yield
    finally:
        os.umask(before)
        if is_first:
            os.environ.pop(UMASK, None)


def restore_umask() -> None:
    """Create further files as the user's umask says: a team may share a cache."""
    with contextlib.suppress(ValueError, KeyError):
        os.umask(int(os.environ[UMASK], 8) & 0o777)

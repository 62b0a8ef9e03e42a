"""Whose files may decide what is executed: this user's and root's, and only where nobody else can write to them.

The rule is that of git's `safe.directory` and of sshd's StrictModes. It covers project files, the profiles and recipes
that they name, run folders that commands act on, and the code and tasks of jobs. What is merely data (events, weights,
shards) is read whoever wrote it: see docs/security.md.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where it has none here."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"number {uid}"


def is_believed(uid: int) -> bool:
    """Return whether files of this user may decide what is executed: own ones, root's, and under sudo the caller's."""
    own = os.geteuid()
    return uid in (own, 0) or (own == 0 and str(uid) == os.environ.get("SUDO_UID"))


def distrust(path: Path | str) -> str:
    """Return why a file or folder may not decide what is executed, in a few words; an empty string if it may.

    The folder above does not count: who can replace the file there owns what stands there afterwards, which is
    noticed. Of a symbolic link, both the link and what it points to count.
    """
    try:
        link = os.lstat(path)
        found = os.stat(path) if stat.S_ISLNK(link.st_mode) else link
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return next((f"it belongs to user {user_name(one.st_uid)}" for one in (link, found) if not is_believed(one.st_uid)),
                "") or ("others can write to it" if _is_open(found) else "")  # fmt: skip


def distrust_in_place(path: Path | str) -> str:
    """Return why a file may not be taken from where it was found: because of itself, or of the folder that holds it.

    A folder like /tmp, with the sticky bit, is fine for a file of one's own: nobody else can replace that.
    """
    folder = Path(path).parent
    if why := distrust(path):
        return why
    try:
        found = os.stat(folder)
    except OSError as error:
        return f"its folder {folder} cannot be read: {error.strerror}"
    if not is_believed(found.st_uid):
        return f"its folder {folder} belongs to user {user_name(found.st_uid)}"
    is_sticky = bool(found.st_mode & stat.S_ISVTX)
    return f"others can write to its folder {folder}" if _is_open(found) and not is_sticky else ""


def distrust_of_tree(folder: Path) -> str:
    """Return why what is below a folder may not be executed, with the path that is wrong; empty if it may."""
    for at, folders, files in os.walk(folder, onerror=_raise):
        for path in (at, *(os.path.join(at, name) for name in (*folders, *files))):
            if why := distrust(path):
                return f"{path}: {why}"
    return ""


def _raise(error: OSError) -> None:
    raise error


def _is_open(status: os.stat_result) -> bool:
    """Return whether others than the owner can write. A group that has its owner as only member is no others."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and not _is_private(status.st_gid, status.st_uid)


def _is_private(group: int, owner: int) -> bool:
    """Return whether a group is a user's own (user private groups; root's is `root`), by name and members."""
    try:
        found, name = grp.getgrgid(group), pwd.getpwuid(owner).pw_name
    except (KeyError, OverflowError):
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}

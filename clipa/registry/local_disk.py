"""A folder on local disk for what is derived: SQLite is unsafe on network file systems, and homes are often on one."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path

from clipa.errors import ConfigError
from clipa.spec.user_paths import user_folder

# fmt: off
_NETWORK = frozenset((
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "daos", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs",
))
# fmt: on
"""File systems that other hosts write too. Everything in user space (`fuse.sshfs`, `fuse.glusterfs`) counts as one."""


_LOCAL = frozenset(("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs"))


def cache_folder() -> Path:
    """The user's cache folder, or a private one under a temporary directory where that is on a network file system.

    Raises:
        OSError: there is no local disk, or somebody else has the place.
    """
    try:
        mounts = Path("/proc/mounts").read_text(errors="surrogateescape")
    except OSError:
        mounts = ""
    with contextlib.suppress(ConfigError):  # a user without a home folder has none
        folder = user_folder("cache")
        if not is_network(filesystem_of(folder, mounts)):
            folder.mkdir(parents=True, exist_ok=True)
            return folder
    import tempfile

    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - a folder of our own in it, checked below
        if not is_network(filesystem_of(Path(place), mounts)):
            return private_folder(Path(place))
    raise OSError("every temporary directory is on a network file system")


def kind_of(path: Path) -> str:
    """The type of the file system of a path where it is one that no other host can see; else empty."""
    try:
        found = filesystem_of(path, Path("/proc/mounts").read_text(errors="surrogateescape"))
    except OSError:
        return ""
    return found if found in _LOCAL else ""


def is_network(filesystem: str) -> bool:
    """Whether a type of file system is shared between hosts."""
    return filesystem in _NETWORK or filesystem.startswith("fuse.")


def filesystem_of(path: Path, mounts: str) -> str:
    """The type of the file system that a path is on or would be made on, by the text of /proc/mounts; "" unknown."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields[1])
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):  # the later of two mounts on one place hides the earlier
            best, kind = mount, fields[2]
    return kind


def private_folder(place: Path) -> Path:
    """A folder of the user's own, mode 0700, under a directory where everybody may write.

    Raises:
        OSError: it cannot be made, or what is there is a link, somebody else's, or open to others.
    """
    folder = place / f"clipa-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) != 0o700:
        raise PermissionError(f"{folder} is not a private folder of this user")
    return folder

"""A SQLite cache of what run folders say, on local disk. Delete it any time: the answers stay the same."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from clipa import __version__
from clipa.registry.reading import Diagnostic, Reading
from clipa.registry.run_dir import RunDir
from clipa.spec.catalog import user_folder

if TYPE_CHECKING:
    import sqlite3

SCHEMA = f"1-{__version__}"
_NETWORK = (
    "nfs",
    "lustre",
    "gpfs",
    "cifs",
    "smb",
    "fuse.",
    "beegfs",
    "ceph",
    "afs",
    "9p",
    "wekafs",
    "panfs",
    "orangefs",
)
_WATCHED = ("", "intents", "attempts", "events")


class Index:
    """A context in which readings of run folders are cached. Works without a cache too, and says so."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._trouble = ""

    def __enter__(self) -> Index:
        try:
            self._connection = _connect(_place() / "index.sqlite")
        except Exception as error:
            self._trouble = f"no cache of the run folders: {error}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.commit()
            self._connection.close()

    def diagnostics(self) -> list[Diagnostic]:
        """Why there is no cache, if there is none."""
        return [Diagnostic(path=str(user_folder("cache")), problem=self._trouble)] if self._trouble else []

    def get(self, run: RunDir, mark: str) -> Reading | None:
        """The cached reading of a folder, if it was made under the same fingerprint."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute(
                "SELECT reading FROM readings WHERE path = ? AND fingerprint = ?", (str(run.path), mark)
            ).fetchone()
            return msgspec.json.decode(row[0], type=Reading) if row else None
        except Exception:
            return None

    def put(self, run: RunDir, mark: str, reading: Reading) -> Reading:
        """Cache a reading under the fingerprint that was taken before it was made; returns the reading."""
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.execute(
                    "INSERT OR REPLACE INTO readings VALUES (?, ?, ?)",
                    (str(run.path), mark, msgspec.json.encode(reading)),
                )
        return reading


def fingerprint(run: RunDir) -> str:
    """Names, sizes and times of everything that a reading depends on."""
    parts = []
    for folder in _WATCHED:
        try:
            with os.scandir(run.path / folder) as entries:
                for entry in sorted(entries, key=lambda e: e.name):
                    if folder == "" and entry.name != "plan.json":
                        continue
                    status = entry.stat()
                    parts.append(f"{folder}/{entry.name}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}")
        except OSError as error:
            parts.append(f"{folder}:{error.errno}")
    return "|".join(parts)


def _connect(path: Path) -> sqlite3.Connection:
    import sqlite3

    path.parent.mkdir(parents=True, exist_ok=True)
    for again in (False, True):
        connection = sqlite3.connect(path, timeout=2.0, isolation_level=None)
        try:
            found = connection.execute("PRAGMA user_version").fetchone()
            assert found is not None
            connection.execute("CREATE TABLE IF NOT EXISTS about (schema TEXT)")
            schema = connection.execute("SELECT schema FROM about").fetchone()
            if schema is None or schema[0] != SCHEMA:
                connection.execute("DROP TABLE IF EXISTS readings")
                connection.execute("DELETE FROM about")
                connection.execute("INSERT INTO about VALUES (?)", (SCHEMA,))
            connection.execute(
                "CREATE TABLE IF NOT EXISTS readings (path TEXT PRIMARY KEY, fingerprint TEXT, reading BLOB)"
            )
            connection.execute("BEGIN")
            return connection
        except sqlite3.DatabaseError as error:
            connection.close()
            if again or isinstance(error, sqlite3.OperationalError):
                raise
            path.unlink(missing_ok=True)  # not a database: it is only a cache
    raise AssertionError("unreachable")


def _place() -> Path:
    """The user's cache folder, unless that is on a network file system, where SQLite is unsafe."""
    cache = user_folder("cache")
    return _private() if _on_network(cache) else cache


def _on_network(path: Path) -> bool:
    while not path.exists() and path != path.parent:
        path = path.parent
    real = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open("/proc/mounts") as file:
            for line in file:
                _, mount, filesystem, *_ = line.split()
                mount = mount.replace("\\040", " ")
                if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
                    best, kind = mount, filesystem
    except (OSError, ValueError):
        return False
    return kind.startswith(_NETWORK)


def _private() -> Path:
    """A folder of the user's own under the temporary directory."""
    folder = Path(tempfile.gettempdir()) / f"clipa-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a private folder of this user")
    return folder

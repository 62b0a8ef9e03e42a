"""A SQLite cache of what run folders say, on local disk. Delete it any time: the answers stay the same.

A row is believed only under the fingerprint of the files that it was read from, and only with its own digest, so
that no damaged database can change an answer. Whatever goes wrong here costs time, never a command.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from clipa import __version__
from clipa.registry import local_disk
from clipa.registry.reading import Diagnostic, Reading, odd
from clipa.registry.run_dir import RunDir

if TYPE_CHECKING:
    import sqlite3

FILE = "index.sqlite"
FRESH_S = 2.0
"""A file that was changed less than this ago may change again unseen (coarse clocks, as in git's index): not cached."""
BUSY_S = 0.25
"""How long to wait for another clipa that writes."""
_WATCHED = ("intents", "events", "control")


class Mark(NamedTuple):
    """Fingerprint of everything that a reading depends on, and the time of the newest change (Unix time)."""

    fingerprint: str
    changed: float


class Row(NamedTuple):
    """A cached reading, still encoded."""

    fingerprint: str
    digest: bytes
    reading: bytes


class Index:
    """A context in which readings of run folders are cached. Works without a cache too, and says so."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> Index:
        path = Path(FILE)
        try:
            path = local_disk.cache_folder() / FILE
            self._database = _open(path)
        except Exception as error:
            self.diagnostics.append(odd(path, f"run folders are not cached: {error}", "nothing is lost but time"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._database is not None:
            self._database.close()

    def load(self, root: Path) -> dict[str, Row]:
        """Folder name -> what is cached of it under a run root."""
        if self._database is None:
            return {}
        try:
            rows = self._database.execute(
                "SELECT name, fingerprint, digest, reading FROM readings WHERE root = ?", (os.fsencode(root),)
            ).fetchall()
            return {os.fsdecode(name): Row(*rest) for name, *rest in rows}
        except Exception:
            return {}

    def save(self, root: Path, fresh: Mapping[str, tuple[Mark, Reading]], gone: Collection[str]) -> None:
        """Cache what was read anew, and forget folders that are gone. Nothing, when another clipa is writing."""
        if self._database is None:
            return
        key = os.fsencode(root)
        try:
            rows = [
                (key, os.fsencode(name), *_row(key, name, mark.fingerprint, msgspec.json.encode(reading)))
                for name, (mark, reading) in fresh.items()
                if mark.changed < time.time() - FRESH_S
            ]
            if not (rows or gone):
                return
            with self._database as database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?, ?, ?)", rows)
                database.executemany(
                    "DELETE FROM readings WHERE root = ? AND name = ?", [(key, os.fsencode(name)) for name in gone]
                )
        except Exception:
            return  # locked, full or damaged: the next command reads the folders again


def cached(root: Path, name: str, row: Row | None, mark: Mark) -> Reading | None:
    """The reading of a row, if it was made of the files that are there now and is whole."""
    if row is None or row.fingerprint != mark.fingerprint:
        return None
    try:
        if row != _row(os.fsencode(root), name, row.fingerprint, row.reading):
            return None
        return msgspec.json.decode(row.reading, type=Reading)
    except Exception:
        return None


def _row(key: bytes, name: str, fingerprint: str, reading: bytes) -> Row:
    parts = (key, os.fsencode(name), fingerprint.encode(), reading)
    digest = hashlib.blake2b(b"\0".join(hashlib.blake2b(part).digest() for part in parts), digest_size=16)
    return Row(fingerprint, digest.digest(), reading)


def mark_of(run: RunDir) -> Mark:
    """Names, sizes, times and inodes of everything that a reading depends on."""
    digest = hashlib.blake2b(digest_size=16)
    changed = 0.0
    for name, path in _watched(run):
        try:
            status = os.stat(path)
            changed = max(changed, status.st_mtime)
            said = f"{status.st_mode}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
        except OSError as error:
            said = f"error {error.errno}"
        digest.update(os.fsencode(f"{name}\0{said}\0"))
    return Mark(digest.hexdigest(), changed)


def _watched(run: RunDir) -> list[tuple[str, str]]:
    """(name, path) of every file that a reading depends on, in order, and of the folders that hold them."""
    found = [("plan.json", str(run.plan))]
    for folder in _WATCHED:
        path = os.path.join(run.path, folder)
        found.append((folder, path))
        try:
            found += [(f"{folder}/{name}", os.path.join(path, name)) for name in sorted(os.listdir(path))]
        except OSError as error:
            found.append((f"{folder} error {error.errno}", path))
    return found


def _open(path: Path) -> sqlite3.Connection:
    """The database, made anew where it is damaged or of another schema."""
    import sqlite3

    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise  # locked, or it cannot be written
    except sqlite3.DatabaseError:
        for suffix in ("-journal", "-wal", "-shm", ""):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    import sqlite3

    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        database.execute("PRAGMA synchronous = OFF")  # a power cut may damage it, which the digests notice
        if _schema(database) != SCHEMA:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("DROP TABLE IF EXISTS readings")
                database.execute("DROP TABLE IF EXISTS about")
                database.execute("CREATE TABLE about (schema TEXT)")
                database.execute(
                    "CREATE TABLE readings (root BLOB, name BLOB, fingerprint TEXT, digest BLOB, reading BLOB, "
                    "PRIMARY KEY (root, name))"
                )
                database.execute("INSERT INTO about VALUES (?)", (SCHEMA,))
    except BaseException:
        database.close()
        raise
    return database


def _schema(database: sqlite3.Connection) -> object:
    import sqlite3

    try:
        row = database.execute("SELECT schema FROM about").fetchone()
    except sqlite3.OperationalError:
        return None  # a new file has no such table
    return row[0] if row else None


def _sources() -> str:
    """Sizes and times of the modules that make readings: a checkout changes without a new version."""
    here = Path(__file__).resolve().parent
    try:
        files = [entry for folder in (here, here.parent / "spec") for entry in os.scandir(folder)]
        return ",".join(sorted(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files if f.is_file()))
    except OSError:
        return ""


SCHEMA = f"2-{__version__}-{hashlib.blake2b(_sources().encode(), digest_size=8).hexdigest()}"

"""Receipts: which files of a staging folder were verified, so that they are not hashed again."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from clipa.spec.plan import Record

_NAME = ".receipts.jsonl"


class Receipt(Record, frozen=True, kw_only=True):
    """A file that was verified: its size in bytes, modification time in ns and SHA-256 at that moment."""

    name: str
    size: int
    mtime_ns: int
    sha256: str


class Receipts:
    """The receipts of one folder, a JSON line each.

    A torn line, or one that another host's line overwrote, costs a hash of that file and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = {receipt.name: receipt for receipt in _read(folder / _NAME)}

    def sha256(self, name: str) -> str:
        """What was verified of a file, as it lay there then; empty when nothing was."""
        receipt = self._known.get(name)
        return receipt.sha256 if receipt else ""

    def vouches(self, name: str) -> bool:
        """Whether the file is untouched since it was verified."""
        receipt = self._known.get(name)
        stat = (self._folder / name).stat()
        return receipt is not None and (receipt.size, receipt.mtime_ns) == (stat.st_size, stat.st_mtime_ns)

    def add(self, name: str, sha256: str) -> None:
        """Say that a file was verified just now."""
        stat = (self._folder / name).stat()
        receipt = Receipt(name=name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256)
        path = self._folder / _NAME
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # The newline comes first too: it ends the torn line of a writer that was killed.
            os.write(descriptor, b"\n" + msgspec.json.encode(receipt) + b"\n")
        finally:
            os.close(descriptor)


def _read(path: Path) -> list[Receipt]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Receipt))
        except msgspec.MsgspecError:
            continue
    return found

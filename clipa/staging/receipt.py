"""Receipts: which files of a staging folder were verified, so that they are not hashed again."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from clipa.spec.plan import Record
from clipa.storage.manifest import Shard

_NAME = ".receipts.jsonl"


class Receipt(Record, frozen=True, kw_only=True):
    """A file that was verified: its size in bytes, modification time in ns and XXH3 (128 bits) at that moment.

    `how` says what its bytes were held against when they came; receipts of older versions have `sha256` instead.
    """

    name: str
    size: int
    mtime_ns: int
    xxh3: str = ""
    sha256: str = ""
    how: str = ""


class Receipts:
    """The receipts of one folder, a JSON line each.

    A torn line, or one that another host's line overwrote, costs a hash of that file and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = {receipt.name: receipt for receipt in _read(folder / _NAME)}

    def of(self, name: str) -> Receipt | None:
        """What was verified of a file, as it lay there then."""
        return self._known.get(name)

    def shard(self, shard: Shard) -> Shard:
        """A shard pinned by what its receipt says too, where its manifest has no digest."""
        known = self._known.get(shard.name)
        if known is None or shard.sha256 or shard.digest:
            return shard
        digest = f"xxh3:{known.xxh3}" if known.xxh3 else ""
        return msgspec.structs.replace(shard, digest=digest, sha256=known.sha256)

    def vouches(self, name: str) -> bool:
        """Whether the file is untouched since it was verified."""
        receipt = self._known.get(name)
        stat = (self._folder / name).stat()
        return receipt is not None and (receipt.size, receipt.mtime_ns) == (stat.st_size, stat.st_mtime_ns)

    def add(self, name: str, xxh3: str, how: str) -> None:
        """Say that a file was verified just now."""
        stat = (self._folder / name).stat()
        receipt = Receipt(name=name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, xxh3=xxh3, how=how)
        self._known[name] = receipt
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
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found

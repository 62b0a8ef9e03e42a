"""The one door to webdataset: its rule that groups files to samples, and its writer of shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander
from webdataset.writer import TarWriter

_OWNER = "clipa"


def split_name(name: str) -> tuple[str, str] | None:
    """(key, extension) of a file in a shard: the key ends before the first dot of the base name, folders included.

    The extension is in lower case, as webdataset reads it. None for a file that belongs to no sample.
    """
    key, extension = base_plus_ext(name)
    if not key or not extension:
        return None
    return key, extension.lower()


def shard_bytes(samples: Iterable[tuple[str, dict[str, bytes]]]) -> bytes:
    """A shard of (key, {extension: bytes}): the same bytes for the same samples, whoever writes it and when."""
    buffer = BytesIO()
    with TarWriter(buffer, user=_OWNER, group=_OWNER, mtime=0, encoder=False) as writer:
        for key, members in samples:
            writer.write({"__key__": key, **members})
    return buffer.getvalue()


def grouped(shard: Path) -> Iterator[dict[str, bytes]]:
    """The samples of a shard as webdataset itself reads them, for benchmarks."""
    with open(shard, "rb") as stream:
        yield from group_by_keys(tar_file_expander([{"url": str(shard), "stream": stream}]))

"""The one door to webdataset: its key rule, and its writer."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import webdataset
from webdataset.tariterators import base_plus_ext


def split_name(name: str) -> tuple[str, str] | None:
    """A member's name as (key, extension): everything before the first dot of the base name, and the rest in lower
    case; None for a name that belongs to no sample.
    """
    key, extension = base_plus_ext(name)
    return (key, extension.lower()) if key else None


def write_tar(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> bytes:
    """Samples (key, extension -> bytes) as a shard. The same samples give the same bytes."""
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, mtime=0, user="clipa", group="clipa", mode=0o644, encoder=False) as writer:
        for key, members in samples:
            writer.write({"__key__": key, **members})
    return buffer.getvalue()

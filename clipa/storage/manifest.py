"""The manifest: the shards of a dataset, pinned by a digest. Pure; `clipa.storage.store` reads and writes it.

Two runs with the same manifest digest saw the same bytes, as far as the store tells them apart.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec

from clipa.spec.plan import Record

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
"""Name of the manifest beside the shards, written last by whoever writes a dataset."""

_MOST = 1 << 50
"""Bytes or samples of a shard. A manifest comes from outside, and the order of samples is computed from its numbers."""

CLASSNAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
"""Labels and prompt templates beside the shards: the `wds_*` layout of CLIP_benchmark."""


class Shard(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One tar file. `name` is relative to the dataset's URL.

    What pins its bytes: `sha256`; else `digest`, which is `kind:hex` with one of the kinds `xxh3` (128 bits), `md5`,
    `sha256`; else `version`, the store's own word for them (an ETag, a modification time).
    """

    name: str
    size: Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
    sha256: str = ""
    version: str = ""
    digest: str = ""
    samples: Annotated[int, msgspec.Meta(ge=0, le=_MOST)] | None = None

    @property
    def pin(self) -> str:
        """The strongest that is known of its bytes."""
        return self.sha256 or self.digest or self.version


class Manifest(Record, frozen=True, kw_only=True):
    """The shards under `url`, in the order of their names."""

    url: str
    shards: tuple[Shard, ...]
    schema: int = SCHEMA

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def samples(self) -> int | None:
        """Number of samples, where every shard's is known."""
        counts = [shard.samples for shard in self.shards]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def digest(self) -> str:
        """SHA-256 over names, sizes and checksums (or versions): the identity of the data, wherever it lies."""
        rows = [[s.name, s.size, s.pin] for s in self.shards]
        return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(raw: bytes) -> Manifest:
    """A manifest from JSON.

    Raises:
        msgspec.MsgspecError: not a manifest.
    """
    return msgspec.json.decode(raw, type=Manifest)


def staged_folder(cache: str, digest: str) -> Path:
    """Where the shards of the manifest with this digest lie once staged: `<folder>/<shard.name>`."""
    return Path(cache) / "staged" / digest[:24]


def staged_weights(cache: str, url: str) -> Path:
    """Where a checkpoint folder at a URL lies once staged."""
    return Path(cache) / "weights" / hashlib.sha256(url.encode()).hexdigest()[:24]

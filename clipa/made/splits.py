"""Data sets that clipa makes by itself, written as shards: every split whole, and their stamp last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from clipa.data.wds import shard_bytes
from clipa.spec.plan import Record
from clipa.storage import manifest as manifests
from clipa.storage.dataset import publish_manifest
from clipa.storage.manifest import CLASSNAMES, MANIFEST_NAME, TEMPLATES, Manifest, Shard
from clipa.storage.store import Store

Sample: TypeAlias = tuple[str, dict[str, bytes]]
"""The key of a sample, and its members: `jpg`, `txt`, `cls`."""

_STAMP = "demo.json"
_PER_SHARD = 1_250


class Made(NamedTuple):
    """Samples by split; classes and prompt templates of those that are not called `train`."""

    splits: Mapping[str, Sequence[Sample]]
    classes: Sequence[str]
    templates: Sequence[str]


class Maker(NamedTuple):
    """How a data set is made.

    `version` is raised when a byte of the output changes, `source` says what it is made of (a font's digest, say):
    where either differs, an older bucket is written again. `captions` are the samples of one image, for each split.
    """

    version: int
    source: Callable[[], str]
    captions: Mapping[str, int]
    make: Callable[[], Made]


class _Stamp(Record, frozen=True, kw_only=True):
    version: int
    source: str = ""


class Split(Record, frozen=True, kw_only=True):
    """One written split: scans (distinct images) and samples (image and caption), size in bytes."""

    url: str
    digest: str
    scans: int
    samples: int
    shards: int
    bytes: int


class Written(Record, frozen=True, kw_only=True):
    """What `write` did. `written` is False where this version was there already."""

    url: str
    version: int
    written: bool
    splits: dict[str, Split]


def write(url: str, maker: Maker) -> Written:
    """Write a data set's splits under a URL; where this version is complete, only look.

    Raises:
        InputError: the URL can't be used.
        MissingPart: what the data are made of is not installed.
        StorageError: bytes could not be written.
    """
    root, stamp = Store(url), _Stamp(version=maker.version, source=maker.source())
    known = _known(root, stamp, maker)
    if known is not None:
        return Written(url=url, version=maker.version, written=False, splits=known)
    made = maker.make()
    splits = {name: _publish(Store(f"{url.rstrip('/')}/{name}"), name, made, maker) for name in made.splits}
    root.write(_STAMP, msgspec.json.encode(stamp))
    return Written(url=url, version=maker.version, written=True, splits=splits)


def _known(root: Store, stamp: _Stamp, maker: Maker) -> dict[str, Split] | None:
    """The splits of this version; None where one is missing. The stamp is written after the last manifest."""
    try:
        if not root.exists(_STAMP) or msgspec.json.decode(root.read(_STAMP), type=_Stamp) != stamp:
            return None
        names = {name: f"{name}/{MANIFEST_NAME}" for name in maker.captions}
        if not all(root.exists(name) for name in names.values()):
            return None
        return {split: _described(split, manifests.decode(root.read(name)), maker) for split, name in names.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _described(name: str, manifest: Manifest, maker: Maker) -> Split:
    samples = manifest.samples or 0
    return Split(
        url=manifest.url,
        digest=manifest.digest,
        scans=samples // maker.captions[name],
        samples=samples,
        shards=len(manifest.shards),
        bytes=manifest.bytes,
    )


def _publish(store: Store, name: str, made: Made, maker: Maker) -> Split:
    """Write one split, its manifest last."""
    samples = made.splits[name]
    rows = []
    for place, first in enumerate(range(0, len(samples), _PER_SHARD)):
        part = samples[first : first + _PER_SHARD]
        file, data = f"{name}-{place:05d}.tar", shard_bytes(part)
        store.write(file, data)
        digest = hashlib.sha256(data).hexdigest()
        rows.append(Shard(name=file, size=len(data), sha256=digest, samples=len(part)))
    if name != "train":
        store.write(CLASSNAMES, "".join(f"{word}\n" for word in made.classes).encode())
        store.write(TEMPLATES, "".join(f"{template}\n" for template in made.templates).encode())
    manifest = Manifest(url=store.url, shards=tuple(rows))
    publish_manifest(store, manifest)
    return _described(name, manifest, maker)

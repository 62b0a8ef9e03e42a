"""What one shard holds and what is wrong with it: every byte is read, every image decoded.

Names out of shards are only ever printed, with what does not print escaped: none becomes a path.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from clipa.data.decode import HugeImage, check_image
from clipa.data.shards import Sample, caption_of, captions_of, label_of, vector_of
from clipa.data.wds import split_name
from clipa.errors import ClipaError, DataError
from clipa.spec.cluster import Dataset
from clipa.storage import fast
from clipa.storage.digest import Pinned, Running, pinned
from clipa.storage.manifest import Shard
from clipa.storage.members import BrokenTar, Fault, Member, members
from clipa.storage.store import Store
from clipa.storage.tars import CAPTIONS, IMAGES, LABELS, TARGETS

EXAMPLES = 5
"""Of each kind, that are kept."""
_LARGEST = 256 << 20
"""Bytes of one member, as the loader takes them at most."""

KINDS = {
    "missing shard": "the manifest names it, and it is not there",
    "changed shard": "other bytes than the manifest pins",
    "unreadable shard": "the store does not give it",
    "empty shard": "0 bytes",
    "cut tar": "it ends too early",
    "broken tar": "a header whose checksum does not hold; compressed shards are refused too",
    "tar with a tail": "bytes behind its end, which nobody reads: two files in one, or a hole",
    "bad image": "it cannot be decoded, or is cut",
    "huge image": "more pixels than are ever decoded: a decompression bomb, a map",
    "no image": "a sample without one",
    "no caption": "an image without caption, label or target",
    "empty caption": "nothing but spaces",
    "bad caption": 'json without a usable "caption"',
    "bad label": "cls that is no class number",
    "bad target": "npy that is no vector of numbers",
    "large member": "more bytes than are ever read",
    "duplicate member": "two members of one name: the loader refuses the shard",
    "duplicate key": "the same key in two shards",
    "odd name": "an absolute path, .., or signs that do not print: harmless here, not for other programs",
}
"""What is looked for, and what it means."""
_FAULTS: dict[Fault, str] = {"cut": "cut tar", "header": "broken tar", "behind": "tar with a tail"}
_PART = {**dict.fromkeys(IMAGES, "image"), **dict.fromkeys((*CAPTIONS, *LABELS, *TARGETS), "other")}
_RANK = {extension: rank for rank, extension in enumerate((*CAPTIONS, *LABELS, *TARGETS))}


@dataclass
class Seen:
    """What one shard holds. `keys` are hashes of 8 bytes: those of LAION-400M's 400 million samples take 3 GB."""

    samples: int = 0
    images: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    keys: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    def note(self, kind: str, example: str) -> None:
        """One more of a kind."""
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < EXAMPLES:
            shown.append(example)


@dataclass(slots=True)
class _Sample:
    """The members of one key so far: extensions, and the caption, label or target that the loader would take."""

    extensions: set[str] = field(default_factory=set)
    rank: int = len(_RANK)
    verdict: tuple[str, str] = ("", "")


def printable(text: str) -> str:
    """A name that a terminal can show."""
    return text if text.isprintable() else ascii(text)[1:-1]


class Examine:
    """Looks at one shard."""

    def __init__(self, source: Dataset) -> None:
        self._source = source

    def __call__(self, shard: Shard) -> Seen:
        """What is in it. Trouble is noted, never raised."""
        seen = Seen()
        if not shard.size:
            seen.note("empty shard", shard.name)
            return seen
        # Its MD5 would cost more than the decoding; verify does that.
        wanted = pinned(shard)
        running = Running(wanted if wanted.kind in ("xxh3", "sha256") else Pinned("", ""))
        samples: dict[str, _Sample] = {}
        store = _store(self._source)

        def read() -> Iterator[bytes]:
            for chunk in store.chunks(shard.name, shard.size, version=shard.version):
                running.update(chunk)
                yield chunk

        chunks = read()
        try:
            for member in members(chunks, _LARGEST):
                _take(shard.name, member, samples, seen)
            for _ in chunks:
                pass
        except BrokenTar as error:
            seen.note(_FAULTS[error.fault], f"{shard.name}: {error}")
            running = Running(Pinned("", ""))
        except ClipaError as error:
            seen.note("unreadable shard", f"{shard.name}: {error.what}")
            return seen
        if not running.fits:
            seen.note("changed shard", f"{shard.name}: its {running.wanted.kind.upper()} is not {running.wanted.value}")
        _judge(shard.name, samples, seen)
        return seen


def _take(shard: str, member: Member, samples: dict[str, _Sample], seen: Seen) -> None:
    parts = PurePosixPath(member.name).parts
    if ".." in parts or "/" in parts or not member.name.isprintable():
        seen.note("odd name", f"{shard}: {printable(member.name)}")
    name = split_name(member.name) if member.regular else None
    if name is None:
        return
    key, extension = name
    sample = samples.setdefault(key, _Sample())
    where = f"{shard}: {printable(member.name)}"
    if extension not in _PART:
        return
    if extension in sample.extensions:
        seen.note("duplicate member", where)
        return
    sample.extensions.add(extension)
    if member.data is None:
        seen.note("large member", f"{where}: {member.size:,} bytes")
    elif _PART[extension] == "image":
        _look(member.data, where, seen)
    elif (rank := _RANK[extension]) < sample.rank:
        sample.rank, sample.verdict = rank, _verdict(Sample(key, b"", member.data, extension), where)


def _look(data: bytes, where: str, seen: Seen) -> None:
    seen.images += 1
    try:
        check_image(data, where)
    except HugeImage as error:
        seen.note("huge image", f"{where}: {error.what}")
    except DataError as error:
        seen.note("bad image", f"{where}: {printable(error.what)}")


def _verdict(sample: Sample, where: str) -> tuple[str, str]:
    """(kind of trouble, where) of a caption, label or target; empty when there is none."""
    try:
        if sample.extension in LABELS:
            label_of(sample)
        elif sample.extension in TARGETS:
            vector_of(sample.other, where)
        elif not _has_caption(sample):
            return "empty caption", where
    except DataError as error:
        kind = {"cls": "bad label", "npy": "bad target"}.get(sample.extension, "bad caption")
        return kind, f"{where}: {printable(error.what)}"
    return "", ""


def _has_caption(sample: Sample) -> bool:
    """Whether it says anything; several captions in one json are for retrieval."""
    try:
        return bool(caption_of(sample).strip())
    except DataError:
        return bool(captions_of(sample))


def _judge(shard: str, samples: dict[str, _Sample], seen: Seen) -> None:
    for key, sample in samples.items():
        where = f"{shard}: {printable(key)}"
        has_image = any(_PART[extension] == "image" for extension in sample.extensions)
        if sample.verdict[0]:
            seen.note(*sample.verdict)
        if not has_image:
            seen.note("no image", where)
        elif sample.rank == len(_RANK):
            seen.note("no caption", where)
        else:
            seen.samples += 1
    hashes = b"".join(_hash(key) for key in samples)
    seen.keys = np.frombuffer(hashes, np.uint64)


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()


@lru_cache(maxsize=2)
def _store(source: Dataset) -> Store:
    return fast.open_store(source)


def key_of(source: Dataset, shard: Shard, wanted: bytes) -> str:
    """The key with that hash (an entry of `Seen.keys`) in a shard, which is read once more."""
    try:
        for member in members(_store(source).chunks(shard.name, shard.size, version=shard.version), -1):
            name = split_name(member.name) if member.regular else None
            if name and _hash(name[0]) == wanted:
                return printable(name[0])
    except (BrokenTar, ClipaError):
        pass
    return "a key that is not there any more"

"""The samples of staged shards, by number. Opens, seeks, reads; knows nothing of pixels or order."""

from __future__ import annotations

import bisect
import contextlib
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from clipa.data.index import Counts, Part, ShardIndex, load_counts, load_index, sidecar
from clipa.errors import DataError, StorageError
from clipa.staging.meeting import ALIVE, FAILED, Life
from clipa.storage.manifest import Manifest
from clipa.storage.tars import CAPTIONS, IMAGES, LABELS, TARGETS

_OPEN_SHARDS = 32
"""Shards whose file and index are kept open by a process: two windows of 65,536 samples at 10,000 a shard, twice."""

_MAX_PART = 256 << 20
"""Bytes of one image, caption or label that are read at most: more is a broken shard, not a sample."""

_LOOK_S = 0.05
_SAY_S = 2.0
_SILENT_S = 60.0
"""After so long without a sign of life nobody brings shards any more."""

_COUNTED = {Part.CAPTION: "captioned", Part.LABEL: "labelled", Part.TARGET: "targeted"}


class Sample(NamedTuple):
    """One sample's bytes: the image, and the caption or label with its extension."""

    key: str
    image: bytes
    other: bytes
    extension: str


class Coming(NamedTuple):
    """Where who brings shards says that it works, or has given up (`clipa.staging.meeting`), and the file that is
    touched while a shard is waited for.
    """

    place: Path
    sign: Path


@dataclass(frozen=True)
class ShardSet:
    """The shards of one dataset on local disk, in manifest order, with what each one holds.

    `coming`: says that they arrive while they are read.
    """

    paths: tuple[Path, ...]
    counts: tuple[Counts, ...]
    coming: Coming | None = None

    @property
    def folder(self) -> str:
        """Where the shards lie."""
        return str(self.paths[0].parent) if self.paths else ""

    @property
    def samples(self) -> int:
        """Samples that can be used: with an image and a caption, or where there are none, a label, else a target."""
        return sum(self.sizes(Part.CAPTION)) or sum(self.sizes(Part.LABEL)) or sum(self.sizes(Part.TARGET))

    @property
    def skipped(self) -> int:
        """Samples that have no image, or neither caption nor label."""
        return sum(count.skipped for count in self.counts)

    def sizes(self, part: Part) -> list[int]:
        """Samples of each shard that have an image and this part."""
        return [getattr(count, _COUNTED[part]) for count in self.counts]

    def require(self, part: Part) -> None:
        """Refuse a dataset without a single sample of that kind.

        Raises:
            DataError: naming the members that were found and those that are needed.
        """
        if sum(self.sizes(part)):
            return
        found: Counter[str] = Counter()
        for count in self.counts:
            found.update(count.members)
        names = ", ".join(f".{name} ({number})" for name, number in found.most_common(10)) or "none"
        needed = {Part.CAPTION: CAPTIONS, Part.LABEL: LABELS, Part.TARGET: TARGETS}[part]
        raise DataError(
            f"no sample has both an image and a {part.name.lower()}; members found: {names}",
            where=self.folder,
            allowed=f"an image ({', '.join(IMAGES)}) and {' or '.join(needed)} under one key",
        )


def open_shards(manifest: Manifest, folder: Path, seen: Callable[[], None] | None = None) -> ShardSet:
    """Open the staged shards of a manifest; indexes that are missing or outdated are built.

    Args:
        manifest: the pinned shards.
        folder: where they lie as `<folder>/<shard.name>`.
        seen: called after each shard: an index of thousands takes minutes.

    Raises:
        DataError: no shard, a shard that is missing, cut or no tar file, or no usable sample at all.
    """
    if not manifest.shards:
        raise DataError("the dataset has no shards", where=manifest.url, allowed="one or more .tar files")
    paths, counts = [], []
    for shard in manifest.shards:
        path = folder / shard.name
        size = path.stat().st_size if path.is_file() else None
        if size is not None and size != shard.size:
            raise DataError(
                f"the staged shard has {size} bytes, its manifest says {shard.size}",
                where=str(path),
                hint="remove the file and stage the dataset again",
            )
        counts.append(load_counts(path))
        paths.append(path)
        if seen is not None:
            seen()
    shards = ShardSet(tuple(paths), tuple(counts))
    if not shards.samples:
        shards.require(Part.CAPTION)
    return shards


def open_coming(manifest: Manifest, folder: Path, coming: Coming) -> ShardSet:
    """The shards of a manifest that arrive in a folder while they are read, with as many samples as the manifest says.

    Raises:
        DataError: the manifest does not say it.
    """
    if manifest.samples is None:
        raise DataError("the manifest does not say how many samples each shard has", where=manifest.url)
    counts = tuple(
        Counts(captioned=s.samples or 0, labelled=0, targeted=0, skipped=0, members={}) for s in manifest.shards
    )
    return ShardSet(tuple(folder / shard.name for shard in manifest.shards), counts, coming)


def _await(path: Path, coming: Coming) -> None:
    """Wait for a shard and its index.

    Raises:
        StorageError: whoever brings it has given up, or gives no sign of life.
    """
    index = sidecar(path)
    life = Life(coming.place / ALIVE, coming.place / FAILED, _SILENT_S, "the process that brings shards is gone")
    said = 0.0
    while not (index.exists() and path.exists()):
        life.require(path)
        now = time.monotonic()
        if now - said > _SAY_S:
            with contextlib.suppress(OSError):  # a full disk makes no error of a sign of life
                coming.sign.parent.mkdir(parents=True, exist_ok=True)
                coming.sign.touch()
            said = now
        time.sleep(_LOOK_S)


class _Open:
    """One shard that is open in this process."""

    def __init__(self, path: Path, part: Part, samples: int, coming: Coming | None) -> None:
        if coming is not None:
            _await(path, coming)
        self.index: ShardIndex = load_index(path)
        self.rows: NDArray[np.int64] = self.index.having(part)
        if coming is not None and len(self.rows) != samples:
            # Who brings it is about to say so too: the order of samples rests on these numbers.
            raise StorageError(f"{len(self.rows)} samples are in it, its manifest says {samples}", where=str(path))
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError(f"the shard cannot be read: {error.strerror}", where=str(path)) from error


class Reader:
    """Random access to the samples that have a caption (or a label), numbered in manifest order.

    Holds at most `_OPEN_SHARDS` shards open, and two more for each of the `lanes` that are read at the same time, but
    none that was removed. Reads with pread, so that forked processes don't share a file position.
    """

    def __init__(self, shards: ShardSet, part: Part, lanes: int = 0) -> None:
        shards.require(part)
        self._shards = shards
        self._part = part
        self._lanes = lanes
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def __reduce__(self) -> tuple[type[Reader], tuple[ShardSet, Part, int]]:
        return Reader, (self._shards, self._part, self._lanes)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self._shards.sizes(self._part)))

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self._ends[-1]

    def sizes(self) -> Sequence[int]:
        """Samples of each shard."""
        return self._shards.sizes(self._part)

    def where(self, number: int) -> str:
        """Shard and key of a sample, for messages."""
        return ": ".join(self.place(number))

    def place(self, number: int) -> tuple[str, str]:
        """The path of a sample's shard, and its key."""
        shard, row = self._find(number)
        return str(shard.index.shard), shard.index.key(row)

    def read(self, number: int) -> Sample:
        """The bytes of sample `number`.

        Raises:
            StorageError: the shard can't be read, or ends before the sample does. No fault of the sample: whoever
                replaced it would make the order of samples depend on the disk's mood.
            DataError: a part is too large to be one.
        """
        shard, row = self._find(number)
        image, _ = self._bytes(shard, row, Part.IMAGE)
        other, extension = self._bytes(shard, row, self._part)
        return Sample(shard.index.key(row), image, other, extension)

    def other(self, number: int, part: Part) -> bytes:
        """The bytes of another part of sample `number`.

        Raises:
            DataError: the sample has none.
        """
        shard, row = self._find(number)
        if not shard.index.has(row, part):
            raise DataError(f"the sample has no {part.name.lower()}", where=self.where(number))
        return self._bytes(shard, row, part)[0]

    def has(self, number: int, part: Part) -> bool:
        """Whether sample `number` has a part."""
        shard, row = self._find(number)
        return shard.index.has(row, part)

    def _find(self, number: int) -> tuple[_Open, int]:
        at = bisect.bisect_right(self._ends, number)
        first = self._ends[at - 1] if at else 0
        if at in self._open:
            self._open.move_to_end(at)
        else:
            size = self.sizes()[at]
            self._open[at] = _Open(self._shards.paths[at], self._part, size, self._shards.coming)
            self._close_some()
        shard = self._open[at]
        return shard, int(shard.rows[number - first])

    def _close_some(self) -> None:
        while len(self._open) > _OPEN_SHARDS + 2 * self._lanes:
            os.close(self._open.popitem(last=False)[1].descriptor)
        if self._shards.coming is not None:
            # What is streamed is removed when it is past, and its bytes are only free once nobody has it open.
            for at in [at for at, one in self._open.items() if os.fstat(one.descriptor).st_nlink == 0]:
                os.close(self._open.pop(at).descriptor)

    def _bytes(self, shard: _Open, row: int, part: Part) -> tuple[bytes, str]:
        offset, size, extension = shard.index.place(row, part)
        try:
            data = os.pread(shard.descriptor, size, offset) if size <= _MAX_PART else b""
        except OSError as error:
            raise StorageError(f"the shard cannot be read: {error.strerror}", where=_where(shard, row)) from error
        if size > _MAX_PART:
            raise DataError(
                f".{extension} has {size} bytes", where=_where(shard, row), allowed=f"at most {_MAX_PART} bytes"
            )
        if len(data) != size:
            raise StorageError(
                f"the shard ends inside .{extension}", where=_where(shard, row), hint="stage the dataset again"
            )
        return data, extension

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1].descriptor)


def _where(shard: _Open, row: int) -> str:
    return f"{shard.index.shard}: {shard.index.key(row)}"


class _Json(msgspec.Struct):
    caption: str | None = None


class _Captions(msgspec.Struct):
    caption: str | list[str]


def caption_of(sample: Sample) -> str:
    """The caption: the text of `txt`, or the "caption" of `json`. Bytes that are no UTF-8 become U+FFFD.

    Raises:
        DataError: JSON without a caption.
    """
    if sample.extension == "txt":
        return sample.other.decode("utf-8", "replace")
    try:
        caption = msgspec.json.decode(sample.other, type=_Json).caption
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"the json member is not usable ({error})", where=sample.key) from error
    if caption is None:
        raise DataError('the json member has no "caption"', where=sample.key)
    return caption


def captions_of(sample: Sample) -> tuple[str, ...]:
    """The captions of an image that has several: the lines of `txt`, or the "caption" of `json`, a list or one.

    Raises:
        DataError: none, an empty one, or JSON without captions.
    """
    if sample.extension == "txt":
        found = sample.other.decode("utf-8", "replace").splitlines()
    else:
        try:
            said = msgspec.json.decode(sample.other, type=_Captions).caption
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"the json member is not usable ({error})", where=sample.key) from error
        found = [said] if isinstance(said, str) else said
    if not found or not all(caption.strip() for caption in found):
        raise DataError(
            "an image without a caption" if not found else "one of the captions is empty",
            where=sample.key,
            allowed="txt with one caption a line",
        )
    return tuple(found)


def vector_of(data: bytes, where: str) -> NDArray[np.float64]:
    """The numbers of a `npy` member, one dimension. Objects in it are never unpickled.

    Raises:
        DataError: no such file, of another shape, or with numbers that are not finite.
    """
    try:
        found = np.lib.format.read_array(BytesIO(data), allow_pickle=False)
        vector = np.asarray(found, dtype=np.float64)
    except (ValueError, TypeError, EOFError, OSError, MemoryError, SyntaxError) as error:
        raise DataError(f"the npy member cannot be read ({error})", where=where) from error
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise DataError(f"npy holds an array of shape {list(vector.shape)}", where=where, allowed="a vector of numbers")
    return vector


def label_of(sample: Sample) -> int:
    """The class number in `cls`.

    Raises:
        DataError: not a number >= 0.
    """
    text = sample.other[:32].decode("ascii", "replace").strip()
    if not text.isdecimal() or len(text) > 9:
        raise DataError(f"cls holds {text!r}", where=sample.key, allowed="a class number, 0 or more, as text")
    return int(text)

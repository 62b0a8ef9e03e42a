"""The sources of evaluation: labels, groups, several labels, captions, and candidates of a cue."""

from __future__ import annotations

import bisect
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.data.index import Part
from clipa.data.scored import Item
from clipa.data.shards import Reader, ShardSet, captions_of, label_of, vector_of
from clipa.errors import DataError, StorageError
from clipa.storage.class_folders import entry, images
from clipa.storage.manifest import Manifest


class ShardLabels:
    """Labelled shards: an image and `cls`. Labels must be below `classes`."""

    def __init__(self, shards: ShardSet, classes: int) -> None:
        self._reader = Reader(shards, Part.LABEL)
        self._classes = classes

    @property
    def samples(self) -> int:
        """Number of samples that have an image and a label."""
        return self._reader.samples

    def read(self, number: int) -> Item[int]:
        """An image and its class's number.

        Raises:
            DataError: no class has that number.
        """
        sample, where = self._reader.read(number), self._reader.where(number)
        label = label_of(sample._replace(key=where))
        if label >= self._classes:
            raise DataError(
                f"a label of {label} with {self._classes} classes", where=where, allowed=f"0..{self._classes - 1}",
                hint="the class names must be those of these shards, in the order of the labels",
            )  # fmt: skip
        return Item(sample.image, label, where)


class FolderLabels:
    """Images in class folders; the folder's place in `folders` is the label."""

    def __init__(self, manifest: Manifest, folders: tuple[str, ...]) -> None:
        self._root = Path(manifest.url.removeprefix("file://"))
        known = {shard.name: shard for shard in manifest.shards}
        self._classes = [known[name] for name in folders]
        self._files: dict[int, list[str]] = {}
        self._ends = list(accumulate(shard.samples or 0 for shard in self._classes))

    @property
    def samples(self) -> int:
        """Number of images."""
        return self._ends[-1]

    def read(self, number: int) -> Item[int]:
        """An image and its class's number.

        Raises:
            DataError: the class folder is not as it was when the plan was made.
            StorageError: it cannot be read.
        """
        label = bisect.bisect_right(self._ends, number)
        first = self._ends[label - 1] if label else 0
        path = self._root / self._classes[label].name / self._list(label)[number - first]
        try:
            return Item(path.read_bytes(), label, str(path))
        except OSError as error:
            raise StorageError(f"the image cannot be read: {error.strerror}", where=str(path)) from error

    def _list(self, label: int) -> list[str]:
        if label not in self._files:
            wanted = self._classes[label]
            folder = self._root / wanted.name
            try:
                found = entry(self._root, wanted.name)
                self._files[label] = [name for name, _ in images(self._root, wanted.name)]
            except OSError as error:
                raise StorageError(f"the class folder cannot be read: {error.strerror}", where=str(folder)) from error
            if found.version != wanted.version:
                raise DataError(
                    f"the class folder changed: it has {found.samples} images, the plan saw {wanted.samples}",
                    where=str(folder),
                    hint="submit the evaluation again",
                )
        return self._files[label]


class Grouped(NamedTuple):
    """A class's number, and the number of the group that the image belongs to (a region, an income)."""

    label: int
    group: int


class ShardGroups:
    """Labelled shards whose `npy` holds a vector of metadata; one column of it is the group."""

    def __init__(self, shards: ShardSet, classes: int, column: int) -> None:
        self._labels = ShardLabels(shards, classes)
        self._reader = Reader(shards, Part.LABEL)
        self._column = column

    @property
    def samples(self) -> int:
        """Number of samples that have an image and a label."""
        return self._labels.samples

    def read(self, number: int) -> Item[Grouped]:
        """An image, its class and its group.

        Raises:
            DataError: no metadata, no such column, or a group that is no number >= 0.
        """
        item = self._labels.read(number)
        vector = vector_of(self._reader.other(number, Part.TARGET), item.where)
        if self._column >= len(vector):
            raise DataError(
                f"npy has {len(vector)} numbers, the group is number {self._column}", where=item.where,
                hint="set group in the recipe's [evals] table",
            )  # fmt: skip
        group = vector[self._column]
        if group < 0 or group != int(group):
            raise DataError(f"a group of {group}", where=item.where, allowed="whole numbers, 0 or more")
        return Item(item.image, Grouped(item.truth, int(group)), item.where)


class ShardTargets:
    """Images with several labels: `npy` holds a 0 or 1 for each class."""

    def __init__(self, shards: ShardSet, classes: int) -> None:
        self._reader = Reader(shards, Part.TARGET)
        self._classes = classes

    @property
    def samples(self) -> int:
        """Number of samples that have an image and a target."""
        return self._reader.samples

    def read(self, number: int) -> Item[tuple[float, ...]]:
        """An image, and for every class whether it is there.

        Raises:
            DataError: another number of classes, or a number that is neither 0 nor 1.
        """
        sample, where = self._reader.read(number), self._reader.where(number)
        vector = vector_of(sample.other, where)
        if len(vector) != self._classes:
            raise DataError(
                f"npy has {len(vector)} numbers for {self._classes} classes", where=where,
                hint="the class names must be those of these shards",
            )  # fmt: skip
        if not ((vector == 0) | (vector == 1)).all():
            raise DataError("npy holds other numbers than 0 and 1", where=where)
        return Item(sample.image, tuple(vector.tolist()), where)


class ShardCaptions:
    """Images with one or more captions each."""

    def __init__(self, shards: ShardSet) -> None:
        self._reader = Reader(shards, Part.CAPTION)

    @property
    def samples(self) -> int:
        """Number of images that have captions."""
        return self._reader.samples

    def read(self, number: int) -> Item[tuple[str, ...]]:
        """An image and its captions.

        Raises:
            DataError: no caption, or an empty one.
        """
        sample, where = self._reader.read(number), self._reader.where(number)
        return Item(sample.image, captions_of(sample._replace(key=where)), where)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One of the images among which those that go with a cue are to be found (WinoGAViL)."""

    instance: int
    cue: str
    associated: bool


class ShardCandidates:
    """Images with `json`: `{"instance": 12, "cue": "werewolf", "associated": true}`."""

    def __init__(self, shards: ShardSet) -> None:
        self._reader = Reader(shards, Part.CAPTION)

    @property
    def samples(self) -> int:
        """Number of candidates."""
        return self._reader.samples

    def read(self, number: int) -> Item[Candidate]:
        """A candidate.

        Raises:
            DataError: `json` says something else.
        """
        sample, where = self._reader.read(number), self._reader.where(number)
        try:
            candidate = msgspec.json.decode(sample.other, type=Candidate)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(
                f"the json member is not usable ({error})", where=where, allowed="instance, cue, associated"
            ) from error
        if not candidate.cue.strip() or candidate.instance < 0:
            raise DataError("an empty cue, or an instance below 0", where=where)
        return Item(sample.image, candidate, where)

"""What lies at the URL of an evaluation set: shards, a `wds_*` folder of CLIP_benchmark, or class folders."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from clipa.errors import InputError, StorageError
from clipa.spec.cluster import Dataset
from clipa.storage import manifest as manifests
from clipa.storage.class_folders import index_folders, local_folder, looks_like_classes
from clipa.storage.dataset import index, side_file
from clipa.storage.manifest import Manifest

NSHARDS, DATASET_TYPE = "nshards.txt", "dataset_type.txt"
_OBJECTNET = ("mappings/folder_to_objectnet_label.json", "mappings/objectnet_to_imagenet_1k.json")
_MOST_SHARDS = 100_000


class Opened(NamedTuple):
    """An evaluation set: what to stage or read, and what the files beside it say (empty where they say nothing)."""

    source: Dataset
    manifest: Manifest
    layout: Literal["shards", "folder"]
    kind: str = ""
    classes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


def open_set(source: Dataset, split: str, objectnet: bool = False) -> Opened:
    """Look at an evaluation set.

    Args:
        source: a URL with its access rule.
        split: which split of a `wds_*` folder.
        objectnet: the source is ObjectNet as published: `images/` and `mappings/`.

    Raises:
        InputError: nothing that can be scored, a split or shard that is missing, or an empty class.
        StorageError: the store does not answer.
    """
    if objectnet and (root := local_folder(source)) and (root / "mappings").is_dir():
        return _objectnet(source)
    wds = _wds(source, split)
    if wds is not None:
        return wds
    folder = local_folder(source)
    if folder is not None and looks_like_classes(folder):
        return Opened(Dataset(url=str(folder)), index_folders(folder), "folder")
    return _beside(source, Opened(source, index(source), "shards"))


def has_split(source: Dataset, split: str) -> bool:
    """Whether a `wds_*` folder with this split is there."""
    return side_file(source, f"{split}/{NSHARDS}") is not None


def _wds(source: Dataset, split: str) -> Opened | None:
    """A `wds_*` folder: `<split>/nshards.txt` and `<split>/0.tar` to `<n-1>.tar`. None: it is not one."""
    url = source.url.rstrip("/")
    if url.endswith(".tar") or "{" in url or "*" in url:
        return None
    text = side_file(source, f"{split}/{NSHARDS}")
    if text is None:
        others = [name for name in ("train", "val", "test") if side_file(source, f"{name}/{NSHARDS}") is not None]
        if others:
            raise InputError(f"the set has no split {split!r}", where=url, allowed=", ".join(others))
        return None
    number = text.strip()
    if not number.isdecimal() or not 0 < int(number) <= _MOST_SHARDS:
        raise InputError(
            f"{NSHARDS} holds {number[:20]!r}", where=f"{url}/{split}", allowed=f"a number of shards, 1..{_MOST_SHARDS}"
        )
    shards = msgspec.structs.replace(source, url=f"{url}/{split}/{{0..{int(number) - 1}}}.tar")
    return _beside(source, Opened(shards, index(shards), "shards"))


def _beside(source: Dataset, opened: Opened) -> Opened:
    return opened._replace(
        kind=(side_file(source, DATASET_TYPE) or "").strip().lower(),
        classes=_lines(source, manifests.CLASSNAMES),
        templates=_lines(source, manifests.TEMPLATES),
    )


def _lines(source: Dataset, file: str) -> tuple[str, ...]:
    """Return the lines of a positional file: line N belongs to label N, so an empty line is an empty name.

    CLIP_benchmark reads the same lines (datasets/builder.py).
    """
    return tuple(line.strip() for line in (side_file(source, file) or "").splitlines())


def _objectnet(source: Dataset) -> Opened:
    """ObjectNet as published: of its 313 classes the 113 that ImageNet has too, under their own names in lower case.

    The mapping comes with the data (`mappings/`), as CLIP_benchmark and wise-ft use it. Folders of other classes are
    left out.
    """
    found = []
    for name in _OBJECTNET:
        text = side_file(source, name)
        if text is None:
            raise InputError(f"{name} is missing", where=source.url, allowed="ObjectNet's own images/ and mappings/")
        try:
            found.append(msgspec.json.decode(text, type=dict[str, str]))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StorageError(f"{name} cannot be read: {error}", where=source.url) from error
    label_of_folder, in_imagenet = found
    folders = {label: folder for folder, label in label_of_folder.items() if label in in_imagenet}
    absent = sorted(set(in_imagenet) - set(folders))
    root = local_folder(Dataset(url=f"{source.url.rstrip('/')}/images"))
    if absent or root is None:
        raise InputError(
            f"{len(absent)} classes have no folder, first {absent[0]!r}" if absent else "there is no folder images/",
            where=source.url,
        )
    manifest = index_folders(root)
    wanted = set(folders.values())
    manifest = msgspec.structs.replace(manifest, shards=tuple(s for s in manifest.shards if s.name in wanted))
    ordered = sorted(folders.items(), key=lambda item: item[1])
    return Opened(
        Dataset(url=str(root)),
        manifest,
        "folder",
        classes=tuple(label.lower() for label, _ in ordered),
        folders=tuple(folder for _, folder in ordered),
    )

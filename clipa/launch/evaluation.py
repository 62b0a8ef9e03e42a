"""An evaluation set of a recipe, pinned: what is scored, and everything that can be checked of it before queueing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import msgspec

from clipa.errors import ConfigError
from clipa.spec import datacomp
from clipa.spec.cluster import Dataset
from clipa.spec.evalset import GROUP_METRICS, MAIN_METRICS, METRICS, EvalSet, Names, Task
from clipa.spec.plan import Data, EvalData
from clipa.storage import manifest as manifests
from clipa.storage.evaluation import Opened, has_split, open_set
from clipa.storage.manifest import Manifest

_KINDS: dict[str, Task] = {"": "classification", **{task: task for task in METRICS}}
"""What `dataset_type.txt` may say."""
_FOLDERS: dict[Names, int] = {"imagenet": 1000, "imagenet-a": 200, "imagenet-r": 200}
_WNID_OR_NUMBER = re.compile(r"n\d{8}|\d{1,3}")


class PinnedSet(NamedTuple):
    """An evaluation set as a plan holds it, and the manifests that it pins."""

    data: EvalData
    manifests: tuple[Manifest, ...]


Resolve: TypeAlias = Callable[[str], Dataset]
"""What a dataset's name or URL means here."""


def pin_sets(name: str, eval_set: EvalSet, resolve: Resolve) -> dict[str, PinnedSet]:
    """Look at an evaluation set, or at all sets of a suite that are there, and settle them.

    Raises:
        InputError: nothing that can be scored, or classes that do not fit the data.
    """
    if not eval_set.suite:
        return {name: pin_set(name, eval_set, resolve)}
    root = resolve(eval_set.data)
    found = {}
    for entry in datacomp.SETS:
        folder = next((f for f in entry.folders if has_split(_below(root, f), eval_set.split)), "")
        if not folder:
            continue
        member = EvalSet(
            data=_below(root, folder).url, split=eval_set.split, task=entry.task, metric=entry.metric,
            canonical=eval_set.canonical,
        )  # fmt: skip
        key = f"{name}-{entry.folders[-1].removeprefix('wds_')}"
        pinned = pin_set(key, member, lambda _, f=folder: _below(root, f))  # type: ignore[misc]
        found[key] = pinned._replace(
            data=msgspec.structs.replace(pinned.data, suite=name, member=entry.name),
        )
    if not found:
        raise ConfigError(
            f"none of the {len(datacomp.SETS)} sets of {eval_set.suite} is here",
            where=f"evals.{name}: {eval_set.data}",
            allowed=f"folders such as {', '.join(entry.folders[0] for entry in datacomp.SETS[:3])}",
        )
    return found


def _below(root: Dataset, folder: str) -> Dataset:
    return msgspec.structs.replace(root, url=f"{root.url.rstrip('/')}/{folder}")


def pin_set(name: str, eval_set: EvalSet, resolve: Resolve) -> PinnedSet:
    """Look at an evaluation set and settle it.

    Args:
        name: the table under [evals].
        eval_set: what the recipe says.
        resolve: what its datasets mean here.

    Raises:
        InputError: nothing that can be scored, or classes that do not fit the data.
    """
    where = f"evals.{name}"
    source = resolve(eval_set.data)
    opened = open_set(source, eval_set.split, objectnet=eval_set.names == "objectnet")
    task = eval_set.task or _task_of(opened.kind, where)
    metric = eval_set.metric or MAIN_METRICS[task]
    if metric not in METRICS[task]:
        raise ConfigError(f"{task} has no metric {metric!r}", where=where, allowed=", ".join(METRICS[task]))
    if opened.layout == "folder" and (task not in ("classification", "probe") or metric in GROUP_METRICS):
        raise ConfigError(f"class folders cannot say what {metric} needs", where=where, allowed="shards")
    data = EvalData(
        data=_data(eval_set.data, opened),
        classes=eval_set.classes or opened.classes,
        templates=eval_set.templates or opened.templates,
        task=task,
        metric=metric,
        group=eval_set.group,
        names=eval_set.names,
        folders=eval_set.folders or opened.folders,
        canonical=eval_set.canonical,
    )
    if task in ("classification", "multilabel", "probe"):
        _require_classes(data, opened, where)
    if task != "probe":
        return PinnedSet(data, (opened.manifest,))
    learned = open_set(resolve(eval_set.train) if eval_set.train else source, "train")
    _require_other_data(opened, learned, where)
    _require_classes(data, learned, f"{where}.train")
    data = msgspec.structs.replace(data, train=_data(eval_set.train or eval_set.data, learned))
    return PinnedSet(data, (opened.manifest, learned.manifest))


def _data(name: str, opened: Opened) -> Data:
    manifest = opened.manifest
    return Data(
        name=name,
        source=opened.source,
        manifest=manifest.digest,
        shards=len(manifest.shards),
        bytes=manifest.bytes,
        samples=manifest.samples,
        layout=opened.layout,
    )


def _require_other_data(tested: Opened, learned: Opened, where: str) -> None:
    if learned.manifest.digest == tested.manifest.digest:
        raise ConfigError(
            "the probe would be trained on the data that it is scored on",
            where=where,
            hint='give train = "..." in the recipe, or a wds folder with the splits train and test',
        )


def _task_of(kind: str, where: str) -> Task:
    if kind not in _KINDS:
        raise ConfigError(
            f"dataset_type.txt says {kind[:40]!r}",
            where=where,
            allowed=", ".join(filter(None, _KINDS)),
            hint='give task = "..." in the recipe',
        )
    return _KINDS[kind]


def _require_classes(data: EvalData, opened: Opened, where: str) -> None:
    found = [shard.name for shard in opened.manifest.shards] if opened.layout == "folder" else []
    if data.names in _FOLDERS:
        if found:
            _require_imagenet_folders(data.names, found, where)
        return
    for what, words, file in (
        ("classes", data.classes, manifests.CLASSNAMES),
        ("templates", data.templates or data.names, manifests.TEMPLATES),
    ):
        if not words and not (data.task == "probe" and what == "templates"):
            raise ConfigError(
                f"the evaluation set has no {what}",
                where=where,
                hint=f'give {what} = [...] or names = "imagenet" in the recipe, or put {file} beside the shards',
            )
    if found:
        require_folders(data.folders or data.classes, found, where)


def _require_imagenet_folders(names: Names, found: Sequence[str], where: str) -> None:
    """The number and the form of the folders' names; the evaluation compares the names themselves."""
    odd = [name for name in found if not _WNID_OR_NUMBER.fullmatch(name)]
    if len(found) != _FOLDERS[names] or odd:
        said = f"{len(found)} class folders" + (f", such as {odd[0]!r}" if odd else "")
        raise ConfigError(
            said,
            where=where,
            allowed=f"the {_FOLDERS[names]} folders of {names}, named by WordNet id (n01440764) or class number",
        )


def require_folders(wanted: Sequence[str], found: Sequence[str], where: str) -> None:
    """Refuse class folders that are not exactly those wanted.

    Raises:
        ConfigError: naming the first folders that are missing, and those that no class has.
    """
    missing, odd = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or odd:
        said = [f"no folder for {len(missing)} classes ({', '.join(missing[:3])})"] if missing else []
        said += [f"{len(odd)} folders of no class ({', '.join(odd[:3])})"] if odd else []
        raise ConfigError(
            "; ".join(said),
            where=where,
            hint="name the folders like the classes, or give folders = [...] in the order of classes",
        )

"""What is scored, and how: one evaluation set of a recipe. The one list of tasks and of metrics."""

from __future__ import annotations

from typing import Literal, TypeAlias

from clipa.spec.base import Struct, require

Task: TypeAlias = Literal["classification", "multilabel", "retrieval", "association", "probe"]
Suite: TypeAlias = Literal["", "datacomp"]
Names: TypeAlias = Literal["", "imagenet", "imagenet-a", "imagenet-r", "objectnet"]

MAIN_METRICS: dict[Task, str] = {
    "classification": "top1",
    "multilabel": "mean_average_precision",
    "retrieval": "mean_recall@1",
    "association": "jaccard",
    "probe": "top1",
}
"""The metric that stands for a set where nothing else is asked for. All are percentages."""

GROUP_METRICS = ("worst_group", "worst_group_top5")
"""Metrics that need the group of every image: a column of `npy`."""

METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("top1", "top5", "mean_per_class_recall", "f1_macro", *GROUP_METRICS),
    "multilabel": ("mean_average_precision",),
    "retrieval": (
        "mean_recall@1",
        *(f"{what}_retrieval_recall@{k}" for what in ("image", "text") for k in (1, 5, 10)),
    ),
    "association": ("jaccard", "jaccard_5-6", "jaccard_10-12"),
    "probe": ("top1", "top5", "mean_per_class_recall", "f1_macro"),
}
"""What each task measures, by CLIP_benchmark's and DataComp's definitions. `top5` needs five classes."""

_LABELS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class_recall": "mean per-class recall",
    "mean_average_precision": "mAP",
    "f1_macro": "macro F1",
    "average": "average of 38",
    "imagenet": "ImageNet",
    "imagenet_shifts": "ImageNet shifts",
    "vtab": "VTAB",
    "worst_group": "worst-group top-1",
    "worst_group_top5": "worst-group top-5",
    "mean_recall@1": "mean R@1",
    **{f"{what}_retrieval_recall@{k}": f"{what} R@{k}" for what in ("image", "text") for k in (1, 5, 10)},
}


def label(metric: str) -> str:
    """A metric's name as people write it."""
    return _LABELS.get(metric, metric.replace("_", " "))


class EvalSet(Struct, frozen=True, kw_only=True):
    """One evaluation set: labelled shards, a `wds_*` folder of CLIP_benchmark, or a folder of class folders.

    Attributes:
        data: a dataset's name, a URL, or the path of a folder of class folders.
        suite: `data` is a folder of many sets, all of which are scored: `datacomp`.
        split: which split of a `wds_*` folder.
        task: what is measured; empty: what `dataset_type.txt` says, else classification.
        metric: the metric that stands for the set; empty: the task's.
        group: the column of `npy` that holds an image's group, for the worst-group metrics.
        names: whose class names, prompt templates and folder order hold: `imagenet` (also for V2 and Sketch),
            `imagenet-a`, `imagenet-r`, `objectnet`. Empty: those below, or those beside the shards.
        classes: the names, in the order of the labels.
        folders: class folders in the order of `classes`, where they are not named like the classes.
        templates: of prompts; each holds `{}` or `{c}` once.
        train: of a linear probe: the labelled data that it is trained on; empty: the split `train` of `data`.
        canonical: prompts as CLIPA-v2's own evaluation has them: in lower case without punctuation, and with `names`
            the class name alone as the 81st template.
    """

    data: str
    suite: Suite = ""
    split: str = "test"
    task: Task | Literal[""] = ""
    metric: str = ""
    group: int = 0
    names: Names = ""
    classes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    train: str = ""
    canonical: bool = False

    def __post_init__(self) -> None:
        require(bool(self.data), "data must name a dataset or a URL")
        require(self.split.replace("-", "").replace("_", "").isalnum(), f"split {self.split!r} is no folder's name")
        require(not self.train or self.task == "probe", 'train belongs to task = "probe"')
        if self.suite:
            more = (self.task, self.metric, self.names, self.classes, self.folders, self.templates, self.group)
            require(not any(more), f"suite = {self.suite!r} says itself what is measured of each set")
        require(len(self.classes) != 1, "classes needs at least two names")
        require(len(set(self.classes)) == len(self.classes), "classes has the same name twice")
        require(not (self.names and (self.classes or self.folders)), f"names = {self.names!r} already says the classes")
        require(
            len(self.folders) in (0, len(self.classes)),
            f"folders has {len(self.folders)} names, classes has {len(self.classes)}",
        )
        for template in self.templates:
            require(
                template.count("{}") + template.count("{c}") == 1,
                f"template {template!r} must hold {{}} or {{c}} exactly once",
            )
        require(0 <= self.group <= 1000, f"group must be in 0..1000, got {self.group}")
        known = METRICS[self.task] if self.task else tuple(name for names in METRICS.values() for name in names)
        require(self.metric in ("", *known), f"metric {self.metric!r} is not one of {', '.join(known)}")

"""What is scored, and how: one evaluation set of a recipe. The one list of tasks and of metrics."""

from __future__ import annotations

from typing import Literal, TypeAlias

from clipa.spec.base import Struct, require

Task: TypeAlias = Literal["classification"]
Names: TypeAlias = Literal["", "imagenet", "imagenet-a", "imagenet-r", "objectnet"]

MAIN_METRICS: dict[Task, str] = {"classification": "top1"}
"""The metric that stands for a set where nothing else is asked for. All are percentages."""

METRICS: dict[Task, tuple[str, ...]] = {"classification": ("top1", "top5", "mean_per_class_recall")}
"""What each task measures. `top5` needs five classes."""

_LABELS = {"top1": "top-1", "top5": "top-5", "mean_per_class_recall": "mean per-class recall"}


def label(metric: str) -> str:
    """A metric's name as people write it."""
    return _LABELS.get(metric, metric.replace("_", " "))


class EvalSet(Struct, frozen=True, kw_only=True):
    """One evaluation set: labelled shards, a `wds_*` folder of CLIP_benchmark, or a folder of class folders.

    Attributes:
        data: a dataset's name, a URL, or the path of a folder of class folders.
        split: which split of a `wds_*` folder.
        task: what is measured; empty: what `dataset_type.txt` says, else classification.
        metric: the metric that stands for the set; empty: the task's.
        names: whose class names, prompt templates and folder order hold: `imagenet` (also for V2 and Sketch),
            `imagenet-a`, `imagenet-r`, `objectnet`. Empty: those below, or those beside the shards.
        classes: the names, in the order of the labels.
        folders: class folders in the order of `classes`, where they are not named like the classes.
        templates: of prompts; each holds `{}` or `{c}` once.
        canonical: prompts in lower case without punctuation, as CLIPA-v2's own evaluation has them.
    """

    data: str
    split: str = "test"
    task: Task | Literal[""] = ""
    metric: str = ""
    names: Names = ""
    classes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    canonical: bool = False

    def __post_init__(self) -> None:
        require(bool(self.data), "data must name a dataset or a URL")
        require(self.split.replace("-", "").replace("_", "").isalnum(), f"split {self.split!r} is no folder's name")
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
        known = METRICS[self.task] if self.task else tuple(name for names in METRICS.values() for name in names)
        require(self.metric in ("", *known), f"metric {self.metric!r} is not one of {', '.join(known)}")

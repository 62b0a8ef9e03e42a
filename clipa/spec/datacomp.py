"""DataComp's evaluation: 38 sets, the metric that stands for each, and the averages over them.

Source: mlfoundations/datacomp 4a8df19, `tasklist.yml`, `eval_utils/` and `aggregate_scores.py`. FairFace and UTKFace
have no main metric there, so they count in no average. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from clipa.spec.evalset import Task


class Entry(NamedTuple):
    """One of the 38 sets.

    Attributes:
        name: as DataComp's tables have it.
        folders: names of its `wds_*` folder, the first that is there is taken.
        size: images in DataComp's copy; 0: it counts something else (WinoGAViL: 3,563 cues).
        metric: the main one.
        task: what is measured.
    """

    name: str
    folders: tuple[str, ...]
    size: int
    metric: str = "top1"
    task: Task = "classification"


def _entry(name: str, key: str, size: int, metric: str = "top1", task: Task = "classification", *more: str) -> Entry:
    words = [key, *more]
    return Entry(name, tuple(f"wds_{word}{end}" for word in words for end in ("_test", "")), size, metric, task)


_RECALL = "mean_per_class_recall"
SETS: tuple[Entry, ...] = (
    _entry("Caltech-101", "vtab-caltech101", 6085, _RECALL),
    _entry("CIFAR-10", "cifar10", 10000),
    _entry("CIFAR-100", "vtab-cifar100", 10000),
    _entry("CLEVR Counts", "vtab-clevr_count_all", 15000),
    _entry("CLEVR Distance", "vtab-clevr_closest_object_distance", 15000),
    _entry("Country211", "country211", 21100),
    _entry("Describable Textures", "vtab-dtd", 1880),
    _entry("EuroSAT", "vtab-eurosat", 5400),
    _entry("FGVC Aircraft", "fgvc_aircraft", 3333, _RECALL),
    _entry("Food-101", "food101", 25250),
    _entry("GTSRB", "gtsrb", 12630),
    _entry("ImageNet 1k", "imagenet1k", 50000),
    _entry("ImageNet Sketch", "imagenet_sketch", 50889),
    _entry("ImageNet v2", "imagenetv2", 10000),
    _entry("ImageNet-A", "imagenet-a", 7500),
    _entry("ImageNet-O", "imagenet-o", 2000),
    _entry("ImageNet-R", "imagenet-r", 30000),
    _entry("KITTI Vehicle Distance", "vtab-kitti_closest_vehicle_distance", 711),
    _entry("MNIST", "mnist", 10000),
    _entry("ObjectNet", "objectnet", 18574),
    _entry("Oxford Flowers-102", "vtab-flowers", 6149, _RECALL),
    _entry("Oxford-IIIT Pet", "vtab-pets", 3669, _RECALL),
    _entry("Pascal VOC 2007", "voc2007", 14976),
    _entry("PatchCamelyon", "vtab-pcam", 32768),
    _entry("Rendered SST2", "renderedsst2", 1821),
    _entry("RESISC45", "vtab-resisc45", 6300),
    _entry("Stanford Cars", "cars", 8041),
    _entry("STL-10", "stl10", 8000),
    _entry("SUN397", "sun397", 108754),
    _entry("SVHN", "vtab-svhn", 26032),
    _entry("Flickr", "retrieval-flickr_1k_test_image_text_retrieval", 1000, "mean_recall@1", "retrieval", "flickr30k"),
    _entry("MSCOCO", "retrieval-mscoco_2014_5k_test_image_text_retrieval", 5000, "mean_recall@1", "retrieval",
           "mscoco_captions"),
    _entry("WinoGAViL", "misc-winogavil", 0, "jaccard_10-12", "association", "winogavil"),
    _entry("iWildCam", "wilds-iwildcam", 42791, "f1_macro"),
    _entry("Camelyon17", "wilds-camelyon17", 85054),
    _entry("FMoW", "wilds-fmow", 22108, "worst_group"),
    _entry("Dollar Street", "dollar_street", 3503, "worst_group_top5", "classification", "fairness-dollar_street"),
    _entry("GeoDE", "geode", 12488, "worst_group", "classification", "fairness-geode"),
)  # fmt: skip
BY_NAME = {entry.name: entry for entry in SETS}

GROUPS: dict[str, tuple[str, ...]] = {
    "imagenet": ("ImageNet 1k",),
    "imagenet_shifts": ("ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R", "ObjectNet"),
    "vtab": (
        "Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures", "EuroSAT",
        "KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon", "RESISC45", "SVHN",
        "SUN397",
    ),
    "retrieval": ("Flickr", "MSCOCO", "WinoGAViL"),
    "average": tuple(entry.name for entry in SETS),
}  # fmt: skip
"""The averages that DataComp reports; `average` is over all 38."""


def averages(scores: Mapping[str, float]) -> dict[str, float]:
    """The averages whose every set has a score; an average over fewer sets would be another number."""
    return {
        group: sum(scores[name] for name in names) / len(names)
        for group, names in GROUPS.items()
        if all(name in scores for name in names)
    }

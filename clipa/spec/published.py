"""What the authors reported for a recipe, and how large its datasets are: facts that stand in the recipe's file.

They are no part of what is trained, so they are no part of the recipe's digest.
"""

from __future__ import annotations

from clipa.spec.base import Struct, require


class Published(Struct, frozen=True, kw_only=True):
    """One reported result.

    Attributes:
        set: the overrides, as `--set` takes them, under which it was reported; none: the recipe as it stands.
        after: the phase whose weights were scored; empty: the last one.
        top1: ImageNet-1k zero-shot top-1, in percent; None: nobody published a number, and `note` says so.
        gpu_hours, dollars: from the start to the end of `after`, on the authors' machine or by their estimate.
        compute: forward multiply-adds from the start to the end of `after`, where they plot against them.
        scores: other scores, in percent.
        source: where it stands.
        note: what a reader should know, such as a conflict between sources.
    """

    source: str
    set: tuple[str, ...] = ()
    after: str = ""
    top1: float | None = None
    gpu_hours: float | None = None
    dollars: float | None = None
    compute: float | None = None
    scores: dict[str, float] = {}
    note: str = ""

    def __post_init__(self) -> None:
        require(self.top1 is None or 0 <= self.top1 <= 100, f"top1 must be in [0, 100] percent, got {self.top1}")
        require(self.top1 is not None or bool(self.note), "a point without top1 must say why in note")
        require(all("=" in word for word in self.set), f"set must hold KEY=VALUE words, got {list(self.set)}")


class DatasetFacts(Struct, frozen=True, kw_only=True):
    """How large a dataset is: distinct samples, and bytes of one in the shards."""

    samples: int
    bytes_per_sample: int
    source: str

    def __post_init__(self) -> None:
        require(self.samples >= 1 and self.bytes_per_sample >= 1, "samples and bytes_per_sample must be >= 1")


class About(Struct, frozen=True, kw_only=True):
    """The part of a recipe's file that is not the recipe."""

    published: tuple[Published, ...] = ()
    datasets: dict[str, DatasetFacts] = {}

"""How a dataset is reached, and whether it is staged or streamed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import msgspec

from clipa.spec.cluster import Dataset


def reached(url: str, bound: Mapping[str, Dataset]) -> Dataset:
    """A URL with the options of the bound dataset that lies in the same bucket and shares the longest beginning."""
    near = [known for known in bound.values() if _bucket(known.url) == _bucket(url) and "://" in url]
    if not near:
        return Dataset(url=url)
    return msgspec.structs.replace(max(near, key=lambda known: _shared(known.url, url)), url=url, access="stage")


def _bucket(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    return scheme, rest.partition("/")[0]


def _shared(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Start(NamedTuple):
    """Whether training may begin on the first shards of a dataset that is staged, and why, where people ask that."""

    early: bool
    why: str = ""


def starts(samples: int | None, shards: int, window: int, alone: bool) -> Start:
    """Whether training may begin before a dataset is staged.

    Args:
        samples: in all its shards; None: not known of all, and then nothing is known of their order.
        shards: their number.
        window: samples that are shuffled together: whole shards, which are needed at once.
        alone: staging is a job of its own, before the first phase.
    """
    if alone or shards == 1 or (samples is not None and samples <= window):
        return Start(early=False)
    if samples is None:
        return Start(False, "staged before training begins: its manifest does not say how many samples each shard has")
    return Start(True, "training begins on its first shards, and the others are staged meanwhile")


class Choice(NamedTuple):
    """Whether a dataset is staged or streamed, and why."""

    access: Literal["stage", "stream"]
    why: str


def choose(source: Dataset, size: int, limit: int, taken: int = 0) -> Choice:
    """Stage or stream a dataset of `size` bytes where the cache may hold `limit` bytes (0: any number), of which the
    datasets before it in a mixture take some.
    """
    if source.access != "auto":
        return Choice(source.access, f'access = "{source.access}"')
    gib = f"{size / 2**30:,.1f} GiB"
    if limit and size + taken > limit:
        beside = f" beside the {taken / 2**30:,.1f} GiB before it" if taken else ""
        return Choice("stream", f"{gib} do not fit the cache's {limit / 2**30:,.1f} GiB{beside}")
    return Choice(
        "stage", f"{gib} fit the cache" + (f"'s {limit / 2**30:,.1f} GiB" if limit else ", which has no limit")
    )

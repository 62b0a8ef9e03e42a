"""Samples that cannot be used: how they are counted, told and judged."""

from __future__ import annotations

import msgspec
import pytest

from clipa.data.faults import STRETCH, Bad, Fault, Faults, Kind
from clipa.errors import DataError
from clipa.registry import events
from clipa.registry.fold import _bad_samples
from clipa.registry.state import BadSamples


def fault(kind: Kind = "image", shard: str = "0.tar", key: int = 0) -> Fault:
    return Fault(kind, shard, f"{shard}: {key}: broken")


def test_faults_are_counted_by_kind_and_shard_and_told_without_flooding() -> None:
    told: list[Bad] = []
    faults = Faults("d", 0.5, told.append)
    for number in range(500):
        bad = [fault("image" if number % 2 else "caption", f"{number % 3}.tar", number)] if number % 4 == 0 else []
        faults.add(10, bad)
    assert [sum(bad.kinds.values()) for bad in told] == [1, 10, 25, 50, 75, 100, 125]
    assert told[-1].seen == 5000
    assert told[-1].kinds == {"caption": 125}
    assert sum(told[-1].shards.values()) == 125
    assert set(told[-1].shards) == {"0.tar", "1.tar", "2.tar"}


@pytest.mark.parametrize(("limit", "stops"), [(0.0, True), (0.019, True), (0.02, False), (1.0, False)])
def test_past_the_limit_the_run_stops_with_the_list(limit: float, stops: bool) -> None:
    faults = Faults("d", limit, lambda _: None)
    batch = [fault(), fault("bomb", "7.tar", 3)]
    for _ in range(STRETCH // 100 - 1):
        faults.add(100, batch)
    if not stops:
        faults.add(100, batch)
        return
    with pytest.raises(DataError) as caught:
        faults.add(100, batch)
    assert caught.value.what.startswith(
        "20 of the last 1000 samples cannot be used: image 10, bomb 10; by shard: 0.tar 10, 7.tar 10; such as 0.tar: 0"
    )


def test_the_ranks_of_an_attempt_are_added_up_by_their_newest_word() -> None:
    def said(rank: int, image: int, caption: int) -> events.BadData:
        kinds = {"image": image, "caption": caption}
        return events.BadData(
            t=0.0, attempt=1, rank=rank, seen=99, kinds=kinds, shards={"a/0.tar": image, "a/1.tar": caption},
            examples=("a/0.tar: k: broken",),
        )  # fmt: skip

    assert _bad_samples([]) is None
    found = _bad_samples([said(0, 1, 0), said(1, 2, 1), said(0, 4, 1)])
    assert found == BadSamples(
        kinds={"image": 6, "caption": 2}, shards={"a/0.tar": 6, "a/1.tar": 2}, example="a/0.tar: k: broken"
    )
    assert found.count == 8
    again = events.parse(msgspec.json.encode(said(0, 1, 0)))
    assert again == said(0, 1, 0)

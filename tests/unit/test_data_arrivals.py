"""Shards that come while a run trains: in which order they are wanted, and what a reader does meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa.data.arrivals import Arrival, Arrivals, first_needs
from clipa.data.index import Part
from clipa.data.order import Mixture, Order
from clipa.data.shards import Coming, Reader, open_coming
from clipa.data.wds import shard_bytes
from clipa.errors import DataError, StorageError
from clipa.staging.fill import Stopped
from clipa.staging.meeting import ALIVE, FAILED, STUCK, WORKING, Wanted, make, meeting_place, wanted_in
from clipa.storage.manifest import Manifest, Shard

datasets = st.lists(
    st.tuples(st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any), st.integers(1, 9)),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40)
@given(datasets, st.integers(0, 2**63 - 1), st.integers(1, 60), st.sampled_from([1, 2, 4]), st.integers(0, 300))
def test_every_shard_is_wanted_once_and_no_sooner_than_one_that_is_read_before(
    read: list[tuple[list[int], int]], seed: int, window: int, lanes: int, step: int
) -> None:
    mixture = Mixture([Order(sizes, seed, window, lanes) for sizes, _ in read], [float(w) for _, w in read], 8)
    mine = mixture.lanes_of(0, 8 // lanes)
    shards = {number: len(sizes) for number, (sizes, _) in enumerate(read) if number != 1}
    needs = first_needs(mixture, mine, step, shards)
    assert sorted(needs) == [(number, shard) for number, count in shards.items() for shard in range(count)]
    rank = {key: place for place, key in enumerate(needs)}
    seen: dict[tuple[int, int], int] = {}
    epoch = max(sum(read[n][0]) * sum(w for _, w in read) / read[n][1] / 8 for n in shards)
    for reading in islice(mixture.readings(step, mine), 40):
        for shard in reading.shards:
            if reading.dataset in shards and reading.first <= step + 2 * epoch:
                seen.setdefault((reading.dataset, shard), reading.first)
    firsts = [seen[key] for key in sorted(seen, key=lambda key: rank[key])]
    assert firsts == sorted(firsts)


def shard(*keys: str) -> bytes:
    return shard_bytes([(key, {"jpg": b"x", "txt": key.encode()}) for key in keys])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = meeting_place(tmp_path, tmp_path / "run", "node-0", 1)
    make(folder, tmp_path / "run")
    return folder


def beating(path: Path, ends: threading.Event) -> threading.Thread:
    def beat() -> None:
        while not ends.wait(0.02):
            path.touch()

    thread = threading.Thread(target=beat)
    thread.start()
    return thread


def arrivals(place: Path, tmp_path: Path, *shards: Shard) -> Arrivals:
    return Arrivals(place, [Arrival(one, "s3://b/d", tmp_path / one.name) for one in shards])


def test_a_reader_waits_for_the_shard_and_its_index_and_says_so(place: Path, tmp_path: Path) -> None:
    raw = shard("a", "b")
    row = Shard(name="0.tar", size=len(raw), samples=2)
    manifest = Manifest(url="s3://b/d", shards=(row,))
    sign = tmp_path / "heartbeat" / "1-waiting-here"
    reader = Reader(open_coming(manifest, tmp_path, Coming(place, sign)), Part.CAPTION)
    ends = threading.Event()
    beats = [beating(place / name, ends) for name in (ALIVE, WORKING)]
    making = threading.Thread(target=arrivals(place, tmp_path, row).run)
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append(reader.read(1).other))
    try:
        making.start()
        reading.start()
        _until(sign.exists)
        assert found == []
        (tmp_path / ".part").write_bytes(raw)
        os.replace(tmp_path / ".part", tmp_path / "0.tar")
        reading.join(20)
        making.join(20)
        assert found == [b"b"]
    finally:
        ends.set()
        for beat in beats:
            beat.join()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_why_nobody_brings_a_shard_is_said_by_all_that_wait_for_it(place: Path, tmp_path: Path) -> None:
    row = Shard(name="0.tar", size=10, samples=2)
    (place / STUCK).write_text("s3://b/d/0.tar: there is no such object")
    with pytest.raises(StorageError, match="no such object"):
        arrivals(place, tmp_path, row).run()
    (place / FAILED).write_text("s3://b/d/0.tar: there is no such object")
    manifest = Manifest(url="s3://b/d", shards=(row,))
    reader = Reader(open_coming(manifest, tmp_path, Coming(place, tmp_path / "sign")), Part.CAPTION)
    with pytest.raises(StorageError, match="no such object"):
        reader.read(0)


@pytest.mark.parametrize("said", [1, 3])
def test_a_shard_that_holds_another_number_of_samples_is_refused_by_name(
    place: Path, tmp_path: Path, said: int
) -> None:
    raw = shard("a", "b")
    (tmp_path / "0.tar").write_bytes(raw)
    row = Shard(name="0.tar", size=len(raw), samples=said)
    with pytest.raises(DataError, match=f"2 samples have an image and a caption, the manifest says {said}") as found:
        arrivals(place, tmp_path, row).run()
    assert found.value.where == "s3://b/d/0.tar"
    # Its index is there now: a reader that sees it first does not read on.
    manifest = Manifest(url="s3://b/d", shards=(row,))
    reader = Reader(open_coming(manifest, tmp_path, Coming(place, tmp_path / "sign")), Part.CAPTION)
    with pytest.raises(StorageError, match=f"2 samples are in it, its manifest says {said}"):
        reader.read(0)


def test_it_leaves_when_it_is_asked_to(place: Path, tmp_path: Path) -> None:
    waiting = arrivals(place, tmp_path, Shard(name="0.tar", size=10, samples=2))
    waiting.leave()
    with pytest.raises(Stopped):
        waiting.run()


def test_a_meeting_place_is_made_anew_and_what_earlier_attempts_left_there_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "20261125-r-[1]"
    before, other = meeting_place(tmp_path, run, "node-0", 1), meeting_place(tmp_path, run, "node-1", 1)
    for folder in (before, other):
        make(folder, run)
    wanted = Wanted(digests=("d",), shards=((0, 2), (0, 1)))
    wanted.leave_in(before)
    assert wanted_in(before) == wanted
    now = meeting_place(tmp_path, run, "node-0", 2)
    make(now, run)
    assert wanted_in(now) is None
    assert sorted((tmp_path / "streamed").iterdir()) == sorted([now, other])

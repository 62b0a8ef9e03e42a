"""What one node holds of a streamed dataset: the windows around the trainer's step, wherever that goes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from clipa.data.order import Mixture, mixture_of
from clipa.data.streamer import Source, Streamer, _Node
from clipa.data.wds import shard_bytes
from clipa.registry.run_dir import write_whole
from clipa.spec import plan as plans
from clipa.spec.cluster import Dataset
from clipa.spec.inputs import ImageInput, TextInput
from clipa.spec.job import Optim, Portion, Pretrain
from clipa.staging.fill import Stopped
from clipa.storage import manifest as manifests
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Store
from tests.services.train_runs import make_run

SHARDS, EACH, BATCH = 40, 8, 8
PHASE = Pretrain(data="d", samples=8000, batch=BATCH, image=ImageInput(size=8), text=TextInput(tokens=8),
                 optim=Optim(lr=1e-3), shuffle_window=16, lanes=2)  # fmt: skip


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Running:
    def __init__(self, folder: Path) -> None:
        source = folder / "source"
        source.mkdir()
        rows = []
        for number in range(SHARDS):
            raw = shard_bytes([(f"{number}-{n}", {"jpg": b"j", "txt": b"t"}) for n in range(EACH)])
            (source / f"{number}.tar").write_bytes(raw)
            rows.append(
                Shard(name=f"{number}.tar", size=len(raw), sha256=hashlib.sha256(raw).hexdigest(), samples=EACH)
            )
        self.manifest = Manifest(url=f"file://{source}", shards=tuple(rows))
        self.folder = folder / "here"
        self.folder.mkdir()
        self.mixture: Mixture = mixture_of(PHASE, [[EACH] * SHARDS], 7)
        self.error: BaseException | None = None

    def start(self, slots: range, stop: int = 10**6, limit: int = 0) -> Streamer:
        store = Store(Dataset(url=self.manifest.url))
        lanes = self.mixture.lanes_of(slots.start, slots.stop)
        streamer = Streamer({0: Source(self.manifest, store, self.folder)}, self.mixture, lanes)

        def run() -> None:
            try:
                streamer.run(0, stop, 2, limit)
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()
        self.streamer = streamer
        return streamer

    def here(self) -> set[int]:
        return {int(path.stem) for path in self.folder.glob("*.tar")}

    def read_at(self, step: int, slots: range) -> set[int]:
        places = self.mixture.at(step * BATCH + slots.start, step * BATCH + slots.stop)
        return {place.number // EACH for place in places}

    def end(self) -> None:
        self.streamer.leave()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize("slots", [range(8), range(4), range(4, 8)], ids=["all", "first half", "second half"])
def test_every_step_finds_its_shards_and_nothing_is_held_for_ever(running: Running, slots: range) -> None:
    streamer = running.start(slots)
    for step in range(90):
        until(lambda step=step: running.read_at(step, slots) <= running.here())
        streamer.tell(step + 1)
        # Two lanes, windows of a shard or two: three of each ahead, and those of the last 16 steps behind.
        assert len(running.here()) <= 30


def test_training_that_goes_back_finds_what_was_removed(running: Running) -> None:
    """A loss that rises is seen up to 256 steps later: then steps come again whose shards are gone."""
    streamer = running.start(range(4))
    for step in range(36):
        until(lambda step=step: running.read_at(step, range(4)) <= running.here())
        streamer.tell(step + 1)
    until(lambda: not running.read_at(0, range(4)) & running.here())
    streamer.tell(1)
    for step in range(1, 60):
        until(lambda step=step: running.read_at(step, range(4)) <= running.here())
        streamer.tell(step + 1)


def test_what_cannot_be_had_is_raised_and_what_was_asked_to_leave_leaves(running: Running) -> None:
    streamer = running.start(range(8))
    streamer.leave()
    running.thread.join(60)
    assert isinstance(running.error, Stopped)
    for path in (running.folder.parent / "source").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:-1])
    running.folder = running.folder.parent / "again"
    running.folder.mkdir()
    running.start(range(8))
    running.thread.join(60)
    assert not isinstance(running.error, Stopped)
    assert "tar" in str(running.error)


def test_what_is_streamed_needs_no_count_of_what_is_staged_beside_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mixed", data=(Portion(name="squares", weight=1.0), Portion(name="uncounted", weight=3.0)))
    plan = plans.decode(run.plan.read_bytes())
    assert plan.data is not None
    counted, not_counted = (
        Manifest(url="s3://b/d", shards=tuple(Shard(name=f"{n}.tar", size=n, samples=many) for n in range(2)))
        for many in (30, None)
    )
    not_counted = msgspec.structs.replace(not_counted, shards=not_counted.shards[1:])
    for manifest in (counted, not_counted):
        write_whole(run.manifest(manifest.digest), manifests.encode(manifest))
    streamed = msgspec.structs.replace(plan.data, manifest=counted.digest, access="stream")
    staged = msgspec.structs.replace(plan.data, manifest=not_counted.digest, name="uncounted")
    node = _Node(run, msgspec.structs.replace(plan, data=streamed, mixed=(staged,)), tmp_path, 0)
    assert {reading.dataset for reading in islice(node._mixture.readings(0, node._lanes, [0]), 9)} == {0}

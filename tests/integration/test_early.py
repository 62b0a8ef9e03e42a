"""Training that begins on the first verified shards, while the rest of its dataset is staged: under a real supervisor,
from a real server that holds back what is asked for later.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from clipa.data.arrivals import first_needs
from clipa.data.order import mixture_of
from clipa.data.pinned import opened
from clipa.errors import StorageError
from clipa.host.attempt import Leaving
from clipa.host.supervisor import Supervisor, Task
from clipa.registry import events
from clipa.registry.run_dir import RunDir
from clipa.registry.scan import scan
from clipa.spec import plan as plans
from clipa.spec.job import TrainPhase
from clipa.spec.plan import Limits
from clipa.staging import cache as caches
from clipa.staging.meeting import Wanted, make, meeting_place
from clipa.staging.receipt import Receipts
from tests.services.bucket_runs import EACH, SHARDS, Bucket, in_thread, said, supervised, until, weights
from tests.services.faults import FaultProxy
from tests.services.s3 import client, new_bucket
from tests.services.stage_runs import parts

pytest_plugins = ["tests.services.wire"]


AHEAD = 8
"""Shards that are on their way at a time (clipa.staging.fill.THREADS)."""


@pytest.fixture
def proxy(streamed: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return streamed


@pytest.fixture(scope="module")
def reference(server: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run whose dataset was staged before it began."""
    bucket = Bucket(tmp_path_factory.mktemp("reference"), client(server), new_bucket(server), server)
    dataset = bucket.dataset("d")
    bucket.stage(dataset)
    run = bucket.run("straight", (dataset, "stage"))
    assert supervised(run) == 0
    return weights(run)


@pytest.fixture
def bucket(tmp_path: Path, server: str, proxy: FaultProxy) -> Bucket:
    return Bucket(tmp_path, client(server), new_bucket(server), proxy.url)


def asked_for(proxy: FaultProxy, since: int = 0) -> list[str]:
    """The shards that were asked for, by name, in order; the same one twice where the server was slow to answer."""
    names = [name_in(path) for verb, path in proxy.paths[since:] if verb == "GET"]
    return [name for name in names if name.endswith(".tar")]


def name_in(path: str) -> str:
    return urlsplit(path).path.rpartition("/")[2]


class Held:
    """The server answers requests for a few shards alone, those that are needed first, until it is let go."""

    def __init__(self, proxy: FaultProxy, run: RunDir, first: int) -> None:
        plan = plans.decode(run.plan.read_bytes())
        assert plan.data is not None
        assert isinstance(plan.settings, TrainPhase)
        mixture = mixture_of(plan.settings, [[EACH] * plan.data.shards], plan.seed)
        needs = first_needs(mixture, range(1), 0, {0: plan.data.shards})
        self.go = threading.Event()
        self._free = {f"{shard}.tar" for _, shard in needs[:first]}
        proxy.on_path = self._wait

    def _wait(self, path: str) -> None:
        if name_in(path) not in self._free:
            self.go.wait(250)


def test_training_begins_on_the_first_shards_and_is_bit_for_bit_what_it_is_when_all_are_there(
    bucket: Bucket, proxy: FaultProxy, reference: bytes
) -> None:
    dataset = bucket.dataset("d")
    run = bucket.run("early", (dataset, "early"))
    held, seen = Held(proxy, run, 12), []

    def why() -> str:
        return scan([run.path.parent], only=[run.id]).statuses[0].why

    def watch() -> None:
        try:
            until(lambda: said(run, "train", events.Step))
            until(lambda: why().startswith("staging 12 "))
            seen.append(bucket.whole(dataset))
            seen.append(why())
        finally:
            held.go.set()

    watching = in_thread(watch)
    assert supervised(run) == 0
    watching.join()
    assert seen == [12, "staging 12 of 24 shards (0.0 of 0.0 GiB), training meanwhile"]
    assert bucket.whole(dataset) == SHARDS
    assert all(Receipts(bucket.staged(dataset)).vouches(shard.name) for shard in dataset.shards)
    assert [(e.shards, e.of_shards) for e in said(run, "arrive", events.Arriving)][-1] == (SHARDS, SHARDS)
    assert list((bucket.cache / "streamed").iterdir()) == []
    assert weights(run) == reference


@pytest.mark.long
def test_a_run_that_ends_before_all_is_there_does_not_wait_and_the_next_goes_on(
    bucket: Bucket, proxy: FaultProxy
) -> None:
    """The phases of a pipeline: the second finds what the first has staged, and brings what it lacks."""
    dataset = bucket.dataset("d")
    short = bucket.run("short", (dataset, "early"), steps=8)
    held = Held(proxy, short, 12)
    assert supervised(short) == 0
    assert bucket.whole(dataset) <= 12
    held.go.set()
    there = {shard.name for shard in dataset.shards if (bucket.staged(dataset) / shard.name).exists()}
    before = len(proxy.paths)
    run = bucket.run("next", (dataset, "early"))
    assert supervised(run) == 0
    assert bucket.whole(dataset) == SHARDS
    assert not there & set(asked_for(proxy, before)), "what was there was not read again"
    assert parts(bucket.staged(dataset)) == []


def test_killed_with_all_that_it_started_and_resumed(bucket: Bucket, proxy: FaultProxy, reference: bytes) -> None:
    dataset = bucket.dataset("d")
    run = bucket.run("killed", (dataset, "early"))
    held = Held(proxy, run, 14)
    code = "from clipa.host.supervisor import *; Supervisor([Task({!r}, 1)], Leaving()).execute()"
    supervisor = subprocess.Popen([sys.executable, "-c", code.format(str(run.path))])
    until(lambda: run.complete_checkpoints() and bucket.whole(dataset) == 14)
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    held.go.set()
    there = {shard.name for shard in dataset.shards if (bucket.staged(dataset) / shard.name).exists()}
    before = len(proxy.paths)
    assert Supervisor([Task(str(run.path), 2)], Leaving()).execute() == 0
    assert weights(run) == reference
    assert bucket.whole(dataset) == SHARDS
    assert not there & set(asked_for(proxy, before)), "what was there was not read again"
    assert list((bucket.cache / "streamed").iterdir()) == []


def test_a_store_that_refuses_is_found_out_before_a_rank_starts(bucket: Bucket) -> None:
    dataset = bucket.dataset("d", 3)
    away = msgspec.structs.replace(dataset, url=f"{dataset.url}-away")
    run = bucket.run("away", (away, "early"), limits=Limits(max_attempts=1, time_limit_minutes=5))
    assert supervised(run) == 1
    assert said(run, "supervisor", events.Spawned) == []
    assert f"{away.url}/0.tar" in said(run, "supervisor", events.Ended)[-1].error


@pytest.mark.long
def test_a_shard_that_is_not_there_ends_the_run_by_name(bucket: Bucket) -> None:
    dataset = bucket.dataset("d", 6)
    gone = msgspec.structs.replace(dataset.shards[3], name="gone.tar")
    dataset = msgspec.structs.replace(dataset, shards=(*dataset.shards, gone))
    run = bucket.run("gone", (dataset, "early"), limits=Limits(max_attempts=1, time_limit_minutes=5))
    assert supervised(run) == 1
    error = said(run, "supervisor", events.Ended)[-1].error
    assert "gone.tar" in error
    assert "Traceback" not in error


def test_a_mixture_is_staged_streamed_or_both_and_the_weights_are_the_same(bucket: Bucket, proxy: FaultProxy) -> None:
    one, two, three = bucket.dataset("one"), bucket.dataset("two", 7), bucket.dataset("three", 5)
    mixed = bucket.run("mixed", (one, "early"), (two, "stream"), (three, "stage"))
    assert supervised(mixed) == 0
    assert bucket.whole(three) == 5
    assert bucket.whole(two) == 0
    assert list((bucket.cache / "streamed").iterdir()) == []
    for dataset in (one, two):
        bucket.stage(dataset)
    staged = bucket.run("staged", (one, "stage"), (two, "stage"), (three, "stage"))
    assert supervised(staged) == 0
    assert weights(mixed) == weights(staged)


def arriving(run: RunDir, cache: Path, node: int, wanted: Wanted) -> subprocess.Popen[bytes]:
    """What one node of an attempt has: the staging process, told of an order by ranks."""
    folder = meeting_place(cache, run.path, f"node-{node}", 1)
    make(folder, run.path)
    wanted.leave_in(folder)
    argv = [sys.executable, "-m", "clipa.staging.arrive", str(run.path), str(folder), "--attempt", "1"]
    return subprocess.Popen([*argv, "--until", str(cache / f"until-{node}")])


def test_nodes_that_share_a_folder_share_the_work_and_one_that_dies_holds_up_nobody(
    bucket: Bucket, proxy: FaultProxy
) -> None:
    dataset = bucket.dataset("d")
    run = bucket.run("nodes", (dataset, "early"))
    held = Held(proxy, run, 4)
    rows = tuple((0, number) for number in range(SHARDS))
    nodes = [arriving(run, bucket.cache, n, Wanted(digests=(dataset.digest,), shards=rows)) for n in range(2)]
    try:
        until(lambda: proxy.ranges >= 2 * AHEAD)  # each of them waits for eight, or nearly
        swept = caches.sweep(bucket.cache, 0, by=lambda _: True)
        assert swept.kept[str(bucket.staged(dataset))] == "needed by nodes"
        nodes[0].kill()
        held.go.set()
        assert nodes[1].wait(60) == 0
    finally:
        for node in nodes:
            node.kill()
            node.wait()
    assert bucket.whole(dataset) == SHARDS
    assert max(Counter(asked_for(proxy)).values()) <= 3, "by each of them at most, and once more where it waited"


def test_replayed_by_hand_it_says_what_is_to_be_staged(bucket: Bucket) -> None:
    dataset = bucket.dataset("d", 3)
    run = bucket.run("hand", (dataset, "early"))
    begun = opened(run, plans.decode(run.plan.read_bytes()), 1, 0, lambda: None, None)
    with pytest.raises(StorageError, match="3 of 3 shards of d are not staged") as found, begun:
        pass
    assert found.value.hint == f"python -m clipa.staging.stage {run.path} --attempt 1"

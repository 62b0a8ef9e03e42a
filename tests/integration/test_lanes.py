"""Two nodes that stream a dataset in two lanes: each downloads its half, and the samples are those of one process."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from test_data_proof import DRIVER, read
from test_stream import EACH, SHARDS, Pair, server  # noqa: F401

from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.plan import World
from tests.services.faults import FaultProxy, fault_proxy
from tests.services.train_runs import BATCH

STEPS = SHARDS * EACH // BATCH

TAR = re.compile(r"/d/(\d)\.tar")

# A node of its own, as far as folders are concerned: they are told apart by the host's name.
NODE = "import socket, sys; name = sys.argv.pop(1); socket.gethostname = lambda: name\n" + DRIVER


@pytest.fixture
def wires(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FaultProxy]]:  # noqa: F811
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with fault_proxy(server) as one, fault_proxy(server) as other:
        yield [one, other]


def shaped(run: RunDir, world: World) -> RunDir:
    plan = plans.decode(run.plan.read_bytes())
    assert plan.data is not None
    data = msgspec.structs.replace(plan.data, source=msgspec.structs.replace(plan.data.source, endpoint=""))
    write_whole(run.plan, plans.encode(msgspec.structs.replace(plan, world=world, steps=STEPS, data=data)))
    assert run.claim(1)
    return run


def start(run: RunDir, folder: Path, wires: list[FaultProxy]) -> list[subprocess.Popen[str]]:
    """One rank on each of as many nodes as there are wires."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = []
    for node, wire in enumerate(wires):
        argv = [sys.executable, "-c", NODE, f"node{node}", str(folder / f"{run.id}-1-{node}"), str(run.path)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env |= {"WORLD_SIZE": str(len(wires)), "RANK": str(node), "LOCAL_RANK": "0", "AWS_ENDPOINT_URL": wire.url}
        started.append(
            subprocess.Popen(
                [*argv, "--attempt", "1"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def test_each_node_downloads_its_lanes_alone_and_the_samples_are_those_of_one_process(
    make_run: Callable[..., RunDir],
    tmp_path: Path,
    server: str,  # noqa: F811
    wires: list[FaultProxy],
) -> None:
    pair = Pair(make_run, tmp_path / "cache", server, "")
    one = shaped(pair.run("one", "stage", lanes=2), World(processes=1, loader_workers=0))
    two = shaped(pair.run("two", "stream", lanes=2), World(processes=2, nodes=2, loader_workers=0))
    for run, own in ((one, wires[:1]), (two, wires)):
        for rank in start(run, tmp_path, own):
            assert rank.wait(120) == 0, rank.communicate()[1]
    expected, found = (read(tmp_path, run)[1] for run in (one, two))
    assert sorted(expected) == sorted(found) == list(range(STEPS))
    for step in range(STEPS):
        assert sorted(found[step]) == sorted(expected[step]), step
    epoch = [key for step in range(STEPS) for key in expected[step]]
    assert len(set(epoch)) == len(epoch) == SHARDS * EACH
    brought = [
        [shard for method, path in wire.paths if method == "GET" for shard in TAR.findall(path)] for wire in wires
    ]
    # Half of the epoch, and the window of the next one that a loader ahead would read.
    assert all(SHARDS // 2 <= len(shards) <= SHARDS // 2 + 1 for shards in brought), brought
    assert {shard for shards in brought for shard in shards} == {str(number) for number in range(SHARDS)}, brought

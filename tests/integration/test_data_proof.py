"""The samples of a step are the same whoever reads them: real trainers, killed at random, resumed as other worlds.

In two lanes: one process reads both, each of two has its own, and of four two share one. With a single lane, the same
code, test_train_resume.py compares weights.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec

from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from tests.services.attempts import STEPS
from tests.services.train_runs import BATCH

# Every step's keys, told by the process that made it, at once. Slowly, so that there is time to kill.
DRIVER = """
import json, sys, time
from clipa.data import pipeline, shards
from clipa.train.__main__ import main
said = sys.argv.pop(1)
read, make = shards.Reader.read, pipeline._TrainShare.__call__
keys = []
def reading(self, number):
    sample = read(self, number)
    keys.append(sample.key)
    return sample
def making(self, step):
    keys.clear()
    batch = make(self, step)
    with open(said, "a") as file:
        file.write(json.dumps([step, keys]) + "\\n")
    time.sleep(0.05)  # time to kill
    return batch
shards.Reader.read, pipeline._TrainShare.__call__ = reading, making
sys.exit(main())
"""


def start(run: RunDir, attempt: int, world: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    plan = plans.decode(run.plan.read_bytes())
    shape = msgspec.structs.replace(plan.world, processes=world, loader_workers=0)
    write_whole(run.plan, plans.encode(msgspec.structs.replace(plan, world=shape)))
    assert run.claim(attempt)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = []
    for rank in range(world):
        said = folder / f"{run.id}-{attempt}-{rank}"
        argv = [sys.executable, "-c", DRIVER, str(said), str(run.path), "--attempt", str(attempt)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    return started


def read(folder: Path, run: RunDir) -> dict[int, dict[int, list[str]]]:
    """By attempt and step, the keys that all ranks of the attempt read."""
    found: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for path in folder.glob(f"{run.id}-*-*"):
        for line in path.read_text().splitlines():
            if line.endswith("]]"):  # a torn last line is what a kill leaves
                step, keys = json.loads(line)
                found[int(path.name.split("-")[1])][step] += keys
    return found


def newest(run: RunDir) -> int:
    """The step of the newest checkpoint; old ones are pruned, so their number says nothing."""
    return max([0, *(step for step, _ in run.complete_checkpoints())])


def test_every_step_has_the_samples_of_an_uninterrupted_run(
    make_run: Callable[..., RunDir],
    tmp_path: Path,
) -> None:
    straight, killed = (make_run(name, lanes=2) for name in ("straight", "killed"))
    assert [rank.wait(120) for rank in start(straight, 1, 1, tmp_path)] == [0]
    whole = read(tmp_path, straight)[1]
    assert sorted(whole) == list(range(STEPS))
    chance = random.Random()
    for attempt, world in ((1, 2), (2, 1), (3, 4)):
        ranks = start(killed, attempt, world, tmp_path)
        before = newest(killed)
        deadline = time.monotonic() + 90
        while newest(killed) == before:
            assert time.monotonic() < deadline
            assert all(rank.poll() is None for rank in ranks), "it ended before it could be killed"
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.wait(120) for rank in start(killed, 4, 2, tmp_path)] == [0, 0]
    found = read(tmp_path, killed)
    seen = set()
    for attempt in found.values():
        for step, keys in attempt.items():
            if len(keys) == BATCH:  # all ranks came to make it
                assert sorted(keys) == sorted(whole[step])
                seen.add(step)
    assert seen == set(range(STEPS))
    assert min(found[4]) > 0

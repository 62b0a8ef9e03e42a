<<<<<<< HEAD
"""Ranks of a training, forked from one process that has imported torch: so many imports would outlast a test."""
=======
"""The ranks of one attempt, started as a supervisor starts them, for tests that kill them."""
>>>>>>> 77a922e (Tests: what starts and kills ranks is a service, and no test imports another; PyJWT is a dependency of the tests' registry)

from __future__ import annotations

import os
<<<<<<< HEAD
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from clipa.attempt.devices import Ranks


def forked(world: int, store: Path, work: Callable[[Ranks], None]) -> None:
    """Do the work on so many ranks, which meet in a file that is not there yet (gloo); all must do well."""
    children = []
    for rank in range(world):
        if not (child := os.fork()):
            code = 1
            try:
                _rank(rank, world, store, work)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * world, codes


def _rank(rank: int, world: int, store: Path, work: Callable[[Ranks], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    work(Ranks(rank, world, torch.device("cpu")))
    dist.barrier()
    dist.destroy_process_group()
=======
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from clipa.registry import events
from clipa.registry.run_dir import RunDir

STEPS = 40


def start(run: RunDir, attempt: int, world: int) -> list[subprocess.Popen[str]]:
    """Claim an attempt and start its ranks."""
    assert run.claim(attempt)
    argv = [sys.executable, "-m", "clipa.train", str(run.path), "--attempt", str(attempt)]
    environments: list[dict[str, str]] = [{}]
    if world > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(world)}
        environments = [{**meet, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    base = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return [subprocess.Popen(argv, env=base | own, text=True, **pipes) for own in environments]


def finish(ranks: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit codes of the ranks, and what they said."""
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], "\n".join(said)


def steps_of(run: RunDir, attempt: int) -> list[events.Step]:
    """What an attempt told of its steps."""
    return [e for e in events.read(run.event_file(attempt, "train")) if isinstance(e, events.Step)]


def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def final_bytes(run: RunDir) -> bytes:
    """The weights after the last step."""
    return (run.step_dir(STEPS) / "model.safetensors").read_bytes()
>>>>>>> 77a922e (Tests: what starts and kills ranks is a service, and no test imports another; PyJWT is a dependency of the tests' registry)

"""The ranks of one attempt, started as a supervisor starts them, for tests that kill them."""

from __future__ import annotations

import os
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
    return [
        subprocess.Popen(argv, env=base | own, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for own in environments
    ]


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

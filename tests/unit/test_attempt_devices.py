"""Ranks that part: after their work together, and after an error each for itself."""

import os
import socket
import subprocess
import sys

import pytest

RANK = """
import atexit, os, sys
import torch.distributed as dist
from clipa.attempt.devices import joined
from clipa.attempt.process import leave
from clipa.spec.plan import World
fails = sys.argv[1] == "fails"


def say(text):
    sys.stdout.write(text + "\\n")  # one write: two processes share the pipe


children = []
for rank in range(2):
    if not (child := os.fork()):
        os.environ["RANK"] = str(rank)
        break
    children.append(child)
else:
    print("codes", *(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    sys.exit()
try:
    with joined(World(processes=2), 1.0) as ranks:
        assert ranks.greatest((ranks.rank,)) == (1,)
        if fails:
            raise ValueError("what went wrong")
except ValueError as error:
    say(f"{error} {dist.is_initialized()}")
else:
    say(f"parted {dist.is_initialized()}")
atexit.register(say, "the end of the interpreter")
leave(1 if fails else 0)
"""


@pytest.mark.parametrize(("how", "said", "code"), [
    ("works", ["parted False", "the end of the interpreter"], 0), ("fails", ["what went wrong True"], 1),
])  # fmt: skip
def test_communicators_are_torn_down_together_or_not_at_all(how, said, code):
    """NCCL's tear-down waits for the other ranks, which may be dead or elsewhere where one has failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RANK, how], env=env, capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.splitlines()) == sorted([*said, *said, f"codes {code} {code}"]), done.stderr

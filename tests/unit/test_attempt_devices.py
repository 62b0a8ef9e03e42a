"""Ranks that part: after their work together, and after an error each for itself."""

import os
import socket
import subprocess
import sys

import pytest

RANK = """
import sys
import torch.distributed as dist
from clipa.attempt.devices import joined
from clipa.attempt.process import leave
from clipa.spec.plan import World
fails = sys.argv[1] == "fails"
try:
    with joined(World(processes=2), 1.0) as ranks:
        assert ranks.greatest((ranks.rank,)) == (1,)
        if fails:
            raise ValueError("what went wrong")
except ValueError as error:
    print(error, dist.is_initialized())
else:
    print("parted", dist.is_initialized())
import atexit
atexit.register(print, "the end of the interpreter")
leave(1 if fails else 0)
"""


@pytest.mark.parametrize(("how", "said", "code"), [
    ("works", "parted False\nthe end of the interpreter\n", 0), ("fails", "what went wrong True\n", 1),
])  # fmt: skip
def test_communicators_are_torn_down_together_or_not_at_all(how, said, code):
    """NCCL's tear-down waits for the other ranks, which may be dead or elsewhere where one has failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    base = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, how], env=base | {"RANK": str(r)}, stdout=subprocess.PIPE,
                         text=True)
        for r in range(2)
    ]  # fmt: skip
    assert [(rank.communicate(timeout=120)[0], rank.returncode) for rank in ranks] == [(said, code)] * 2

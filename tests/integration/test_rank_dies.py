"""A rank that dies takes the others with it in seconds, also where they cannot see it."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from threading import Thread

import pytest

from clipa.host.attempt import FOLLOW_S, Leaving
from clipa.host.supervisor import Supervisor, Task
from clipa.registry import events
from clipa.spec.plan import Limits, World
from tests.services.train_runs import make_run


def _words(run, kind):
    return [e for e in events.read(run.event_file(1, "supervisor")) if isinstance(e, kind)]


@pytest.fixture
def temporary(monkeypatch):
    """A folder for temporary files, short enough for sockets, whose paths have at most 107 bytes."""
    folder = tempfile.mkdtemp(prefix="t-")
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield Path(folder)
    shutil.rmtree(folder)


def test_a_rank_that_dies_takes_one_down_that_stands_still(tmp_path, temporary):
    limits = Limits(max_attempts=1, time_limit_minutes=5)
    run = make_run(tmp_path, "dies", 2000, world=World(processes=2), limits=limits, save_steps=20)
    work = Thread(target=lambda: Supervisor([Task(str(run.path), 1)], Leaving()).execute())
    work.start()
    deadline = time.monotonic() + 90
    while not run.complete_checkpoints():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert list(temporary.glob("clipa-*/pymp-*")), "where loader workers meet"
    stands, dies = _words(run, events.Spawned)[-1].pids
    os.kill(stands, signal.SIGSTOP)  # as one that waits in a collective whose time-out is far away
    os.kill(dies, signal.SIGKILL)
    killed = time.time()
    work.join(60)
    assert not work.is_alive()
    (ended,) = _words(run, events.Ended)
    assert FOLLOW_S <= ended.t - killed < FOLLOW_S + 10
    assert ended.error.startswith("pretrain was ended by SIGKILL from outside")
    left = [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]  # a cache
    assert left == [], "nothing of killed ranks"

"""Loader workers as processes: what they are forked from, whom they die with, and what is said when they die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipa.made import demo
from tests.services.batches import children, server

ROOT = Path(__file__).resolve().parents[2]
READER = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from clipa.data.pipeline import train_batches
from clipa.errors import DataError
from tests.services.batches import children, phase, server
from tests.services import batches


def opened():
    shards = batches.opened(Path({bucket!r}), "train")
    found = train_batches(shards, phase(), seed=0, rank=0, world=1, start_step=0, stop_step=10**9, workers=2,
                          pin=False)
    next(found)
    return found


def died(stream):
    try:
        for _ in stream:
            pass
    except DataError as error:
        print(error.what, flush=True)


stream = opened()
print("ready", flush=True)
{then}
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bucket")
    demo.write(str(folder))
    return folder


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


class Reader:
    """A process that reads batches by two workers, and then does what a test wants."""

    def __init__(self, bucket: Path, then: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER.format(root=str(ROOT), bucket=str(bucket), then=then)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert self.says() == "ready"
        self.pid, self.server, self.others = self.process.pid, server(self.process.pid), children(self.process.pid)
        self.workers = children(self.server)
        assert len(self.workers) == 2

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> None:
        """Kill it. Nothing that it started stays behind."""
        self.process.kill()
        with self.process:
            pass
        wait_for(lambda: all(gone(pid) for pid in (*self.others, *self.workers)))


@pytest.fixture
def reading(bucket: Path) -> Iterator[Callable[[str], Reader]]:
    readers: list[Reader] = []

    def start(then: str) -> Reader:
        readers.append(Reader(bucket, then))
        return readers[-1]

    yield start
    for reader in readers:
        reader.end()


def test_workers_are_forked_by_one_thread_and_die_with_a_killed_parent(
    reading: Callable[[str], Reader], capfd: pytest.CaptureFixture[str]
) -> None:
    reader = reading("time.sleep(600)")
    # gloo's threads and a fork: a worker that hung in PyOS_AfterFork_Child, and a training that waited for ever.
    assert len(os.listdir(f"/proc/{reader.server}/task")) == 1
    reader.process.kill()
    reader.process.wait()
    wait_for(lambda: all(gone(pid) for pid in reader.workers), 2.0)  # torch's own watch is for forked workers
    reader.end()
    assert capfd.readouterr().err == ""


def test_a_killed_worker_and_a_killed_server_are_our_errors(reading: Callable[[str], Reader]) -> None:
    reader = reading(
        """
os.kill(children(server(os.getpid()))[-1], signal.SIGKILL)
died(stream)
again = opened()
print(*children(server(os.getpid())), flush=True)
os.kill(server(os.getpid()), signal.SIGKILL)
died(again)
"""
    )
    assert re.fullmatch(r"a data worker died: process \d+ killed by SIGKILL", reader.says())
    workers = [int(pid) for pid in reader.says().split()]
    assert len(workers) == 2
    assert reader.says().startswith("a data worker died")
    wait_for(lambda: all(gone(pid) for pid in workers), 2.0)


def test_workers_leave_ctrl_c_to_their_parent_and_end_with_a_closed_stream(reading: Callable[[str], Reader]) -> None:
    reader = reading(
        """
hits = []
signal.signal(signal.SIGINT, lambda *_: hits.append(1))
print("armed", flush=True)
while not hits:
    next(stream)
for _ in range(20):
    next(stream)
print("went on", flush=True)
stream.close()
print("closed", flush=True)
time.sleep(600)
"""
    )
    assert reader.says() == "armed"
    os.killpg(reader.pid, signal.SIGINT)
    assert reader.says() == "went on"
    assert reader.says() == "closed"
    wait_for(lambda: all(gone(pid) for pid in reader.workers), 20.0)

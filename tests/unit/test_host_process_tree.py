"""A run's processes: all found and ended, also those that are stopped, in another group, or in another session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from clipa.host.process_tree import ProcessTree
from clipa.host.scratch import mark_of
from clipa.registry.liveness import identity_of, is_stopped, same_process
from clipa.registry.run_dir import RunDir

_TREE = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
ignores = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(600)"]
stop_file = {"CLIPA_STOP_FILE": sys.argv[1] + "1-x/stop"}
child = subprocess.Popen(ignores, process_group=0, stdout=subprocess.PIPE)
child.stdout.readline()
if not os.fork():  # a daemon: another session, and init is its parent
    os.setsid()
    daemon = subprocess.Popen(sleep, env={**os.environ, **stop_file}, start_new_session=True)
    print(child.pid, daemon.pid, flush=True)
    os._exit(0)
time.sleep(600)
"""


@pytest.fixture
def tree(tmp_path):
    run = RunDir(tmp_path / "runs" / "r")
    argv = [sys.executable, "-c", _TREE, f"/tmp/{mark_of(run)}"]
    supervisor = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert supervisor.stdout
    pids = [supervisor.pid, *map(int, supervisor.stdout.readline().split())]
    known = [(pid, identity_of(pid).start_ticks) for pid in pids]
    yield run, known, supervisor
    for pid, ticks in known:
        if same_process(pid, ticks):
            os.kill(pid, signal.SIGKILL)
    supervisor.wait()


def test_every_process_ends_although_all_are_stopped(tree):
    run, known, _ = tree
    for pid, _ in known:
        os.kill(pid, signal.SIGSTOP)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as unrelated:
        assert ProcessTree(run, known[:1]).members() == sorted(known)
        assert ProcessTree(run, known[:1]).end(1.0) == []
        assert not any(same_process(*one) for one in known)
        assert unrelated.poll() is None


def test_stopped_processes_go_on_to_hear_what_they_are_asked(tree):
    run, known, _ = tree
    identities = [identity_of(pid) for pid, _ in known]
    for pid, _ in known:
        os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not all(is_stopped(one) for one in identities):
        assert time.monotonic() < deadline
    ProcessTree(run, known[:1]).wake()
    while any(is_stopped(one) for one in identities):
        assert time.monotonic() < deadline


def test_a_number_that_another_process_has_by_now_is_left_alone(tree):
    run, known, supervisor = tree
    stale = [(pid, ticks - 1) for pid, ticks in known]
    other = RunDir(run.path.parent / "other")
    assert ProcessTree(other, stale).members() == []
    assert ProcessTree(other, stale).end(0.2) == []
    assert supervisor.poll() is None

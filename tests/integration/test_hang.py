"""A rank or a loader worker that stands still for ever: seen, its stacks kept, and tried again."""

import os
import signal
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from clipa.host import hang
from clipa.host.attempt import Leaving
from clipa.host.supervisor import Supervisor, Task
from clipa.registry import events
from clipa.spec.plan import Limits, World
from tests.services.train_runs import make_run

STEPS = {1: 300, 2: 120}
"""By processes: enough for SIGSTOP to come before the end."""
LIMITS = Limits(max_attempts=3, time_limit_minutes=5, hang_minutes=0.1)


def _supervise(run):
    assert Supervisor([Task(str(run.path), 1)], Leaving()).execute() == 0


def _words(run, attempt, kind, writer="supervisor"):
    return [e for e in events.read(run.event_file(attempt, writer)) if isinstance(e, kind)]


def _until(condition):
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def _below(pid):
    """All descendants of a process."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(word) for file in files for word in file.read_text().split()]
    return [*children, *(one for child in children for one in _below(child))]


def _second_rank(run):
    return [_words(run, 1, events.Spawned)[-1].pids[1]]


def _workers(run):
    """All that the first rank has started: its loader worker, and the server that forked it."""
    return _below(_words(run, 1, events.Spawned)[-1].pids[0])


def _watched_from(monkeypatch):
    """An event from which on the watch counts, once: importing torch may take longer than its limit here."""
    stopped, stuck = Event(), hang.Watch.stuck

    def late(self, now):
        if said := stuck(self, now) if stopped.is_set() else "":
            stopped.clear()
        return said

    monkeypatch.setattr(hang.Watch, "stuck", late)
    return stopped


@pytest.mark.parametrize(("victims", "world", "told"), [
    (_second_rank, World(processes=2), "in train\n"),
    pytest.param(_workers, World(processes=1), "in _try_get_data", marks=pytest.mark.long),
], ids=["a rank of two", "a loader worker"])  # fmt: skip
def test_what_stands_still_is_named_ended_and_tried_again(tmp_path, monkeypatch, victims, world, told):
    monkeypatch.setattr(hang, "DUMP_S", 1.0)  # what was stopped goes on for its stacks, and would be done in five
    run = make_run(tmp_path, "hangs", STEPS[world.processes], world=world, limits=LIMITS, save_steps=20)
    stopped = _watched_from(monkeypatch)
    work = Thread(target=_supervise, args=(run,))
    work.start()
    _until(run.complete_checkpoints)
    for pid in victims(run):
        os.kill(pid, signal.SIGSTOP)
    stopped.set()
    work.join(200)
    assert not work.is_alive()
    (first,) = _words(run, 1, events.Ended)
    assert (first.outcome, first.cause, first.final) == ("failed", "hang", False)
    assert "no sign of progress for 0.1 minutes, its last was at step" in first.error
    for rank in range(world.processes):
        stacks = (run.logs(1) / f"rank-{rank}.err").read_text()
        assert "Thread 0x" in stacks
        assert "trainer.py" in stacks
    if world.processes == 1:
        assert "in _worker_loop" in (run.logs(1) / "rank-0.err").read_text()
    assert told in "".join(path.read_text() for path in run.logs(1).glob("rank-*.err"))
    assert _words(run, 2, events.Begun, "train")[0].step > 0
    assert _words(run, 2, events.Ended)[0].outcome == "done"
    if world.processes == 1:
        return
    straight = make_run(tmp_path, "straight", STEPS[world.processes], world=world, limits=LIMITS, save_steps=20)
    _supervise(straight)
    weights = [(r.step_dir(STEPS[2]) / "model.safetensors").read_bytes() for r in (run, straight)]
    assert weights[0] == weights[1]

"""A supervisor on a real disk that is read-only, then full: it waits, says so, and the run ends well."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

from clipa.host import render
from clipa.host.attempt import Leaving
from clipa.host.supervisor import Supervisor, Task
from clipa.registry import events
from clipa.registry.scan import scan
from clipa.registry.state import State
from clipa.spec.plan import Limits
from tests.services.attempts import steps_of, until
from tests.services.mounts import fill, read_only, small_disk
from tests.services.train_runs import make_run

STEPS = 700
_SUPERVISOR = """
import sys
from clipa.host.attempt import Leaving
from clipa.host.supervisor import Supervise, Supervisor, Task
from clipa.registry.log_streams import survive_full_logs
survive_full_logs()
sys.exit(Supervisor([Task(sys.argv[1], 1)], Leaving()).execute())
"""


@contextlib.contextmanager
def _supervisor(run):
    argv = [sys.executable, "-c", _SUPERVISOR, str(run.path)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _status(run):
    (status,) = scan([run.path.parent]).statuses
    return status


def _says(run, words):
    status = _status(run)
    assert status.state.is_live, status
    return words in status.why


def test_a_run_waits_for_a_read_only_disk_and_survives_a_full_one(tmp_path):
    with small_disk(tmp_path / "disk", "32m") as disk:
        run = make_run(
            disk, "r", steps=STEPS, save_steps=STEPS // 2, limits=Limits(max_attempts=2, time_limit_minutes=5)
        )
        read_only(disk, True)
        with _supervisor(run) as supervisor:
            until(lambda: _says(run, "read-only file system"))
            assert run.claimed() == []
            read_only(disk, False)
            until(lambda: steps_of(run, 1))
            filling = fill(disk)
            assert _says(run, "no space left on the disk")
            until(lambda: run.beaten_step(1) > len(steps_of(run, 1)) + 50)  # it trains on, and cannot tell
            filling.unlink()
            assert supervisor.wait(timeout=120) == 0
        assert _status(run).state is State.DONE
        assert run.claimed() == [1]
        found = [event for file in run.events.iterdir() for event in events.read(file)]
        assert None not in found
        assert [event.step for event in steps_of(run, 1)] == list(range(1, STEPS + 1))


def test_a_run_whose_checkpoint_finds_no_space_goes_on_when_there_is_some(tmp_path, monkeypatch):
    """The trainer itself has ended: its supervisor waits with the reason, whatever else is wrong with the disk."""
    with small_disk(tmp_path / "disk", "32m") as disk:
        run = make_run(disk, "r", steps=8, limits=Limits(max_attempts=2, time_limit_minutes=5))
        trains = render.rank_argv
        fails = (
            "import sys; from pathlib import Path; from tests.services.mounts import fill; fill(Path(sys.argv[1])); 1/0"
        )
        monkeypatch.setattr(render, "rank_argv", lambda *_: [sys.executable, "-c", fails, str(disk)])
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        result = []
        supervisor = threading.Thread(target=lambda: result.append(_run(run)))
        supervisor.start()
        until(lambda: _status(run).state is State.WAITING)
        assert "no space left on the disk" in _status(run).why
        monkeypatch.setattr(render, "rank_argv", trains)
        (disk / "filling").unlink()
        supervisor.join(120)
        assert result == [0]
        assert _status(run).state is State.DONE
        assert run.claimed() == [1, 2]


def _run(run):
    return Supervisor([Task(str(run.path), 1)], Leaving()).execute()

"""A supervisor's ranks, started from a shell that another launcher has used, and ranks that end well without work."""

from __future__ import annotations

import sys

import pytest

from clipa.host import render
from clipa.host.attempt import Leaving
from clipa.host.decide import words
from clipa.host.supervisor import Supervisor, Task
from clipa.registry import events
from clipa.spec.plan import Limits
from tests.services.train_runs import make_run
from tests.unit.test_spec_child_environment import LEFT


def _ended(run, attempt=1):
    return [event for event in words(run, attempt) if isinstance(event, events.Ended)]


def test_variables_of_another_launcher_do_not_change_a_run(tmp_path, monkeypatch):
    run = make_run(tmp_path, "r", steps=4, limits=Limits(max_attempts=1, time_limit_minutes=5))
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    for name, value in {**LEFT, "PYTHONPATH": "."}.items():
        monkeypatch.setenv(name, value)
    assert Supervisor([Task(str(run.path), 1)], Leaving()).execute() == 0, _ended(run)
    assert [step for step, _ in run.complete_checkpoints()][-1] == 4


@pytest.mark.parametrize("left", ["", "cut"])
def test_a_run_is_not_done_without_its_whole_last_checkpoint(tmp_path, monkeypatch, left):
    run = make_run(tmp_path, "r", steps=4, limits=Limits(max_attempts=1, time_limit_minutes=5))
    if left:
        run.step_dir(4).mkdir(parents=True)
        (run.step_dir(4) / "model.safetensors").write_bytes(b"half")
        (run.step_dir(4) / "COMPLETE").write_text('{"model.safetensors": {"size": 8, "sha256": ""}}')
    monkeypatch.setattr(render, "rank_argv", lambda *_: [sys.executable, "-c", "pass"])
    assert Supervisor([Task(str(run.path), 1)], Leaving()).execute() == 1
    (ended,) = _ended(run)
    assert (ended.outcome, ended.final) == ("failed", True)
    assert "the last step" in ended.error

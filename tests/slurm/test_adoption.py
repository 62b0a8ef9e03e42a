"""kill -9 of the submitter: before SLURM has the job, after it has it and nobody has written that down, later."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from clipa.registry import events
from tests.e2e.conftest import CLIPA
from tests.slurm.field import Field, states, until

SHORT = ["--set", "phases.pretrain.samples=640", "--set", "phases.finetune.samples=640"]


def _submit_and_die(field: Field, script: str, what: str = "pipeline") -> list[str]:
    """Submit with a `sbatch` that kills whoever called it. Returns the runs, in order."""
    tools = field.folder / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(f"#!/bin/bash\n{script.format(sbatch=shutil.which('sbatch'))}\n")
    (tools / "sbatch").chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    done = subprocess.run([*CLIPA, "submit", what, *SHORT], cwd=field.folder, env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    found = {path.name.rpartition("-")[2]: path.name for path in (field.folder / "runs").glob("2*")}
    return [found[phase] for phase in ("pretrain", "finetune", "eval") if phase in found]


def test_kill_9_of_the_submitter_before_slurm_has_the_job(field: Field) -> None:
    (run,) = _submit_and_die(field, "kill -9 $PPID", "pretrain")
    assert not field.queue(run)
    until(lambda: states(field, run) == ["INTERRUPTED"], "known to be lost", 60)
    assert field.run("resume", run).split() == [run]
    assert "nothing to resume" in field.run("resume", run, code=2)
    field.run("wait", run)
    assert len(field.said(run, events.Started)) == 1, "it ran once"


def test_kill_9_of_the_submitter_before_the_job_is_written_down(field: Field) -> None:
    runs = _submit_and_die(field, '{sbatch} "$@"; kill -9 $PPID')
    assert len(field.queue(runs[0])) == 1
    assert not field.said(runs[0], events.Submitted)
    until(lambda: states(field, runs[1]) == ["INTERRUPTED"], "the rest is known to be lost", 60)
    assert field.status(runs[0])["job"], "adopted by the command that saw it, or by its own first word"
    assert field.run("resume", runs[0].rpartition("-")[0]).split() == runs[1:]
    assert "nothing to resume" in field.run("resume", *runs, code=2)
    field.run("wait", *runs)
    assert states(field, *runs) == ["DONE"] * 3
    assert len(field.said(runs[0], events.Started)) == 1, "it ran once"


@pytest.mark.long
def test_a_job_that_comes_late_leaves_to_the_newer_one(field: Field) -> None:
    """An orphan that waits in the queue, unseen, while its run is submitted again: the newer one alone works."""
    runs = _submit_and_die(field, '{sbatch} --hold "$@"; kill -9 $PPID')
    old = field.queue(runs[0])
    hidden = field.folder / "hidden"
    hidden.mkdir()
    (hidden / "squeue").write_text("#!/bin/sh\nexit 0\n")
    (hidden / "squeue").chmod(0o755)
    env = {**os.environ, "PATH": f"{hidden}:{os.environ['PATH']}"}

    def resumed() -> bool:
        argv = [*CLIPA, "resume", runs[0]]
        return subprocess.run(argv, cwd=field.folder, env=env, capture_output=True, check=False).returncode == 0

    until(resumed, "resumed, without knowing of the orphan", 60)
    field.slurm.ask("scontrol", "release", *old)
    until(lambda: field.dir(runs[0]).claimed(), "the newer one begins")
    field.run("wait", runs[0])
    assert states(field, runs[0]) == ["DONE"]
    until(lambda: not field.queue(runs[0]), "both have ended")
    assert field.dir(runs[0]).claimed() == [2], "the orphan has not worked"


def test_another_users_view_writes_nothing(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may only read sees the same, and changes nothing."""
    (run,) = field.submit("pretrain", "--set", "phases.pretrain.samples=400000")
    field.at_step(run, 1)
    before = sorted(path for path in field.dir(run).events.rglob("*"))
    field.slurm.ask("scancel", *field.queue(run))
    until(lambda: not field.queue(run), "ended")
    from clipa.launch import look

    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    seen = look.look_and_settle([Path(field.folder / "runs")])
    assert [s.state.value for s in seen.statuses] == ["CANCELLED"]
    after = [path for path in field.dir(run).events.rglob("*") if path not in before and "-tail" not in path.name]
    assert not after

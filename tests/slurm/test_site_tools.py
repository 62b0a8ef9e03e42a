"""Sites put their own tools before SLURM's: lists that are old, answers that are odd, interpreters that are missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from clipa.registry import events
from tests.e2e.conftest import CLIPA
from tests.slurm.field import Field, states, until

SHORT = ["--set", "phases.pretrain.samples=640"]


def _tool(field: Field, name: str, script: str) -> None:
    """Put a tool before SLURM's own in the PATH of `_run`; `$real` is the real one."""
    tools = field.folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / name).write_text(f"#!/bin/bash\nreal={shutil.which(name)}\n{script}\n")
    (tools / name).chmod(0o755)


def _run(field: Field, *words: str, code: int = 0) -> str:
    env = {**os.environ, "PATH": f"{field.folder}/tools:{os.environ['PATH']}"}
    done = subprocess.run([*CLIPA, *words], cwd=field.folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def _submitted(field: Field) -> int:
    """How many jobs the controller has ever been given."""
    return len(field.slurm.ask("squeue", "-h", "-t", "all", "-o", "%i").split())


def test_an_interpreter_that_is_missing_on_the_nodes_fails_the_run_with_the_logs_line(field: Field) -> None:
    before = _submitted(field)
    field.profile(attempts=2, table='python = "/nonexistent/bin/python"')
    (run,) = field.submit("pretrain", *SHORT)
    field.run("wait", run, code=1)
    status = field.status(run)
    assert status["state"] == "FAILED"
    assert "/nonexistent/bin/python" in str(status["why"])
    assert _submitted(field) - before <= 2, "no more jobs than attempts are allowed"


def test_a_cached_list_without_the_job_makes_no_second_one_and_cancel_ends_it_by_name(field: Field) -> None:
    before = _submitted(field)
    _tool(field, "squeue", "exit 0")
    _tool(field, "sacct", "exit 1")
    (run,) = json.loads(_run(field, "submit", "pretrain", "--set", "phases.pretrain.samples=400000", "--json"))["runs"]
    for _ in range(4):
        assert json.loads(_run(field, "status", run, "--json"))["runs"][0]["state"] in ("QUEUED", "STAGING", "RUNNING")
    assert _submitted(field) - before == 1
    _tool(field, "scontrol", "exit 1")
    for _ in range(3):
        _run(field, "status", run)
    _run(field, "cancel", run)
    until(lambda: not field.queue(run), "ended by its name")
    assert _submitted(field) - before == 1, "cancel and status submit nothing"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('exec "$real" --hold --parsable "$@"', marks=pytest.mark.long),
        'echo "Welcome, your job 3 today"; exec "$real" --hold "$@"',
        '"$real" --hold "$@"; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1',
        pytest.param('"$real" --hold "$@" >/dev/null; echo done', marks=pytest.mark.long),
    ],
    ids=["bare id", "banner", "timed out", "no id"],
)
def test_a_job_that_sbatch_took_is_known_whatever_it_answered(field: Field, script: str) -> None:
    _tool(field, "sbatch", script)
    (run,) = json.loads(_run(field, "submit", "pretrain", *SHORT, "--json"))["runs"]
    (job,) = field.queue(run)
    assert field.job(run) == job
    assert states(field, run) == ["WAITING"], "held by the wrapper"
    assert len(field.said(run, events.Submitted)) == 1
    field.run("cancel", run)
    until(lambda: not field.queue(run), "cancelled")

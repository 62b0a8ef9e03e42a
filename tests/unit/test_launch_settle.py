"""What a command brings further that nothing else will."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clipa.launch import carry_on
from clipa.registry import records
from clipa.registry.cascade import reduce
from clipa.registry.scan import Scan, read
from clipa.registry.state import State
from clipa.slurm import scheduler
from tests.unit.test_registry_state import PLAN, make
from tests.unit.test_slurm_scheduler import run_facts, shim


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(scheduler, "FRESH_S", 0.0)
    return folder


def settle(root: Path) -> None:
    facts = run_facts(root, "r1", "1")
    jobs = scheduler.ask([facts])["r1"]
    status = reduce(facts, lambda _: None, None, 1e9, jobs)
    carry_on.settle(Scan([status], {"r1": facts}, []))


def test_a_job_that_a_node_could_not_start_is_released(tools: Path, tmp_path: Path) -> None:
    shim(tools, "squeue", "echo '1|PENDING|launch failed requeued held|N/A|clipa-r1-a1'")
    shim(tools, "scontrol", "exit 0")
    settle(tmp_path / "runs")
    assert (tools / "scontrol.calls").read_text() == "release 1\n"


def gone(tools: Path, root: Path, last: str) -> None:
    """Let squeue answer without the job until it counts as gone, and then look; `last`: what scontrol says."""
    shim(tools, "squeue", "exit 0")
    shim(tools, "sacct", "exit 1")
    shim(tools, "scontrol", "echo 'Invalid job id specified' >&2; exit 1")
    shim(tools, "sbatch", "echo Submitted batch job 2")
    facts = run_facts(root, "r1", "1")
    answers = [scheduler.ask([facts])["r1"] for _ in range(3)]
    status = reduce(facts, lambda _: None, None, 1e10, answers[-1])
    assert status.state is State.INTERRUPTED, status.why
    shim(tools, "scontrol", last)
    carry_on.settle(Scan([status], {"r1": facts}, []))


@pytest.mark.parametrize(
    "last",
    ["echo 'JobId=1 JobName=clipa-r1-a1 JobState=RUNNING Reason=None'", "exit 1", "sleep 60", "echo nonsense"],
)
def test_a_job_that_lives_after_all_or_cannot_be_asked_for_is_not_doubled(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """The list does not have the job; the controller has, or does not say: no second job."""
    monkeypatch.setattr(scheduler, "ACT_S", 1.0)
    monkeypatch.setattr(scheduler, "QUERY_S", 1.0)
    gone(tools, tmp_path / "runs", last)
    assert "show job -o 1" in (tools / "scontrol.calls").read_text(), "it was about to be submitted again"
    assert not (tools / "sbatch.calls").exists()


def test_executions_that_ended_before_the_supervisor_spoke_are_attempts(tools: Path, tmp_path: Path) -> None:
    """The interpreter is not there: the log says so, the run says so, and no more than `max_attempts` are made."""
    root = tmp_path / "runs"
    run = make(root, [{"event": "submitted", "job": "1", "scheduler": "slurm", "t": 1.0}], "r1")
    plan = {**PLAN, "run": "r1", "run_root": str(root), "backend": "slurm", "slurm": {"time": 9}}
    run.plan.write_bytes(msgspec.json.encode(plan))
    records.write_intent(run, 1, 1, "submit")
    log = run.logs(1) / "submitit" / "1_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: error: execve(): /nonexistent/bin/python: No such file or directory\nbye\n")
    shim(tools, "squeue", "echo '1|FAILED|NonZeroExitCode|N/A|clipa-r1-a1'")
    shim(tools, "scontrol", "echo 'JobId=1 JobName=clipa-r1-a1 JobState=FAILED Reason=NonZeroExitCode Restarts=2'")
    shim(tools, "sbatch", "echo Submitted batch job 2")
    facts = read(run).facts
    assert facts is not None
    assert facts.plan.limits.max_attempts == 3
    status = reduce(facts, lambda _: None, None, 1e10, scheduler.ask([facts])["r1"])
    assert carry_on.settle(Scan([status], {"r1": facts}, []))
    assert not (tools / "sbatch.calls").exists()
    after = read(run).facts
    assert after is not None
    assert after.ended is not None
    assert after.ended.outcome == "failed"
    assert "execve(): /nonexistent/bin/python: No such file" in after.ended.error
    assert "attempt 3 of 3" in after.ended.error


def test_of_two_live_jobs_the_newer_one_stays(tools: Path, tmp_path: Path) -> None:
    shim(tools, "squeue", "printf '%s\\n' '1|RUNNING|None|N/A|clipa-r1-a1' '2|RUNNING|None|N/A|clipa-r1-a2'")
    shim(tools, "scancel", "exit 0")
    settle(tmp_path / "runs")
    assert (tools / "scancel.calls").read_text() == "--quiet --name=clipa-r1-a1 1\n"

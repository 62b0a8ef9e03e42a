"""What a command brings further that nothing else will."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipa.launch import carry_on
from clipa.registry.cascade import reduce
from clipa.registry.scan import Scan
from clipa.slurm import scheduler
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


def test_a_run_whose_job_lives_after_all_is_not_doubled(tools: Path, tmp_path: Path) -> None:
    """The list does not have the job, the question by its id does: no second one."""
    shim(tools, "squeue", 'case "$*" in *-j*) echo "1|RUNNING|None|N/A|clipa-r1-a1" ;; esac')
    for name in ("sbatch", "sacct", "scontrol"):
        shim(tools, name, "exit 1")
    settle(tmp_path / "runs")
    assert "-j 1" in (tools / "squeue.calls").read_text(), "it was about to be submitted again"
    assert not (tools / "sbatch.calls").exists()


def test_of_two_live_jobs_the_newer_one_stays(tools: Path, tmp_path: Path) -> None:
    shim(tools, "squeue", "printf '%s\\n' '1|RUNNING|None|N/A|clipa-r1-a1' '2|RUNNING|None|N/A|clipa-r1-a2'")
    shim(tools, "scancel", "exit 0")
    settle(tmp_path / "runs")
    assert (tools / "scancel.calls").read_text() == "--quiet 1\n"

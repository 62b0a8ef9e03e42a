"""The state of a run on SLURM: its own words, then the queue's, then its heart, else UNKNOWN with a reason."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clipa.registry.cascade import reduce
from clipa.registry.jobs import WORDS, Absence, Job, Jobs
from clipa.registry.run_dir import RunDir
from clipa.registry.scan import read
from clipa.registry.state import Facts, RunStatus, State
from tests.unit.test_registry_state import PLAN, SPAWNED, STARTED, ended, make

NOW = time.time()
BEGUN: list[dict[str, Any]] = [{**STARTED, "job": "7"}, SPAWNED]
SUBMITTED: list[dict[str, Any]] = [{"event": "submitted", "job": "7", "scheduler": "slurm"}]


def facts_of(root: Path, found: list[dict[str, Any]]) -> Facts:
    run = make(root, found)
    plan = {**PLAN, "run_root": str(root), "backend": "slurm", "slurm": {"time": 9}, "parent": "r0"}
    RunDir(run.path).plan.write_bytes(msgspec.json.encode(plan))
    facts = read(run).facts
    assert facts is not None
    return facts


def job(word: str, reason: str = "None", t: float = NOW, trouble: str = "", **more: Any) -> Jobs:
    return Jobs(jobs=(Job(id="7", name="clipa-r1-a1", word=word, reason=reason, t=t, **more),), trouble=trouble)


def status(facts: Facts, jobs: Jobs | None, beat: float | None = 1.0, parent: State | None = None) -> RunStatus:
    return reduce(facts, lambda _: None, beat, NOW, jobs, parent)


NONE = Jobs()
GONE = Jobs(absent={"7": Absence(since=NOW - 121, answers=3)})
RECYCLED = Jobs(jobs=(Job(id="7", name="other", word="FAILED", t=NOW),))
JUST_NOW: list[dict[str, Any]] = [{**SUBMITTED[0], "t": NOW - 5}]
SILENT = Jobs(trouble="squeue did not answer within 2 s")
DONE, BAD = State.DONE, State.FAILED


@pytest.mark.parametrize(
    ("found", "jobs", "beat", "parent", "state", "why"),
    [
        ([*BEGUN, ended("done")], job("RUNNING"), 1.0, DONE, State.DONE, ""),
        ([*BEGUN, ended("failed")], SILENT, 1.0, DONE, State.FAILED, ""),
        (SUBMITTED, job("PENDING", "Priority"), None, DONE, State.QUEUED, "SLURM job 7: Priority"),
        (SUBMITTED, job("PENDING", "Resources", start=NOW + 60), None, DONE, State.QUEUED, "expected to start"),
        (SUBMITTED, job("REQUEUE_HOLD"), None, DONE, State.WAITING, "scontrol release 7"),
        (SUBMITTED, job("PENDING", "JobHeldUser"), None, DONE, State.WAITING, "scontrol release 7"),
        (SUBMITTED, job("PENDING", "launch failed requeued held"), None, DONE, State.WAITING, "launch failed"),
        (SUBMITTED, job("RUNNING"), None, DONE, State.STAGING, "not said a word"),
        (BEGUN, job("RUNNING"), 1.0, DONE, State.RUNNING, ""),
        (BEGUN, job("RUNNING"), 999.0, DONE, State.RUNNING, "no sign of life"),
        (BEGUN, job("SUSPENDED"), 1.0, DONE, State.WAITING, "suspended"),
        (BEGUN, job("COMPLETING"), 1.0, DONE, State.RUNNING, "ending"),
        ([*BEGUN, ended("killed", False)], job("PENDING", "BeginTime"), 1.0, DONE, State.QUEUED, "restarting after"),
        (BEGUN, job("TIMEOUT"), 1.0, DONE, State.INTERRUPTED, "TIMEOUT"),
        (BEGUN, job("NODE_FAIL"), 1.0, DONE, State.INTERRUPTED, "NODE_FAIL"),
        (BEGUN, job("CANCELLED", by="ann"), 1.0, DONE, State.CANCELLED, "by ann"),
        (SUBMITTED, job("CANCELLED"), None, BAD, State.BLOCKED, "r0 is not done"),
        (SUBMITTED, job("CANCELLED", "DependencyNeverSatisfied"), None, DONE, State.INTERRUPTED, "CANCELLED"),
        (SUBMITTED, job("CANCELLED"), None, State.RUNNING, State.INTERRUPTED, "while r0 is not done"),
        (BEGUN, NONE, 1.0, DONE, State.RUNNING, "does not list its job 7, but its heart beats"),
        (BEGUN, NONE, 999.0, DONE, State.UNKNOWN, "counts as gone after 120 s"),
        (BEGUN, GONE, 1.0, DONE, State.INTERRUPTED, "no longer knows its job 7"),
        (JUST_NOW, NONE, None, DONE, State.QUEUED, "not listed yet"),
        (SUBMITTED, NONE, None, DONE, State.UNKNOWN, "does not list its job 7"),
        (SUBMITTED, job("PENDING", "JobHoldMaxRequeue"), None, DONE, State.WAITING, "scontrol release 7"),
        (SUBMITTED, job("PENDING", "DependencyNeverSatisfied"), None, DONE, State.BLOCKED, "will not start"),
        (SUBMITTED, job("PENDING", "QOSMaxJobsPerUserLimit"), None, DONE, State.WAITING, "sacctmgr show qos"),
        (SUBMITTED, job("PENDING", "AssocGrpGRES"), None, DONE, State.WAITING, "sacctmgr show assoc"),
        (SUBMITTED, job("PENDING", "ReqNodeNotAvail, May be reserved"), None, DONE, State.WAITING, "show reservation"),
        (JUST_NOW, RECYCLED, None, DONE, State.QUEUED, "not listed yet"),
        (BEGUN, SILENT, 1.0, DONE, State.RUNNING, "did not answer"),
        (BEGUN, SILENT, 999.0, DONE, State.UNKNOWN, "did not answer"),
        (SUBMITTED, SILENT, None, DONE, State.UNKNOWN, "SLURM job 7"),
        (BEGUN, job("RUNNING", t=NOW - 95), 100.0, DONE, State.RUNNING, "as of 95 s ago"),
        (BEGUN, job("PENDING", t=NOW - 95, trouble="no answer"), 1.0, DONE, State.RUNNING, "its heart beats"),
        (SUBMITTED, job("PENDING", t=NOW - 95, trouble="no answer"), None, DONE, State.QUEUED, "as of 95 s ago"),
        (BEGUN, job("QUANTUM"), 1.0, DONE, State.UNKNOWN, "QUANTUM"),
        ([], job("PENDING"), None, DONE, State.QUEUED, "SLURM job 7"),  # an orphan, by its name
        ([], NONE, None, DONE, State.QUEUED, "being handed"),
    ],
)  # fmt: skip
def test_cascade(
    tmp_path: Path, found: list[dict[str, Any]], jobs: Jobs, beat: float, parent: State, state: State, why: str
) -> None:
    seen = status(facts_of(tmp_path, found), jobs, beat, parent)
    assert seen.state is state, seen.why
    assert why in seen.why


@pytest.mark.parametrize("word", WORDS)
def test_every_word_of_slurm_has_a_state(tmp_path: Path, word: str) -> None:
    assert status(facts_of(tmp_path, BEGUN), job(word)).state is not State.UNKNOWN


def test_a_job_of_an_earlier_submission_is_not_the_one_of_a_resume(tmp_path: Path) -> None:
    from clipa.registry import records

    facts = facts_of(tmp_path, BEGUN)
    assert facts.slurm_job == "7"
    records.write_intent(RunDir(facts.path), 2, 2, "resume")
    again = read(RunDir(facts.path)).facts
    assert again is not None
    assert again.slurm_job == ""
    records.write_intent(RunDir(facts.path), 3, 1, "restart")
    successor = read(RunDir(facts.path)).facts
    assert successor is not None
    assert successor.slurm_job == "7", "a successor goes on in the same submission"

"""How an attempt ended, as a table: everybody's words against what SLURM does to the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipa.host.conclude import Doing, doing_of, judge
from clipa.host.decide import Trace, is_last
from clipa.registry.events import Ended, NodeEnded
from clipa.registry.jobs import Job


def ended(outcome: Any, error: str = "", retry: bool = True) -> Ended:
    return Ended(t=1, attempt=1, outcome=outcome, final=False, error=error, retry=retry)


def node(outcome: Any, error: str = "", t: float = 1) -> NodeEnded:
    return NodeEnded(t=t, attempt=1, node=1, name="n1", outcome=outcome, error=error)


@pytest.mark.parametrize(
    ("said", "nodes", "doing", "outcome", "retry", "words"),
    [
        (ended("done"), {}, "", "done", False, ""),
        (ended("done"), {}, "time", "done", False, ""),
        (ended("done"), {}, "cancelled", "done", False, ""),
        (ended("cancelled", "by x"), {}, "", "cancelled", False, "by x"),
        (ended("failed", "ValueError"), {}, "", "failed", True, "ValueError"),
        (ended("failed", "bad input", retry=False), {}, "", "failed", False, "bad input"),
        (ended("stopped", "USR2"), {}, "", "stopped", True, "USR2"),
        (ended("stopped", "SIGTERM"), {}, "cancelled", "cancelled", False, "was cancelled"),
        (ended("stopped", "SIGTERM"), {1: node("failed", "disk full")}, "", "failed", True, "n1: disk full"),
        (ended("stopped", "SIGTERM"), {1: None}, "", "killed", True, "node 1"),
        (ended("stopped", "SIGTERM"), {1: None}, "time", "stopped", True, "wall-clock"),
        (ended("stopped", "SIGTERM"), {1: node("stopped")}, "", "stopped", True, "SIGTERM"),
        (ended("failed", "Connection closed by peer"), {1: node("killed", "SIGKILL")}, "", "killed", True, "SIGKILL"),
        (ended("failed", "KeyError"), {1: node("failed", "Gloo broken pipe")}, "", "failed", True, "KeyError"),
        (None, {}, "", "killed", True, "without a word (exit code 137"),
        (None, {1: node("failed", "x")}, "", "failed", True, "n1: x"),
        (None, {}, "time", "stopped", True, "wall-clock"),
        (None, {}, "preempted", "stopped", True, "preempted"),
        (None, {}, "node", "killed", True, "node failed"),
        (None, {}, "memory", "failed", True, "memory"),
        (None, {}, "cancelled", "cancelled", False, "cancelled"),
    ],
)  # fmt: skip
def test_judge(said: Ended | None, nodes: dict[int, Any], doing: Doing, outcome: str, retry: bool, words: str) -> None:
    verdict = judge(said, nodes, doing, 137)
    assert (verdict.outcome, verdict.retry) == (outcome, retry)
    assert words in verdict.error


LIMIT = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-25T13:23:30 DUE TO TIME LIMIT ***"
PLAIN = "slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-25T13:23:07 ***"
OTHER = "slurmstepd: error: *** JOB 6 ON n1 CANCELLED AT 2026-11-25T13:23:07 ***"
PREEMPTED = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-25T13:23:30 DUE TO PREEMPTION ***"
REQUEUED = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-25T13:23:30 DUE TO JOB REQUEUE ***"


@pytest.mark.parametrize(
    ("word", "reason", "log", "doing"),
    [
        ("RUNNING", "None", PLAIN, ""),  # a step that --kill-on-bad-exit ended: the job itself goes on
        ("COMPLETING", "None", PLAIN, "cancelled"),
        ("COMPLETING", "TimeLimit", "", "time"),
        ("COMPLETING", "None", LIMIT, "time"),
        ("COMPLETING", "None", PREEMPTED, "preempted"),
        ("COMPLETING", "None", REQUEUED, "requeued"),
        ("COMPLETING", "None", OTHER, "cancelled"),
        ("TIMEOUT", "TimeLimit", "", "time"),
        ("NODE_FAIL", "None", "", "node"),
        ("OUT_OF_MEMORY", "None", "", "memory"),
        ("CANCELLED", "None", "", "cancelled"),
        ("FAILED", "NonZeroExitCode", "", ""),
        ("COMPLETED", "None", "", ""),
        (None, "", LIMIT, "time"),
        (None, "", "nothing of that kind", ""),
        (None, "", PLAIN, "cancelled"),
    ],
)
def test_what_slurm_does_to_a_job(tmp_path: Path, word: str | None, reason: str, log: str, doing: str) -> None:
    (tmp_path / "log").write_text(f"something\n{log}\nsomething else\n")
    job = Job(id="7", word=word, reason=reason) if word else None
    assert doing_of(job, tmp_path / "log") == doing


def test_time_limits_are_free_and_failures_count() -> None:
    history = [Trace(0, 5, outcome, "") for outcome in ("stopped", "failed", "stopped", "stopped", "killed")]
    assert is_last(history, 2)
    assert not is_last(history, 3)

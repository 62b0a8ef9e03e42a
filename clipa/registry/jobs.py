"""What a scheduler says of jobs: pure values, and the table of its words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from clipa.spec.plan import Record

Phase: TypeAlias = Literal["queued", "held", "running", "suspended", "ending", "over"]

WORDS: dict[str, Phase] = {
    "PENDING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_FED": "queued",
    "RESV_DEL_HOLD": "held",
    "REQUEUE_HOLD": "held",
    "SPECIAL_EXIT": "held",
    "CONFIGURING": "running",
    "RUNNING": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "POWER_UP_NODE": "running",
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "COMPLETING": "ending",
    "STAGE_OUT": "ending",
    "UPDATE_DB": "ending",
    "COMPLETED": "over",
    "CANCELLED": "over",
    "FAILED": "over",
    "TIMEOUT": "over",
    "NODE_FAIL": "over",
    "PREEMPTED": "over",
    "BOOT_FAIL": "over",
    "DEADLINE": "over",
    "OUT_OF_MEMORY": "over",
    "REVOKED": "over",
    "LAUNCH_FAILED": "over",
    "RECONFIG_FAIL": "over",
    "EXPEDITING": "queued",
}
"""SLURM's states (squeue(1), JOB STATE CODES, of 20.11 to 25.05), and what a job in them does."""


FAILED_LAUNCH = "launch failed requeued held"
HOLDS = (FAILED_LAUNCH, "job requeued in held state", "JobHeldUser", "JobHeldAdmin")
"""Reasons (squeue -o %r) with which a pending job waits for somebody to release it. The first is SLURM's own doing: a
node could not start the job."""


class Job(Record, frozen=True, kw_only=True):
    """A job as the scheduler described it at `t` (Unix time).

    `start`: when it started, or is expected to (Unix time). `by`: who cancelled it, where that is said.
    """

    id: str
    name: str = ""
    word: str = ""
    reason: str = ""
    start: float | None = None
    by: str = ""
    source: str = "squeue"
    t: float = 0.0

    @property
    def phase(self) -> Phase | None:
        """What it does; None for a word that this clipa does not know."""
        found = WORDS.get(self.word)
        return "held" if found == "queued" and self.reason in HOLDS else found


class Jobs(Record, frozen=True, kw_only=True):
    """Answers of one scheduler. `trouble`: why some of them are old or missing; empty: all were asked just now."""

    jobs: tuple[Job, ...] = ()
    trouble: str = ""

    def find(self, ident: str, name: str = "") -> Job | None:
        """A job by its id, else the newest one of that name that is not over."""
        found = None
        for job in self.jobs:
            if ident and job.id == ident:
                return job
            if name and not ident and job.name == name and job.phase != "over":
                found = job
        return found


def name_of(run: str, attempt: int) -> str:
    """The name under which a run's job is submitted: how an orphan is found again."""
    return f"clipa-{run}-a{attempt}"


def live_of(run: str, jobs: Iterable[Job]) -> list[Job]:
    """The jobs of a run that are not over."""
    start = f"clipa-{run}-a"
    return [job for job in jobs if job.phase != "over" and job.name.startswith(start)]

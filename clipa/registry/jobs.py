"""What a scheduler says of jobs: pure values, and the table of its words."""

from __future__ import annotations

from collections.abc import Collection, Iterable
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


class Element(Record, frozen=True, kw_only=True):
    """A run's place in a job array: the array's name in SLURM, and its index there. All elements share the name."""

    array: str
    index: int

    def of(self, job: Job) -> bool:
        """Whether a job is this element: SLURM writes it as `ARRAY'S JOB_INDEX`."""
        return job.name == self.array and job.id.endswith(f"_{self.index}")

    def id_in(self, job: str) -> str:
        """The id of this element in the array that was submitted as `job`."""
        return f"{job}_{self.index}"


class Jobs(Record, frozen=True, kw_only=True):
    """Answers of one scheduler. `trouble`: why some of them are old or missing; empty: all were asked just now."""

    jobs: tuple[Job, ...] = ()
    trouble: str = ""

    def find(self, ident: str, name: str = "", element: Element | None = None) -> Job | None:
        """A job by its id, else the newest one that is not over of that name, or that is this element."""
        found = None
        for job in self.jobs:
            if ident and job.id == ident:
                return job
            if not ident and job.phase != "over" and (element.of(job) if element else name and job.name == name):
                found = job
        return found


def name_of(run: str, attempt: int) -> str:
    """The name under which a run's job is submitted: how an orphan is found again."""
    return f"clipa-{run}-a{attempt}"


def live_of(run: str, jobs: Iterable[Job], elements: Collection[Element] = ()) -> list[Job]:
    """The jobs of a run that are not over: those of its own name, and the elements that it was."""
    start = f"clipa-{run}-a"
    mine = [job for job in jobs if job.name.startswith(start) or any(element.of(job) for element in elements)]
    return [job for job in mine if job.phase != "over"]


def attempt_of(run: str, job: Job) -> int:
    """The attempt with which a job of a run began, by its name; 0 for an element, whose name does not say it."""
    number = job.name.removeprefix(f"clipa-{run}-a")
    return int(number) if number.isdecimal() else 0

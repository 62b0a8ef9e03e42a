"""What a scheduler says of jobs: pure values, and the table of its words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
HOLDS = (FAILED_LAUNCH, "job requeued in held state", "JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue")
"""Reasons (squeue -o %r) with which a pending job waits for somebody to release it. The first is SLURM's own doing: a
node could not start the job."""


NEVER = ("DependencyNeverSatisfied", "BadConstraints", "AccountNotAllowed", "InvalidAccount", "InvalidQOS",
         "PartitionTimeLimit", "PartitionNodeLimit", "QOSNotAllowed")  # fmt: skip
"""Reasons with which a pending job will not start by itself, whatever becomes free."""


def command_for(reason: str, job: str) -> str:
    """Return the command that shows or ends what a pending job waits for; empty where it only waits its turn."""
    if reason in HOLDS:
        return f"scontrol release {job}"
    if reason.startswith("QOS"):
        return "sacctmgr show qos"
    if reason.startswith("Assoc"):
        return "sacctmgr show assoc user=$USER"
    if reason.startswith("ReqNodeNotAvail") or reason in ("Reservation", "ReservationDeleted"):
        return "scontrol show reservation"
    return f"scontrol show job {job}" if reason in NEVER else ""


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


class Absence(Record, frozen=True, kw_only=True):
    """A job that the scheduler did not list: `since` when (Unix time), in so many `answers` in a row."""

    since: float
    answers: int


ABSENCES = 3
"""Answers in a row without a job before it can count as gone: one may be partial, stale or of another cluster."""


class Jobs(Record, frozen=True, kw_only=True):
    """Answers of one scheduler.

    `trouble`: why some of them are old or missing; empty: all were asked just now. `absent`: job id -> for how long a
    job has been missing from the answers, without any word that it ended.
    """

    jobs: tuple[Job, ...] = ()
    trouble: str = ""
    absent: dict[str, Absence] = {}

    def find(self, ident: str, run: str, name: str = "", elements: Sequence[Element] = ()) -> Job | None:
        """Return the job of a run by its id and its name; without an id, the newest live one of this name.

        An id alone is not enough: a controller that lost its state gives the same numbers to other jobs.

        Args:
            ident: SLURM's id; empty where none was recorded.
            run: the run's id.
            name: the name under which a job without a recorded id was submitted.
            elements: the places in job arrays that the run has had; the last one is its newest.
        """
        found = None
        for job in self.jobs:
            if ident and job.id == ident and is_of(run, job, elements):
                return job
            if not ident and job.phase != "over" and (elements[-1].of(job) if elements else name and job.name == name):
                found = job
        return found

    def is_gone(self, ident: str, now: float, patience_s: float) -> bool:
        """Return True if a job has been missing for so long, in enough answers, that it must have ended."""
        absence = self.absent.get(ident)
        return absence is not None and absence.answers >= ABSENCES and now - absence.since >= patience_s


def name_of(run: str, attempt: int) -> str:
    """The name under which a run's job is submitted: how an orphan is found again."""
    return f"clipa-{run}-a{attempt}"


def is_of(run: str, job: Job, elements: Collection[Element] = ()) -> bool:
    """Return True if a job carries the name of this run, or is one of its places in job arrays."""
    return job.name.startswith(f"clipa-{run}-a") or any(element.of(job) for element in elements)


def live_of(run: str, jobs: Iterable[Job], elements: Collection[Element] = ()) -> list[Job]:
    """The jobs of a run that are not over: those of its own name, and the elements that it was."""
    return [job for job in jobs if is_of(run, job, elements) and job.phase != "over"]


def attempt_of(run: str, job: Job) -> int:
    """The attempt with which a job of a run began, by its name; 0 for an element, whose name does not say it."""
    number = job.name.removeprefix(f"clipa-{run}-a")
    return int(number) if number.isdecimal() else 0

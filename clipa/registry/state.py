"""What a run is doing and what its folder says of it: the shapes. clipa.registry.cascade gets one from the other."""

from __future__ import annotations

import enum

from clipa.registry import events
from clipa.registry.jobs import Element
from clipa.registry.liveness import Identity
from clipa.registry.records import Intent, Stop
from clipa.spec.plan import Plan, Record

GRACE_S = 60.0
"""Seconds that a command gets to hand an intent to the machine, and a job on another host to write its first word."""

SILENCE_S = 180.0
"""Age at which the heartbeat of a process that cannot be asked is taken for its end: it beats every 2 seconds, and
NFS clients may show a modification time that is 60 seconds old (acregmax, nfs(5))."""


class State(enum.StrEnum):
    """What a run is doing, in one word."""

    QUEUED = "QUEUED"
    WAITING = "WAITING"
    STAGING = "STAGING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    BLOCKED = "BLOCKED"
    INTERRUPTED = "INTERRUPTED"
    UNKNOWN = "UNKNOWN"

    @property
    def is_live(self) -> bool:
        """Whether work goes on, or will by itself."""
        return self in (State.QUEUED, State.WAITING, State.STAGING, State.RUNNING)

    @property
    def is_over(self) -> bool:
        """Whether nothing goes on, and nothing will by itself. UNKNOWN is neither live nor over."""
        return not self.is_live and self is not State.UNKNOWN


class Score(Record, frozen=True, kw_only=True):
    """One evaluation result in percent: the metric that stands for the set, and all of them."""

    set: str
    size: int
    step: int
    samples: int
    metric: str
    value: float
    metrics: dict[str, float]
    task: str = "classification"


class Point(Record, frozen=True, kw_only=True):
    """One point of a run's history."""

    step: int
    loss: float
    samples_per_s: float


class Remote(Record, frozen=True, kw_only=True):
    """Whether the last checkpoint and all results are at the URL that the run publishes to, and why they are not."""

    whole: bool
    why: str = ""


class BadSamples(Record, frozen=True, kw_only=True):
    """Samples of the newest attempt that could not be used and were replaced: by kind, by shard (the worst), and one
    of them with its reason.
    """

    kinds: dict[str, int]
    shards: dict[str, int]
    example: str = ""

    @property
    def count(self) -> int:
        """How many, of all kinds."""
        return sum(self.kinds.values())


class Facts(Record, frozen=True, kw_only=True):
    """Everything that a run's folder says, apart from the ages of its heartbeats. Round-trips through JSON.

    `attempt` is the newest one; `intent`, `job`, `holder`, `stop`, `doing`, `why`, `begun`, `trainer` and `ended` are
    about it alone. `queued`, `started`: Unix times of the run's first intent and first start.

    Attributes:
        holder: the supervisor that has the attempt, where one has said so.
        job: the process that it was handed to.
        slurm_job: SLURM's id of its job.
        slurm_cluster: the cluster that took the job; empty: the default one of the configuration.
        submitted: Unix time at which the job was submitted.
        elements: the places in job arrays of all its attempts, oldest first.
        ended: the final word on the attempt.
        notes: what a person wants to know while it runs.
        held_s: seconds for which all attempts have held their processors, as far as their words go.
        unreadable: event files of the attempt that this user cannot read.
        remote: what is at the URL that it publishes to; None: the plan names none, or nobody has said yet.
    """

    path: str
    plan: Plan
    attempt: int = 0
    intents: tuple[int, ...] = ()
    intent: Intent | None = None
    queued: float = 0.0
    started: float = 0.0
    job: Identity | None = None
    slurm_job: str = ""
    slurm_cluster: str = ""
    submitted: float = 0.0
    elements: tuple[Element, ...] = ()
    holder: Identity | None = None
    stop: Stop | None = None
    doing: State = State.QUEUED
    why: str = ""
    notes: tuple[str, ...] = ()
    bad: BadSamples | None = None
    held_s: float = 0.0
    begun: bool = False
    trainer: events.TrainerEnded | None = None
    ended: events.Ended | None = None
    unreadable: tuple[str, ...] = ()
    remote: Remote | None = None
    step: int = 0
    last_step: events.Step | None = None
    speeds: tuple[float, ...] = ()
    history: tuple[Point, ...] = ()
    scores: tuple[Score, ...] = ()
    params: int = 0
    device: str = ""


class RunStatus(Record, frozen=True, kw_only=True):
    """One line of `clipa status`.

    Lengths of time in seconds (`_s`), moments in Unix time; `percent` in 0..100; `root` is where the run was found;
    `beat_age_s` is the age of its last sign of life, while it is not over. `job`: SLURM's id; `cause`: the kind of its
    failure, `evidence`: the line of a log that says so; `queue_s`: from its first intent to its first start.
    `gpu_hours` are those of all attempts, `efficiency` the share (0..1) of their time that the steps that counted
    would have taken undisturbed. `image_size` is in pixels, 0 for an eval phase. `last_step`: what the newest step that
    was told says. `bad`: samples that could not be used. `remote`: whether its last checkpoint and all results are at
    the plan's URL; None: it names none, or nobody has said yet. `owner`: the user whose it is, if that is another one.
    """

    run: str
    group: str
    name: str
    phase: str
    kind: str
    recipe: str
    cluster: str
    root: str
    state: State
    why: str
    attempt: int
    attempts: int
    step: int
    steps: int
    samples: int
    percent: float
    samples_per_s: float | None
    loss: float | None
    scores: tuple[Score, ...]
    eta_s: float | None
    created: float
    age_s: float
    started: float | None
    ended: float | None
    beat_age_s: float | None
    parent: str
    image_tokens: int | None
    text_tokens: int | None
    image_size: int = 0
    hint: str = ""
    job: str = ""
    cause: str = ""
    evidence: str = ""
    queue_s: float | None = None
    gpu_hours: float = 0.0
    efficiency: float | None = None
    remote: bool | None = None
    last_step: events.Step | None = None
    bad: BadSamples | None = None
    owner: str = ""

"""The state of a run: what its folder says, and an ordered cascade of who is believed.

First what the job itself wrote, then whether the process that has it lives, then the age of its heartbeat,
else UNKNOWN with a reason.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clipa.registry import events
from clipa.registry.liveness import Identity
from clipa.registry.records import Intent, Stop
from clipa.spec.job import Eval
from clipa.spec.plan import Plan, Record
from clipa.spec.tokens import kept_tokens

GRACE_S = 60.0
"""Seconds that a command gets to hand an intent to the machine, and a job on another host to write its first word."""

SILENCE_S = 180.0
"""Age at which the heartbeat of a process that cannot be asked is taken for its end: it beats every 2 seconds, and
NFS clients may show a modification time that is 60 seconds old (acregmax, nfs(5))."""

LONGEST_ETA_S = 10 * 365 * 86400.0


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


class Facts(Record, frozen=True, kw_only=True):
    """Everything that a run's folder says, apart from the ages of its heartbeats. Round-trips through JSON.

    `attempt` is the newest one; `intent`, `job`, `holder`, `stop`, `doing`, `why`, `begun`, `trainer` and `ended` are
    about it alone. `queued`, `started`: Unix times of the run's first intent and first start.

    Attributes:
        holder: the supervisor that has the attempt, where one has said so.
        job: the process that it was handed to.
        ended: the final word on the attempt.
        unreadable: event files of the attempt that this user cannot read.
    """

    path: str
    plan: Plan
    attempt: int = 0
    intents: tuple[int, ...] = ()
    intent: Intent | None = None
    queued: float = 0.0
    started: float = 0.0
    job: Identity | None = None
    holder: Identity | None = None
    stop: Stop | None = None
    doing: State = State.QUEUED
    why: str = ""
    begun: bool = False
    trainer: events.TrainerEnded | None = None
    ended: events.Ended | None = None
    unreadable: tuple[str, ...] = ()
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
    `beat_age_s` is the age of its last sign of life, while it is not over.
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
    hint: str = ""


Alive = Callable[[Identity], bool | None]
"""Whether a process runs; None when that cannot be told from here."""


class Case(NamedTuple):
    """What a rule of the cascade looks at."""

    facts: Facts
    alive: Alive
    beat_age: float | None
    now: float


class Verdict(NamedTuple):
    """What a rule says."""

    state: State
    why: str


def reduce(facts: Facts, alive: Alive, beat_age: float | None, now: float) -> RunStatus:
    """The status of a run.

    Args:
        facts: what its folder says.
        alive: whether a process runs; None when that cannot be told from here.
        beat_age: seconds since the last sign of life of the newest attempt or of its supervisor, None without one.
        now: Unix time.
    """
    state, why = judge(Case(facts, alive, beat_age, now))
    plan = facts.plan
    settings = plan.settings
    steps = plan.steps
    step = min(facts.step, steps)
    batch = 0 if isinstance(settings, Eval) else settings.batch
    speed = _median(facts.speeds)
    return RunStatus(
        run=plan.run,
        group=plan.group,
        name=plan.name,
        phase=plan.phase,
        kind=plan.kind,
        recipe=plan.recipe,
        cluster=plan.cluster,
        root=str(Path(facts.path).parent),
        state=state,
        why=why,
        attempt=facts.attempt,
        attempts=len(facts.intents),
        step=step,
        steps=steps,
        samples=step * batch,
        percent=100.0 if state is State.DONE else 100.0 * step / steps if steps else 0.0,
        samples_per_s=speed,
        loss=facts.last_step.loss if facts.last_step else None,
        scores=facts.scores,
        eta_s=_eta((steps - step) * batch, speed) if state is State.RUNNING and steps else None,
        created=plan.created,
        age_s=max(0.0, now - plan.created),
        started=facts.started or None,
        ended=facts.ended.t if facts.ended and state.is_over else None,
        beat_age_s=None if state.is_over else beat_age,
        parent=plan.parent,
        image_tokens=None if isinstance(settings, Eval) else kept_tokens(settings.image, plan.model.image.patch),
        text_tokens=None if isinstance(settings, Eval) else settings.text.tokens,
        hint=_HINTS.get(state, "").format(run=plan.run, group=plan.group),
    )


_HINTS = {
    State.FAILED: "clipa resume {run}",
    State.CANCELLED: "clipa resume {run}",
    State.INTERRUPTED: "clipa resume {run}",
    # The run that it waits for must be resumed first: the group's name means all that is not done, in order.
    State.BLOCKED: "clipa resume {group}",
    State.UNKNOWN: "clipa doctor",
}

_FINAL = {
    "done": State.DONE,
    "failed": State.FAILED,
    "killed": State.FAILED,
    "cancelled": State.CANCELLED,
    "blocked": State.BLOCKED,
    "stopped": State.INTERRUPTED,
}


def judge(case: Case) -> Verdict:
    """The verdict of the first rule that has one."""
    for rule in _CASCADE:
        if verdict := rule(case):
            return verdict
    return Verdict(State.UNKNOWN, "it has a plan, but no readable intent to run it, and nothing has run")


def _final_word(case: Case) -> Verdict | None:
    """The job itself, or the command that cancelled it, wrote how it ended."""
    ended = case.facts.ended
    return Verdict(_FINAL[ended.outcome], ended.error) if ended else None


def _supervisor(case: Case) -> Verdict | None:
    """A supervisor has the attempt: it lives, or its heart beats, or it is gone."""
    facts, holder = case.facts, case.facts.holder
    if holder is None:
        return None
    match case.alive(holder):
        case True:
            return _on_its_way(facts)
        case False:
            gone = f"its supervisor (process {holder.pid} on {holder.host}) is gone"
            if facts.trainer and facts.trainer.outcome == "done":
                gone += "; the work had ended well, so a resume has only to confirm it"
            return Verdict(State.INTERRUPTED, gone)
        case None:
            return _by_heartbeat(case, f"its supervisor is process {holder.pid} on {holder.host}")


def _trainer(case: Case) -> Verdict | None:
    """Nobody supervises the attempt: somebody trains by hand, with `python -m clipa.train RUN_DIR`."""
    facts = case.facts
    if facts.trainer:
        return Verdict(_FINAL[facts.trainer.outcome], facts.trainer.error)
    return _by_heartbeat(case, "it was started by hand") if facts.begun else None


def _unreadable(case: Case) -> Verdict | None:
    """The supervisor's words may stand in a file that cannot be read: everything below would be a guess."""
    files = case.facts.unreadable
    return Verdict(State.UNKNOWN, f"cannot be read: {', '.join(files)}") if files else None


def _job(case: Case) -> Verdict | None:
    """The attempt was handed to the machine, and no supervisor has said a word yet."""
    facts, job = case.facts, case.facts.job
    if job is None:
        return None
    match case.alive(job):
        case True:
            return _on_its_way(facts, "handed to the machine, not started yet")
        case False:
            return Verdict(State.INTERRUPTED, f"its job (process {job.pid}) ended before it began: see logs/*/submitit")
        case None:
            if facts.intent and case.now - facts.intent.t < GRACE_S:
                return _on_its_way(facts, f"handed to {job.host}, not started yet")
            return Verdict(State.UNKNOWN, f"handed to {job.host} as process {job.pid}, no word from there since")


def _command(case: Case) -> Verdict | None:
    """There is only the intent of the command that was about to submit it."""
    facts, intent = case.facts, case.facts.intent
    if intent is None:
        return None
    alive = case.alive(intent.by)
    if alive or case.now - intent.t < GRACE_S:
        return _on_its_way(facts, "being handed to the machine")
    if alive is None:
        return Verdict(State.UNKNOWN, f"a command on {intent.by.host} was about to submit it, no word from there since")
    return Verdict(State.INTERRUPTED, "it was never submitted: the command that was about to was ended")


_CASCADE = (_final_word, _supervisor, _unreadable, _trainer, _job, _command)


def _by_heartbeat(case: Case, who: str) -> Verdict:
    age = case.beat_age
    if age is None:
        return Verdict(State.UNKNOWN, f"{who}, which cannot be asked from here, and it has no heartbeat")
    if age < SILENCE_S:
        return _on_its_way(case.facts)
    return Verdict(State.INTERRUPTED, f"{who}, and gave no sign of life for {age:,.0f} s")


def _on_its_way(facts: Facts, otherwise: str = "") -> Verdict:
    asked = f"asked to leave by {facts.stop.by} ({facts.stop.why})" if facts.stop else ""
    return Verdict(facts.doing, asked or facts.why or otherwise)


def _median(values: tuple[float, ...]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None


def _eta(samples: int, speed: float | None) -> float | None:
    seconds = samples / speed if speed and speed > 0 else math.inf
    return seconds if seconds < LONGEST_ETA_S else None

"""The state of a run: a pure fold of what its folder says, and an ordered cascade of who is believed.

First what the job itself wrote, then whether the process that has it lives, then the age of its heartbeat,
else UNKNOWN with a reason.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from clipa.registry import events
from clipa.registry.liveness import Identity
from clipa.registry.records import Intent
from clipa.spec.job import Eval
from clipa.spec.plan import Plan, Record

GRACE_S = 60.0
"""Age at which an intent without a job, or a heartbeat that cannot be checked otherwise, is taken for dead."""


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


_FINAL = {
    "done": State.DONE,
    "failed": State.FAILED,
    "killed": State.FAILED,
    "cancelled": State.CANCELLED,
    "blocked": State.BLOCKED,
    "stopped": State.INTERRUPTED,
}


class Score(Record, frozen=True, kw_only=True):
    """One evaluation result; `top1` and `top5` in percent."""

    set: str
    size: int
    step: int
    samples: int
    top1: float
    top5: float


class Point(Record, frozen=True, kw_only=True):
    """One point of a run's history."""

    step: int
    loss: float
    samples_per_s: float


class Facts(Record, frozen=True, kw_only=True):
    """Everything that a run's folder says, apart from the ages of its heartbeats. Round-trips through JSON."""

    path: str
    plan: Plan
    intent: Intent | None = None
    intents: tuple[int, ...] = ()
    holder: Identity | None = None
    holder_t: float = 0.0
    behind: str = ""
    started: float = 0.0
    attempt: int = 0
    phase_of_attempt: State = State.QUEUED
    why: str = ""
    step: int = 0
    last_step: events.Step | None = None
    speeds: tuple[float, ...] = ()
    history: tuple[Point, ...] = ()
    scores: tuple[Score, ...] = ()
    ended: events.Ended | None = None
    params: int = 0
    device: str = ""


class RunStatus(Record, frozen=True, kw_only=True):
    """One line of `clipa status`. Times in seconds, `t`-like fields in Unix time; `percent` in 0..100."""

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
    parent: str
    image_tokens: int | None
    text_tokens: int | None
    hint: str = ""


def reduce(facts: Facts, alive: Callable[[Identity], bool | None], beat_age: float | None, now: float) -> RunStatus:
    """The status of a run.

    Args:
        facts: what its folder says.
        alive: whether a process runs; None when that cannot be told from here.
        beat_age: seconds since the newest heartbeat of the newest attempt, None without one.
        now: Unix time.
    """
    state, why = _judge(facts, alive, beat_age, now)
    plan = facts.plan
    steps = plan.steps
    speed = _median(facts.speeds)
    batch = 0 if isinstance(plan.settings, Eval) else plan.settings.batch
    left = (steps - facts.step) * batch
    percent = 100.0 if state is State.DONE else 100.0 * facts.step / steps if steps else 0.0
    return RunStatus(
        run=plan.run,
        group=plan.group,
        name=plan.name,
        phase=plan.phase,
        kind=plan.kind,
        recipe=plan.recipe,
        cluster=plan.cluster,
        root=plan.run_root,
        state=state,
        why=why,
        attempt=facts.attempt,
        attempts=len(facts.intents),
        step=facts.step,
        steps=steps,
        samples=facts.step * batch,
        percent=min(100.0, percent),
        samples_per_s=speed,
        loss=facts.last_step.loss if facts.last_step else None,
        scores=facts.scores,
        eta_s=left / speed if speed and state is State.RUNNING and steps else None,
        created=plan.created,
        age_s=max(0.0, now - plan.created),
        started=facts.started or None,
        ended=facts.ended.t if facts.ended and not state.is_live else None,
        parent=plan.parent,
        image_tokens=None
        if isinstance(plan.settings, Eval)
        else (plan.settings.image.size // plan.model.image.patch) ** 2,
        text_tokens=None if isinstance(plan.settings, Eval) else plan.settings.text.tokens,
        hint=f"clipa resume {plan.run}" if not state.is_live and state is not State.DONE else "",
    )


def _judge(
    facts: Facts, alive: Callable[[Identity], bool | None], beat_age: float | None, now: float
) -> tuple[State, str]:
    if facts.ended and facts.ended.final and facts.ended.attempt >= max(facts.intents, default=0):
        return _FINAL[facts.ended.outcome], facts.ended.error
    if facts.holder is None:
        return _unheld(facts, alive, now)
    lives = alive(facts.holder)
    if lives is None and beat_age is not None:
        lives = beat_age < GRACE_S
    if lives is None:
        return State.UNKNOWN, f"its supervisor is on {facts.holder.host}, and there is no heartbeat to go by"
    if not lives:
        return State.INTERRUPTED, f"its supervisor (process {facts.holder.pid} on {facts.holder.host}) is gone"
    return facts.phase_of_attempt, facts.why


def _unheld(facts: Facts, alive: Callable[[Identity], bool | None], now: float) -> tuple[State, str]:
    """No supervisor has written into the run yet since its newest intent."""
    if facts.intent is None:
        return State.UNKNOWN, "it has a plan, but no readable intent to run it"
    if now - facts.intent.t < GRACE_S or alive(facts.intent.by):
        return State.QUEUED, "handed to the machine, not started yet"
    return State.INTERRUPTED, "it was never started: the command that submitted it was ended"


def _median(values: tuple[float, ...]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None

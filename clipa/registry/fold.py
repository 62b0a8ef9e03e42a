"""From a run's events to its facts: a pure fold.

Attempts are ordered by number, and within one attempt every question is answered by one writer's events in the order
in which it wrote them: clocks that differ or jump change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, TypeVar

from clipa.registry import events
from clipa.registry.events import AnyEvent
from clipa.registry.liveness import Identity
from clipa.registry.records import Intent, Stop
from clipa.registry.state import BadSamples, Facts, Point, Remote, Score, State
from clipa.spec.plan import Plan

HISTORY = 200
"""Points of a run's history that are kept."""
SPEEDS = 20
"""Newest speeds whose median is shown: one slow step (a compilation, a checkpoint) does not move it."""

_WORST = 3
"""Shards with unusable samples that are named."""

_E = TypeVar("_E", bound=AnyEvent)


def fold(
    path: str,
    plan: Plan,
    found: Iterable[AnyEvent],
    intents: Mapping[int, Intent],
    stops: Mapping[int, Stop],
    unreadable: Mapping[str, int],
) -> Facts:
    """The facts of a run.

    Args:
        path: its folder.
        plan: its plan.
        found: all events that can be read; those of one writer in the order in which they were written.
        intents: attempt -> intent.
        stops: attempt -> request to leave.
        unreadable: name -> attempt of event files that cannot be read.
    """
    by_attempt = _by_attempt(found)
    everything = list(chain.from_iterable(by_attempt[number] for number in sorted(by_attempt)))
    newest = max([*by_attempt, *intents, *unreadable.values()], default=0)
    intent = intents.get(newest)
    now = by_attempt.get(newest, [])
    doing, why = _doing(now, _before(everything, newest) if intent and intent.reason == "restart" else None)
    steps = _of(everything, events.Step)
    begun = _of(everything, events.Begun)
    final = [event for event in _of(now, events.Ended) if event.final]
    stop = [stops[number] for number in sorted(stops) if number >= (intent.submission if intent else newest)]
    return Facts(
        path=path,
        plan=plan,
        attempt=newest,
        intents=tuple(sorted(intents)),
        intent=intent,
        queued=intents[min(intents)].t if intents else 0.0,
        started=min((e.t for e in everything if isinstance(e, events.Started | events.Begun)), default=0.0),
        job=_job(now),
        **_handed(everything, intent.submission if intent else 0, newest)._asdict(),
        elements=tuple(i.element for _, i in sorted(intents.items()) if i.element is not None),
        holder=_holder(now, intent),
        stop=stop[-1] if stop else None,
        doing=doing,
        why=why,
        notes=(*dict.fromkeys(event.text for event in _of(now, events.Noted)), *_arriving(now)),
        bad=_bad_samples(now),
        held_s=sum(_held(said) for said in by_attempt.values()),
        begun=bool(_of(now, events.Begun)),
        trainer=_last(_of(now, events.TrainerEnded)),
        ended=max(final, key=lambda event: event.t, default=None),
        unreadable=tuple(sorted(name for name, attempt in unreadable.items() if attempt == newest)),
        remote=_remote(plan, everything, now),
        step=_reached(everything),
        last_step=_last(steps),
        speeds=tuple(event.samples_per_s for event in (_of(now, events.Step) or steps)[-SPEEDS:]),
        history=_history(everything),
        scores=_scores(everything),
        params=begun[-1].params if begun else 0,
        device=begun[-1].device if begun else "",
    )


def _by_attempt(found: Iterable[AnyEvent]) -> dict[int, list[AnyEvent]]:
    by_attempt: dict[int, list[AnyEvent]] = {}
    for event in found:
        by_attempt.setdefault(event.attempt, []).append(event)
    return by_attempt


def _arriving(now: Iterable[AnyEvent]) -> tuple[str, ...]:
    """How far the staging is that goes on while an attempt trains, in one line; none where it is over."""
    found = list(now)
    last = _last(_of(found, events.Arriving))
    if last is None or last.shards == last.of_shards or _of(found, events.Ended):
        return ()
    gib = f"{last.bytes / 2**30:,.1f} of {last.of_bytes / 2**30:,.1f} GiB"
    meanwhile = ", training meanwhile" if _of(found, events.Begun) else ""
    return (f"staging {last.shards:,} of {last.of_shards:,} shards ({gib}){meanwhile}",)


def _bad_samples(now: Iterable[AnyEvent]) -> BadSamples | None:
    """The samples of an attempt that could not be used, of all ranks together, by the newest word of each."""
    by_rank = {event.rank: event for event in _of(now, events.BadData)}
    if not by_rank:
        return None
    kinds: Counter[str] = Counter()
    shards: Counter[str] = Counter()
    for event in by_rank.values():
        kinds.update(event.kinds)
        shards.update(event.shards)
    example = next((event.examples[0] for event in by_rank.values() if event.examples), "")
    return BadSamples(kinds=dict(kinds.most_common()), shards=dict(shards.most_common(_WORST)), example=example)


def _of(found: Iterable[AnyEvent], kind: type[_E]) -> list[_E]:
    return [event for event in found if isinstance(event, kind)]


def _last(found: Sequence[_E]) -> _E | None:
    return found[-1] if found else None


def _remote(plan: Plan, everything: Sequence[AnyEvent], now: Sequence[AnyEvent]) -> Remote | None:
    """Whether all is at the URL, by the publisher's last word; by the supervisor's where it had no time for one; and
    where both are gone, by the checkpoints that were saved and those that were brought.
    """
    if said := _last(_of(now, events.PublishEnded)):
        return Remote(whole=said.whole, why=said.why)
    ended = _last([event for event in _of(now, events.Ended) if event.remote is not None])
    if ended:
        return Remote(whole=bool(ended.remote), why=ended.not_remote)
    saved = max((event.step for event in _of(everything, events.Saved)), default=0)
    brought = max((event.step for event in _of(everything, events.Published)), default=0)
    missing = plan.publish is not None and brought < saved
    return Remote(whole=False, why=f"step {saved} was not brought") if missing else None


def _before(everything: Iterable[AnyEvent], newest: int) -> str:
    """How the attempt before the newest one ended, in one line."""
    ended = [event for event in _of(everything, events.Ended) if event.attempt < newest]
    return _restarting(ended[-1].error) if ended else "restarting"


def _restarting(error: str) -> str:
    return f"restarting after: {error.strip().partition(chr(10))[0]}"


def _doing(now: Sequence[AnyEvent], restarted: str | None) -> tuple[State, str]:
    """What the newest attempt is at, from its own events, and why. `restarted`: what a restart comes after."""
    kinds = {type(event) for event in now}
    if ended := _of(now, events.Ended):
        since = _of(now[now.index(ended[-1]) :], events.Waiting)
        if since and since[-1].reason:
            return State.WAITING, since[-1].reason
        return State.RUNNING, _restarting(ended[-1].error)
    if kinds & {events.Spawned, events.Begun}:
        return State.RUNNING, ""
    waiting = _last(_of(now, events.Waiting))
    if waiting and waiting.reason and events.Staged not in kinds:
        return State.WAITING, waiting.reason
    if kinds & {events.Started, events.Staged}:
        return State.STAGING, ""
    if restarted is not None:
        return State.RUNNING, restarted
    queued = _last(_of(now, events.Queued))
    return State.QUEUED, f"behind {queued.behind}" if queued and queued.behind else ""


def _holder(now: Sequence[AnyEvent], intent: Intent | None) -> Identity | None:
    """The supervisor of the newest attempt. One that is about to restart has so far only written the intent."""
    held = _last(_of(now, events.Started)) or _last(_of(now, events.Queued))
    if held is None:
        return intent.by if intent and intent.reason == "restart" else None
    return Identity(
        host=held.host,
        pid=held.pid,
        start_ticks=held.start_ticks,
        boot_id=held.boot_id,
        pid_namespace=held.pid_namespace,
    )


def _job(now: Sequence[AnyEvent]) -> Identity | None:
    given = _last(_of(now, events.Submitted))
    if given is None or not given.boot_id or not given.job.isdecimal() or len(given.job) > 9:
        return None
    return Identity(
        host=given.host,
        pid=int(given.job),
        start_ticks=given.start_ticks,
        boot_id=given.boot_id,
        pid_namespace=given.pid_namespace,
    )


def _held(said: Sequence[AnyEvent]) -> float:
    """From an attempt's start to the last that was heard of it."""
    began = [event.t for event in said if isinstance(event, events.Started)]
    return max(0.0, max(event.t for event in said) - min(began)) if began else 0.0


class _Handed(NamedTuple):
    """SLURM's job of an attempt: its id, its cluster, and when it was submitted (Unix time)."""

    slurm_job: str = ""
    slurm_cluster: str = ""
    submitted: float = 0.0


def _handed(everything: Iterable[AnyEvent], submission: int, newest: int) -> _Handed:
    """Return the job that has the newest attempt: a requeued one keeps its id, a successor names its own.

    A resume begins a new submission, which has no job until one is named.
    """
    found = _Handed()
    for event in everything:
        if not submission <= event.attempt <= newest:
            continue
        if isinstance(event, events.Submitted) and event.scheduler == "slurm" and event.job:
            found = _Handed(event.job, event.cluster, event.t)
        elif isinstance(event, events.Started) and event.job:
            found = found._replace(slurm_job=event.job)
    return found


def _reached(everything: Iterable[AnyEvent]) -> int:
    """The step of the newest attempt's progress: a resumed attempt begins where its checkpoint was."""
    step = 0
    for event in everything:
        if isinstance(event, events.Begun | events.Step | events.Saved):
            step = event.step
        if isinstance(event, events.WentBack):
            step = event.to
    return step


def _history(everything: Iterable[AnyEvent]) -> tuple[Point, ...]:
    """At most HISTORY points in order of steps. What a resumed attempt does again replaces what was done before."""
    points: list[Point] = []
    for event in everything:
        if isinstance(event, events.Begun | events.WentBack | events.Step):
            reached = _before_step(event)
            while points and points[-1].step > reached:
                points.pop()
        if isinstance(event, events.Step):
            points.append(Point(step=event.step, loss=event.loss, samples_per_s=event.samples_per_s))
    stride = max(1, -(-len(points) // HISTORY))
    return tuple(points[::-1][::stride][::-1])  # counted from the end, so that the newest point is always there


def _before_step(event: events.Begun | events.WentBack | events.Step) -> int:
    match event:
        case events.Begun():
            return event.step
        case events.WentBack():
            return event.to
        case events.Step():
            return event.step - 1


def _scores(everything: Iterable[AnyEvent]) -> tuple[Score, ...]:
    found: dict[tuple[str, int, int], Score] = {}
    for e in _of(everything, events.Scored):
        metric, value, metrics = e.metric, e.value, e.metrics
        if not metric and e.top1 is not None:  # written by clipa 0.1.0
            metric, value, metrics = "top1", e.top1, {"top1": e.top1, "top5": e.top5 or 0.0}
        found[(e.set, e.size, e.step)] = Score(
            set=e.set,
            size=e.size,
            step=e.step,
            samples=e.samples,
            metric=metric,
            value=value,
            metrics=metrics,
            task=e.task,
        )
    return tuple(found.values())

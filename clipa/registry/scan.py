"""Reading run folders that anything may have happened to: never an exception, always an answer or a diagnostic."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.registry import events, records
from clipa.registry.index import Index, fingerprint
from clipa.registry.liveness import Identity, is_alive
from clipa.registry.reading import Diagnostic, Reading
from clipa.registry.run_dir import RunDir
from clipa.registry.state import Facts, Point, RunStatus, Score, State, reduce
from clipa.spec import plan as plans

HISTORY = 200
SPEEDS = 20
_MARKS = ("plan.json", "events", "intents", "attempts")
_LARGEST = 64 << 20
_RANK = {"pretrain": 0, "finetune": 1, "eval": 2}


class Scan(NamedTuple):
    """All runs under some roots, oldest first, and everything that was odd."""

    statuses: list[RunStatus]
    facts: dict[str, Facts]
    diagnostics: list[Diagnostic]


def scan(roots: Sequence[Path], now: float | None = None) -> Scan:
    """The status of every run under these roots."""
    now = time.time() if now is None else now
    statuses: list[RunStatus] = []
    facts: dict[str, Facts] = {}
    with Index() as index:
        diagnostics = list(index.diagnostics())
        for run in _folders(roots, diagnostics):
            mark = fingerprint(run)
            reading = index.get(run, mark) or index.put(run, mark, read(run))
            diagnostics.extend(reading.diagnostics)
            if reading.facts:
                found = reading.facts
                statuses.append(reduce(found, is_alive, beat_age(run, found.attempt, now), now))
                facts[found.plan.run] = found
    statuses.sort(key=lambda status: (status.created, _RANK[status.kind], status.phase))
    return Scan(statuses, facts, diagnostics)


def _folders(roots: Iterable[Path], diagnostics: list[Diagnostic]) -> Iterator[RunDir]:
    for root in roots:
        try:
            names = sorted(os.listdir(root))
        except FileNotFoundError:
            continue
        except OSError as error:
            diagnostics.append(Diagnostic(path=str(root), problem=f"cannot be listed: {error.strerror}"))
            continue
        for name in names:
            if not name.startswith(".") and any(os.path.lexists(root / name / mark) for mark in _MARKS):
                yield RunDir(root / name)


def beat_age(run: RunDir, attempt: int, now: float) -> float | None:
    """Seconds since the newest heartbeat of an attempt."""
    newest = None
    for writer in ("node", "train"):
        try:
            beat = run.heartbeat(attempt, writer).stat().st_mtime
        except OSError:
            continue
        newest = beat if newest is None else max(newest, beat)
    return None if newest is None else max(0.0, now - newest)


def read(run: RunDir) -> Reading:
    """Everything in a run folder, whatever its shape."""
    odd: list[Diagnostic] = []
    plan = _plan(run, odd)
    if plan is None:
        return Reading(diagnostics=tuple(odd))
    fold = _Fold()
    for path in _event_files(run, odd):
        _fold_file(path, fold, odd)
    intents = tuple(run.intents())
    intent = records.read_intent(run, intents[-1]) if intents else None
    if intents and intent is None:
        odd.append(Diagnostic(path=str(run.intent(intents[-1])), problem="the intent cannot be read",
                              cure=f"clipa resume {run.id}"))  # fmt: skip
    return Reading(facts=fold.facts(str(run.path), plan, intents, intent), diagnostics=tuple(odd))


def _plan(run: RunDir, odd: list[Diagnostic]) -> plans.Plan | None:
    try:
        if not run.plan.is_file():
            raise OSError("it is not there, or not a file")
        plan = plans.decode(run.plan.read_bytes())
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        odd.append(
            Diagnostic(path=str(run.plan), problem=f"no plan: {error}", cure="move the folder away, it is not a run")
        )
        return None
    if plan.run != run.id:
        odd.append(
            Diagnostic(path=str(run.plan), problem=f"the plan is of run {plan.run}", cure="rename the folder back")
        )
        return None
    return plan


def _event_files(run: RunDir, odd: list[Diagnostic]) -> list[Path]:
    """Event files by attempt, so that later attempts have the last word."""
    try:
        names = os.listdir(run.events)
    except FileNotFoundError:
        return []
    except OSError as error:
        odd.append(Diagnostic(path=str(run.events), problem=f"cannot be listed: {error.strerror}"))
        return []
    found = []
    for name in names:
        number, _, rest = name.partition("-")
        if number.isdecimal() and len(number) < 10 and rest.endswith(".jsonl"):
            found.append((int(number), name))
        else:
            odd.append(Diagnostic(path=str(run.events / name), problem="not an event file", cure="delete it"))
    return [run.events / name for _, name in sorted(found)]


def _fold_file(path: Path, fold: _Fold, odd: list[Diagnostic]) -> None:
    try:
        if not path.is_file():
            raise OSError("not a file")
        if path.stat().st_size > _LARGEST:
            raise OSError(f"larger than {_LARGEST >> 20} MiB")
        bad = 0
        for event in events.read(path):
            if event is None:
                bad += 1
            else:
                fold.add(event)
    except OSError as error:
        odd.append(Diagnostic(path=str(path), problem=f"cannot be read: {error.strerror or error}", cure="delete it"))
        return
    if bad:
        odd.append(
            Diagnostic(
                path=str(path),
                problem=f"{bad} line(s) are torn or of a newer clipa",
                cure="nothing to do: they are passed over",
            )
        )


class _Fold:
    """Collects events in order of attempts; within one attempt files are separate writers, so times decide."""

    def __init__(self) -> None:
        self.by_attempt: dict[int, list[events.AnyEvent]] = {}

    def add(self, event: events.AnyEvent) -> None:
        self.by_attempt.setdefault(event.attempt, []).append(event)

    def facts(self, path: str, plan: plans.Plan, intents: tuple[int, ...], intent: records.Intent | None) -> Facts:
        ordered = [
            event
            for attempt in sorted(self.by_attempt)
            for event in sorted(self.by_attempt[attempt], key=lambda e: e.t)
        ]
        newest = max([*self.by_attempt, *intents], default=0)
        now_events = [event for event in self.by_attempt.get(newest, []) if event.attempt == newest]
        steps = [event for event in ordered if isinstance(event, events.Step)]
        held = [e for e in now_events if isinstance(e, events.Started | events.Queued)] or self._held(intent)
        begun = [event for event in ordered if isinstance(event, events.Begun)]
        ended = [event for event in ordered if isinstance(event, events.Ended)]
        phase, why = _doing(sorted(now_events, key=lambda e: e.t))
        holder = held[-1] if held else None
        started = [event.t for event in ordered if isinstance(event, events.Started)]
        queued = [e for e in now_events if isinstance(e, events.Queued)]
        return Facts(
            path=path,
            plan=plan,
            intent=intent,
            intents=intents,
            holder=_identity(holder) if holder else None,
            holder_t=holder.t if holder else 0.0,
            behind=queued[-1].behind if queued else "",
            started=started[0] if started else 0.0,
            attempt=newest,
            phase_of_attempt=phase,
            why=why
            or (f"behind {queued[-1].behind}" if queued and queued[-1].behind and phase is State.QUEUED else ""),
            step=_reached(ordered),
            last_step=steps[-1] if steps else None,
            speeds=tuple(event.samples_per_s for event in steps[-SPEEDS:]),
            history=_thin(steps),
            scores=_scores(ordered),
            ended=ended[-1] if ended else None,
            params=begun[-1].params if begun else 0,
            device=begun[-1].device if begun else "",
        )

    def _held(self, intent: records.Intent | None) -> list[events.Started | events.Queued]:
        """An attempt that is about to be restarted is held by the supervisor of its submission."""
        if intent is None or intent.reason != "restart":
            return []
        return [
            event
            for attempt in sorted(self.by_attempt)
            if attempt >= intent.submission
            for event in self.by_attempt[attempt]
            if isinstance(event, events.Started | events.Queued)
        ]


def _doing(now_events: Sequence[events.AnyEvent]) -> tuple[State, str]:
    """What the newest attempt is at, from its own events."""
    state, why = State.QUEUED, ""
    for event in now_events:
        match event:
            case events.Waiting():
                state, why = State.WAITING, event.reason
            case events.Started():
                state, why = State.STAGING, ""
            case events.Spawned() | events.Begun():
                state, why = State.RUNNING, ""
            case events.Ended():
                state, why = State.RUNNING, f"restarting after: {event.error}"
    return state, why


def _reached(ordered: Sequence[events.AnyEvent]) -> int:
    """The step of the newest attempt's progress: a resumed attempt begins where its checkpoint was."""
    step = 0
    for event in ordered:
        if isinstance(event, events.Begun | events.Step | events.Saved):
            step = event.step
    return step


def _scores(ordered: Sequence[events.AnyEvent]) -> tuple[Score, ...]:
    found: dict[tuple[str, int, int], Score] = {}
    for e in ordered:
        if isinstance(e, events.Scored):
            found[(e.set, e.size, e.step)] = Score(
                set=e.set, size=e.size, step=e.step, samples=e.samples, top1=e.top1, top5=e.top5
            )
    return tuple(found.values())


def _thin(steps: Sequence[events.Step]) -> tuple[Point, ...]:
    stride = max(1, -(-len(steps) // HISTORY))
    return tuple(Point(step=e.step, loss=e.loss, samples_per_s=e.samples_per_s) for e in steps[::stride])


def _identity(event: events.Started | events.Queued) -> Identity:
    return Identity(
        host=event.host,
        pid=event.pid,
        start_ticks=event.start_ticks,
        boot_id=event.boot_id,
        pid_namespace=event.pid_namespace,
    )

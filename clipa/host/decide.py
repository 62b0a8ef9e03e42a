"""When to try again: pure rules, the same for the local machine and for SLURM, and what they look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from clipa.host.blame import blame
from clipa.registry import events
from clipa.registry.cause import normalized
from clipa.registry.run_dir import RunDir

Outcome: TypeAlias = Literal["done", "failed", "killed", "stopped", "cancelled", "blocked"]
COUNTED = ("failed", "killed")
"""Outcomes that use up attempts. To be asked to leave, by a time limit or a preemption, is free."""


class Verdict(NamedTuple):
    """How an attempt ended, in the words of `events.Ended`, and whether trying again could help."""

    outcome: Outcome
    error: str = ""
    retry: bool = False


class Trace(NamedTuple):
    """What an attempt got done: where it began (-1: not at all), how far it came, and its own error."""

    begun: int
    reached: int
    outcome: str
    error: str


def trace_of(run: RunDir, attempt: int, verdict: Verdict) -> Trace:
    """Read an attempt's trace from its trainer's events and heartbeat."""
    begun = reached = -1
    for event in events.read(run.event_file(attempt, "train")):
        if isinstance(event, events.Begun):
            begun = event.step
        if isinstance(event, events.Step | events.Saved):
            reached = max(reached, event.step)
    reached = max(reached, run.beaten_step(attempt) or 0) if begun >= 0 else reached
    return Trace(begun, max(begun, reached), verdict.outcome, verdict.error)


def decide(verdict: Verdict, history: Sequence[Trace], last: bool, limit: int) -> tuple[Verdict, bool]:
    """Whether the attempt was the last one of its submission, and the verdict with the reason why.

    It stops early only when two consecutive attempts began at the same checkpoint, made no step of progress and ended
    with the same error of their own, compared without addresses, process numbers and times. What comes from outside
    (signals) counts for the limit of attempts alone.
    """
    if not verdict.retry:
        return verdict, True
    if len(history) >= 2 and _hopeless(history[-2], history[-1]):
        return verdict._replace(
            error=f"{verdict.error}\nThe same error twice from the same step: not tried again."
        ), True
    if last:
        return verdict._replace(outcome="failed", error=f"{verdict.error}\nThat was attempt {limit} of {limit}."), True
    return verdict, False


def is_last(history: Sequence[Trace], limit: int) -> bool:
    """Whether as many attempts as are allowed have failed or were killed."""
    return sum(trace.outcome in COUNTED for trace in history) >= limit


def _hopeless(before: Trace, now: Trace) -> bool:
    return (
        before.outcome == now.outcome == "failed"
        and before.begun == now.begun
        and before.reached == before.begun
        and now.reached == now.begun
        and normalized(before.error) == normalized(now.error)
        and blame(now.error, ()).cause
        != "storage"  # a disk is emptied or mended meanwhile: up to the limit of attempts
    )


def is_done(run: RunDir) -> bool:
    """Whether the newest final word on a run is `done`."""
    for attempt in reversed(run.intents()):
        final = [event for event in words(run, attempt) if isinstance(event, events.Ended) and event.final]
        if final:
            return max(final, key=lambda event: event.t).outcome == "done"
    return False


WRITERS = ("supervisor", "tail", "settle", "cancel")
"""Who says how an attempt ended: its supervisor, the tail of its batch script, a later command."""


def words(run: RunDir, attempt: int) -> list[events.AnyEvent]:
    """What those who may end an attempt have said of it."""
    files = [run.event_file(attempt, writer) for writer in WRITERS]
    return [event for file in files for event in events.read(file) if event is not None]

"""The supervisor: runs the phases of a submission in order, restarts what crashed, stops when that cannot help."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from clipa.errors import LaunchError
from clipa.launch.attempt import Attempt, Leaving, Verdict
from clipa.registry import events, records
from clipa.registry.liveness import own_identity
from clipa.registry.run_dir import RunDir
from clipa.spec import plan as plans
from clipa.spec.plan import Plan


class Task(NamedTuple):
    """One run of a submission: its folder, and the first attempt of this submission."""

    path: str
    submission: int


class Supervise:
    """What submitit pickles: nothing but paths and numbers, importable by name."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)

    def __call__(self) -> int:
        """Run the submission. Returns the number of runs that are not done."""
        leaving = Leaving()
        leaving.install()
        os.chdir("/")
        return Supervisor(self.tasks, leaving).execute()


class Supervisor:
    """Works through the runs of one submission."""

    def __init__(self, tasks: Sequence[Task], leaving: Leaving) -> None:
        self.waiting = [(RunDir(task.path), task.submission) for task in tasks]
        self.leaving = leaving
        leaving.tend = self._tend  # type: ignore[method-assign]

    def execute(self) -> int:
        """Run phase after phase; those behind one that is not done are blocked."""
        self._announce()
        not_done = 0
        while self.waiting:
            run, submission = self.waiting.pop(0)
            if not self._run(run, submission):
                not_done += 1
        return not_done

    def _announce(self) -> None:
        """Write into every run that waits who will start it, so that its liveness can be told from its own folder."""
        me = own_identity()
        before = ""
        for run, submission in self.waiting:
            writer = events.EventWriter(run, submission, "queue")
            writer.write(
                events.Queued,
                host=me.host,
                pid=me.pid,
                start_ticks=me.start_ticks,
                boot_id=me.boot_id,
                pid_namespace=me.pid_namespace,
                behind=before,
            )
            writer.close()
            before = run.id

    def _run(self, run: RunDir, submission: int) -> bool:
        plan = _read_plan(run)
        if stop := records.asked_to_cancel(run, submission):
            return _close(run, submission, "cancelled", f"cancelled by {stop.by}")
        if self.leaving.reason:
            return _close(run, submission, "stopped", self.leaving.reason)
        if plan.parent and not is_done(RunDir(run.path.parent / plan.parent)):
            return _close(run, submission, "blocked", f"{plan.parent} is not done")
        history: list[Trace] = []
        for attempt in range(submission, submission + plan.limits.max_attempts):
            if attempt > submission:
                records.write_intent(run, attempt, submission, "restart")
            if not run.claim(attempt):
                return False  # another supervisor has this submission: it is theirs to finish
            work = Attempt(run, plan, attempt, submission, self.leaving)
            verdict = work.execute()
            history.append(trace_of(run, attempt, verdict))
            last = attempt == submission + plan.limits.max_attempts - 1
            verdict, final = decide(verdict, history, last, plan.limits.max_attempts)
            work.end(verdict, final)
            if final:
                return verdict.outcome == "done"
        return False

    def _tend(self) -> None:
        """Cancel runs that wait their turn as soon as somebody asks for it."""
        for run, submission in list(self.waiting):
            if stop := records.asked_to_cancel(run, submission):
                _close(run, submission, "cancelled", f"cancelled by {stop.by}")
                self.waiting.remove((run, submission))


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
    try:
        reached = max(reached, int(run.heartbeat(attempt, "train").read_text()))
    except (OSError, ValueError):
        pass
    return Trace(begun, max(begun, reached), verdict.outcome, verdict.error)


def decide(verdict: Verdict, history: Sequence[Trace], last: bool, limit: int) -> tuple[Verdict, bool]:
    """Whether the attempt was the last one of its submission, and the verdict with the reason why.

    It stops early only when two consecutive attempts began at the same checkpoint, made no step of progress and ended
    with the same error of their own. What comes from outside (signals) counts for the limit of attempts alone.
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


def _hopeless(before: Trace, now: Trace) -> bool:
    return (
        before.outcome == now.outcome == "failed"
        and before.begun == now.begun
        and before.reached == before.begun
        and now.reached == now.begun
        and before.error == now.error
    )


def is_done(run: RunDir) -> bool:
    """Whether the newest final word on a run is `done`."""
    for attempt in reversed(run.intents()):
        for event in events.read(run.event_file(attempt, "supervisor")):
            if isinstance(event, events.Ended) and event.final:
                return event.outcome == "done"
    return False


def _close(run: RunDir, attempt: int, outcome: str, why: str) -> bool:
    """End a run that this submission will not start."""
    writer = events.EventWriter(run, attempt, "supervisor")
    writer.write(events.Ended, outcome=outcome, final=True, error=why)
    writer.close()
    return False


def _read_plan(run: RunDir) -> Plan:
    try:
        return plans.decode(run.plan.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise LaunchError(f"the plan cannot be read: {error}", where=str(run.plan)) from error

"""The supervisor: runs the phases of a submission in order, restarts what crashed, stops when that cannot help."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from clipa.host.attempt import Attempt, Leaving, guarded
from clipa.host.decide import Trace, decide, is_done, trace_of
from clipa.registry import events, records
from clipa.registry.liveness import own_identity
from clipa.registry.run_dir import RunDir


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
        plan = records.read_plan(run)
        if stop := records.asked_to_cancel(run, submission):
            return close(run, submission, "cancelled", f"cancelled by {stop.by}")
        if self.leaving.reason:
            return close(run, submission, "stopped", self.leaving.reason)
        if plan.parent and not is_done(RunDir(run.path.parent / plan.parent)):
            return close(run, submission, "blocked", f"{plan.parent} is not done")
        history: list[Trace] = []
        for attempt in range(submission, submission + plan.limits.max_attempts):
            if attempt > submission:
                records.write_intent(run, attempt, submission, "restart")
            if not run.claim(attempt):
                return False  # another supervisor has this submission: it is theirs to finish
            work = Attempt(run, plan, attempt, submission, self.leaving)
            verdict = guarded(work.execute)
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
                close(run, submission, "cancelled", f"cancelled by {stop.by}")
                self.waiting.remove((run, submission))


def close(run: RunDir, attempt: int, outcome: str, why: str) -> bool:
    """End a run that this submission will not start. Returns False: it is not done."""
    writer = events.EventWriter(run, attempt, "supervisor")
    writer.write(events.Ended, outcome=outcome, final=True, error=why)
    writer.close()
    return False

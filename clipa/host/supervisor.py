"""The supervisor: runs the phases of a submission in order, restarts what crashed, stops when that cannot help."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from clipa.errors import LaunchError
from clipa.host.attempt import Attempt, Leaving, guarded
from clipa.host.decide import Trace, Verdict, decide, is_done, trace_of
from clipa.host.pause import Taken, Watch, backoff_s, space_needed, take_when_possible
from clipa.registry import events, records
from clipa.registry.liveness import own_identity
from clipa.registry.log_streams import survive_full_logs
from clipa.registry.run_dir import RunDir
from clipa.terminal import say


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
        survive_full_logs()
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
            with contextlib.suppress(OSError):  # the run's own folder tells less then, and nothing else
                writer.close(0.0)
            before = run.id

    def _run(self, run: RunDir, submission: int) -> bool:
        try:
            plan = records.read_plan(run)
        except LaunchError as error:
            return close(run, submission, "failed", str(error))
        if why := self._asked(run, submission):
            return close(run, submission, why.outcome, why.error)
        if plan.parent and not is_done(RunDir(run.path.parent / plan.parent)):
            return close(run, submission, "blocked", f"{plan.parent} is not done")
        limit = plan.limits.max_attempts
        history: list[Trace] = []
        taken = self._take_first(run, submission)
        for attempt in range(submission, submission + limit):
            if taken is not True:
                # Another supervisor has this submission: it is theirs to finish. Or nobody is to go on with it.
                return taken is not False and close(run, max(submission, attempt - 1), taken.outcome, taken.error)
            work = Attempt(run, plan, attempt, submission, self.leaving)
            verdict = guarded(work.execute)
            history.append(trace_of(run, attempt, verdict))
            verdict, final = decide(verdict, history, attempt == submission + limit - 1, limit)
            work.end(verdict, final)
            if not final:
                taken = self._take_next(work, [trace.outcome for trace in history], verdict)
            work.close()
            if final:
                return verdict.outcome == "done"
        return False

    def _asked(self, run: RunDir, submission: int) -> Verdict | None:
        """Why a run should not begin."""
        if stop := records.asked_to_cancel(run, submission):
            return Verdict("cancelled", f"cancelled by {stop.by}")
        return Verdict("stopped", self.leaving.reason) if self.leaving.reason else None

    def _take_first(self, run: RunDir, submission: int) -> Taken:
        """Claim the first attempt of a submission, whose intent the command has written that submitted it."""
        log = events.EventWriter(run, submission, "queue")

        def tick() -> None:
            run.beat(submission, "node")
            log.flush()

        watch = Watch(lambda: self._asked(run, submission), tick, lambda why: log.write(events.Waiting, reason=why))
        taken = take_when_possible(run, lambda: run.claim(submission), watch)
        with contextlib.suppress(OSError):
            log.close(0.0)
        return taken

    def _take_next(self, work: Attempt, outcomes: list[str], before: Verdict) -> Taken:
        """Take the attempt after one that failed: after a back-off, and when the disk can be written."""
        run, number = work.run, work.attempt + 1

        def take() -> bool:
            records.write_intent(run, number, work.submission, "restart")
            return run.claim(number)

        watch = Watch(work.asked, work.tick, work.wait)
        return take_when_possible(run, take, watch, backoff_s(outcomes), space_needed(run, before))

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
    try:
        writer.close()
    except OSError as error:
        say(error, err=True)
    return False

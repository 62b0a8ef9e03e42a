"""The tail of the batch script: what follows an attempt. It runs on the host of the first node, after the step.

    python -m clipa.launch.tail RUN_DIR ATTEMPT SUBMISSION ended CODE
    python -m clipa.launch.tail RUN_DIR ATTEMPT SUBMISSION asked        at SIGTERM, while the step still runs
    python -m clipa.launch.tail RUN_DIR ATTEMPT SUBMISSION setup CODE   a line of the profile's setup failed

Exit codes: 0 done, 10 over and not done, 11 another attempt follows. With any other the batch script helps itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from clipa.errors import ClipaError
from clipa.host.children import last_lines
from clipa.host.conclude import Doing, conclude, doing_of, write_end
from clipa.host.decide import is_done
from clipa.host.node import own_id
from clipa.launch import carry_on
from clipa.registry import events, records
from clipa.registry.jobs import Job
from clipa.registry.liveness import Identity, is_alive
from clipa.registry.run_dir import RunDir
from clipa.slurm import scheduler
from clipa.spec.plan import Plan
from clipa.terminal import say

DONE, OVER, GOES_ON = 0, 10, 11


class Tail:
    """The end of one attempt, seen from the batch script of its job."""

    def __init__(self, run: RunDir, first: int, submission: int, job: str, restart: int) -> None:
        self.run = run
        self.plan: Plan = records.read_plan(run)
        self.attempt = first + restart
        self.submission = submission
        self.job = job
        self.log = run.logs(first) / "submitit" / f"{job}_0_log.err"
        assert self.plan.slurm is not None
        self.site = self.plan.slurm

    def ended(self, code: int) -> int:
        """The step is over, or `srun` has lost sight of it."""
        self._wait_for_supervisor()
        if is_done(self.run):
            return DONE
        if self.attempt < max([0, *self.run.intents()]):
            return GOES_ON  # a successor has taken over, or was submitted when SIGTERM came
        if self._was_sent_back():
            write_end(
                self.run,
                self.attempt,
                "tail",
                conclude(self.run, self.plan, self.attempt, self.submission, "time", code),
            )
            return DONE if is_done(self.run) else GOES_ON
        job = scheduler.describe_job(self.job, scheduler.Site(self.site.conf))
        doing = doing_of(job, self.log)
        conclusion = conclude(self.run, self.plan, self.attempt, self.submission, doing, code)
        write_end(self.run, self.attempt, "tail", conclusion)
        if conclusion.final:
            return DONE if conclusion.verdict.outcome == "done" else OVER
        if doing != "requeued":  # else SLURM has it in the queue already
            self._go_on(doing, conclusion.verdict.error)
        return GOES_ON

    def setup_failed(self, code: int, line: str, words: str) -> int:
        """A line of the profile's `setup` failed: the step was not started, and the words of the line say why."""
        if self.attempt not in self.run.intents():
            records.write_intent(self.run, self.attempt, self.submission, "restart")
        said = "\n".join(last_lines(Path(words)))
        what = (
            f"the setup line {line.strip()!r} of the cluster profile"
            if line.strip()
            else "the setup of the cluster profile"
        )
        log = events.EventWriter(self.run, self.attempt, "supervisor")
        log.write(events.Ended, outcome="failed", final=False, error=f"{what} ended with {code}:\n{said}".rstrip(":\n"))
        log.close()
        return self.ended(code)

    def asked(self) -> int:
        """SIGTERM came while the step runs: SLURM ends the job, perhaps before the step has saved and left."""
        doing = doing_of(scheduler.describe_job(self.job, scheduler.Site(self.site.conf)), self.log)
        if doing in ("time", "preempted") and not self._was_sent_back() and not is_done(self.run):
            conclusion = conclude(self.run, self.plan, self.attempt, self.submission, doing)
            if not conclusion.final:
                self._go_on(doing, conclusion.verdict.error)
        return GOES_ON

    def _wait_for_supervisor(self) -> None:
        """Let a supervisor finish that lives on without `srun`, which ends with code 0 when slurmd is killed."""
        said = [e for e in events.read(self.run.event_file(self.attempt, "supervisor")) if e is not None]
        began = [event for event in said if isinstance(event, events.Started)]
        if not began or any(isinstance(event, events.Ended) for event in said):
            return
        who = Identity(
            host=began[-1].host, pid=began[-1].pid, start_ticks=began[-1].start_ticks, boot_id=began[-1].boot_id,
            pid_namespace=began[-1].pid_namespace,
        )  # fmt: skip
        while is_alive(who):
            time.sleep(0.2)

    def _was_sent_back(self) -> bool:
        return any(
            isinstance(event, events.Requeued) for event in events.read(self.run.event_file(self.attempt, "tail"))
        )

    def _record(self, means: str, why: str) -> None:
        log = events.EventWriter(self.run, self.attempt, "tail")
        log.write(events.Requeued, means=means, why=why)
        log.close()

    def _go_on(self, doing: Doing, why: str) -> None:
        """Back into the queue; where that cannot be, a successor; where that cannot be either, the owner's next
        command. What is about to be done is recorded before it is tried.
        """
        if self.site.requeue and not self._on_bad_node():
            self._record("scontrol", why)
            said = scheduler.requeue(self.job, scheduler.Site(self.site.conf))
            if not said.trouble or self._is_queued():
                return
            say(said.trouble, err=True)
            if doing in ("node", "preempted", "requeued"):
                return  # SLURM itself brings it back; two jobs would be worse than a late one
        try:
            self._record("sbatch", why)
            carry_on.submit_successor(self.run, self.plan, self.submission, after=f"{self.job}")
        except (ClipaError, OSError) as error:
            say(error, err=True)
            self._record("later", str(error))

    def _on_bad_node(self) -> bool:
        """Whether a node failed its check: SLURM excludes nodes only from jobs that are not running yet, so that a
        requeue could come back to it.
        """
        files = self.run.events.glob(f"{self.attempt}-*.jsonl")
        return any(isinstance(event, events.BadNode) for file in files for event in events.read(file))

    def _is_queued(self) -> bool:
        job: Job | None = scheduler.describe_job(self.job, scheduler.Site(self.site.conf))
        return job is not None and job.phase in ("queued", "held")


def main() -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(prog="clipa.launch.tail")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("attempt", type=int)
    parser.add_argument("submission", type=int)
    parser.add_argument("what", choices=["ended", "asked", "setup"])
    parser.add_argument("code", type=int, nargs="?", default=0)
    parser.add_argument("--line", default="", help="the line of the setup that failed")
    parser.add_argument("--words", default=os.devnull, help="a file with what the setup wrote to its error output")
    given = parser.parse_args()
    began = time.monotonic()
    tail = Tail(
        RunDir(given.run_dir), given.attempt, given.submission, own_id(),
        int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    )  # fmt: skip
    if given.what == "setup":
        code = tail.setup_failed(given.code, given.line, given.words)
    else:
        code = tail.asked() if given.what == "asked" else tail.ended(given.code)
    say(f"attempt {tail.attempt} {given.what}: {code} after {time.monotonic() - began:.1f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Ending the SLURM jobs of runs: those behind first, so that no dependency fires meanwhile."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from clipa.launch.look import look
from clipa.registry.jobs import Job, live_of
from clipa.registry.state import Facts
from clipa.slurm import scheduler

_GONE_S = 60.0


def end_jobs(roots: Sequence[Path], runs: Collection[str], waiting_only: bool = False) -> None:
    """End the jobs of runs, the last run's first.

    `waiting_only`: those that wait in the queue, at once; those that run have been asked to leave by their stop file,
    and save first. Without it all that is left is ended, and waited for.
    """
    deadline = time.monotonic() + _GONE_S
    while True:
        facts = [f for f in look(roots).facts.values() if f.plan.slurm is not None and f.plan.run in runs]
        left = [(f, job) for f in reversed(facts) for job in _live(f) if not waiting_only or _waits(job)]
        for conf in {f.plan.slurm.conf for f, _ in left if f.plan.slurm}:
            scheduler.cancel([job.id for f, job in left if f.plan.slurm and f.plan.slurm.conf == conf], conf)
        if waiting_only or not left or time.monotonic() > deadline:
            return
        time.sleep(0.5)


def _live(facts: Facts) -> list[Job]:
    """Every job of a run that is not over, whether it was recorded or not; also after the run's last word."""
    return live_of(facts.plan.run, scheduler.jobs_of(facts).jobs, facts.elements)


def _waits(job: Job) -> bool:
    return job.phase in ("queued", "held")

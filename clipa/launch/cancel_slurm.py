"""End the SLURM jobs of runs: those behind first, so that no dependency fires meanwhile."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from clipa.launch import carry_on
from clipa.launch.look import look
from clipa.registry import records
from clipa.registry.jobs import Job, live_of, name_of
from clipa.registry.run_dir import RunDir
from clipa.registry.state import Facts
from clipa.slurm import scheduler

_GONE_S = 60.0
_NEWEST = 20
"""Attempts whose jobs are ended by id and name without asking whether they live."""


def end_jobs(roots: Sequence[Path], runs: Collection[str], waiting_only: bool = False) -> None:
    """End the jobs of runs, the last run's first. Never submits anything.

    Args:
        roots: their run roots.
        runs: their ids.
        waiting_only: end what waits in the queue, at once; what runs was asked to leave by its stop file, and saves
            first. Without it all jobs that the runs ever had are ended, listed or not, and waited for.
    """
    deadline = time.monotonic() + _GONE_S
    is_first = True
    while True:
        facts = [f for f in look(roots).facts.values() if f.plan.slurm is not None and f.plan.run in runs]
        if is_first and not waiting_only:
            for one in reversed(facts):
                _end_recorded(one)
            is_first = False
        left = [(f, job) for f in reversed(facts) for job in _live(f) if not waiting_only or _waits(job)]
        for one, job in left:
            scheduler.cancel([job.id], scheduler.site_of(one), job.name)
        if waiting_only or not left or time.monotonic() > deadline:
            return
        time.sleep(0.5)


def _end_recorded(facts: Facts) -> None:
    """End the jobs of the newest attempts by what was recorded: the list may be old, partial or not to be had.

    A job is named with its id where one is known, so that another one that has got the same number stays; without an
    id, by the name under which the attempt was to be submitted.
    """
    run, site = RunDir(facts.path), scheduler.site_of(facts)
    jobs = dict(carry_on.jobs_of(run))
    for attempt in run.intents()[-_NEWEST:]:
        intent = records.read_intent(run, attempt)
        element = intent.element if intent else None
        if element is None:
            scheduler.cancel([], site, name_of(run.id, attempt))
        elif attempt in jobs:  # the name is that of the whole array: an element is ended by its id
            scheduler.cancel([jobs[attempt]], site, element.array)


def _live(facts: Facts) -> list[Job]:
    """Return every job of a run that is not over, whether it was recorded or not; also after the run's last word."""
    return live_of(facts.plan.run, scheduler.jobs_of(facts).jobs, facts.elements)


def _waits(job: Job) -> bool:
    return job.phase in ("queued", "held")

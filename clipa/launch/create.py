"""Run folders from plans, and their submission. Nothing is lost between intent and submission."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.errors import LaunchError, StorageError
from clipa.host.supervisor import Task
from clipa.launch import carry_on, pin
from clipa.launch.prepare import Prepared
from clipa.launch.submit import submit_local
from clipa.registry import events, provenance, records
from clipa.registry.jobs import Element
from clipa.registry.ownership import close
from clipa.registry.roots import remember
from clipa.registry.run_dir import RunDir, write_whole
from clipa.slurm import arrays
from clipa.slurm.sbatch import Member
from clipa.spec import plan as plans
from clipa.spec.plan import Plan
from clipa.storage import manifest as manifests

FIRST = 1
_MARGIN_MINUTES = 10


def create(prepared: Prepared, places: Mapping[str, Element] | None = None) -> list[RunDir]:
    """Write the folders of new runs, the plan last: a folder without a plan is no run yet.

    `places`: run -> its place in a job array.

    Raises:
        StorageError: the run root is full. None of the folders stays, whatever the error.
    """
    runs = [RunDir(Path(plan.run_root) / plan.run) for plan in prepared.plans]
    made: list[RunDir] = []
    try:
        for run in runs:
            run.path.mkdir(parents=True)  # never a folder that somebody else has made beforehand
            made.append(run)
            close(run.path)
        for run, plan in zip(runs, prepared.plans, strict=True):
            for digest in {data.manifest for data in plan.datasets}:
                write_whole(run.manifest(digest), manifests.encode(prepared.manifests[digest]))
            provenance.write(run)
            pin.record(run, plan)
            records.write_intent(run, FIRST, FIRST, "submit", (places or {}).get(plan.run))
            write_whole(run.plan, plans.encode(plan))
    except BaseException as error:
        for run in made:
            shutil.rmtree(run.path, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        root = prepared.plans[0].run_root
        why = error.strerror or error
        raise StorageError(f"a run cannot be written: {why}", where=root, hint=f"df -h {root}") from error
    remember(Path(prepared.plans[0].run_root))
    return runs


def start(tasks: Sequence[Task], the_plans: Sequence[Plan], live: Mapping[str, str] | None = None) -> None:
    """Hand runs whose intents are written to the machine, or to SLURM: one job each, the next after the one before, and
    the points of a sweep as job arrays.

    `live`: SLURM's jobs of runs that go on already, for those that wait for them.

    Raises:
        LaunchError: a job could not be started; the runs show INTERRUPTED with the command that resumes them.
    """
    if the_plans[0].slurm is not None:
        _start_slurm(tasks, the_plans, live or {})
        return
    first = RunDir(tasks[0].path)
    minutes = sum(plan.limits.time_limit_minutes for plan in the_plans) + _MARGIN_MINUTES
    job = submit_local(tasks, first.logs(tasks[0].submission) / "submitit", minutes)
    for task in tasks:
        writer = events.EventWriter(RunDir(task.path), task.submission, "submit")
        writer.write(events.Submitted, job=str(job.pid), host=job.host)
        writer.close()


def _start_slurm(tasks: Sequence[Task], the_plans: Sequence[Plan], live: Mapping[str, str]) -> None:
    jobs = dict(live)
    left = {task.path: task for task in tasks}
    for part in _together(tasks, the_plans):
        try:
            jobs |= _submit(part, jobs)
        except LaunchError as error:
            for task in left.values():
                _write_refusal(task, error.what)
            raise
        for member, _ in part.members:
            del left[str(member.run.path)]


class _Part(NamedTuple):
    """What is one job of SLURM: a run, or with the name of an array those that are its elements."""

    array: str
    members: list[tuple[Member, Plan]]


def _together(tasks: Sequence[Task], the_plans: Sequence[Plan]) -> list[_Part]:
    """Runs in the parts in which they are submitted, by their intents; each part behind those that it waits for."""
    parts: dict[str, _Part] = {}
    for task, plan in zip(tasks, the_plans, strict=True):
        run = RunDir(task.path)
        intent = records.read_intent(run, task.submission)
        place = intent.element if intent else None
        part = parts.setdefault(place.array if place else run.id, _Part(place.array if place else "", []))
        part.members.append((Member(place.index if place else 0, run, task.submission, task.submission), plan))
    return list(parts.values())


def _submit(part: _Part, jobs: Mapping[str, str]) -> dict[str, str]:
    """Submit one part, behind the jobs that it waits for. Returns run -> job.

    Raises:
        LaunchError: SLURM refused it.
    """
    member, plan = part.members[0]
    after = jobs.get(plan.parent, "")
    if not part.array:
        return {member.run.id: carry_on.submit(member.run, plan, member.attempt, member.submission, after)}
    members = [one for one, _ in part.members]
    job = carry_on.submit_array([plan for _, plan in part.members], members, part.array, after.partition("_")[0])
    return {one.run.id: f"{job}_{one.number}" for one in members}


def _write_refusal(task: Task, why: str) -> None:
    """Nothing runs, and nothing will by itself: a run without a job is not to look like one that waits."""
    writer = events.EventWriter(RunDir(task.path), task.submission, "submit")
    writer.write(events.Ended, outcome="stopped", final=True, error=why)
    writer.close()


def resume(run_paths: Sequence[Path], live: Mapping[str, str] | None = None) -> list[Task]:
    """Write the intents of the next attempt of runs that are not live, in the order given.

    `live`: SLURM's jobs of runs that go on already. Points of a sweep are job arrays again.
    """
    tasks = []
    the_plans = [records.read_plan(RunDir(path)) for path in run_paths]
    again = [plan for plan in the_plans if plan.slurm is not None]
    places = arrays.elements(again, f"r{os.urandom(2).hex()}n", live or {}) if len(again) > 1 else {}
    for path in run_paths:
        run = RunDir(path)
        attempt = max([0, *run.intents(), *run.claimed()]) + 1
        records.write_intent(run, attempt, attempt, "resume", places.get(run.id))
        tasks.append(Task(str(path), attempt))
    return tasks

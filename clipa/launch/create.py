"""Run folders from plans, and their submission. Nothing is lost between intent and submission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipa.errors import LaunchError
from clipa.launch import carry_on, pin
from clipa.launch.prepare import Prepared
from clipa.launch.submit import submit_local
from clipa.launch.supervisor import Task
from clipa.registry import events, provenance, records
from clipa.registry.roots import remember
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.plan import Plan
from clipa.storage import manifest as manifests

FIRST = 1
_MARGIN_MINUTES = 10


def create(prepared: Prepared) -> list[RunDir]:
    """Write the folders of new runs, the plan last: a folder without a plan is no run yet."""
    runs = []
    for plan in prepared.plans:
        run = RunDir(Path(plan.run_root) / plan.run)
        for digest in {data.manifest for data in plan.datasets}:
            write_whole(run.manifest(digest), manifests.encode(prepared.manifests[digest]))
        provenance.write(run)
        pin.record(run, plan)
        records.write_intent(run, FIRST, FIRST, "submit")
        write_whole(run.plan, plans.encode(plan))
        runs.append(run)
    remember(Path(prepared.plans[0].run_root))
    return runs


def start(tasks: Sequence[Task], the_plans: Sequence[Plan], live: Mapping[str, str] | None = None) -> None:
    """Hand runs whose intents are written to the machine, or to SLURM one job each, the next after the one before.

    `live`: SLURM's jobs of runs that go on already, for those that wait for them.

    Raises:
        LaunchError: a job could not be started; the runs show INTERRUPTED with the command that resumes them.
    """
    pin.check(the_plans)
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
    for number, (task, plan) in enumerate(zip(tasks, the_plans, strict=True)):
        run = RunDir(task.path)
        try:
            jobs[run.id] = carry_on.submit(run, plan, task.submission, task.submission, jobs.get(plan.parent, ""))
        except LaunchError as error:
            for left in tasks[number:]:
                _write_refusal(left, error.what)
            raise


def _write_refusal(task: Task, why: str) -> None:
    """Nothing runs, and nothing will by itself: a run without a job is not to look like one that waits."""
    writer = events.EventWriter(RunDir(task.path), task.submission, "submit")
    writer.write(events.Ended, outcome="stopped", final=True, error=why)
    writer.close()


def resume(run_paths: Sequence[Path]) -> list[Task]:
    """Write the intents of the next attempt of runs that are not live, in the order given."""
    tasks = []
    for path in run_paths:
        run = RunDir(path)
        attempt = max([0, *run.intents(), *run.claimed()]) + 1
        records.write_intent(run, attempt, attempt, "resume")
        tasks.append(Task(str(path), attempt))
    return tasks


def read_plan(path: Path) -> Plan:
    """The plan of a run that was read before."""
    return plans.decode(RunDir(path).plan.read_bytes())

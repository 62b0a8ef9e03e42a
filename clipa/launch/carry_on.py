"""What brings a run on SLURM further: submitting it, a successor where a job may not be requeued, adoption, and the
owner's next command where nothing else was left to do it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipa.errors import LaunchError
from clipa.host import bad_nodes
from clipa.host.children import last_lines
from clipa.host.conclude import Conclusion, conclude, conclude_unstarted, doing_of, telling_line, write_end
from clipa.host.decide import Verdict
from clipa.launch import snapshot
from clipa.launch.only_one import submit_lock_if_free
from clipa.launch.submit import UnansweredError, submit_slurm
from clipa.registry import events, reading, records
from clipa.registry.jobs import FAILED_LAUNCH, Job, attempt_of, is_of, live_of, name_of
from clipa.registry.ownership import distrust_run
from clipa.registry.run_dir import RunDir, run_dirs
from clipa.registry.scan import Scan
from clipa.registry.state import Facts, State
from clipa.slurm import scheduler
from clipa.slurm.sbatch import Batch, Member
from clipa.slurm.submission import Submitted
from clipa.spec.plan import Plan


def batch_of(plan: Plan, run: RunDir, attempt: int, submission: int, after: str = "") -> Batch:
    """The job of an attempt: with the code as it is now, and off the nodes that failed their check lately."""
    import sys

    assert plan.slurm is not None
    root = run.path.parent
    return Batch(
        plan=plan,
        run=run,
        attempt=attempt,
        submission=submission,
        code=snapshot.take(root),
        python=plan.slurm.python or sys.executable,
        after=after,
        avoid=tuple(bad_nodes.known(root, plan.slurm.bad_node_hours)),
    )


def submit(run: RunDir, plan: Plan, attempt: int, submission: int, after: str = "") -> str:
    """Submit the job of an attempt whose intent is written, and record its id. Returns the id.

    Raises:
        LaunchError: SLURM refused it.
    """
    taken = _submit(batch_of(plan, run, attempt, submission, after))
    record(run, attempt, taken.job, taken.cluster)
    return taken.job


def _submit(batch: Batch) -> Submitted:
    """Submit a job off the nodes that failed their check; if SLURM has no others, on them: they may be well again."""
    try:
        return submit_slurm(batch)
    except UnansweredError:
        raise  # a second job would be worse than none
    except LaunchError:
        if not batch.avoid:
            raise
    return submit_slurm(batch._replace(avoid=()))


def submit_array(plans: Sequence[Plan], members: Sequence[Member], array: str, after: str = "") -> str:
    """Submit runs whose intents are written as one job array, and record their elements. Returns the array's id.

    Args:
        plans: of the members.
        members: in the order of their indices.
        array: the array's name.
        after: the array whose element of the same index must have ended well.

    Raises:
        LaunchError: SLURM refused it.
    """
    first = members[0]
    batch = batch_of(plans[0], first.run, first.attempt, first.submission, after)
    lead = max(plan.limits.lead_s for plan in plans)
    taken = _submit(batch._replace(array=array, members=tuple(members), lead_s=lead))
    for member in members:
        record(member.run, member.attempt, f"{taken.job}_{member.number}", taken.cluster)
    return taken.job


def record(run: RunDir, attempt: int, job: str, cluster: str = "") -> None:
    """Write down which job has an attempt, and on which cluster."""
    writer = events.EventWriter(run, attempt, "submit")
    writer.write(events.Submitted, job=job, scheduler="slurm", cluster=cluster)
    writer.close()


def submit_successor(run: RunDir, plan: Plan, submission: int, after: str = "") -> str:
    """Submit the next attempt as a job of its own, and have the runs behind it wait for that. Returns its id.

    `after`: the job that makes room for it. A dependency on it is not made: it may end in any way.

    Raises:
        LaunchError: SLURM refused it.
    """
    attempt = max([0, *run.intents(), *run.claimed()]) + 1
    records.write_intent(run, attempt, submission, "restart")
    job = submit(run, plan, attempt, submission)
    for child in children_of(run):
        if job_of_child := last_job(child):
            scheduler.repoint(job_of_child, job, site_of(run, plan))
    return job


def children_of(run: RunDir) -> list[RunDir]:
    """The runs of the same group that wait for this one; not those of other users, which may say anything."""
    found = []
    for other in run_dirs(run.path.parent):
        if other.id != run.id and not distrust_run(other.path):
            with contextlib.suppress(Exception):
                if records.read_plan(other).parent == run.id:
                    found.append(other)
    return found


def jobs_of(run: RunDir) -> list[tuple[int, str]]:
    """Return the attempt and SLURM's id of every job that a run was ever handed to as, oldest first."""
    found: dict[tuple[int, str], None] = {}
    for attempt in run.intents():
        said = [*events.read(run.event_file(attempt, "submit")), *events.read(run.event_file(attempt, "supervisor"))]
        for event in said:
            if isinstance(event, events.Submitted | events.Started) and event.job:
                found[attempt, event.job] = None
    return [*found]


def last_job(run: RunDir) -> str:
    """Return SLURM's id of the job that a run was last handed to as; empty for none."""
    return next((job for _, job in reversed(jobs_of(run))), "")


def site_of(run: RunDir, plan: Plan) -> scheduler.Site:
    """Return the SLURM that took a run's last job."""
    assert plan.slurm is not None
    clusters = [
        event.cluster
        for attempt in run.intents()
        for event in events.read(run.event_file(attempt, "submit"))
        if isinstance(event, events.Submitted) and event.cluster
    ]
    return scheduler.site_of_plan(plan.slurm, clusters[-1] if clusters else "")


def settle(scan: Scan) -> bool:
    """Bring further what nothing else will: adopt orphans, end doubles, continue runs whose job ended without a word
    on what follows. Only runs of this user. Returns whether anything was done.
    """
    mine = [f for f in scan.facts.values() if f.plan.slurm is not None and f.ended is None and _is_mine(f.path)]
    if not mine:
        return False
    states = {status.run: status.state for status in scan.statuses}
    answers = scheduler.ask(mine)
    done = False
    for facts in mine:
        jobs = answers[facts.plan.run]
        if not jobs.trouble:
            done |= _settle_one(facts, jobs.jobs, states)
    return done


def _settle_one(facts: Facts, jobs: Sequence[Job], states: dict[str, State]) -> bool:
    run, plan = RunDir(facts.path), facts.plan
    assert plan.slurm is not None
    live = live_of(plan.run, jobs, facts.elements)
    if len(live) > 1:
        for job in _superseded(facts, live):
            scheduler.cancel([job.id], scheduler.site_of(facts), job.name)
    if not facts.slurm_job:
        found = [job for job in jobs if facts.intent and _is_of(job, facts, facts.intent)]
        if found and facts.intent:
            record(run, facts.intent.attempt, found[-1].id, scheduler.site_of(facts).cluster)
            return True
        return False
    for held in live:
        if held.reason == FAILED_LAUNCH:
            scheduler.release(held.id, scheduler.site_of(facts))
    if live or states.get(plan.run) is not State.INTERRUPTED or facts.intent is None:
        return False
    mine = [job for job in jobs if job.id == facts.slurm_job and is_of(plan.run, job, facts.elements)]
    return _continue(facts, mine[-1] if mine else None, states)


def _is_of(job: Job, facts: Facts, intent: records.Intent) -> bool:
    """Whether a job is the one that an intent was about to submit."""
    return intent.element.of(job) if intent.element else job.name == name_of(facts.plan.run, intent.attempt)


def _superseded(facts: Facts, live: Iterable[Job]) -> list[Job]:
    """All but the newest attempt's: it alone can commit. Elements are older than what has the run's own name, unless
    the run was submitted again as one.
    """
    newest = facts.intent.element if facts.intent else None

    def age(job: Job) -> tuple[bool, int, int]:
        order = next((n for n, element in enumerate(facts.elements) if element.of(job)), 0)
        return newest is not None and newest.of(job), attempt_of(facts.plan.run, job), order

    return sorted(live, key=age)[:-1]


def _continue(facts: Facts, job: Job | None, states: dict[str, State]) -> bool:
    """A run whose job is over and that nobody has given a final word."""
    run, plan = RunDir(facts.path), facts.plan
    assert facts.intent is not None
    parent = states.get(plan.parent) if plan.parent else None
    if parent is not None and parent is not State.DONE and not parent.is_live:
        return False  # it waits until that one is brought further
    site = scheduler.site_of(facts)
    with submit_lock_if_free(run.path.parent) as is_held:
        if not is_held:
            return False  # another command is at it; a look never waits
        again = reading.read(run).facts
        if again is None or again.ended is not None or again.intents != facts.intents:
            return False  # another command was quicker, or the run has said its last word meanwhile
        answer = scheduler.look_up(facts.slurm_job, site)
        asked = answer.job if answer.job and is_of(plan.run, answer.job, facts.elements) else None
        if answer.trouble or (asked is not None and asked.phase != "over"):
            return False  # asked now, by its id: two jobs would be worse than a late one
        last, is_final = _conclude(facts, job, answer.restarts if asked else 0)
        if not is_final:
            attempt = max([last, *run.intents(), *run.claimed()]) + 1
            records.write_intent(run, attempt, facts.intent.submission, "restart")
            after = last_job(RunDir(run.path.parent / plan.parent)) if parent is not None and parent.is_live else ""
            submitted = submit(run, plan, attempt, facts.intent.submission, after)
            for child in children_of(run):
                if waiting := last_job(child):
                    scheduler.repoint(waiting, submitted, site)
    return True


def _conclude(facts: Facts, job: Job | None, restarts: int) -> tuple[int, bool]:
    """Write how the attempts of a job that is over ended; return the last attempt, and whether none follows.

    Args:
        facts: of the run.
        job: what SLURM said of the job, if anything.
        restarts: how often SLURM requeued the job.
    """
    run, plan, intent = RunDir(facts.path), facts.plan, facts.intent
    assert intent is not None
    log = run.logs(intent.attempt) / "submitit" / f"{facts.slurm_job}_0_log.err"
    if facts.started and _has_begun(run, facts.attempt):
        last, conclusion = facts.attempt, conclude(run, plan, facts.attempt, intent.submission, doing_of(job, log))
    elif job is not None and job.word == "CANCELLED":
        return intent.attempt, False  # in the queue, because the job before it did not end well: no attempt was made
    else:
        last = intent.attempt + restarts
        conclusion = _conclude_unstarted(facts, job, log, restarts)
    write_end(run, last, "settle", conclusion)
    return last, conclusion.final


def _conclude_unstarted(facts: Facts, job: Job | None, log: Path, restarts: int) -> Conclusion:
    """Return how a job ended whose supervisor never said a word: each of its executions was an attempt.

    The interpreter, a mount, the prolog, a quota: what failed is in the job's own log, and would fail again.
    """
    run, plan, intent = RunDir(facts.path), facts.plan, facts.intent
    assert intent is not None
    ended = f"ended as {job.word}" if job else "is no longer known to SLURM"
    said = telling_line(last_lines(log, 40)) or telling_line(last_lines(log.with_suffix(".out"), 40))
    error = f"SLURM job {facts.slurm_job} {ended} before its supervisor started" + (f": {said}" if said else "")
    for number in range(intent.attempt, intent.attempt + restarts):
        write_end(run, number, "settle", Conclusion(Verdict("killed", error, retry=True), False))
    return conclude_unstarted(run, plan, intent.attempt + restarts, intent.submission, error)


def _has_begun(run: RunDir, attempt: int) -> bool:
    return any(isinstance(e, events.Started) for e in events.read(run.event_file(attempt, "supervisor")))


def _is_mine(path: str) -> bool:
    return not distrust_run(path) and os.access(path, os.W_OK)

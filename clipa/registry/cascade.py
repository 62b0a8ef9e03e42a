"""From what a run's folder says to its state: an ordered cascade of who is believed.

First what the job itself wrote, then what the scheduler says of it, then whether the process that has it lives, then
the age of its heartbeat, else UNKNOWN with a reason.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clipa.registry.hints import hint, with_remote
from clipa.registry.jobs import NEVER, Job, Jobs, command_for, name_of
from clipa.registry.liveness import Identity
from clipa.registry.state import GRACE_S, SILENCE_S, Facts, RunStatus, State
from clipa.spec.job import TrainPhase
from clipa.spec.plan import Plan
from clipa.spec.tokens import kept_tokens

LONGEST_ETA_S = 10 * 365 * 86400.0
DEAD_GRACE_S = 10.0
"""Seconds after which a command that is dead has handed nothing over: a `sbatch` that it had begun may outlive it."""
OLD_S = 10.0
"""Age at which an answer of the scheduler is no longer called the present."""

Alive = Callable[[Identity], bool | None]
"""Whether a process runs; None when that cannot be told from here."""


class Case(NamedTuple):
    """What a rule of the cascade looks at. `jobs`: what SLURM says, None: not asked; `parent`: of the run before;
    `ahead`: seconds by which a heartbeat that cannot be believed is ahead of the clock, and then `beat_age` is None.
    """

    facts: Facts
    alive: Alive
    beat_age: float | None
    now: float
    jobs: Jobs | None = None
    parent: State | None = None
    stopped: Callable[[Identity], bool] = lambda _: False
    ahead: float = 0.0


class Verdict(NamedTuple):
    """What a rule says."""

    state: State
    why: str


def _shape(plan: Plan) -> tuple[int, int, int | None, int | None]:
    """Batch, pixels a side, image tokens and text tokens of a training phase; an eval phase has none."""
    settings = plan.settings
    if not isinstance(settings, TrainPhase):
        return 0, 0, None, None
    kept = kept_tokens(settings.image, plan.model.image.patch)
    return settings.batch, settings.image.size, kept, settings.text.tokens


def reduce(
    facts: Facts, alive: Alive, beat_age: float | None, now: float, jobs: Jobs | None = None,
    parent: State | None = None, stopped: Callable[[Identity], bool] = lambda _: False,
) -> RunStatus:  # fmt: skip
    """Return the status of a run.

    Args:
        facts: what its folder says.
        alive: whether a process runs; None when that cannot be told from here.
        beat_age: seconds since the last sign of life of the newest attempt or of its supervisor, None without one;
            negative where the time of that is ahead of `now`.
        now: Unix time.
        jobs: what SLURM says; None: it was not asked.
        parent: state of the run that must be done first.
        stopped: whether a process that runs is stopped by a signal.
    """
    beat_age, ahead = _plausible(beat_age)
    state, why = judge(Case(facts, alive, beat_age, now, jobs, parent, stopped, ahead))
    plan, ended, last, speed = facts.plan, facts.ended, facts.last_step, _median(facts.speeds)
    steps, step, (batch, pixels, patches, words) = plan.steps, min(facts.step, plan.steps), _shape(plan)
    return RunStatus(
        run=plan.run, group=plan.group, name=plan.name, phase=plan.phase, kind=plan.kind,
        recipe=plan.recipe, cluster=plan.cluster,
        root=str(Path(facts.path).parent),
        state=state,
        why=with_remote(facts, state, why),
        attempt=facts.attempt,
        attempts=len(facts.intents),
        step=step,
        steps=steps,
        samples=step * batch,
        percent=100.0 if state is State.DONE else 100.0 * step / steps if steps else 0.0,
        samples_per_s=speed,
        loss=last.loss if last else None,
        scores=facts.scores,
        eta_s=_eta((steps - step) * batch, speed) if state is State.RUNNING and steps else None,
        created=plan.created,
        age_s=max(0.0, now - plan.created),
        started=facts.started or None,
        ended=ended.t if ended and state.is_over else None,
        beat_age_s=None if state.is_over else beat_age,
        parent=plan.parent,
        image_tokens=patches,
        text_tokens=words,
        image_size=pixels,
        hint=hint(facts, state),
        job=facts.slurm_job,
        cause=ended.cause if ended else "",
        evidence=ended.evidence if ended else "",
        queue_s=_waited(facts),
        gpu_hours=facts.held_s * plan.world.gpus / 3600,
        efficiency=_efficiency(step * batch, speed, facts.held_s),
        remote=facts.remote.whole if facts.remote else None,
        last_step=last,
        bad=facts.bad,
    )  # fmt: skip


def _waited(facts: Facts) -> float | None:
    return max(0.0, facts.started - facts.queued) if facts.started and facts.queued else None


def _efficiency(samples: int, speed: float | None, held_s: float) -> float | None:
    return min(1.0, samples / speed / held_s) if speed and held_s else None


_FINAL = {
    "done": State.DONE,
    "failed": State.FAILED,
    "killed": State.FAILED,
    "cancelled": State.CANCELLED,
    "blocked": State.BLOCKED,
    "stopped": State.INTERRUPTED,
}


def judge(case: Case) -> Verdict:
    """The verdict of the first rule that has one."""
    for rule in _CASCADE:
        if verdict := rule(case):
            return verdict
    return Verdict(State.UNKNOWN, "it has a plan, but no readable intent to run it, and nothing has run")


def _final_word(case: Case) -> Verdict | None:
    """The job itself, or the command that cancelled it, wrote how it ended."""
    ended = case.facts.ended
    return Verdict(_FINAL[ended.outcome], ended.error) if ended else None


def _supervisor(case: Case) -> Verdict | None:
    """A supervisor has the attempt: it lives, or its heart beats, or it is gone."""
    facts, holder = case.facts, case.facts.holder
    if holder is None:
        return None
    match case.alive(holder):
        case True:
            return _living(case, holder)
        case False:
            gone = f"its supervisor (process {holder.pid} on {holder.host}) is gone"
            if facts.trainer and facts.trainer.outcome == "done":
                gone += "; the work had ended well, so a resume has only to confirm it"
            return Verdict(State.INTERRUPTED, gone)
        case None:
            return _by_heartbeat(case, f"its supervisor is process {holder.pid} on {holder.host}")


def _living(case: Case, holder: Identity) -> Verdict:
    """Return the verdict on a run whose supervisor is a running process, with a word on one that does not act."""
    verdict, who = _on_its_way(case.facts), f"its supervisor (process {holder.pid})"
    if case.stopped(holder):
        doubt = f"{who} is stopped by a signal (SIGSTOP): kill -CONT {holder.pid}"
    elif case.beat_age is not None and case.beat_age > SILENCE_S:
        doubt = f"{who} runs, but gave no sign of life for {case.beat_age:,.0f} s"
    elif case.ahead:
        doubt = _ahead(case)
    else:
        return verdict
    over = "; the work itself has ended" if case.facts.trainer else ""
    return verdict._replace(why=f"{doubt}{over}" + (f"; {verdict.why}" if verdict.why else ""))


def _ahead(case: Case) -> str:
    return f"its heartbeat is {case.ahead:,.0f} s ahead of this machine's clock, so its age cannot be told"


def _plausible(beat_age: float | None) -> tuple[float | None, float]:
    """Return the age of a heartbeat, and the seconds by which one that cannot be believed is ahead of the clock.

    The clock of a file server may be ahead of ours by a little: such a heartbeat is a fresh one.
    """
    if beat_age is None or beat_age >= -SILENCE_S:
        return None if beat_age is None else max(0.0, beat_age), 0.0
    return None, -beat_age


def _trainer(case: Case) -> Verdict | None:
    """Nobody supervises the attempt: somebody trains by hand, with `python -m clipa.train RUN_DIR`."""
    facts = case.facts
    if facts.trainer:
        return Verdict(_FINAL[facts.trainer.outcome], facts.trainer.error)
    return _by_heartbeat(case, "it was started by hand") if facts.begun else None


def _unreadable(case: Case) -> Verdict | None:
    """The supervisor's words may stand in a file that cannot be read: everything below would be a guess."""
    files = case.facts.unreadable
    return Verdict(State.UNKNOWN, f"cannot be read: {', '.join(files)}") if files else None


def _job(case: Case) -> Verdict | None:
    """The attempt was handed to the machine, and no supervisor has said a word yet."""
    facts, job = case.facts, case.facts.job
    if job is None:
        return None
    match case.alive(job):
        case True:
            return _on_its_way(facts, "handed to the machine, not started yet")
        case False:
            return Verdict(State.INTERRUPTED, f"its job (process {job.pid}) ended before it began: see logs/*/submitit")
        case None:
            if facts.intent and case.now - facts.intent.t < GRACE_S:
                return _on_its_way(facts, f"handed to {job.host}, not started yet")
            return Verdict(State.UNKNOWN, f"handed to {job.host} as process {job.pid}, no word from there since")


def _command(case: Case) -> Verdict | None:
    """There is only the intent of the command that was about to submit it."""
    facts, intent = case.facts, case.facts.intent
    if intent is None:
        return None
    alive = case.alive(intent.by)
    if alive or case.now - intent.t < (DEAD_GRACE_S if alive is False else GRACE_S):
        return _on_its_way(facts, "being handed to the machine")
    if alive is None:
        return Verdict(State.UNKNOWN, f"a command on {intent.by.host} was about to submit it, no word from there since")
    return Verdict(State.INTERRUPTED, "it was never submitted: the command that was about to was ended")


def _slurm(case: Case) -> Verdict | None:
    """SLURM has the attempt: what it says of the job, with what the job's own words explain of that."""
    facts, jobs = case.facts, case.jobs
    if facts.plan.backend != "slurm" or jobs is None:
        return None
    first = facts.intent.attempt if facts.intent else facts.attempt
    elements = facts.elements if facts.slurm_job or (facts.intent and facts.intent.element) else ()
    job = jobs.find(facts.slurm_job, facts.plan.run, name_of(facts.plan.run, first), elements)
    if job is not None and not _has_lived_since(case, job, jobs):
        verdict = _of_job(case, job)
        old = case.now - job.t
        if old > OLD_S and not verdict.state.is_over:
            return verdict._replace(why=f"{verdict.why} (as of {old:,.0f} s ago: {jobs.trouble})".strip())
        return verdict
    if jobs.trouble:
        return _without_slurm(case, jobs.trouble)
    if facts.slurm_job:
        return _not_listed(case, jobs)
    return _command(case)


def _not_listed(case: Case, jobs: Jobs) -> Verdict:
    """Return the verdict on a job that SLURM's answer lacks, and that no answer says the end of.

    That is no proof of an end: the list may be a site's cached copy, partial, filtered or of another cluster. So there
    is a grace after the submission, and a job is gone only after several answers without it over some time.
    """
    facts = case.facts
    patience_s = facts.plan.slurm.lost_after_s if facts.plan.slurm else 0.0
    said = f"SLURM does not list its job {facts.slurm_job}"
    if jobs.is_gone(facts.slurm_job, case.now, patience_s):
        return Verdict(State.INTERRUPTED, f"SLURM no longer knows its job {facts.slurm_job}{_worked(facts)}")
    if case.beat_age is not None and case.beat_age < SILENCE_S:
        return Verdict(facts.doing, f"{said}, but its heart beats")
    age = case.now - facts.submitted
    if facts.holder is None and 0 <= age < patience_s:
        return _on_its_way(facts, f"submitted {age:,.0f} s ago as SLURM job {facts.slurm_job}, not listed yet")
    return Verdict(State.UNKNOWN, f"{said}; it counts as gone after {patience_s:,.0f} s without it")


def _has_lived_since(case: Case, job: Job, jobs: Jobs) -> bool:
    """Whether an old answer is contradicted by a younger sign of life."""
    return bool(jobs.trouble) and case.beat_age is not None and case.now - case.beat_age > job.t


def _of_job(case: Case, job: Job) -> Verdict:
    facts = case.facts
    said = f"SLURM job {job.id}"
    asked = _asked(facts)
    match job.phase:
        case "queued":
            again = "; ".join(part for part in (facts.why, asked) if part)
            because = f": {job.reason}" if job.reason not in ("", "None") else ""
            start = f", expected to start {_moment(job.start)}" if job.start else ""
            helps = command_for(job.reason, job.id)
            why = f"{said}{because}{start}{f' ({again})' if again else ''}{f': {helps}' if helps else ''}"
            if job.reason in NEVER:
                return Verdict(State.BLOCKED, f"{said} will not start{because}: {helps}")
            return Verdict(State.WAITING if helps else State.QUEUED, why)
        case "held":
            return Verdict(State.WAITING, f"{said} is held ({job.reason or job.word}): scontrol release {job.id}")
        case "suspended":
            return Verdict(State.WAITING, f"{said} is suspended by SLURM")
        case "running":
            return _running(case, said, asked)
        case "ending":
            return Verdict(State.RUNNING, asked or f"{said} is ending")
        case "over":
            return _over(case, job)
        case _:
            return Verdict(State.UNKNOWN, f"SLURM says {job.word} of its job {job.id}, which this clipa does not know")


def _running(case: Case, said: str, asked: str) -> Verdict:
    facts = case.facts
    if facts.doing is State.QUEUED:
        return Verdict(State.STAGING, asked or f"{said} runs, its supervisor has not said a word yet")
    silent = case.beat_age is not None and case.beat_age > SILENCE_S
    silence = f"{said} runs, but gave no sign of life for {case.beat_age:,.0f} s" if silent else ""
    silence = f"{said} runs; {_ahead(case)}" if case.ahead else silence
    return Verdict(facts.doing, asked or silence or facts.why or "; ".join(facts.notes))


def _over(case: Case, job: Job) -> Verdict:
    """SLURM's verdict on a job that has left no final word of its own."""
    facts, parent = case.facts, case.parent
    never = "Dependency" in job.reason or not facts.started
    if job.word == "CANCELLED" and never and parent is not None and parent is not State.DONE:
        if parent.is_over:
            return Verdict(State.BLOCKED, f"{facts.plan.parent} is not done")
        return Verdict(State.INTERRUPTED, f"SLURM cancelled its job {job.id} while {facts.plan.parent} is not done")
    if job.word == "CANCELLED" and "Dependency" not in job.reason:
        return Verdict(State.CANCELLED, f"its SLURM job {job.id} was cancelled{f' by {job.by}' if job.by else ''}")
    return Verdict(State.INTERRUPTED, f"its SLURM job {job.id} ended as {job.word}{_worked(facts)}")


def _without_slurm(case: Case, trouble: str) -> Verdict:
    """SLURM does not answer, and nothing is remembered of the job."""
    facts = case.facts
    who = f"SLURM job {facts.slurm_job}" if facts.slurm_job else "it has no job yet"
    age = case.beat_age
    if age is not None and age < SILENCE_S:
        return Verdict(facts.doing, f"{who}; {trouble}, but its heart beats")
    return Verdict(State.UNKNOWN, f"{who}; {trouble}")


def _worked(facts: Facts) -> str:
    done = facts.trainer is not None and facts.trainer.outcome == "done"
    return "; the work had ended well, so a resume has only to confirm it" if done else ""


def _moment(t: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(t))


_CASCADE = (_final_word, _slurm, _supervisor, _unreadable, _trainer, _job, _command)


def _by_heartbeat(case: Case, who: str) -> Verdict:
    age = case.beat_age
    if case.ahead:
        return Verdict(State.UNKNOWN, f"{who}, which cannot be asked from here, and {_ahead(case)}")
    if age is None:
        return Verdict(State.UNKNOWN, f"{who}, which cannot be asked from here, and it has no heartbeat")
    if age < SILENCE_S:
        return _on_its_way(case.facts)
    return Verdict(State.INTERRUPTED, f"{who}, and gave no sign of life for {age:,.0f} s")


def _on_its_way(facts: Facts, otherwise: str = "") -> Verdict:
    return Verdict(facts.doing, _asked(facts) or facts.why or otherwise or "; ".join(facts.notes))


def _asked(facts: Facts) -> str:
    return f"asked to leave by {facts.stop.by} ({facts.stop.why})" if facts.stop else ""


def _median(values: tuple[float, ...]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None


def _eta(samples: int, speed: float | None) -> float | None:
    seconds = samples / speed if speed and speed > 0 else math.inf
    return seconds if seconds < LONGEST_ETA_S else None

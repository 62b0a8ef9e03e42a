"""How an attempt on SLURM ended, from everybody's words, and whether another follows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from clipa.host.blame import blamed
from clipa.host.children import last_lines
from clipa.host.decide import Trace, Verdict, decide, is_last, trace_of, words
from clipa.registry import events, records
from clipa.registry.cause import without_addresses
from clipa.registry.jobs import Job
from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan

Doing: TypeAlias = Literal["", "time", "preempted", "node", "requeued", "memory", "cancelled"]
"""What SLURM does to a job, as far as it ends it: nothing, or for which reason."""

_MARK = re.compile(r"\*\*\* (?:JOB|STEP) (\d+)\S* ON \S+ CANCELLED AT \S+?(?: DUE TO (?P<why>[A-Za-z ]+?))? \*\*\*")
_DUE: dict[str, Doing] = {
    "TIME LIMIT": "time",
    "PREEMPTION": "preempted",
    "NODE FAILURE": "node",
    "NODE FAIL": "node",
    "JOB REQUEUE": "requeued",
    "TO JOB REQUEUE": "requeued",
}
_ENDED: dict[str, Doing] = {
    "TIMEOUT": "time",
    "DEADLINE": "time",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "LAUNCH_FAILED": "node",
    "OUT_OF_MEMORY": "memory",
    "CANCELLED": "cancelled",
}
_REASONS: dict[str, Doing] = {"TimeLimit": "time", "NodeDown": "node", "OutOfMemory": "memory"}
_WORDS: dict[Doing, Verdict] = {
    "time": Verdict("stopped", "its wall-clock limit was over", retry=True),
    "preempted": Verdict("stopped", "SLURM preempted it", retry=True),
    "requeued": Verdict("stopped", "it was requeued", retry=True),
    "node": Verdict("killed", "a node failed", retry=True),
    "memory": Verdict("failed", "SLURM ended it: out of memory", retry=True),
    "cancelled": Verdict("cancelled", "its SLURM job was cancelled"),
}


class Conclusion(NamedTuple):
    """The verdict on an attempt, and whether none follows."""

    verdict: Verdict
    final: bool


def doing_of(job: Job | None, log: Path) -> Doing:
    """What SLURM does to a job, by its state, its reason and what slurmstepd wrote into the job's log."""
    if job is not None and (job.phase == "over" or job.reason in _REASONS):
        return _ENDED.get(job.word) or _REASONS.get(job.reason) or ""
    if job is not None and job.phase == "running":
        return ""
    marks = [match for line in last_lines(log, 40) if (match := _MARK.search(line))]
    # The number in an element's mark is not the one by which it is called; its log is its own.
    mine = [match for match in marks if job is None or "_" in job.id or match[1] == job.id]
    if mine:
        why = next((match["why"] for match in mine if match["why"]), "")
        return _DUE.get(why.upper(), "") if why else "cancelled"
    return "cancelled" if job is not None and job.phase == "ending" else ""


def judge(
    ended: events.Ended | None, nodes: Mapping[int, events.NodeEnded | None], doing: Doing, code: int | None
) -> Verdict:
    """The verdict on an attempt.

    Args:
        ended: what its first node said.
        nodes: what the other nodes said that had begun; None: nothing.
        doing: what SLURM does to its job.
        code: exit code of the step, where that is known.
    """
    if ended is not None and ended.outcome in ("done", "cancelled", "blocked"):
        return Verdict(ended.outcome, ended.error)
    if doing in ("cancelled", "time", "preempted", "requeued"):
        said = _WORDS[doing]
        return said._replace(error=f"{said.error}: {ended.error}") if ended and ended.outcome == "failed" else said
    failed = [node for node in nodes.values() if node is not None and node.outcome in ("failed", "killed")]
    if ended is not None and ended.outcome == "failed" and not (failed and _is_an_echo(ended.error)):
        return Verdict("failed", ended.error, ended.retry)
    if failed:
        first = min(failed, key=lambda node: (_is_an_echo(node.error), node.t))
        return Verdict(first.outcome, f"{first.name}: {first.error}", first.retry)
    if doing in _WORDS:
        return _WORDS[doing]
    silent = [number for number, node in nodes.items() if node is None]
    if ended is None:
        left = "its supervisor left without a word"
        return Verdict("killed", left if code is None else f"{left} (exit code {code} of the step)", retry=True)
    if silent and ended.outcome != "failed":
        return Verdict("killed", f"the supervisor of node {silent[0]} left without a word", retry=True)
    return Verdict(ended.outcome, ended.error, ended.retry)


_ECHOES = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed", "nccl", "gloo")


def _is_an_echo(error: str) -> bool:
    """Whether an error only says that another rank is gone."""
    return any(word in error.lower() for word in _ECHOES)


def conclude(
    run: RunDir, plan: Plan, attempt: int, submission: int, doing: Doing, code: int | None = None
) -> Conclusion:
    """The verdict on an attempt, and whether it was the last: counted over all attempts of its submission."""
    if stop := records.asked_to_cancel(run, submission):
        recorded = _ended(run, attempt)
        if recorded is None or recorded.outcome != "done":
            return Conclusion(Verdict("cancelled", f"cancelled by {stop.by}"), True)
    verdict = judge(_ended(run, attempt), _nodes(run, attempt), doing, code)
    history = [_trace(run, number) for number in range(submission, attempt)]
    history.append(trace_of(run, attempt, verdict))
    limit = plan.limits.max_attempts
    verdict, final = decide(verdict, history, is_last(history, limit), limit)
    if final or not (most := plan.limits.total_minutes * 60):
        return Conclusion(verdict, final)
    spent = sum(seconds_of(run, number) for number in range(submission, attempt + 1))
    if spent < most:
        return Conclusion(verdict, False)
    why = f"{verdict.error}\nIts attempts have taken {spent / 3600:,.1f} h, {most / 3600:,.1f} h are allowed."
    return Conclusion(verdict._replace(outcome="failed", error=why), True)


def conclude_unstarted(run: RunDir, plan: Plan, attempt: int, submission: int, error: str) -> Conclusion:
    """Return the verdict on an attempt that ended before its supervisor started: it counts as any other."""
    if stop := records.asked_to_cancel(run, submission):
        return Conclusion(Verdict("cancelled", f"cancelled by {stop.by}"), True)
    verdict = Verdict("killed", error, retry=True)
    history = [_trace(run, number) for number in range(submission, attempt)]
    history.append(trace_of(run, attempt, verdict))
    limit = plan.limits.max_attempts
    return Conclusion(*decide(verdict, history, is_last(history, limit), limit))


_TELLS = re.compile(r"error:|execve|no such file|not found|denied|cannot|failed|no space|quota", re.IGNORECASE)


def telling_line(lines: Sequence[str]) -> str:
    """Return the last line of a log that names an error, else its last line; empty without one."""
    return next((line.strip() for line in reversed(lines) if _TELLS.search(line)), lines[-1].strip() if lines else "")


def write_end(run: RunDir, attempt: int, writer: str, conclusion: Conclusion) -> None:
    """Record how an attempt ended, with the cause and the line that tells it."""
    verdict, final = conclusion
    cause = blamed(run, attempt, verdict.outcome, verdict.error)
    log = events.EventWriter(run, attempt, writer)
    log.write(
        events.Ended,
        outcome=verdict.outcome,
        final=final,
        error=without_addresses(verdict.error),
        retry=verdict.retry,
        cause=cause.cause,
        evidence=cause.line,
    )
    log.close()


def _trace(run: RunDir, attempt: int) -> Trace:
    """An earlier attempt: by its last word, or killed where it left none."""
    said = [event for event in words(run, attempt) if isinstance(event, events.Ended)]
    last = said[-1] if said else None
    return trace_of(run, attempt, Verdict(last.outcome, last.error) if last else Verdict("killed"))


def _ended(run: RunDir, attempt: int) -> events.Ended | None:
    found = [e for e in events.read(run.event_file(attempt, "supervisor")) if isinstance(e, events.Ended)]
    return found[-1] if found else None


def _nodes(run: RunDir, attempt: int) -> dict[int, events.NodeEnded | None]:
    """The nodes beside the first that had begun, and what each said at its end."""
    found: dict[int, events.NodeEnded | None] = {}
    for path in sorted(run.events.glob(f"{attempt}-node-*.jsonl")):
        for event in events.read(path):
            if isinstance(event, events.NodeStarted):
                found.setdefault(event.node, None)
            elif isinstance(event, events.NodeEnded):
                found[event.node] = event
    return found


def seconds_of(run: RunDir, attempt: int) -> float:
    """How long an attempt has held its nodes, by its supervisor's words and the last beat of its heart."""
    said = [e for e in events.read(run.event_file(attempt, "supervisor")) if e is not None]
    began = [event.t for event in said if isinstance(event, events.Started)]
    if not began:
        return 0.0
    return max(_last_moments(run, attempt, said), default=began[0]) - began[0]


def _last_moments(run: RunDir, attempt: int, said: Sequence[events.AnyEvent]) -> list[float]:
    found = [event.t for event in said]
    try:
        found.append(run.heartbeat(attempt, "node").stat().st_mtime)
    except OSError:
        pass
    return found

"""Everything that is printed: tables for people, JSON for programs. Facts go to stdout, notes to stderr."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from clipa.cli import console as safe_console
from clipa.registry.state import State
from clipa.spec.counted import counted
from clipa.spec.evalset import label
from clipa.storage.pattern import redacted
from clipa.terminal import one_line, say, say_document

if TYPE_CHECKING:
    from rich.console import Console

    from clipa.launch.prepare import Prepared
    from clipa.launch.request import Submission
    from clipa.registry.events import Step
    from clipa.registry.state import BadSamples, Facts, RunStatus, Score
    from clipa.spec.container import Pinned
    from clipa.spec.plan import Plan

STYLES = {
    "DONE": "green",
    "RUNNING": "cyan",
    "STAGING": "cyan",
    "QUEUED": "blue",
    "WAITING": "yellow",
    "FAILED": "bold red",
    "CANCELLED": "magenta",
    "BLOCKED": "red",
    "INTERRUPTED": "bold yellow",
    "UNKNOWN": "yellow",
}
NAMES = 80
"""The narrowest console, in columns, that shows the name of a run beside its id."""


def console(err: bool = False) -> Console:
    """Return the console of stdout, or with `err` of stderr."""
    return safe_console.console(err)


def note(text: str) -> None:
    """Print a remark to stderr."""
    say(text, err=True)


_COLUMNS: tuple[tuple[str, bool, int, Callable[[RunStatus], str | Text]], ...] = (
    # title, left-justified, narrowest console that shows it, cell
    ("run", True, 0, lambda s: one_line(f"{s.run} ({s.name})" if s.name and console().width >= NAMES else s.run)),
    ("state", True, 0, lambda s: Text(s.state.value, STYLES[s.state.value])),
    ("att", False, 100, lambda s: str(s.attempt)),
    ("step", False, 90, lambda s: f"{s.step}/{s.steps}" if s.steps else "-"),
    ("%", False, 0, lambda s: f"{s.percent:.0f}"),
    ("samples/s", False, 80, lambda s: _number(s.samples_per_s, ",.0f")),
    ("loss", False, 110, lambda s: _number(s.loss, ".3f")),
    ("wait", False, 130, lambda s: _number(s.last_step.data_wait if s.last_step else None, ".0%")),
    ("MFU", False, 140, lambda s: _number(s.last_step.mfu if s.last_step else None, ".0%")),
    ("score", True, 120, lambda s: one_line(score(s))),
    ("ETA", False, 0, lambda s: span(s.eta_s)),
    ("age", False, 110, lambda s: span(s.age_s)),
)


def statuses(found: Sequence[RunStatus]) -> Table:
    """One line a run; a narrow terminal gets the columns that matter most."""
    width = console().width
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [column for column in _COLUMNS if column[2] <= width]
    for title, left, _, _ in shown:
        table.add_column(title, justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for s in found:
        table.add_row(*[cell(s) for _, _, _, cell in shown])
    return table


_BEHIND = {
    State.QUEUED: {State.QUEUED, State.WAITING, State.STAGING, State.RUNNING},
    State.BLOCKED: {State.BLOCKED, State.FAILED, State.CANCELLED, State.INTERRUPTED},
    State.CANCELLED: {State.CANCELLED},
}
"""The states of a phase that follow from these of the phase before it."""


def reasons(found: Sequence[RunStatus]) -> list[str]:
    """For every run that is not simply on its way: why, and what to do; then samples that could not be used.

    A phase that only shares the fate of the one before it, which is among `found`, is passed over.
    """
    lines = []
    known = {s.run: s.state for s in found}
    for s in found:
        if s.state in _BEHIND and known.get(s.parent) in _BEHIND[s.state]:
            continue
        if s.why and (s.state.value != "DONE" or s.remote is False):
            first, *rest = s.why.splitlines() or [""]
            lines.append(f"{s.run}: {f'[{s.cause}] ' if s.cause else ''}{first}")
            lines += [f"    {line}" for line in [*rest[:8], *filter(None, [s.evidence])]]
        if s.hint:
            lines.append(f"    {s.hint}")
    lines += [f"{s.run}: {_bad(s.bad)}; by shard: clipa runs show {s.run}" for s in found if s.bad]
    return lines + _of_others(found)


def _of_others(found: Sequence[RunStatus]) -> list[str]:
    owners: dict[str, list[str]] = {}
    for s in found:
        if s.owner:
            owners.setdefault(s.owner, []).append(s.run)
    return [
        f"of user {owner}, whose runs are only read: {', '.join(runs[:4])}"
        f"{f' and {len(runs) - 4} more' if len(runs) > 4 else ''}"
        for owner, runs in owners.items()
    ]


def _bad(bad: BadSamples) -> str:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in bad.kinds.items())
    return f"{bad.count:,} samples could not be used and were replaced ({kinds})"


def score(s: RunStatus) -> str:
    """The newest score in a few characters; at the size the phase trained at, where it was scored at several."""
    if not s.scores:
        return "-"
    newest = _last_scores(s) or s.scores
    last = [x for x in newest if x.size == s.image_size][-1:] or newest[-1:]
    return _score(last[0])


def _score(last: Score) -> str:
    return f"{last.set} {label(last.metric)} {last.value:.1f}% @{last.size}"


def metrics(x: Score) -> str:
    """All metrics of a result, the one that stands for the set first."""
    names = [x.metric, *(name for name in x.metrics if name != x.metric)]
    return ", ".join(f"{label(name)} {x.metrics[name]:.2f} %" for name in names if name in x.metrics)


def span(seconds: float | None) -> str:
    """A length of time in two units."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for unit, size, lower, below in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02d}{lower}"
    return f"{whole}s"


def rates(step: Step, devices: str) -> list[str]:
    """What the newest step that was told says: what is learnt, and how fast."""
    towers = ", ".join(
        f"{name} {norm:.3g}"
        for name, norm in (("image", step.grad_norm_image), ("text", step.grad_norm_text))
        if norm is not None
    )
    gradient = f", gradient {_number(step.grad_norm, '.3g')}{f' ({towers})' if towers else ''}"
    speed = [f"{step.samples_per_s:,.0f} images/s"]
    speed += [f"{step.samples_per_s_device:,.0f} each {devices}"] if step.samples_per_s_device is not None else []
    speed += [f"MFU {step.mfu:.1%}"] if step.mfu is not None else []
    speed += [f"waiting for data {step.data_wait:.0%}{_over_all(step)}"]
    speed += [f"peak memory {step.memory_gib:.1f} GiB"] if step.memory_gib is not None else []
    learnt = f"loss {step.loss:.4f}, lr {step.lr:.3g}, logit scale {step.logit_scale:.2f}{gradient}"
    return [f"step {step.step}: {learnt}", ", ".join(speed)]


def _over_all(step: Step) -> str:
    """How long all steps of all attempts took, and the share of it that was spent waiting for data."""
    if not step.trained_s or step.waited_s is None:
        return ""
    return f" ({step.waited_s / step.trained_s:.0%} of {span(step.trained_s)} of training in all)"


def remarks(facts: Facts) -> list[str]:
    """Where a run's checkpoints are beside its folder, and what a person wanted to know while it ran."""
    lines = [f"note: {text}" for text in facts.notes]
    if facts.bad:
        worst = ", ".join(f"{shard} {count:,}" for shard, count in facts.bad.shards.items())
        example = f"; such as {facts.bad.example}" if facts.bad.example else ""
        lines.append(f"note: {_bad(facts.bad)}; by shard: {worst}{example}")
    if facts.plan.publish and facts.remote is not None:
        where = f"{redacted(facts.plan.publish.url).rstrip('/')}/{facts.plan.run}"
        what = "the last checkpoint and all results are" if facts.remote.whole else "not all of it is"
        lines.insert(0, f"{what} at {where}")
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def dry_run(prepared: Prepared, as_json: bool) -> None:
    """The plans, and exactly what would be submitted."""
    from clipa.launch import request

    for text in prepared.notes:
        note(text)
    if as_json:
        say_document("clipa.dry-run/1", plans=prepared.plans, submission=request.describe(prepared))
        return
    say(plan_text(prepared.plans))
    say()
    say(request.describe(prepared))
    note("dry run: nothing was submitted")


def plan_text(plans: Sequence[Plan]) -> str:
    """Each plan in a few lines."""
    lines = []
    for plan in plans:
        lines.append(f"{plan.run}: {plan.kind} of {plan.recipe} on {plan.cluster}")
        if plan.point:
            lines.append(f"  point {', '.join(plan.point)}")
        if plan.init:
            lines.append(f"  starts from {plan.init.ref}")
        for data in plan.datasets:
            count = f"{data.samples:,} samples" if data.samples is not None else "samples not counted"
            parts = counted(data.shards, "class folder" if data.layout == "folder" else "shard")
            lines.append(
                f"  reads {data.name}: {parts}, {data.bytes / 2**20:.1f} MiB, {count}, manifest {data.manifest[:12]}"
            )
        if plan.steps:
            lines.append(f"  {plan.steps:,} steps, warm-up {plan.warmup_steps:,}")
    return "\n".join(lines)


def image(pinned: Pinned | None) -> list[str]:
    """The image of a run, and whose code runs in it."""
    if pinned is None:
        return []
    runs_code = f"code from {pinned.code}" if pinned.code else "its own code"
    lines = [f"{pinned.runtime} {pinned.reference}, {pinned.kind} {pinned.digest}, {runs_code}"]
    return [*lines, f"made from {pinned.source}"] if pinned.source else lines


def ends(holds: bool) -> str:
    """What a person is told about the life of the work."""
    return "it ends with this container" if holds else "it goes on when this terminal closes"


def submission_document(submission: Submission, statuses: Sequence[RunStatus] | None) -> None:
    """Print a submission as one document; `statuses` are those at the end of `--wait`, None without it."""
    say_document(
        "clipa.submission/1",
        runs=[s.run for s in submission.runs],
        group=submission.runs[0].group,
        root=submission.root,
        already=submission.already,
        statuses=statuses,
    )


def submitted(submission: Submission, holds: bool = False) -> None:
    """Print the ids of the submitted runs."""
    if submission.already:
        note(submission.already)
    else:
        note(f"submitted to {submission.runs[0].cluster}; {ends(holds)}")
    for status in submission.runs:
        say(status.run)


def results(found: Sequence[RunStatus]) -> None:
    """What a group of runs came to: phase, tokens, samples, speed, scores, and where everything lies."""
    if any(s.samples or s.scores for s in found):
        _results(found)
    out = console()
    out.print("run directories:")
    for s in found:
        out.print(f"  {s.root}/{s.run}", soft_wrap=True)
    if not all(s.state.value == "DONE" for s in found):
        return  # what is wrong, and its command, is said behind this
    out.print("try next:")
    commands = [f"clipa runs show {found[-1].run}", f"clipa logs {found[0].run}"]
    for command in [*commands, *(["clipa plan demo"] if found[0].recipe == "demo" else [])]:
        out.print(f"  {command}", soft_wrap=True)


def _results(found: Sequence[RunStatus]) -> None:
    table = Table(title="results", title_style="bold", header_style="bold")
    for title in ("phase", "image tokens", "text tokens", "samples", "images/s", "zero-shot"):
        table.add_column(title, justify="left" if title in ("phase", "zero-shot") else "right")
    for s in found:
        scores = "\n".join(
            f"{x.value:5.1f} %  {label(x.metric)} of {x.set}, {x.samples} images at {x.size} px"
            for x in _last_scores(s)
        )
        table.add_row(
            s.phase,
            str(s.image_tokens or "-"),
            str(s.text_tokens or "-"),
            f"{s.samples:,}" if s.samples else "-",
            _number(s.samples_per_s, ",.0f"),
            scores or "-",
        )
    console().print(table)


def _last_scores(s: RunStatus) -> list[Score]:
    newest = max((x.step for x in s.scores), default=0)
    return [x for x in s.scores if x.step == newest]

"""Looking at runs and steering them: status, logs, cancel, resume, wait, runs list, runs show."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from clipa.cli import plot, words
from clipa.terminal import say, say_document

group = typer.Typer(
    help="What has run.", epilog="Example: clipa runs list", no_args_is_help=True, rich_markup_mode=None
)

plot.register(group)

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]...",
        help="Run ids, groups, names or `latest`.",
        autocompletion=words.complete_run,
        show_default=False,
    ),
]
SomeRuns = Annotated[
    list[str],
    typer.Argument(metavar="RUN...", help="Run ids, groups, names or `latest`.", autocompletion=words.complete_run),
]
OneRun = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's id, name or `latest`.", autocompletion=words.complete_run)
]
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
RECENT = 20


def register(app: typer.Typer) -> None:
    """Put the commands of this module at the top level."""
    app.command(epilog="Example: clipa status latest --watch")(status)
    app.command(epilog="Example: clipa logs latest -f")(logs)
    app.command(epilog="Example: clipa cancel latest")(cancel)
    app.command(epilog="Example: clipa resume latest")(resume)
    app.command(epilog="Example: clipa wait latest")(wait)


def status(
    runs: Runs = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh until Ctrl-C or all is over.")] = False,
    json: Json = False,
) -> None:
    """One line a run: state, attempt, step, speed, loss, score, ETA, age."""
    from clipa.cli import show

    found = words.chosen(runs or [], words.everything(settle=True).statuses)
    shown = found if runs or json else [s for s in found if s.state.is_live] + found[-RECENT:]
    shown = [s for s in found if s in shown]
    if json:
        say_document("clipa.runs/1", runs=shown)
        return
    if watch and shown:
        _watch([s.run for s in shown])
        return
    if not shown:
        show.note(words.no_runs())
        return
    show.console().print(show.statuses(shown))
    for line in show.reasons(shown):
        show.note(line)


def _watch(runs: list[str]) -> None:
    from rich.live import Live

    from clipa.cli import show

    out = show.console()
    try:
        with Live(console=out, refresh_per_second=4) as live:
            while True:
                found = [s for s in words.everything().statuses if s.run in runs]
                live.update(show.statuses(found))
                if not any(s.state.is_live for s in found):
                    break
                time.sleep(1.0)
    except KeyboardInterrupt:
        return
    if not out.is_terminal:
        say()  # Live leaves the last line of a file without its end
    for line in show.reasons(found):
        show.note(line)


def logs(
    run: OneRun,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the log grows.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines of the end.")] = 100,
) -> None:
    """The log of a run's newest attempt; of several phases, of the one that is at work, failed or ended last."""
    from clipa.cli.tail import tail, telling

    chosen = words.chosen([run], words.everything().statuses)
    first = telling(chosen)
    tail([Path(s.root) / s.run for s in chosen[chosen.index(first) :]], lines, follow)


def cancel(runs: SomeRuns, json: Json = False) -> None:
    """Stop runs and the phases behind them; no process is left."""
    from clipa.cli import show
    from clipa.launch import control

    found = words.chosen(runs, words.everything().statuses)
    after = control.cancel(found)
    if json:
        say_document("clipa.runs/1", runs=after)
    else:
        show.console().print(show.statuses(after))


def resume(
    runs: SomeRuns,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the work; Ctrl-C stops following, not the work.")
    ] = False,
    json: Json = False,
) -> None:
    """Start the next attempt of runs that are neither DONE nor live, and of the phases behind them."""
    from clipa.cli import show
    from clipa.cli.follow import follow
    from clipa.host import container
    from clipa.launch import control

    container.require_temporary_folder()
    found = words.chosen(runs, words.everything(settle=True).statuses)
    for note in control.moved_images(found):
        show.note(note)
    resumed = control.resume(found)
    holds = container.ends_with_us()
    ids = [s.run for s in resumed]
    if not json:
        show.note(f"resumed; {show.ends(holds)}")
        for run in ids:
            say(run)
    followed = follow(ids, Path(resumed[0].root), quiet=json, holds=holds) if wait or holds else None
    if json:
        say_document("clipa.resume/1", runs=ids, statuses=followed.runs if followed else None)
    if followed:
        raise typer.Exit(followed.code)


def wait(runs: SomeRuns, json: Json = False) -> None:
    """Follow runs until they are over; exit code 1 unless all are DONE."""
    from clipa.cli.follow import follow
    from clipa.errors import InputError

    found = words.chosen(runs, words.everything(settle=True).statuses)
    roots = {s.root for s in found}
    if len(roots) > 1:
        raise InputError("these runs are in different run roots", where=", ".join(sorted(roots)))
    followed = follow([s.run for s in found], Path(roots.pop()), quiet=json)
    if json:
        say_document("clipa.runs/1", runs=followed.runs)
    raise typer.Exit(followed.code)


@group.command("list", epilog="Example: clipa runs list --json")
def list_(json: Json = False) -> None:
    """Every run under every known run root."""
    from clipa.cli import show

    found = words.everything().statuses
    if json:
        say_document("clipa.runs/1", runs=found)
        return
    show.console().print(show.statuses(found))


@group.command("show", epilog="Example: clipa runs show latest")
def show_(runs: SomeRuns, json: Json = False) -> None:
    """All that is known of a run: plan, state, scores, provenance."""
    from clipa.cli import show

    scan = words.everything()
    found = words.chosen(runs, scan.statuses)
    if json:
        details = [{"status": s, "plan": scan.facts[s.run].plan} for s in found]
        say_document("clipa.run-details/1", runs=details)
        return
    for s in found:
        facts = scan.facts[s.run]
        say(show.plan_text([facts.plan]))
        steps = f", {s.step}/{s.steps} steps, {s.samples:,} samples" if s.steps else ""
        say(f"  state {s.state.value}, attempt {s.attempt}{steps}")
        say(f"  {facts.params:,} parameters on {facts.device}" if facts.params else "  no trainer has begun yet")
        if facts.last_step is not None:
            for line in show.rates(facts.last_step, "GPU" if facts.plan.world.gpus else "process"):
                say(f"  {line}")
        for x in s.scores:
            say(f"  {x.set} at {x.size} px, step {x.step}: {show.metrics(x)} of {x.samples}")
        if s.queue_s is not None:
            spent = f", {s.gpu_hours:,.2f} GPU-hours" if facts.plan.world.gpus else ""
            share = f", {100 * s.efficiency:.0f} % of it in steps that counted" if s.efficiency is not None else ""
            say(f"  waited {show.span(s.queue_s)}, held {show.span(facts.held_s)}{spent}{share}")
        for line in show.remarks(facts):
            say(f"  {line}")
        code = facts.plan.code
        say(f"  clipa {code.version} {code.revision[:12]}{' (dirty)' if code.dirty else ''}")
        for line in show.image(facts.plan.container):
            say(f"  {line}")
        say(f"  {s.root}/{s.run}")
    for line in show.reasons(found):
        show.note(line)

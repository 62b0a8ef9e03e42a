"""`clipa sweep`: a grid of recipes as one group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipa.cli import words
from clipa.cli.submit import finish
from clipa.terminal import say, say_document

if TYPE_CHECKING:
    from clipa.launch.sweep import Sweep


def register(app: typer.Typer) -> None:
    """Put the command at the top level."""
    example = "Example: clipa sweep demo --over 'phases.pretrain.image.size=4,8,16' --name digits-law --wait"
    app.command(epilog=example)(sweep)


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.", autocompletion=words.complete_recipe)],
    over: Annotated[
        list[str], typer.Option("--over", metavar="KEY=V1,V2", help="An axis of the grid; may be repeated.")
    ],
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", "-c", help="A profile's name or file.", autocompletion=words.complete_cluster),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key at every point.")
    ] = None,
    phases: Annotated[
        Literal["pipeline", "pretrain", "finetune", "eval"],
        typer.Option("--phases", help="Which phases of each point."),
    ] = "pipeline",
    at_once: Annotated[
        int, typer.Option("--at-once", min=0, metavar="K", help="On SLURM: K points of a phase at a time; 0: all.")
    ] = 0,
    name: Annotated[str, typer.Option("--name", help="The group's name; the same name is never run twice.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and price every point, and stop.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the work; Ctrl-C stops following, not the work.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """Submit a recipe at every point of a grid, as one group. All are checked before the first is submitted."""
    from clipa.cli import show
    from clipa.launch import sweep as grid

    settled = grid.settle(phases, recipe, cluster, set_ or [], over, name, words.everything, at_once)
    for note in settled.notes:
        show.note(note)
    settled = settled._replace(requests=tuple(one._replace(say=show.note) for one in settled.requests))
    if dry_run:
        _dry_run(settled, json)
        return
    submission = grid.submit(settled)
    if remark := words.remark_on_root(Path(submission.root)):
        show.note(remark)
    if not json:
        show.submitted(submission)
        group = submission.runs[0].name or submission.runs[0].group
        show.note(f"{len(settled.points)} points; the picture: clipa runs plot --group {group}")
    finish(submission, wait, json)


def _dry_run(settled: Sweep, json: bool) -> None:
    from clipa.cli import costs, show
    from clipa.host.place import place_of
    from clipa.launch import sweep as grid
    from clipa.registry import calibration
    from clipa.spec import cost

    prepared = grid.prepare_all(settled)
    for note in grid.remarks(prepared):
        show.note(note)
    place, measured = place_of(settled.requests[0].cluster), calibration.read(words.roots())
    priced = [cost.cost(r.recipe.recipe, place, r.recipe.about.datasets, measured) for r in settled.requests]
    if json:
        rows = zip(settled.points, prepared, priced, strict=True)
        points = [{"point": p, "plans": ready.plans, "cost": c} for p, ready, c in rows]
        say_document("clipa.sweep-dry-run/1", points=points)
        return
    costs.print_grid(settled.points, priced)
    if scripts := grid.describe(prepared):
        say(f"\n{scripts}")
    show.note("dry run: nothing was submitted")

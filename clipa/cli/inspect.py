"""Looking before acting: recipes, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from clipa.cli import words
from clipa.terminal import say, say_document

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module at the top level."""
    app.command(epilog="Example: clipa recipes")(recipes)
    app.command(epilog="Example: clipa doctor --cluster slurm-dev")(doctor)


def recipes(json: Json = False) -> None:
    """The recipes that ship with clipa."""
    from clipa.spec import catalog
    from clipa.spec.load import load_recipe

    found = {name: load_recipe(path) for name, path in catalog.recipes().items()}
    if json:
        named = {n: {"file": str(r.path), "description": r.recipe.description} for n, r in found.items()}
        say_document("clipa.recipes/1", recipes=named)
        return
    for name, loaded in found.items():
        say(f"{name}  {loaded.recipe.description}\n    phases: {', '.join(loaded.recipe.phases)}   {loaded.path}")


def doctor(
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", "-c", help="Check a SLURM profile, on a node too.", autocompletion=words.complete_cluster
        ),
    ] = None,
    json: Json = False,
) -> None:
    """What this installation can do and everything odd in the run roots, or what the site of a SLURM profile can do."""
    from clipa.cli.checkup import check_cluster, checkup

    findings = checkup(words.roots()) if cluster is None else check_cluster(cluster)
    if json:
        say_document("clipa.doctor/1", findings=findings)
    else:
        for finding in findings:
            say(f"{finding.state:4}  {finding.what}" + (f"\n      cure: {finding.cure}" if finding.cure else ""))
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)

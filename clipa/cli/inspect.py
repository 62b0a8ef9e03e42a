"""Looking before acting: plan, recipes, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from clipa.cli import words

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module at the top level."""
    app.command(epilog="Example: clipa plan demo")(plan)
    app.command(epilog="Example: clipa recipes")(recipes)
    app.command(epilog="Example: clipa doctor --cluster slurm-dev")(doctor)


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.", autocompletion=words.complete_recipe)],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    json: Json = False,
) -> None:
    """Tokens, steps, samples, model size and train FLOPs of each phase. Reads no data."""
    from rich.table import Table

    from clipa.cli import show
    from clipa.spec import catalog
    from clipa.spec.budget import phase_budget
    from clipa.spec.load import load_recipe

    loaded = load_recipe(catalog.find_recipe(recipe), set_ or [])
    budgets = {name: phase_budget(loaded.recipe.model, phase) for name, phase in loaded.recipe.phases.items()}
    if json:
        show.json({"recipe": loaded.recipe.name, "file": str(loaded.path), "digest": loaded.digest, "phases": budgets})
        return
    table = Table(title=f"{loaded.recipe.name} ({loaded.path})", header_style="bold")
    for title in (
        "phase",
        "image tokens",
        "text tokens",
        "batch",
        "steps",
        "samples",
        "parameters",
        "FLOPs/sample",
        "FLOPs",
    ):
        table.add_column(title, justify="left" if title == "phase" else "right", no_wrap=True)
    for name, b in budgets.items():
        if b is None:
            table.add_row(name, *["-"] * 8)
            continue
        table.add_row(
            name,
            str(b.image_tokens),
            str(b.text_tokens),
            f"{b.batch:,}",
            f"{b.steps:,}",
            f"{b.samples:,}",
            f"{b.params / 1e6:.2f} M",
            f"{b.flops_per_sample:.3g}",
            f"{b.flops:.3g}",
        )
    show.console().print(table)
    show.note("image tokens do not count the class token; FLOPs are forward + backward")


def recipes(json: Json = False) -> None:
    """The recipes that ship with clipa."""
    from clipa.cli import show
    from clipa.spec import catalog
    from clipa.spec.load import load_recipe

    found = {name: load_recipe(path) for name, path in catalog.recipes().items()}
    if json:
        show.json({n: {"file": str(r.path), "description": r.recipe.description} for n, r in found.items()})
        return
    for name, loaded in found.items():
        print(f"{name}  {loaded.recipe.description}\n    phases: {', '.join(loaded.recipe.phases)}   {loaded.path}")


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
    from clipa.cli import show
    from clipa.cli.checkup import check_cluster, checkup

    findings = checkup(words.roots()) if cluster is None else check_cluster(cluster)
    if json:
        show.json(findings)
    else:
        for finding in findings:
            print(f"{finding.state:4}  {finding.what}" + (f"\n      cure: {finding.cure}" if finding.cure else ""))
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)

"""`clipa plan`: what a recipe costs, before anything is submitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from clipa.cli import words
from clipa.terminal import say_document

if TYPE_CHECKING:
    from clipa.spec.cost import Cost
    from clipa.spec.load import LoadedRecipe

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module at the top level."""
    app.command(epilog="Example: clipa plan clipa-l16-i37-t8 --cluster a100")(plan)


def plan(
    recipe: Annotated[
        str | None,
        typer.Argument(help="A recipe's name or file.", autocompletion=words.complete_recipe, show_default=False),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", "-c", help="A profile's name or file.", autocompletion=words.complete_cluster),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe.")
    ] = None,
    mfu: Annotated[
        float, typer.Option("--mfu", min=0.0, max=1.0, help="Share of the GPU's peak to assume, 0..1.")
    ] = 0.0,
    points: Annotated[
        bool, typer.Option("--points", help="Every result that was reported for the recipe, one a line.")
    ] = False,
    json: Json = False,
) -> None:
    """Tokens, FLOPs, GPU-hours, dollars, memory, disk and cores of a recipe, and the authors' figures beside them.

    Reads no data. The rate is measured where a calibration is in the registry, else assumed, and named as such.
    """
    from clipa.cli import costs
    from clipa.spec import catalog
    from clipa.spec import points as reported
    from clipa.spec.load import load_recipe

    loaded = load_recipe(catalog.find_recipe(recipe or catalog.defaults().recipe), set_ or [])
    if points:
        found = reported.points(loaded)
        priced = [(point, _cost(point.loaded, cluster, mfu)) for point in found]
        if json:
            rows = [{"published": p.published, "digest": p.loaded.digest, "cost": c} for p, c in priced]
            say_document("clipa.plan-points/1", points=rows)
        else:
            costs.print_points(loaded, priced)
        return
    priced_here = _cost(loaded, cluster, mfu)
    said = reported.reported(loaded)
    if json:
        facts = {"recipe": loaded.recipe.name, "file": str(loaded.path), "digest": loaded.digest}
        say_document("clipa.plan/1", **facts, cost=priced_here, published=said)
    else:
        costs.print_plan(loaded, priced_here, said)


def _cost(loaded: LoadedRecipe, word: str | None, mfu: float) -> Cost:
    from clipa.host.place import place_of
    from clipa.registry import calibration
    from clipa.spec import catalog, cost
    from clipa.spec.load import load_cluster

    profile = load_cluster(catalog.find_cluster(word or catalog.defaults().cluster))
    measured = calibration.read(words.roots())
    return cost.cost(loaded.recipe, place_of(profile), loaded.about.datasets, measured, mfu)

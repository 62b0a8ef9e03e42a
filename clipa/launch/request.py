"""What `clipa submit` does: settle every default, say which, prepare, and submit once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa.errors import ConfigError, InputError
from clipa.host import telling
from clipa.host.supervisor import Task
from clipa.launch import create, pin, weights
from clipa.launch.folders import folders
from clipa.launch.look import look
from clipa.launch.only_one import only_one
from clipa.launch.prepare import (
    Prepared,
    Request,
    check_init,
    kind_of,
    needs_weights,
    prepare,
    require_usable_root,
    select_phases,
)
from clipa.registry import records
from clipa.registry.ownership import require_own, run_files
from clipa.registry.run_dir import RunDir
from clipa.registry.scan import Scan
from clipa.registry.state import RunStatus, State
from clipa.spec import catalog
from clipa.spec.load import load_cluster, load_recipe

__all__ = ["Settled", "Submission", "prepare", "settle", "submit"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Settled(NamedTuple):
    """A request with every default filled in, and the sentences that say which were taken."""

    request: Request
    notes: tuple[str, ...]


class Submission(NamedTuple):
    """What came of a submission: its runs, oldest first. `already`: nothing new was submitted, and why."""

    runs: tuple[RunStatus, ...]
    root: str
    already: str = ""


def settle(
    what: str,
    recipe_word: str | None,
    cluster_word: str | None,
    overrides: Sequence[str],
    from_word: str | None,
    name: str,
    runs: Callable[[], Scan],
) -> Settled:
    """Fill in what the user left out.

    Raises:
        InputError: anything that the user can mend.
    """
    if name and not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a name", where="--name", allowed="letters, digits, - _ . (at most 64)")
    defaults = catalog.defaults()
    notes = []
    if recipe_word is None:
        notes.append(f"recipe {defaults.recipe} ({_from(defaults.recipe_from)})")
    if cluster_word is None and defaults.cluster_from != "built in":
        notes.append(f"cluster {defaults.cluster} ({_from(defaults.cluster_from)})")
    loaded = load_recipe(catalog.find_recipe(recipe_word or defaults.recipe), overrides)
    cluster = load_cluster(catalog.find_cluster(cluster_word or defaults.cluster))
    run_root, cache = folders(cluster, defaults.run_root)
    recipe = loaded.recipe
    phases = select_phases(recipe, what, str(loaded.path))
    init = None
    if from_word is not None:
        init = weights.from_word(from_word, runs().statuses, run_root, catalog.bound(defaults, cluster))
    elif needs_weights(recipe, phases):
        before = list(recipe.phases)[: list(recipe.phases).index(phases[0])]
        trained = [phase for phase in before if kind_of(recipe.phases[phase]) != "eval"]
        statuses = runs().statuses
        init, run = weights.newest_done(statuses, recipe.name, cluster.name, trained, run_root, what)
        notes.append(f"starts from {run}, the newest DONE run of {recipe.name} on {cluster.name}")
    trackers = defaults.trackers if cluster.trackers is None else cluster.trackers
    request = Request(loaded, cluster, phases, name, init, run_root, cache, defaults.datasets, trackers=trackers)
    check_init(request)
    require_usable_root(request)
    telling.require_installed(trackers, f"cluster {cluster.name}, or clipa.toml")
    return Settled(request, tuple(notes))


def _from(where: str) -> str:
    return "the built-in default" if where == "built in" else f"from {where}"


def submit(request: Request) -> Submission:
    """Submit, unless the request's name is taken by the same work already."""
    with only_one(request.run_root), run_files(request.cluster.readers):
        if request.name and (known := _known(request)):
            return _again(request, known)
        prepared = prepare(request)
        for note in prepared.notes:
            request.say(note)
        runs = create.create(prepared)
        create.start([Task(str(run.path), create.FIRST) for run in runs], prepared.plans)
    group = prepared.plans[0].group
    found = [s for s in look([request.run_root]).statuses if s.group == group]
    return Submission(tuple(found), str(request.run_root))


def _known(request: Request) -> list[RunStatus]:
    named = [s for s in look([request.run_root]).statuses if s.name == request.name and not s.owner]
    return [s for s in named if s.group == named[-1].group] if named else []


def _again(request: Request, known: list[RunStatus]) -> Submission:
    """A name that was used before means that work: it is reported, or picked up where a dead machine left it."""
    plan = records.read_plan(RunDir(Path(known[0].root) / known[0].run))
    wanted = (request.recipe.digest, request.cluster.name, request.phases)
    if wanted != (plan.recipe_digest, plan.cluster, tuple(s.phase for s in known if s.kind != "stage")):
        raise InputError(
            f"the name {request.name!r} is taken by {known[0].group}, which is other work",
            where="--name",
            hint="choose another name (the recipe, the cluster or the phases differ)",
        )
    if any(s.state is State.INTERRUPTED for s in known) and not any(s.state.is_live for s in known):
        _resume(known)
        found = [s for s in look([request.run_root]).statuses if s.group == known[0].group]
        return Submission(tuple(found), str(request.run_root), "it was interrupted, and goes on now")
    states = ", ".join(f"{s.phase} {s.state.value}" for s in known)
    return Submission(tuple(known), str(request.run_root), f"it is there already: {states}")


def _resume(known: list[RunStatus]) -> None:
    again = [s for s in known if s.state is not State.DONE]
    paths = [Path(s.root) / s.run for s in again]
    require_own(paths, "resume")
    plans = [records.read_plan(RunDir(path)) for path in paths]
    pin.check(plan.container for plan in plans)
    create.start(create.resume(paths), plans)


def describe(prepared: Prepared) -> str:
    """What would be submitted, as text."""
    from clipa.host.render import describe as render
    from clipa.registry.run_dir import RunDir

    runs = [RunDir(Path(plan.run_root) / plan.run) for plan in prepared.plans]
    if prepared.plans[0].slurm is not None:
        from clipa.launch.preview import describe as preview

        return preview(prepared.plans, runs)
    return render(prepared.plans, runs)

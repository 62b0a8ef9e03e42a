"""A grid of recipes as one named group: every point is planned and checked before the first is submitted."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from clipa.errors import ConfigError, InputError
from clipa.host.supervisor import Task
from clipa.launch import create, request
from clipa.launch.look import look
from clipa.launch.only_one import only_one
from clipa.launch.prepare import Prepared, Request, prepare
from clipa.launch.request import Submission
from clipa.registry import records
from clipa.registry.jobs import Element
from clipa.registry.ownership import run_files
from clipa.registry.run_dir import RunDir
from clipa.registry.scan import Scan
from clipa.registry.state import RunStatus, State
from clipa.slurm import arrays
from clipa.spec.plan import Plan, Weights

LARGEST = 256
"""Points of one sweep: more is a slip of the pen."""


class Sweep(NamedTuple):
    """The points of a grid: the changes of each, and its request. `notes` say which defaults were taken.

    `at_once`: of so many points the same phase runs at the same time on SLURM; 0: no limit.
    """

    points: tuple[tuple[str, ...], ...]
    requests: tuple[Request, ...]
    notes: tuple[str, ...]
    at_once: int = 0


def axis(words: str) -> tuple[str, ...]:
    """`KEY=V1,V2` as KEY=V1, KEY=V2. Commas in brackets or quotes belong to a value.

    Raises:
        ConfigError: there is no key, or no value, or a value twice.
    """
    key, equals, text = words.partition("=")
    values = _split(text)
    if not equals or not key.strip() or not values or not all(values):
        raise ConfigError(
            f"cannot read the axis {words!r}",
            where="--over",
            allowed="KEY=VALUE,VALUE, for example --over phases.pretrain.image.tokens=16,36,49",
        )
    if len(set(values)) < len(values):
        raise ConfigError(f"the axis {words!r} has the same value twice", where="--over")
    return tuple(f"{key.strip()}={value}" for value in values)


def _split(text: str) -> list[str]:
    depth, quote, parts = 0, "", [""]
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "[{") - (letter in "]}") if not quote else 0
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def grid(axes: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """All points of the axes; the last one changes fastest.

    Raises:
        ConfigError: a key on two axes, or too many points.
    """
    keys = [words[0].partition("=")[0] for words in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"two axes over the same key: {', '.join(keys)}", where="--over")
    points = tuple(itertools.product(*axes))
    if len(points) > LARGEST:
        raise ConfigError(f"{len(points)} points are too many", where="--over", allowed=f"at most {LARGEST}")
    return points


def settle(
    what: str,
    recipe_word: str,
    cluster_word: str | None,
    overrides: Sequence[str],
    axes: Sequence[str],
    name: str,
    runs: Callable[[], Scan],
    at_once: int = 0,
) -> Sweep:
    """Load and check the recipe at every point.

    Raises:
        InputError: anything that the user can mend; it says at which point.
    """
    points = grid([axis(words) for words in axes])
    requests, notes = [], dict[str, None]()
    for point in points:
        with _at(point):
            settled = request.settle(what, recipe_word, cluster_word, [*overrides, *point], None, name, runs)
        requests.append(settled.request)
        notes |= dict.fromkeys(settled.notes)
    if at_once and requests[0].cluster.slurm is None:
        raise ConfigError(
            "points run one after the other on the local machine",
            where=f"--at-once, cluster {requests[0].cluster.name}",
            hint="leave it out, or choose a profile of SLURM with --cluster",
        )
    return Sweep(points, tuple(requests), tuple(notes), at_once)


@contextlib.contextmanager
def _at(point: tuple[str, ...]) -> Iterator[None]:
    """Errors say at which point of the grid they are."""
    try:
        yield
    except InputError as error:
        here = ", ".join(point)
        if error.where in {f"--set {word}" for word in point}:
            error.where = error.where.replace("--set", "--over", 1)
            raise
        error.where = f"{error.where} (at {here})" if error.where else here
        raise


def prepare_all(sweep: Sweep) -> list[Prepared]:
    """The plans of every point, as one group.

    Raises:
        InputError: anything that the user can mend, before anything was queued.
    """
    group = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"
    prepared = []
    for number, (point, wanted) in enumerate(zip(sweep.points, sweep.requests, strict=True), start=1):
        with _at(point):
            prepared.append(_in_group(prepare(wanted), group, number, point, sweep.at_once))
    return prepared


def _in_group(prepared: Prepared, group: str, number: int, point: tuple[str, ...], at_once: int = 0) -> Prepared:
    """The plans of one point under the group's id; they refer to each other by their new ids."""
    ids = {plan.run: f"{group}-{number:02d}-{plan.phase}" for plan in prepared.plans}
    plans = []
    for plan in prepared.plans:
        init = plan.init
        if init is not None and init.run in ids:
            init = Weights(ref=init.ref.replace(init.run, ids[init.run]), run=ids[init.run])
        parent = ids.get(plan.parent, plan.parent)
        plans.append(
            msgspec.structs.replace(
                plan, run=ids[plan.run], group=group, parent=parent, init=init, point=point, element=number,
                at_once=at_once,
            )
        )  # fmt: skip
    return prepared._replace(plans=tuple(plans))


def remarks(prepared: Sequence[Prepared]) -> tuple[str, ...]:
    """What the plans of all points remark on, each remark once."""
    return tuple(dict.fromkeys(note for point in prepared for note in point.notes))


def describe(prepared: Sequence[Prepared]) -> str:
    """The batch scripts of a sweep on SLURM; empty on the local machine."""
    plans = [plan for point in prepared for plan in point.plans]
    if plans[0].slurm is None:
        return ""
    from clipa.launch.preview import describe_arrays

    return describe_arrays(plans, places(plans))


def submit(sweep: Sweep) -> Submission:
    """Submit the grid, unless its name is taken by the same grid already."""
    run_root, name = sweep.requests[0].run_root, sweep.requests[0].name
    with only_one(run_root), run_files(sweep.requests[0].cluster.readers):
        if name and (known := _known(run_root, name)):
            _require_same(sweep, known)
            states = ", ".join(f"{sum(s.state is state for s in known)} {state.value}" for state in State if
                               any(s.state is state for s in known))  # fmt: skip
            return Submission(tuple(known), str(run_root), f"it is there already: {states}")
        prepared = prepare_all(sweep)
        for note in remarks(prepared):
            sweep.requests[0].say(note)
        plans = [plan for point in prepared for plan in point.plans]
        runs = [create.create(point, places(plans)) for point in prepared]
        create.start([Task(str(run.path), create.FIRST) for point in runs for run in point], plans)
    group = prepared[0].plans[0].group
    return Submission(tuple(s for s in look([run_root]).statuses if s.group == group), str(run_root))


def places(plans: Sequence[Plan]) -> dict[str, Element]:
    """Run -> its element in the job arrays of a new sweep; none on the local machine."""
    return arrays.elements(plans, "a", {}) if plans[0].slurm is not None else {}


def _known(run_root: Path, name: str) -> list[RunStatus]:
    named = [s for s in look([run_root]).statuses if s.name == name and not s.owner]
    return [s for s in named if s.group == named[-1].group] if named else []


def _require_same(sweep: Sweep, known: Sequence[RunStatus]) -> None:
    plans = [records.read_plan(RunDir(Path(s.root) / s.run)) for s in known]
    there = {(plan.point, plan.recipe_digest, plan.phase) for plan in plans if plan.kind != "stage"}
    wanted = {
        (p, r.recipe.digest, phase) for p, r in zip(sweep.points, sweep.requests, strict=True) for phase in r.phases
    }
    if there != wanted or {plan.cluster for plan in plans} != {sweep.requests[0].cluster.name}:
        raise InputError(
            f"the name {sweep.requests[0].name!r} is taken by {known[0].group}, which is other work",
            where="--name",
            hint="choose another name (the recipe, the grid, the cluster or the phases differ)",
        )

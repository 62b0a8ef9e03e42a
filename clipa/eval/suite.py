"""The averages of a suite, over the results that are there; what is missing is named, and never averaged away."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from clipa import __version__
from clipa.eval.job import Bench
from clipa.registry.run_dir import RunDir
from clipa.spec import datacomp
from clipa.spec.plan import EvalData, Record

SCHEMA = 1


class Member(Record, frozen=True, kw_only=True):
    """One set's main metric in percent, and its number of samples."""

    metric: str
    value: float
    samples: int


class Suite(Record, frozen=True, kw_only=True):
    """The averages of a suite in percent, as they are written.

    Attributes:
        set: the name of the suite under [evals].
        averages: those of which no set is missing.
        members: what went into them, by the set's name in the suite.
        missing: sets of the suite that have no result.
        other_sizes: sets with another number of samples than the suite's own copy has.
        size: image size in pixels.
    """

    set: str
    averages: dict[str, float]
    members: dict[str, Member]
    missing: tuple[str, ...]
    other_sizes: tuple[str, ...]
    weights: str
    run: str
    step: int
    size: int
    clipa: str
    task: str = "suite"
    schema: int = SCHEMA


class Written(Record, frozen=True, kw_only=True):
    """What is read back of a result."""

    set: str = ""
    weights: str = ""
    metric: str = ""
    value: float = 0.0
    samples: int = 0


def written(run: RunDir, step: int, name: str, size: int, weights: str) -> Written | None:
    """The result of scoring a set with these weights, if there is one."""
    for path in run.evals.glob(f"*-{step:09d}-{name}-{size}.json"):
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Written)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if found.weights == weights and found.set == name:
            return found
    return None


def members(evals: dict[str, EvalData], suite: str) -> list[str]:
    """The sets of a plan that belong to a suite, or the set of that name itself."""
    return [name for name, data in evals.items() if suite in (name, data.suite)]


def summed_up(bench: Bench, suite: str, names: Sequence[str], size: int) -> Suite:
    """The averages over the results that these sets of the plan have at an image size."""
    card, evals = bench.card, bench.plan.evals
    found: dict[str, Member] = {}
    for name in names:
        result = written(bench.run, card.step, name, size, bench.digest)
        if result is not None:
            found[evals[name].member] = Member(metric=result.metric, value=result.value, samples=result.samples)
    expected = {entry.name: entry.size for entry in datacomp.SETS}
    return Suite(
        set=suite,
        averages=datacomp.averages({name: member.value for name, member in found.items()}),
        members=found,
        missing=tuple(name for name in expected if name not in found),
        other_sizes=tuple(name for name, member in found.items() if expected[name] not in (0, member.samples)),
        weights=bench.digest,
        run=card.run,
        step=card.step,
        size=size,
        clipa=__version__,
    )

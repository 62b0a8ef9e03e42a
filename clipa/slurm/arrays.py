"""Pure: which runs of a sweep are one job array. One array a phase; the index of an element is its point's number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clipa.registry.jobs import Element
from clipa.spec.plan import Plan


def elements(plans: Sequence[Plan], token: str, live: Mapping[str, str]) -> dict[str, Element]:
    """Run -> its place in an array; runs that are no elements are left out: those of no sweep, and those that wait for
    a job of its own.

    An array waits for one other array, element for element. So runs of one phase that wait for different arrays, or for
    none because what was before them is done, are different arrays.

    Args:
        plans: each behind the one that it waits for.
        token: what tells the arrays of this submission from those of another one of the same sweep.
        live: run -> SLURM's job of runs that go on already.
    """
    found: dict[str, Element] = {}
    names: dict[tuple[str, str], str] = {}
    for plan in plans:
        before = waits_for(plan, found, live)
        if plan.element and before is not None:
            fresh = f"clipa-{plan.group}-{plan.phase}-{token}{len(names) + 1}"
            found[plan.run] = Element(array=names.setdefault((plan.phase, before), fresh), index=plan.element)
    return found


def waits_for(plan: Plan, found: Mapping[str, Element], live: Mapping[str, str]) -> str | None:
    """The array that a run waits for, by its name or by its job; empty for none; None: it waits for a single job."""
    if plan.parent in found:
        return found[plan.parent].array
    array, _, index = live.get(plan.parent, "").partition("_")
    return array if not array or index == str(plan.element) else None

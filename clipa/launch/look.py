"""What is going on: the run folders, with what SLURM says of their jobs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from clipa.registry.jobs import Jobs
from clipa.registry.ownership import distrust_run
from clipa.registry.scan import Scan, scan
from clipa.registry.state import Facts, State
from clipa.slurm import scheduler

_SUSPICIOUS = (State.INTERRUPTED, State.CANCELLED, State.BLOCKED)


def look(roots: Sequence[Path], only: Collection[str] | None = None) -> Scan:
    """The status of every run under these roots. Never raises, writes nothing but caches."""
    seen = scan(roots, only=only, ask=_ask)
    if any(s.state in _SUSPICIOUS and s.run in seen.facts and _is_open(seen, s.run) for s in seen.statuses):
        # A job may have ended between the reading of its folder and SLURM's answer: its last words count.
        seen = scan(roots, only=only, ask=_ask)
    return seen


def _ask(runs: Sequence[Facts]) -> Mapping[str, Jobs]:
    """Ask SLURM about runs, in the configuration that a plan names only if nobody else can have written that plan.

    A configuration names plug-ins that SLURM's commands load: it decides what is executed.
    """
    refused = {}
    for facts in runs:
        site = facts.plan.slurm
        if site is not None and site.conf and facts.ended is None and (why := distrust_run(facts.path)):
            refused[facts.plan.run] = Jobs(trouble=f"SLURM is not asked with the configuration of its plan: {why}")
    return {**scheduler.ask([f for f in runs if f.plan.run not in refused]), **refused}


def look_and_settle(roots: Sequence[Path]) -> Scan:
    """As `look`, and brings further what nothing else will: see clipa.launch.carry_on.settle."""
    seen = look(roots)
    if not any(_is_open(seen, status.run) for status in seen.statuses):
        return seen
    from clipa.launch.carry_on import settle

    return look(roots) if settle(seen) else seen


def _is_open(seen: Scan, run: str) -> bool:
    facts = seen.facts[run]
    return facts.plan.slurm is not None and facts.ended is None

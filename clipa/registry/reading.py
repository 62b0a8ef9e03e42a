"""What reading one folder gave: facts, and everything that was odd about it."""

from __future__ import annotations

from clipa.registry.state import Facts
from clipa.spec.plan import Record


class Diagnostic(Record, frozen=True, kw_only=True):
    """Something in a run root that is not as clipa left it."""

    path: str
    problem: str
    cure: str = ""


class Reading(Record, frozen=True, kw_only=True):
    """What one folder gave: facts, or none, and what was odd."""

    facts: Facts | None = None
    diagnostics: tuple[Diagnostic, ...] = ()

"""What the all-reduce before the ranks start has shown: printed by clipa.attempt.trial, read by the supervisor."""

from __future__ import annotations

from clipa.spec.plan import Record


class Report(Record, frozen=True, kw_only=True):
    """`why`: the first error, empty where all went well; `bad`: number of a node -> why it is at fault."""

    why: str = ""
    bad: dict[int, str] = {}

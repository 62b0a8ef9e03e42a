"""Proof that an attempt's work is complete: exit codes of 0 alone make no run DONE."""

from __future__ import annotations

from pathlib import Path

import msgspec

from clipa.registry import events
from clipa.registry.records import UNREADABLE
from clipa.registry.run_dir import RunDir
from clipa.spec.card import COMPLETE_NAME
from clipa.spec.plan import Plan, Record


class _File(Record, frozen=True, kw_only=True):
    """Size in bytes of one file of a checkpoint."""

    size: int


def missing_work(run: RunDir, plan: Plan, attempt: int) -> str:
    """Return what is missing of a phase whose processes all ended with code 0; empty where nothing is.

    A training has its final checkpoint, with every file that COMPLETE names in its full size. An evaluation has the
    first rank's word that it is done, and a result for each of its sets.
    """
    if plan.kind == "eval":
        return _missing_results(run, plan, attempt)
    final = run.step_dir(plan.steps)
    try:
        files = msgspec.json.decode((final / COMPLETE_NAME).read_bytes(), type=dict[str, _File])
        cut = [name for name, file in files.items() if _size(final / name) != file.size]
    except UNREADABLE as error:
        return f"there is no complete checkpoint of the last step ({final}: {error})"
    return f"the checkpoint of the last step is not complete: {', '.join(cut)} in {final}" if cut else ""


def _size(path: Path) -> int:
    return path.stat().st_size


def _missing_results(run: RunDir, plan: Plan, attempt: int) -> str:
    said = [e for e in events.read(run.event_file(attempt, "train")) if isinstance(e, events.TrainerEnded)]
    if not said or said[-1].outcome != "done":
        return "the first rank has not said that it is done"
    unscored = [name for name in plan.evals if not any(run.evals.glob(f"*-{name}-*.json"))]
    return f"there is no result for {', '.join(unscored)}" if unscored else ""

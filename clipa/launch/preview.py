"""What a submission to SLURM would hand over: the complete text, and SLURM's own opinion of it where it is there."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipa.launch.submit import script
from clipa.registry.jobs import Element
from clipa.registry.run_dir import RunDir
from clipa.slurm import sbatch, scheduler
from clipa.spec.plan import Plan


def describe(plans: Sequence[Plan], runs: Sequence[RunDir]) -> str:
    """The batch script of every run. Job ids and the folder of the code are not known yet."""
    parts = []
    waits = {plan.run: f"JOB_OF_{plan.phase}" for plan in plans}
    for plan, run in zip(plans, runs, strict=True):
        assert plan.slurm is not None
        after = waits.get(plan.parent, "")
        batch = sbatch.Batch(plan, run, 1, 1, run.path.parent / ".code" / "DIGEST", plan.slurm.python or sys.executable)
        parts.append(f"# ---- {plan.phase}: sbatch, with {plan.limits.max_attempts} attempts; {_opinion(batch)}")
        parts.append(script(batch._replace(after=after)))
    return "\n".join(parts)


def describe_arrays(plans: Sequence[Plan], places: Mapping[str, Element]) -> str:
    """The batch script of every job array of a sweep."""
    found: dict[str, list[Plan]] = {}
    for plan in plans:
        found.setdefault(places[plan.run].array, []).append(plan)
    parts = []
    for array, mine in found.items():
        first = mine[0]
        assert first.slurm is not None
        runs = [RunDir(Path(plan.run_root) / plan.run) for plan in mine]
        members = tuple(sbatch.Member(p.element, run, 1, 1) for p, run in zip(mine, runs, strict=True))
        code = runs[0].path.parent / ".code" / "DIGEST"
        batch = sbatch.Batch(first, runs[0], 1, 1, code, first.slurm.python or sys.executable, array=array,
                             members=members, lead_s=max(plan.limits.lead_s for plan in mine))  # fmt: skip
        after = f"ARRAY_OF_{places[first.parent].array}" if first.parent in places else ""
        limit = f"{first.at_once} at once" if first.at_once else "all at once"
        parts.append(f"# ---- {first.phase}: sbatch of {len(mine)} elements, {limit}; {_opinion(batch)}")
        parts.append(script(batch._replace(after=after)))
    return "\n".join(parts)


def _opinion(batch: sbatch.Batch) -> str:
    """`sbatch --test-only`, without the dependency, whose job is not there yet, and in a folder that is."""
    assert batch.plan.slurm is not None
    if shutil.which("sbatch") is None:
        return "not tried: there is no sbatch here"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.sh"
        path.write_text(script(batch).replace(f"--chdir={batch.chdir}", "--chdir=/"))
        said = scheduler.test_only(path, batch.plan.slurm.conf)
    return f"SLURM refuses it: {said.trouble}" if said.trouble else f"sbatch --test-only: {said.out}"

"""What a submission to SLURM would hand over: the complete text, and SLURM's own opinion of it where it is there."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clipa.launch import sbatch, scheduler
from clipa.launch.submit import script
from clipa.registry.run_dir import RunDir
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


def _opinion(batch: sbatch.Batch) -> str:
    """`sbatch --test-only`, without the dependency, whose job is not there yet, and in a folder that is."""
    assert batch.plan.slurm is not None
    if shutil.which("sbatch") is None:
        return "not tried: there is no sbatch here"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.sh"
        path.write_text(script(batch).replace(f"--chdir={batch.run.path}", "--chdir=/"))
        said = scheduler.test_only(path, batch.plan.slurm.conf)
    return f"SLURM refuses it: {said.trouble}" if said.trouble else f"sbatch --test-only: {said.out}"

"""Weights & Biases. Account, project and mode come from its own places: `wandb login`, WANDB_PROJECT, WANDB_MODE."""

from __future__ import annotations

import os

import msgspec
import wandb

from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan
from clipa.tell.stream import Back, Told


class Wandb:
    """One run there for one run here, under the same id: an attempt that resumes goes on with it.

    Steps there only grow (a value for an older step is dropped by W&B), so what is told again is not sent again.
    """

    def __init__(self, run: RunDir, plan: Plan, _told: int) -> None:
        folder = run.tracker("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            id=run.id,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT") or "clipa",
            name=plan.name or run.id,
            group=plan.group,
            job_type=plan.kind,
            config=msgspec.to_builtins(plan),
            dir=str(folder),
            settings=wandb.Settings(console="off", disable_git=True, x_disable_stats=True),
        )

    def back(self, back: Back) -> None:
        """Nothing: what comes again is left out before it comes here."""

    def tell(self, told: Told) -> None:
        """Add the values of one step."""
        self._run.log(dict(told.values), step=told.step)

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()

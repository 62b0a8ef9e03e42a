"""trackio: a local database. TRACKIO_PROJECT names the project; TRACKIO_SPACE_ID, a Hugging Face Space, is its own."""

from __future__ import annotations

import os

import trackio

from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan
from clipa.tell.stream import Back, Told


class Trackio:
    """One run there for one run here, under the same name: an attempt that resumes goes on with it."""

    def __init__(self, run: RunDir, plan: Plan, _told: int) -> None:
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or "clipa",
            name=run.id,
            group=plan.group,
            resume="allow",
            config={"recipe": plan.recipe, "seed": plan.seed, "steps": plan.steps, "kind": plan.kind},
            embed=False,
        )

    def back(self, back: Back) -> None:
        """Nothing: what comes again is left out before it comes here."""

    def tell(self, told: Told) -> None:
        """Add the values of one step."""
        self._run.log(dict(told.values), step=told.step)

    def flush(self) -> None:
        """Trackio writes by itself."""

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()

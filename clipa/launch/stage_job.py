"""Staging as a job of its own before the first phase: the GPUs are not held while data come over the network."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from clipa.spec.job import Recipe, Stage
from clipa.spec.plan import Limits, Plan, World

PHASE = "stage"
_LEAD_S = 30


def with_stage(plans: Sequence[Plan], recipe: Recipe) -> tuple[Plan, ...]:
    """The plans, behind one that stages all that they read, where the profile asks for that and there is anything.

    Each phase still stages for itself, and finds everything there: what is not, because the cache is not shared after
    all or was emptied meanwhile, it brings.
    """
    first = plans[0]
    site = first.slurm
    if site is None or site.stage is None:
        return tuple(plans)
    read = [data for plan in plans for data in plan.datasets if data.layout == "shards" and data.access == "stage"]
    init = first.init if first.init and "://" in first.init.ref else None
    if not read and init is None:
        return tuple(plans)
    own = site.for_staging
    phase = next(name for name in (PHASE, *(f"{PHASE}-{n}" for n in range(len(plans)))) if name not in recipe.phases)
    stage = msgspec.structs.replace(
        first,
        run=f"{first.group}-{phase}",
        phase=phase,
        settings=Stage(),
        world=World(processes=1),
        limits=Limits(
            max_attempts=first.limits.max_attempts,
            time_limit_minutes=own.minutes,
            total_minutes=first.limits.total_minutes,
            lead_s=min(_LEAD_S, own.minutes * 30),
            leave_s=_LEAD_S / 2,
        ),
        publish=None,
        parent="",
        data=None,
        evals={},
        stages=tuple({data.manifest: data for data in read}.values()),
        init=init,
        steps=0,
        warmup_steps=0,
        slurm=own,
        container=None,
    )
    return (stage, *(msgspec.structs.replace(plan, parent=plan.parent or stage.run) for plan in plans))

"""What follows a loss that is not finite, or rises as it should not: named, and then what the recipe says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from clipa.attempt.devices import Ranks
from clipa.errors import TrainError
from clipa.registry import skips
from clipa.registry.run_dir import RunDir
from clipa.registry.skips import Skip
from clipa.spec.job import TrainPhase
from clipa.train.guard import Guard

LAG_S = 120.0
"""Seconds until a checkpoint of the first rank must be seen on other hosts: NFS clients may trail by 60 (nfs(5))."""


class Trouble(NamedTuple):
    """The step (from 1) where something went wrong, what, and what the recipe says about that."""

    step: int
    what: str
    action: str


def find(phase: TrainPhase, bad: int, guard: Guard) -> Trouble | None:
    """The trouble since the last look; `bad` is the first step that was not finite, 0: none was."""
    spike = guard.look()
    if bad:
        return Trouble(bad, f"the loss or its gradient is not finite at step {bad}", phase.on_nan)
    if spike:
        what = f"the loss rose to {spike.loss:.4g} at step {spike.step}, {spike.usual:.4g} was usual"
        return Trouble(spike.step, what, phase.on_spike)
    return None


def skip_for(trouble: Trouble, to: int, known: Sequence[Skip], run: str) -> Skip:
    """What is passed over from the checkpoint after step `to` on (-1: there is none).

    Raises:
        TrainError: the recipe says to stop, or it happens again after these samples were passed over once.
    """
    if trouble.action == "rollback" and to >= 0 and not any(skip.at == to for skip in known):
        return Skip(at=to, steps=trouble.step - to, why=trouble.what)
    again = f", although the samples after step {to} were passed over once" if trouble.action == "rollback" else ""
    raise TrainError(
        f"{trouble.what}{again}",
        where=run,
        hint="the last checkpoint is kept; lower optim.lr or lengthen optim.warmup_samples",
    )


def agreed(ranks: Ranks, run: RunDir) -> tuple[Skip, ...]:
    """What the run has skipped so far: read by the first rank, and handed to the others."""
    found = skips.read(run) if ranks.is_first else ()
    if not ranks.greatest((len(found),))[0]:
        return ()
    rows = torch.tensor([[skip.at, skip.steps] for skip in found], dtype=torch.int64).reshape(-1, 2)
    return tuple(Skip(at=int(at), steps=int(steps)) for at, steps in ranks.gather(rows.to(ranks.device)).tolist())


def appeared(run: RunDir, step: int) -> Path:
    """The folder of a checkpoint that the first rank has; on another host it may be seen late.

    Raises:
        TrainError: it is not.
    """
    deadline = time.monotonic() + LAG_S
    while step not in dict(run.complete_checkpoints()):
        if time.monotonic() > deadline:
            raise TrainError(f"the checkpoint of step {step} is not seen on this host", where=str(run.checkpoints))
        time.sleep(0.5)
    return run.step_dir(step)

"""Steps whose batches come from real shards through the trainer's own loader: how long the step waits for data."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from clipa.attempt.devices import Ranks
from clipa.bench import train_windows
from clipa.bench.train_case import Size, Work
from clipa.bench.train_facts import Fed
from clipa.bench.train_windows import Budget
from clipa.data.pipeline import train_batches
from clipa.data.shards import ShardSet, open_shards
from clipa.errors import InputError, did_you_mean
from clipa.spec import catalog
from clipa.spec.cluster import Dataset
from clipa.spec.counted import counted
from clipa.spec.user_paths import expand_user
from clipa.storage.dataset import index
from clipa.train.learner import Learner

PREFETCHED = 4
"""Steps that are not counted: what the workers have made before the clock starts lasts no longer."""


class Shards(NamedTuple):
    """A dataset on this machine's disks, and the workers that read it."""

    name: str
    opened: ShardSet
    workers: int


def shards_of(word: str, workers: int) -> Shards:
    """A folder of shards, or a dataset of that name that clipa.toml binds to one.

    Raises:
        InputError: no such folder or name, one that is not on this machine, or no shards in it.
        DataError: shards that cannot be read.
    """
    known = catalog.defaults().datasets
    url = known[word].url if word in known else word
    folder = expand_user(url.removeprefix("file://"))
    if "://" in url and not url.startswith("file://"):
        hint = f"clipa data stage {word} --to FOLDER, then --data with that folder"
        raise InputError("shards are measured where they lie on this machine's disks", where=url, hint=hint)
    if not folder.is_dir():
        allowed = ", ".join(["synthetic", *known, "a folder of .tar shards"])
        raise InputError(f"no dataset {word!r} and no such folder", allowed=allowed, hint=did_you_mean(word, known))
    opened = open_shards(index(Dataset(url=str(folder.absolute()))), folder.absolute())
    return Shards(word, opened, workers or max(1, len(os.sched_getaffinity(0)) - 1))


def fed(work: Work, size: Size, shards: Shards, budget: Budget, tell: Callable[[str], None]) -> Fed:
    """Train on the shards for as long as the budget lasts, and tell the share of it that was waiting.

    Raises:
        DataError: shards that cannot be used.
    """
    tell(f"the same step fed from {shards.name} by {counted(shards.workers, 'worker')}")
    plan = work.plan(size)
    learner = Learner(plan, Ranks(0, 1, work.device))
    batches = train_batches(
        shards.opened,
        learner.phase,
        tokenizer_name=plan.model.text.tokenizer,
        seed=plan.seed,
        rank=0,
        world=1,
        start_step=0,
        stop_step=plan.steps,
        workers=shards.workers,
        pin=work.device.type == "cuda",
    )
    waited, steps, began = 0.0, 0, time.perf_counter()
    for step in range(plan.steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        learner.learn(batch, step)
        steps += 1
        if step + 1 == PREFETCHED:
            train_windows.settle(work.device)
            waited, steps, began = 0.0, 0, time.perf_counter()
        elif steps >= (budget.steps or 3) and time.perf_counter() - began > budget.seconds / 3:
            break
    train_windows.settle(work.device)
    seconds = time.perf_counter() - began
    return Fed(
        data=shards.name, samples_per_s=steps * size.batch / seconds, wait=waited / seconds, workers=shards.workers
    )

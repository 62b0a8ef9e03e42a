"""What `clipa bench train` measures: one training phase, the plan that its trainer would get, and its batches."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import torch

import clipa
from clipa.attempt.devices import precision_of
from clipa.bench.train_facts import Case
from clipa.data.pipeline import Batch
from clipa.errors import ConfigError, did_you_mean
from clipa.reduction.image import decoded_size
from clipa.spec.budget import PhaseBudget, steps_of, train_budget
from clipa.spec.catalog import find_recipe
from clipa.spec.cost import in_memory
from clipa.spec.hardware import gpu_named
from clipa.spec.job import Eval, Finetune, Pretrain, Recipe
from clipa.spec.load import load_recipe
from clipa.spec.plan import Code, Limits, Plan, World

STEPS = 1_000_000
"""Steps of the plan that is measured: more than any measurement makes, so that the schedule never ends."""
NODE_GPUS = 8
"""GPUs among which a recipe's global batch is divided where none is said: the node that the authors had."""
BATCHES = 2
"""Batches that are made before the clock starts, and used in turn."""


class Size(NamedTuple):
    """How many samples a step has, and how many of them pass the towers at once (0: all)."""

    batch: int
    at_once: int = 0


class Work(NamedTuple):
    """A phase to be measured on one device. `case` names it for people and files."""

    recipe: Recipe
    name: str
    phase: Pretrain | Finetune
    device: torch.device

    def case(self, size: Size) -> Case:
        """What is measured, in numbers."""
        budget = train_budget(self.recipe.model, self.phase)
        return Case(
            recipe=self.recipe.name,
            phase=self.name,
            batch=size.batch,
            at_once=min(size.at_once or size.batch, size.batch),
            patches=budget.patches,
            image_tokens=budget.image_tokens,
            text_tokens=budget.text_tokens,
            params=budget.params,
            flops_per_sample=budget.flops_per_sample,
        )

    @property
    def budget(self) -> PhaseBudget:
        """Tokens and FLOPs of the phase."""
        return train_budget(self.recipe.model, self.phase)

    @property
    def precision(self) -> str:
        """What the phase's precision means on the device."""
        return precision_of(self.phase.precision, self.device)

    def at_once(self) -> Size:
        """The largest batch of the recipe that passes in one piece, on one GPU of a node."""
        share = max(2, self.phase.batch // NODE_GPUS)
        return Size(min(self.phase.micro_batch or share, share))

    def share(self) -> Size:
        """One GPU's share of the recipe's global batch on a node, in the recipe's passes."""
        share = max(2, self.phase.batch // NODE_GPUS)
        return Size(share, min(self.phase.micro_batch or share, share))

    def plan(self, size: Size) -> Plan:
        """The plan of one process that trains this phase on `size.batch` samples a step."""
        samples, warmup = STEPS * size.batch, steps_of(self.phase.optim.warmup_samples, self.phase.batch)
        optim = msgspec.structs.replace(self.phase.optim, warmup_samples=min(warmup, STEPS) * size.batch)
        phase = msgspec.structs.replace(
            self.phase, batch=size.batch, micro_batch=size.at_once or size.batch, samples=samples, optim=optim
        )
        gpu = gpu_named(torch.cuda.get_device_name(self.device)) if self.device.type == "cuda" else None
        phase = in_memory(self.recipe.model, phase, gpu, 1)
        return Plan(
            run="bench",
            group="bench",
            created=time.time(),
            recipe=self.recipe.name,
            recipe_digest="",
            phase=self.name,
            cluster="bench",
            backend="local",
            model=self.recipe.model,
            settings=phase,
            world=World(processes=1, gpus=int(self.device.type == "cuda"), threads=torch.get_num_threads()),
            limits=Limits(max_attempts=1, time_limit_minutes=1),
            code=Code(version=clipa.__version__),
            run_root=os.curdir,
            cache=os.curdir,
            seed=self.recipe.seed,
            steps=steps_of(samples, size.batch),
            warmup_steps=min(warmup, STEPS),
        )


def work_of(word: str, phase_name: str, changes: Sequence[str], device: torch.device) -> Work:
    """A recipe's phase, the first one that trains where none is named.

    Raises:
        ConfigError: no such recipe or phase, one that trains nothing, a change that does not fit.
    """
    recipe = load_recipe(find_recipe(word), changes).recipe
    phases = {name: phase for name, phase in recipe.phases.items() if not isinstance(phase, Eval)}
    name = phase_name or next(iter(phases), "")
    if name not in phases:
        known = recipe.phases.get(name)
        what = f"phase {name} trains nothing" if known else f"there is no phase {name!r}"
        hint = did_you_mean(name, phases) or f"clipa bench train {word} --phase {next(iter(phases), 'pretrain')}"
        raise ConfigError(what, where=f"recipe {recipe.name}", allowed=", ".join(phases) or "none", hint=hint)
    return Work(recipe, name, phases[name], device)


def made_batches(work: Work, size: Size) -> list[Batch]:
    """Batches of noise: uint8 images at the decoder's size, captions of random words that start and end as real ones.

    Their content costs what real content costs: nothing in a step depends on the values. They are pinned for a GPU, as
    the trainer's are.
    """
    chance = torch.Generator().manual_seed(0)
    side, length = decoded_size(work.phase.image), work.phase.text.tokens
    words = work.recipe.model.traits.vocabulary
    batches = []
    for number in range(BATCHES):
        pixels = torch.randint(0, 256, (size.batch, side, side, 3), dtype=torch.uint8, generator=chance)
        images = pixels.permute(0, 3, 1, 2)  # in memory as the loader's
        tokens = torch.randint(1, words - 2, (size.batch, length), generator=chance)
        tokens[:, 0], tokens[:, -1] = words - 2, words - 1  # CLIP's start and end; the end is the largest id
        positions = torch.arange(number * size.batch, (number + 1) * size.batch)
        batches.append(pinned(Batch(images, tokens, positions), work.device))
    return batches


def pinned(batch: Batch, device: torch.device) -> Batch:
    """The batch in memory from which a GPU copies by itself."""
    if device.type != "cuda":
        return batch
    return batch._replace(
        images=batch.images.pin_memory(), tokens=batch.tokens.pin_memory(), positions=batch.positions.pin_memory()
    )

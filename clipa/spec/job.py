"""What to train: the recipe, its model, its phases and its evaluation sets.

Budgets are in samples; `clipa.spec.budget` is the one converter to steps, tokens and FLOPs.
Defaults are the published ones: CLIPA (arXiv 2305.07017) section 4 and its released scripts.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from clipa.spec.base import Struct, require, require_name
from clipa.spec.evalset import EvalSet
from clipa.spec.inputs import ImageInput, TextInput
from clipa.spec.model import Model
from clipa.spec.tokens import settled

SCHEMA = 1
Resize: TypeAlias = Literal["shorter", "squash"]


class Optim(Struct, frozen=True, kw_only=True):
    """AdamW with linear warm-up and cosine decay to 0. `lr` is the peak value for the global batch.

    `decay`: which parameters decay. `matrices`: all of two dimensions or more but norms, biases and scales, so the
    embeddings too (open_clip, CLIPA's torch code); `kernels`: the weights of linear layers alone (CLIPA's JAX code).
    """

    lr: float
    warmup_samples: int = 0
    weight_decay: float = 0.2
    decay: Literal["matrices", "kernels"] = "matrices"
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6

    def __post_init__(self) -> None:
        require(0 < self.lr < 10, f"lr must be above 0 and below 10 (CLIPA: 1e-5 to 1e-3), got {self.lr}")
        require(self.warmup_samples >= 0, f"warmup_samples must be >= 0, got {self.warmup_samples}")
        require(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}")
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            require(0 <= beta < 1, f"{name} must be at least 0 and below 1, got {beta}")
        require(self.eps > 0, f"eps must be > 0, got {self.eps}")


class Checkpoints(Struct, frozen=True, kw_only=True):
    """When to save, and the rule of pruning: the newest `keep` stay, and the final one always.

    `keep_every_samples`: of each stretch of so many samples the first one stays too (0: none). `keep_best`: an
    evaluation set; the one with its best value stays, and every evaluation between is followed by a checkpoint.
    """

    every_samples: int = 0
    every_minutes: float = 15.0
    keep: int = 2
    keep_every_samples: int = 0
    keep_best: str = ""

    def __post_init__(self) -> None:
        require(self.every_samples >= 0, f"every_samples must be >= 0 (0: never by samples), got {self.every_samples}")
        require(self.every_minutes > 0, f"every_minutes must be > 0, got {self.every_minutes}")
        require(self.keep >= 1, f"keep must be >= 1, got {self.keep}")
        require(self.keep_every_samples >= 0, f"keep_every_samples must be >= 0, got {self.keep_every_samples}")


class Evaluate(Struct, frozen=True, kw_only=True):
    """Which evaluation sets a training phase scores at its end, at which image sizes, and how often before.

    `resize`: `shorter`: the shorter side resized, then the centre; `squash`: both sides resized, which CLIPA-v2 found
    to work better at full size.
    """

    sets: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    every_samples: int = 0
    batch: int = 256
    resize: Resize = "shorter"

    def __post_init__(self) -> None:
        _require_sizes(self.sizes, self.batch)
        require(self.every_samples >= 0, f"every_samples must be >= 0 (0: only at the end), got {self.every_samples}")


def _require_sizes(sizes: tuple[int, ...], batch: int) -> None:
    require(all(s >= 1 for s in sizes), f"sizes must be >= 1 pixel, got {list(sizes)}")
    require(batch >= 1, f"batch must be >= 1, got {batch}")


class Portion(Struct, frozen=True, kw_only=True):
    """A dataset in a mixture, and its share of the samples: its weight among the sum of all."""

    name: str
    weight: float

    def __post_init__(self) -> None:
        require(bool(self.name), "name must be that of a dataset, or a URL")
        require(0 < self.weight < 1e9, f"weight must be > 0, got {self.weight}")


class TrainPhase(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One training phase. `batch` is global: it does not change with the number of processes.

    `loss`: `softmax` (InfoNCE over the global batch) or `sigmoid` (SigLIP). `micro_batch`: samples of one process that
    pass the towers at once; 0: as many as the plan finds room for. It changes memory, not the result; neither do
    `parallel` (`ddp`: every process holds the whole model; `fsdp`: each holds a part of its weights, gradients and
    moments), `recompute` (the share of blocks whose activations are computed anew in the backward pass instead of
    being kept, 0 to 1; `auto`: the smallest with which the phase fits into a GPU, picked and frozen by the plan) and
    `compile` (`auto`: on GPUs). `deterministic`: bit-identical repeats on GPUs too, slower.
    `shuffle_window`: samples that are shuffled together, at least, in whole shards: with 10,000 a shard, seven shards;
    small datasets entirely. `lanes`: parts of equal length into which an epoch is cut; every step reads all of them, a
    node only those of its samples, so of a streamed dataset only its part. They change the order of the samples, so
    they must not depend on where a recipe runs; each has its own window, of `shuffle_window` / `lanes` samples at
    least and a shard. `bad_samples`: the largest share that may be unusable (broken images, empty captions).
    Web datasets have well below 1 %: more is a fault of whoever wrote them.

    `on_nan`, `on_spike`: what follows a loss that is not finite, or rises far above what was usual: `stop`; `rollback`:
    back to the last checkpoint, and once past the samples since then; `note`: say so and go on.
    """

    data: str | tuple[Portion, ...]
    samples: int
    batch: int
    image: ImageInput
    text: TextInput
    optim: Optim
    loss: Literal["softmax", "sigmoid"] = "softmax"
    micro_batch: int = 0
    parallel: Literal["ddp", "fsdp"] = "ddp"
    recompute: float | Literal["auto"] = 0.0
    compile: Literal["auto", "on", "off"] = "auto"
    deterministic: bool = False
    positions: Literal["sincos2d", "learnable"] = "learnable"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    checkpoint: Checkpoints = Checkpoints()
    evaluate: Evaluate = Evaluate()
    log_every_samples: int = 0
    shuffle_window: int = 65_536
    lanes: int = 1
    bad_samples: float = 0.1
    on_nan: Literal["stop", "rollback"] = "stop"
    on_spike: Literal["note", "stop", "rollback"] = "note"

    def __post_init__(self) -> None:
        require(bool(self.data), "data must name a dataset or a URL, or list datasets with weights")
        _require_mixture(self.portions)
        require(self.batch >= 2, f"batch must be >= 2 (the contrastive loss needs a negative), got {self.batch}")
        require(
            self.samples >= self.batch,
            f"samples must be at least {self.batch}, one batch, got {self.samples}",
        )
        warmup = self.optim.warmup_samples
        require(
            warmup <= self.samples,
            f"optim.warmup_samples must be at most {self.samples}, the phase's samples, got {warmup}",
        )
        require(self.micro_batch >= 0, f"micro_batch must be >= 0 (0: as the plan finds room), got {self.micro_batch}")
        require(
            0 <= self.recomputed <= 1,
            f'recompute must be a share of the blocks, 0 to 1, or "auto", got {self.recompute}',
        )
        require(self.shuffle_window >= 1, f"shuffle_window must be >= 1 sample, got {self.shuffle_window}")
        _require_lanes(self.lanes, self.batch)
        require(0 <= self.bad_samples <= 1, f"bad_samples must be a share, 0 to 1, got {self.bad_samples}")
        best = self.checkpoint.keep_best
        require(
            not best or (best in self.evaluate.sets and self.evaluate.every_samples > 0),
            f"checkpoint.keep_best {best!r} must be one of evaluate.sets ({', '.join(self.evaluate.sets) or 'empty'}), "
            "and evaluate.every_samples must be > 0",
        )
        require(self.log_every_samples >= 0, f"log_every_samples must be >= 0, got {self.log_every_samples}")

    @property
    def recomputed(self) -> float:
        """The share of recomputed blocks; none where the plan is still to pick it (clipa.spec.cost.in_memory)."""
        return 0.0 if self.recompute == "auto" else self.recompute

    @property
    def portions(self) -> tuple[Portion, ...]:
        """The datasets and their weights; one has weight 1."""
        return (Portion(name=self.data, weight=1.0),) if isinstance(self.data, str) else self.data


def _require_lanes(lanes: int, batch: int) -> None:
    require(1 <= lanes <= batch, f"lanes must be 1 to {batch} (one sample of a batch for each), got {lanes}")
    if batch % lanes:
        fitting = [number for number in range(1, batch + 1) if batch % number == 0]
        below = max(number for number in fitting if number < lanes)
        above = min(number for number in fitting if number > lanes)
        raise ValueError(
            f"batch {batch} is not divisible by {lanes} lanes (nearest: {below} or {above} lanes, "
            f"or a batch of {batch // lanes * lanes} or {-(-batch // lanes) * lanes})"
        )


def _require_mixture(portions: tuple[Portion, ...]) -> None:
    names = [portion.name for portion in portions]
    twice = next((name for name in names if names.count(name) > 1), "")
    require(not twice, f"data names {twice!r} twice: give it one weight")
    least = min(portions, key=lambda portion: portion.weight)
    share = least.weight / sum(portion.weight for portion in portions)
    require(share >= 0.001, f"data: {least.name!r} has {share:.5%} of the samples; at least 0.1 % is needed")


class Pretrain(TrainPhase, frozen=True, kw_only=True, tag="pretrain"):
    """Training from random weights on few tokens."""


class Finetune(TrainPhase, frozen=True, kw_only=True, tag="finetune"):
    """Training that starts from the weights of the phase before it."""


class Eval(Struct, frozen=True, kw_only=True, tag_field="kind", tag="eval"):
    """Scoring the weights of the phase before it. No `sizes`: the size that those weights were trained at."""

    sets: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    batch: int = 256
    resize: Resize = "shorter"
    precision: Literal["auto", "bf16", "fp32"] = "auto"

    def __post_init__(self) -> None:
        require(len(self.sets) >= 1, "sets must name at least one table of [evals]")
        _require_sizes(self.sizes, self.batch)


class Stage(Struct, frozen=True, kw_only=True, tag_field="kind", tag="stage"):
    """No phase of a recipe: bringing what its phases read to a cache that they share, before the first of them."""


Phase: TypeAlias = Pretrain | Finetune | Eval
PHASE_KINDS = ("pretrain", "finetune", "eval")


class Recipe(Struct, frozen=True, kw_only=True):
    """Everything that is trained and scored, in the order of its phases."""

    model: Model
    phases: dict[str, Phase]
    name: str = ""
    description: str = ""
    seed: int = 0
    evals: dict[str, EvalSet] = {}
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        require(1 <= self.schema <= SCHEMA, f"schema {self.schema} is newer than this clipa reads ({SCHEMA})")
        require(0 <= self.seed < 2**63, f"seed must be in [0, 2^63), got {self.seed}")
        require(bool(self.phases), "phases is empty: give at least one of pretrain, finetune, eval")
        for name in self.evals:
            require_name(f"evals.{name}", name)
        for position, (name, phase) in enumerate(self.phases.items()):
            self._require_phase(position, name, phase)

    def _require_phase(self, position: int, name: str, phase: Phase) -> None:
        where = f"phases.{name}"
        require_name(where, name)
        if isinstance(phase, Pretrain):
            require(position == 0, f"{where}: pretrain must be the first phase")
        if isinstance(phase, Eval):
            key, sets, sizes = "sizes", phase.sets, phase.sizes
        else:
            key, sets, sizes = "evaluate.sizes", phase.evaluate.sets, phase.evaluate.sizes
            self._settled(name, phase)
        for name_of_set in sets:
            require(
                name_of_set in self.evals,
                f"{where}: evaluation set {name_of_set!r} is not in [evals] ({', '.join(self.evals) or 'empty'})",
            )
        patch = self.model.image.patch
        for size in sizes:
            nearest = max(patch, round(size / patch) * patch)
            require(
                size % patch == 0,
                f"{where}: {key} must be multiples of model.image.patch {patch} (nearest: {nearest}), got {size}",
            )

    def _settled(self, name: str, phase: TrainPhase) -> TrainPhase:
        try:
            image = settled(phase.image, self.model.image.patch)
        except ValueError as error:
            raise ValueError(f"phases.{name}: {error}") from None
        return msgspec.structs.replace(phase, image=image)

    def settled(self) -> Recipe:
        """The recipe with `size` and `tokens` of every image input filled in from each other."""
        phases = {
            name: self._settled(name, phase) if isinstance(phase, TrainPhase) else phase
            for name, phase in self.phases.items()
        }
        return msgspec.structs.replace(self, phases=phases)

"""What a recipe costs somewhere: hours, dollars, memory, disk, cores. Closed formulas over the budget, no torch.

Every number says where it comes from: the formula, a measurement, the recipe's file, or an assumption.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec

from clipa.spec.budget import BACKWARD, PhaseBudget, blocks_params, forward_flops, train_budget
from clipa.spec.hardware import GPUS, Gpu, gpu_named
from clipa.spec.job import Recipe, TrainPhase
from clipa.spec.model import ImageTower, Model, TextTower
from clipa.spec.published import DatasetFacts, Published

P = TypeVar("P", bound=TrainPhase)

ASSUMED_MFU = 0.25
"""Share of the peak that training reaches where nothing was measured. The authors' own GPU-hours over our FLOPs give
17 % of an A100's for B/16, 21 and 24 % for L/16, 24-28 % for L/14, H/14 and bigG/14: `clipa plan` shows each."""
AUTHORS_GPU = GPUS["A100-80GB"]
"""What the authors count their GPU-hours in."""

STATE_BYTES = 16
"""Of each parameter in fp32: itself, its gradient, two moments of Adam."""
BUCKET_BYTES = 4
"""Of each parameter where several GPUs train: the buckets in which gradients are summed."""
CAST_BYTES = 2
"""Of each parameter under bf16 autocast: the copy that the step keeps."""
CHECKPOINT_BYTES = 12
"""Of each parameter in a checkpoint: itself and two moments, fp32."""
CONTEXT_BYTES = 2_000_000_000
"""CUDA's context, cuBLAS' and NCCL's workspaces, the allocator's slack: an allowance."""
FILL = 0.9
"""Of a GPU's memory as sold, that a plan counts on."""
SIMILARITIES = 2**26
"""Similarities that the loss holds at once (clipa.model.loss.AT_ONCE), in fp32, three blocks of them."""

DECODE_MS = (0.40, 1.05e-5)
"""CPU milliseconds to make a sample of a JPEG of 512 x 384 on one core of an Intel Xeon (2026): a + b x size^2, fitted
to 0.44 ms at 64 px, 0.53 at 112, 0.93 at 224 (docs/benchmarks.md). Larger sources cost two to three times as much."""


class Measured(Protocol):
    """What a measurement must say (see clipa.registry.calibration)."""

    @property
    def gpu(self) -> str: ...  # noqa: D102
    @property
    def gpus(self) -> int: ...  # noqa: D102
    @property
    def model(self) -> Model: ...  # noqa: D102
    @property
    def patches(self) -> int: ...  # noqa: D102
    @property
    def image_tokens(self) -> int: ...  # noqa: D102
    @property
    def text_tokens(self) -> int: ...  # noqa: D102
    @property
    def samples_per_s(self) -> float: ...  # noqa: D102


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where it would run. `price` is in dollars for one GPU and one hour, 0: not known. `gpu` None: not known."""

    cluster: str
    gpus: int
    gpu: Gpu | None = None
    price: float = 0.0


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Samples per second of one GPU, the share of its peak that this is, and how that is known."""

    samples_per_s: float
    mfu: float
    source: str
    measured: bool = False


class PhaseCost(msgspec.Struct, frozen=True, kw_only=True):
    """One training phase. `micro_batch`: samples that one GPU holds at once, `recompute`: the share of blocks that
    compute their activations anew. Bytes are of one GPU, and on disk.
    """

    budget: PhaseBudget
    micro_batch: int
    memory_bytes: int
    checkpoint_bytes: int
    rate: Rate | None = None
    gpu_hours: float | None = None
    hours: float | None = None
    dollars: float | None = None
    loader_cores: int | None = None
    recompute: float = 0.0


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """A whole recipe. `shard_bytes` None: nobody says how large the datasets are."""

    place: Place
    phases: dict[str, PhaseCost]
    flops: int
    compute: int
    checkpoint_bytes: int
    gpu_hours: float | None = None
    hours: float | None = None
    dollars: float | None = None
    shard_bytes: dict[str, int | None] = {}


def cost(
    recipe: Recipe, place: Place, facts: Mapping[str, DatasetFacts], measured: Sequence[Measured] = (), mfu: float = 0.0
) -> Cost:
    """What the recipe's training phases cost at this place. Evaluations are not counted.

    Args:
        recipe: what is trained.
        place: where.
        facts: how large its datasets are.
        measured: rates that were measured.
        mfu: the share of the peak to assume; 0: ASSUMED_MFU.
    """
    phases = {
        name: _phase(recipe.model, phase, place, measured, mfu)
        for name, phase in recipe.phases.items()
        if isinstance(phase, TrainPhase)
    }
    trained = [phase for phase in recipe.phases.values() if isinstance(phase, TrainPhase)]
    names = dict.fromkeys(portion.name for phase in trained for portion in phase.portions)
    return Cost(
        place=place,
        phases=phases,
        flops=sum(p.budget.flops for p in phases.values()),
        compute=sum(p.budget.compute for p in phases.values()),
        checkpoint_bytes=sum(p.checkpoint_bytes for p in phases.values()),
        gpu_hours=sum_of([p.gpu_hours for p in phases.values()]),
        hours=sum_of([p.hours for p in phases.values()]),
        dollars=sum_of([p.dollars for p in phases.values()]),
        shard_bytes={n: facts[n].samples * facts[n].bytes_per_sample if n in facts else None for n in names},
    )


def phases_until(done: Cost, after: str) -> list[PhaseCost]:
    """The training phases from the start to the end of one."""
    names = list(done.phases)
    return [done.phases[name] for name in names[: names.index(after) + 1]]


def flops_until(done: Cost, after: str) -> int:
    """Train FLOPs from the start to the end of a phase."""
    return sum(phase.budget.flops for phase in phases_until(done, after))


def implied_mfu(done: Cost, published: Published) -> float | None:
    """The share of an A100's peak at which the authors' GPU-hours give our FLOPs; None where they give no hours."""
    if not published.gpu_hours or published.after not in done.phases:
        return None
    return flops_until(done, published.after) / (published.gpu_hours * 3600 * AUTHORS_GPU.tflops * 1e12)


def sum_of(values: Sequence[float | None]) -> float | None:
    """The sum, or None where one of them is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _phase(model: Model, phase: TrainPhase, place: Place, measured: Sequence[Measured], mfu: float) -> PhaseCost:
    budget = train_budget(model, phase)
    phase = in_memory(model, phase, place.gpu, place.gpus)
    micro = phase.micro_batch
    rate = rate_of(model, budget, place, measured, mfu)
    hours = budget.samples / rate.samples_per_s / 3600 if rate else None
    return PhaseCost(
        budget=budget,
        micro_batch=micro,
        recompute=phase.recomputed,
        memory_bytes=memory_bytes(model, phase, budget, place.gpus, micro),
        checkpoint_bytes=CHECKPOINT_BYTES * budget.params * (phase.checkpoint.keep + 1),
        rate=rate,
        gpu_hours=hours,
        hours=hours / place.gpus if hours is not None and place.gpus else None,
        dollars=hours * place.price if hours is not None and place.price else None,
        loader_cores=loader_cores(phase.image.size, rate.samples_per_s * place.gpus) if rate else None,
    )


def rate_of(
    model: Model, budget: PhaseBudget, place: Place, measured: Sequence[Measured], mfu: float = 0.0
) -> Rate | None:
    """The rate of one GPU: measured for this very phase, else by the share of the peak of the measurement that is
    nearest in FLOPs, else by an assumed share. An assumption that is asked for goes before everything.
    """
    gpu = place.gpu
    if gpu is None or not place.gpus:
        return None
    peak = gpu.tflops * 1e12
    here = [m for m in measured if gpu.model == m.gpu or gpu_named(m.gpu) == gpu]
    if mfu or not here:
        share, source = (mfu, "given") if mfu else (ASSUMED_MFU, "assumed")
        return Rate(samples_per_s=share * peak / budget.flops_per_sample, mfu=share, source=source)
    wanted = (model, budget.patches, budget.image_tokens, budget.text_tokens)
    for m in reversed(here):
        if (m.model, m.patches, m.image_tokens, m.text_tokens) == wanted:
            rate = m.samples_per_s / m.gpus
            return Rate(samples_per_s=rate, mfu=rate * budget.flops_per_sample / peak, source="measured", measured=True)
    share, tokens = min((_share(m, peak, budget) for m in reversed(here)), key=lambda found: found[0])[1:]
    source = f"measured share of the peak at {tokens} image tokens"
    return Rate(samples_per_s=share * peak / budget.flops_per_sample, mfu=share, source=source, measured=True)


def _share(m: Measured, peak: float, budget: PhaseBudget) -> tuple[float, float, int]:
    """How far a measurement is in FLOPs (a logarithm), its share of the peak, its image tokens."""
    flops = BACKWARD * forward_flops(m.model, m.patches, m.text_tokens, m.image_tokens)
    distance = abs(math.log(flops / budget.flops_per_sample))
    return distance, m.samples_per_s / m.gpus * flops / peak, m.image_tokens


def activation_bytes(tower: ImageTower | TextTower, tokens: int, bf16: bool) -> int:
    """What autograd keeps of one sample in the blocks of a tower, for `tokens` tokens (the class token counts).

    Under bf16 autocast each block keeps, of each token and channel: two inputs of LayerNorm in fp32 (the residual
    stream is fp32), their two outputs, query, key, value and the attended values in bf16, and the feed-forward part
    before and after GELU: 8 + 4 + 6 + 2 + 4 x mlp_ratio bytes. In fp32: 8 + 8 + 12 + 4 + 8 x mlp_ratio. Attention
    weights are not kept (flash attention). A test counts them in torch.
    """
    per = 20 + 4 * tower.mlp_ratio if bf16 else 32 + 8 * tower.mlp_ratio
    return int(tower.layers * tokens * tower.width * per)


def in_memory(model: Model, phase: P, gpu: Gpu | None, gpus: int) -> P:
    """The phase with a micro-batch and a share of recomputed blocks that fit into the GPU, where it leaves them open.

    Of what fits, that which computes least: several passes compute the forward pass twice, a third of a step's FLOPs;
    so do recomputed blocks, their share of it. Of equals the larger micro-batch. Where no GPU is known: one pass,
    nothing recomputed. Where nothing fits: what needs least; `clipa plan` names what is missing.

    A share of blocks was taken rather than torch's `activation_memory_budget`, which solves for what each compiled
    graph keeps: that is a share too (of that graph's activations, not bytes of a GPU), works compiled alone, and what
    it keeps is known after compiling, where a plan must say before it is queued whether a phase fits.
    """
    local = -(-phase.batch // max(1, gpus))
    parts = [micro for micro in range(local, 0, -1) if local % micro == 0]
    micros = [min(phase.micro_batch, local)] if phase.micro_batch else parts
    layers = max(model.image.layers, model.text.layers)
    shares = [n / layers for n in range(layers + 1)] if phase.recompute == "auto" else [phase.recomputed]
    choices = sorted(itertools.product(micros, shares), key=lambda pair: ((pair[0] < local) + pair[1], -pair[0]))
    phases = [msgspec.structs.replace(phase, micro_batch=micro, recompute=share) for micro, share in choices]
    if gpu is None:
        return phases[0]
    budget, room = train_budget(model, phase), FILL * gpu.memory_gb * 1e9
    held = (memory_bytes(model, choice, budget, gpus, choice.micro_batch) for choice in phases)
    fitting = (choice for choice, size in zip(phases, held, strict=True) if size <= room)
    least = msgspec.structs.replace(phase, micro_batch=micros[-1], recompute=shares[-1])
    return next(fitting, least)


def memory_bytes(model: Model, phase: TrainPhase, budget: PhaseBudget, gpus: int, micro: int) -> int:
    """The peak of one GPU, without `torch.compile` (which keeps less): weights and optimizer, the activations of one
    pass, the batch as bytes, all ranks' features with their gradients, and blocks of similarities.
    """
    bf16 = phase.precision != "fp32"
    image = _kept_bytes(model.image, budget.image_tokens + 1, bf16, phase.recomputed)
    text = _kept_bytes(model.text, budget.text_tokens, bf16, phase.recomputed)
    pixels = 3 * phase.image.size**2
    local = -(-phase.batch // max(1, gpus))
    similarities = 3 * 4 * min(SIMILARITIES, local * phase.batch)
    features = 4 * 4 * phase.batch * model.embed_dim
    return (
        CONTEXT_BYTES
        + _state_bytes(model, phase, budget, gpus, bf16)
        + micro * (image + text + 4 * pixels)
        + local * pixels
        + features
        + similarities
    )


def _state_bytes(model: Model, phase: TrainPhase, budget: PhaseBudget, gpus: int, bf16: bool) -> int:
    """Weights, gradients and moments. Under FSDP2 a rank holds its part of them, and for the time of their use, with
    their gradients, what is in no block (fp32) and two blocks (one computes, the next one arrives).
    """
    cast = CAST_BYTES if bf16 else 0
    if phase.parallel == "ddp" or gpus <= 1:
        return (STATE_BYTES + (BUCKET_BYTES if gpus > 1 else 0) + cast) * budget.params
    blocks = [(tower.layers, _block_params(tower)) for tower in (model.image, model.text)]
    outside = budget.params - sum(layers * params for layers, params in blocks)
    largest = max(params for _, params in blocks)
    return STATE_BYTES * budget.params // gpus + 8 * outside + 2 * (4 + (cast or 4)) * largest


def _block_params(tower: ImageTower | TextTower) -> int:
    return blocks_params(tower.width, 1, tower.mlp_ratio)


def _kept_bytes(tower: ImageTower | TextTower, tokens: int, bf16: bool, recompute: float) -> int:
    """What a pass keeps of one sample: of a recomputed block its input in fp32, and all of one while it is computed."""
    full = activation_bytes(tower, tokens, bf16)
    again = round(recompute * tower.layers)
    inputs = 4 * again * tokens * tower.width
    return full * (tower.layers - again) // tower.layers + inputs + (full // tower.layers if again else 0)


def loader_cores(size: int, samples_per_s: float) -> int:
    """CPU cores that decode as fast as the GPUs train, for images of 512 x 384 that become `size` x `size`."""
    fixed, per_pixel = DECODE_MS
    return math.ceil(samples_per_s * (fixed + per_pixel * size**2) / 1000)

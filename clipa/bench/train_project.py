"""What the measured rates mean for the three academic pipelines, on eight such GPUs, beside what the authors report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from clipa.bench.train_case import NODE_GPUS
from clipa.bench.train_facts import Projected
from clipa.registry.calibration import Calibration
from clipa.spec.catalog import find_recipe
from clipa.spec.cost import PhaseCost, Place, cost, loader_cores
from clipa.spec.hardware import Gpu
from clipa.spec.job import TrainPhase
from clipa.spec.load import load_recipe


class Academic(NamedTuple):
    """A pipeline of the paper's academic table, and the days that its README gives it."""

    recipe: str
    said_days: float


ACADEMIC = (
    Academic("clipa-b16-i50-t16", 2.0),
    Academic("clipa-l16-i17-t16", 3.0),
    Academic("clipa-l16-i37-t8", 4.0),
)
CORES_PER_GPU = 16
"""CPU cores of a node for each of its GPUs: 128 of a usual node with 8, what clouds sell with A100 and H100."""
ASSUMPTIONS = (
    f"{NODE_GPUS} GPUs are {NODE_GPUS} times as fast as one: what they exchange hides behind the backward pass",
    "no evaluations, checkpoints or restarts; every phase to its end, the fine-tune included",
    f"data: {{cores}} cores decode on one node, images of 512 x 384 ({CORES_PER_GPU} a GPU where --cores says nothing)",
    "a phase takes as long as the slower of computing and decoding",
)


def projected(gpu: Gpu, measured: Sequence[Calibration], cores: int = 0) -> list[Projected]:
    """Days and GPU-hours of every academic pipeline.

    Args:
        gpu: which GPU, with its peak.
        measured: rates; a phase that none is of takes the share of the peak of the nearest.
        cores: of the node; 0: CORES_PER_GPU for each GPU.
    """
    there = cores or CORES_PER_GPU * NODE_GPUS
    return [_one(pipeline, gpu, measured, there) for pipeline in ACADEMIC]


def _one(pipeline: Academic, gpu: Gpu, measured: Sequence[Calibration], cores: int) -> Projected:
    loaded = load_recipe(find_recipe(pipeline.recipe))
    place = Place(cluster="bench", gpus=NODE_GPUS, gpu=gpu)
    found = cost(loaded.recipe, place, loaded.about.datasets, measured)
    computing, decoding, slower, needed = 0.0, 0.0, 0.0, 0
    basis = []
    for name, phase in found.phases.items():
        settings = loaded.recipe.phases[name]
        assert isinstance(settings, TrainPhase)
        assert phase.rate is not None
        assert phase.hours is not None
        images = phase.rate.samples_per_s * NODE_GPUS
        wanted = loader_cores(settings.image.size, images)
        bound = phase.hours * wanted / cores
        computing, decoding, slower = computing + phase.hours, decoding + bound, slower + max(phase.hours, bound)
        needed = max(needed, wanted)
        basis.append(f"{name}: {phase.rate.samples_per_s:,.0f} samples/s a GPU, {_known(phase)}")
    said = next(p.gpu_hours for p in reversed(loaded.about.published) if p.gpu_hours)
    return Projected(
        recipe=pipeline.recipe,
        gpu_hours=slower * NODE_GPUS,
        compute_days=computing / 24,
        data_days=decoding / 24,
        days=slower / 24,
        cores_needed=needed,
        basis=tuple(basis),
        said_days=pipeline.said_days,
        said_gpu_hours=said,
    )


def _known(phase: PhaseCost) -> str:
    assert phase.rate is not None
    return f"{phase.rate.source} ({100 * phase.rate.mfu:.0f} % of the peak)"

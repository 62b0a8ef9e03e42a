"""What a rate is measured against: FLOPs of a sample by the phase's exact tokens, and the peak of the devices."""

from __future__ import annotations

import resource
from typing import NamedTuple

import torch

from clipa.attempt.devices import Ranks
from clipa.spec.budget import train_budget
from clipa.spec.hardware import gpu_named
from clipa.spec.job import TrainPhase
from clipa.spec.plan import Plan


class Yardstick(NamedTuple):
    """Forward and backward FLOPs of one sample, the number of devices, and their peak together in FLOP/s.

    `peak` is None on a CPU, and on a GPU that neither clipa.spec.hardware nor the profile (`gpu_tflops`) knows.
    """

    flops_per_sample: int
    devices: int
    peak: float | None

    def mfu(self, samples_per_s: float) -> float | None:
        """Model FLOPs utilisation, 0..1: of the dense bf16 peak, whatever precision is trained in.

        What is computed twice (activation checkpointing, passes of a feature cache) counts once, as is usual.
        """
        return self.flops_per_sample * samples_per_s / self.peak if self.peak else None


def yardstick(plan: Plan, ranks: Ranks) -> Yardstick:
    """The yardstick of a training phase on these ranks."""
    assert isinstance(plan.settings, TrainPhase)
    known = gpu_named(torch.cuda.get_device_name(ranks.device)) if ranks.device.type == "cuda" else None
    tflops = plan.world.gpu_tflops or (known.tflops if known else 0.0)
    peak = tflops * 1e12 * ranks.world if ranks.device.type == "cuda" and tflops else None
    return Yardstick(train_budget(plan.model, plan.settings).flops_per_sample, ranks.world, peak)


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this process has held so far: tensors on a GPU, else what was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

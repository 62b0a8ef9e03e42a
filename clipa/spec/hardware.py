"""GPUs by name: memory, and the peak that a rate is measured against."""

from __future__ import annotations

import re

import msgspec

from clipa.errors import ConfigError, did_you_mean
from clipa.spec.cluster import Cluster


class Gpu(msgspec.Struct, frozen=True):
    """A GPU model: memory in GB as sold, and dense bf16 tensor FLOP/s (a multiply-add counts as two) in 1e12."""

    model: str
    memory_gb: float
    tflops: float


GPUS: dict[str, Gpu] = {
    gpu.model: gpu
    for gpu in (  # NVIDIA's data sheets; the H100 variants and the B200 as in torchtitan's tools/utils.py
        Gpu("A100-40GB", 40, 312),
        Gpu("A100-80GB", 80, 312),
        Gpu("H100-PCIe", 80, 756),
        Gpu("H100-NVL", 94, 835),
        Gpu("H100", 80, 989),
        Gpu("H200-NVL", 141, 835),
        Gpu("H200", 141, 989),
        Gpu("L40S", 48, 362),
        Gpu("B200", 180, 2250),
    )
}
_WORDS = {
    "A100-40GB": ("a100", "40gb"),
    "A100-80GB": ("a100", "80gb"),
    "H100-PCIe": ("h100", "pcie"),
    "H100-NVL": ("h100", "nvl"),
    "H100": ("h100",),
    "H200-NVL": ("h200", "nvl"),
    "H200": ("h200",),
    "L40S": ("l40s",),
    "B200": ("b200",),
}
"""Whole words of a name: "NVIDIA GH200 480GB" is no H200."""


def gpu_named(name: str) -> Gpu | None:
    """The GPU that `nvidia-smi -L` or torch calls `name` ("NVIDIA A100-SXM4-80GB"); None: not in the table.

    A part of one ("NVIDIA H100 80GB HBM3 MIG 1g.10gb") has neither its memory nor its peak.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    found = (model for model, wanted in _WORDS.items() if words.issuperset(wanted) and "mig" not in words)
    return next((GPUS[model] for model in found), None)


def gpu_of(cluster: Cluster) -> Gpu | None:
    """The GPU that a profile names; None when it names none.

    Raises:
        ConfigError: a model that is not in the table, without the numbers that the table would have.
    """
    if not cluster.gpu_model:
        return None
    known = GPUS.get(cluster.gpu_model)
    memory = cluster.gpu_memory_gb or (known.memory_gb if known else 0)
    tflops = cluster.gpu_tflops or (known.tflops if known else 0)
    if not memory or not tflops:
        raise ConfigError(
            f"the GPU {cluster.gpu_model!r} is not in clipa's table",
            where=f"cluster {cluster.name}: gpu_model",
            allowed=", ".join(GPUS),
            hint=did_you_mean(cluster.gpu_model, GPUS) or "give gpu_memory_gb and gpu_tflops (dense bf16) beside it",
        )
    return Gpu(cluster.gpu_model, memory, tflops)

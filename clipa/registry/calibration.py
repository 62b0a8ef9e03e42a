"""Measured training rates, so that a plan need not assume one. Written by benchmarks, read by `clipa plan`.

One file a measurement, below a run root; whole or not there. Readers pass over what they cannot read.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import msgspec

from clipa.registry.records import UNREADABLE
from clipa.registry.run_dir import write_whole
from clipa.spec.model import Model
from clipa.spec.plan import Record

SCHEMA = 1
FOLDER = ".calibrations"


class Calibration(Record, frozen=True, kw_only=True):
    """The steady rate of one training step, data waiting not counted.

    Attributes:
        t: Unix time, in seconds.
        gpu: as torch or `nvidia-smi -L` names it.
        gpus: how many trained together.
        model, patches, image_tokens, text_tokens: what was trained (tokens without the class token).
        micro_batch: samples that one GPU held at once.
        batch: samples of one GPU's step; more than `micro_batch` where they passed in pieces. 0: not said.
        samples_per_s: of all GPUs.
        memory_bytes: the peak that one GPU had allocated.
        version, torch: of clipa and torch.
    """

    t: float
    gpu: str
    gpus: int
    model: Model
    patches: int
    image_tokens: int
    text_tokens: int
    micro_batch: int
    samples_per_s: float
    precision: str = "bf16"
    memory_bytes: int = 0
    version: str = ""
    batch: int = 0
    torch: str = ""
    schema: int = SCHEMA


def write(run_root: Path, measured: Calibration) -> Path:
    """Keep a measurement below a run root."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(measured.t))
    path = run_root / FOLDER / f"{stamp}-{uuid.uuid4().hex[:8]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, msgspec.json.encode(measured))
    return path


def read(run_roots: Iterable[Path]) -> list[Calibration]:
    """All measurements below these run roots, oldest first."""
    found = []
    for root in run_roots:
        for path in sorted((root / FOLDER).glob("*.json")):
            try:
                measured = msgspec.json.decode(path.read_bytes(), type=Calibration)
            except UNREADABLE:
                continue
            if measured.samples_per_s > 0 and measured.gpus >= 1:
                found.append(measured)
    return sorted(found, key=lambda measured: measured.t)

"""Weights on disk: whole checkpoints, verified, and the model that they belong to. The one door to safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import safetensors.torch
import torch

from clipa.errors import TrainError
from clipa.registry.run_dir import RunDir
from clipa.spec import card as cards
from clipa.spec.card import Card
from clipa.spec.plan import Plan, Record, Weights
from clipa.storage.manifest import staged_weights


class File(Record, frozen=True, kw_only=True):
    """Size in bytes and SHA-256 of one file of a checkpoint."""

    size: int
    sha256: str


class Found(NamedTuple):
    """A checkpoint folder whose files are what its COMPLETE says, its card, and the digest of its weights."""

    path: Path
    card: Card
    digest: str


def resolve(plan: Plan, weights: Weights) -> Found:
    """The checkpoint that a plan starts from, verified.

    Raises:
        TrainError: it is not there, or not whole.
    """
    if weights.is_run:
        return _newest(RunDir(Path(plan.run_root) / weights.run))
    if "://" in weights.ref and not weights.ref.startswith("file://"):
        return verify(staged_weights(plan.cache, weights.ref))
    path = Path(weights.ref.removeprefix("file://"))
    return verify(path) if (path / cards.COMPLETE_NAME).is_file() else _newest(RunDir(path))


def _newest(run: RunDir) -> Found:
    complete = run.complete_checkpoints()
    if not complete:
        raise TrainError("the run has no whole checkpoint", where=str(run.path), hint=f"clipa resume {run.id}")
    return verify(complete[-1][1])


def verify(path: Path) -> Found:
    """Check every file of a checkpoint against its COMPLETE.

    Raises:
        TrainError: a file is missing, cut or changed.
    """
    try:
        files = msgspec.json.decode((path / cards.COMPLETE_NAME).read_bytes(), type=dict[str, File])
        for name, file in files.items():
            if "/" in name or sha256(path / name) != file.sha256:
                raise TrainError(f"the checkpoint's {name} is not what was written", where=str(path))
        card = cards.decode((path / cards.CARD_NAME).read_bytes())
        return Found(path, card, files[cards.WEIGHTS_NAME].sha256)
    except (OSError, KeyError, msgspec.MsgspecError) as error:
        raise TrainError(f"the checkpoint cannot be used: {error}", where=str(path)) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file: a format that cannot run code.

    Raises:
        TrainError: not such a file.
    """
    try:
        return dict(safetensors.torch.load_file(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainError(f"the tensors cannot be read: {error}", where=str(path)) from error


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as a safetensors file.

    Raises:
        OSError: the disk failed; safetensors has an error of its own for that.
    """
    try:
        safetensors.torch.save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error

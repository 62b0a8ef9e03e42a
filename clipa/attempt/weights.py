"""Weights on disk: whole checkpoints, verified, and the model that they belong to. The one door to safetensors, and to
torch's own files.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
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

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_PIECE = 2**24
"""Bytes that are written and digested at a time."""


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
    return found_at(Path(weights.ref.removeprefix("file://")))


def found_at(path: Path) -> Found:
    """The checkpoint in a folder, which may be a checkpoint's or a run's, verified.

    Raises:
        TrainError: it is not there, or not whole.
    """
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
    except (OSError, KeyError, ValueError, msgspec.MsgspecError) as error:  # ValueError: no UTF-8, or a NUL in a name
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


def read_torch(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a torch file, or of its `state_dict`. Only tensors are unpickled: nothing in it can run.

    Raises:
        TrainError: not such a file, or one that holds more than tensors.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch have dozens
        if "TorchScript" in str(error):
            raise TrainError(
                "the file is a TorchScript archive: a program with weights, which clipa does not run", where=str(path),
                hint="save its state_dict() as .safetensors where you trust the file",
            ) from error  # fmt: skip
        reason = type(error).__name__  # torch's own words advise to unpickle what is not trusted
        raise TrainError(
            f"the file holds more than tensors, or is broken: {reason}", where=str(path),
            hint="clipa unpickles nothing else: save the weights as .safetensors where you trust the file",
        ) from error  # fmt: skip
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(loaded, dict) or not all(isinstance(weight, torch.Tensor) for weight in loaded.values()):
        raise TrainError("the file holds no weights by name", where=str(path), hint="it must be a state_dict")
    return {str(name): weight for name, weight in loaded.items()}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> File:
    """Write tensors as a safetensors file, to the disk. Its size and digest, as it was meant to be.

    The library's own writer makes a second copy of all tensors and holds Python's lock while the disk works; a training
    goes on beside this one. Format: https://github.com/huggingface/safetensors#format

    Raises:
        OSError: the disk failed.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))  # keeps all aligned
    header, end = {}, 0
    for name, tensor in ordered.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    raw = msgspec.json.encode(header)
    raw += b" " * (-len(raw) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        start = memoryview(len(raw).to_bytes(8, "little") + raw)
        for piece in itertools.chain((start,), _pieces(ordered)):
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return File(size=8 + len(raw) + end, sha256=digest.hexdigest())


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview[int]]:
    """The bytes of tensors, little by little."""
    for tensor in tensors.values():
        if tensor.nbytes:
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            yield from (raw[first : first + _PIECE] for first in range(0, len(raw), _PIECE))

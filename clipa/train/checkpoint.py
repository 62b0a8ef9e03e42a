"""Checkpoints: whole or not at all, fenced against older attempts, verified before they are used, pruned by a rule."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import msgspec
import torch
from torch import nn

from clipa.attempt.weights import File, Found, read_tensors, sha256, verify, write_tensors
from clipa.errors import TrainError
from clipa.registry.run_dir import RunDir, sync_folder, write_whole
from clipa.spec import card as cards
from clipa.spec.plan import Plan, Record

SCHEMA = 1
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


class TrainState(Record, frozen=True, kw_only=True):
    """What a resume needs besides tensors. The data position is a pure function of the step."""

    step: int
    samples: int
    recipe_digest: str
    schema: int = SCHEMA


class Saved(Record, frozen=True, kw_only=True):
    """A checkpoint that was just written: its size in bytes, and the digest of its weights."""

    bytes: int
    digest: str
    seconds: float


def save(
    run: RunDir, plan: Plan, attempt: int, step: int, samples: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Saved:
    """Write the checkpoint after `step` steps: a private folder, COMPLETE last, then the rename that makes it count.

    Raises:
        TrainError: the disk failed, or this attempt is no longer the newest.
    """
    began = time.monotonic()
    target = run.step_dir(step)
    part = run.checkpoints / f".{target.name}.attempt-{attempt}"
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write_tensors(part / cards.WEIGHTS_NAME, model.state_dict())
        write_tensors(part / OPTIMIZER, _optimizer_tensors(model, optimizer))
        state = TrainState(step=step, samples=samples, recipe_digest=plan.recipe_digest)
        (part / STATE).write_bytes(msgspec.json.encode(state))
        (part / cards.CARD_NAME).write_bytes(msgspec.json.encode(cards.card_of(plan, step)))
        files = {}
        for path in sorted(part.iterdir()):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            files[path.name] = File(size=path.stat().st_size, sha256=sha256(path))
        write_whole(part / cards.COMPLETE_NAME, msgspec.json.encode(files))
        _require_newest(run, attempt)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(part, target)
        sync_folder(run.checkpoints)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise TrainError(f"the checkpoint cannot be written: {error}", where=str(target)) from error
    size = sum(file.size for file in files.values())
    return Saved(bytes=size, digest=files[cards.WEIGHTS_NAME].sha256, seconds=time.monotonic() - began)


def _require_newest(run: RunDir, attempt: int) -> None:
    newest = max(run.claimed(), default=attempt)
    if newest != attempt:
        raise TrainError(f"attempt {attempt} may not commit: attempt {newest} has taken over", where=run.id)


def newest_whole(run: RunDir) -> Found | None:
    """The newest checkpoint whose files are all as written; torn ones are named and passed over."""
    for _, path in reversed(run.complete_checkpoints()):
        try:
            return verify(path)
        except TrainError as error:
            print(f"passing over a checkpoint: {error}", flush=True)
    return None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Restore model and optimizer exactly as they were saved."""
    model.load_state_dict(read_tensors(path / cards.WEIGHTS_NAME))
    _restore(model, optimizer, read_tensors(path / OPTIMIZER))
    return msgspec.json.decode((path / STATE).read_bytes(), type=TrainState)


def prune(run: RunDir, keep: int, final_step: int) -> None:
    """Keep the newest `keep` checkpoints and the final one; remove what killed attempts left half-written."""
    complete = run.complete_checkpoints()
    for step, path in complete[:-keep]:
        if step != final_step:
            # The marker goes first: a folder that is half removed must not look whole.
            (path / cards.COMPLETE_NAME).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def drop_leftovers(run: RunDir) -> None:
    """Remove the half-written folders of attempts that are over; called by the newest attempt, before it saves."""
    for path in run.checkpoints.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _names(model: nn.Module) -> dict[torch.Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every tensor of the optimizer, as `<key>.<parameter's name>`."""
    names = _names(model)
    return {
        f"{key}.{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for full, value in tensors.items():
        key, _, name = full.partition(".")
        parameter = parameters[name]
        # AdamW keeps its step counters on the CPU unless it is fused.
        fused = bool(optimizer.param_groups[0].get("fused"))
        device = parameter.device if key != "step" or fused else torch.device("cpu")
        optimizer.state[parameter][key] = value.to(device)

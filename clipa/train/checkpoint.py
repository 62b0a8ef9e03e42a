"""Checkpoints: whole or not at all, fenced against older attempts, verified before they are used, pruned by a rule.

Every tensor stands whole and under its parameter's name in a safetensors file, whatever shared it out: what DDP wrote
loads under FSDP2 and the other way round, on any number of processes, and no loading can run code. The weights are one
file, which everything else reads; the moments are shared out among the ranks, each of which writes a file.

torch.distributed.checkpoint's own format was not taken: its index (`.metadata`) is a pickle, and its safetensors
writer has ranks write shards that the first one must read and write again to make files that others can read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
from torch import nn

from clipa.attempt.weights import File, Found, read_tensors, sha256, verify, write_tensors
from clipa.errors import InputError, TrainError
from clipa.registry.run_dir import RunDir, sync_folder, write_whole
from clipa.spec import card as cards
from clipa.spec.essence import Essence, differences, essence_of
from clipa.spec.job import Checkpoints
from clipa.spec.plan import Plan, Record
from clipa.terminal import say
from clipa.train.metrics import Counters
from clipa.train.parallel import part_of, put, whole

SCHEMA = 1
OPTIMIZER = "optimizer"
STATE = "state.json"


class History(NamedTuple):
    """What a resumed attempt must know of the steps before its first: their last losses, and what was counted."""

    losses: tuple[float, ...] = ()
    counters: Counters = Counters()


NO_HISTORY = History()


class TrainState(Record, frozen=True, kw_only=True):
    """What a resume needs besides tensors. The data position is a function of the step and of clipa.registry.skips.

    `losses`: of the last steps, oldest first: what a spike is measured against. `counters`: of all steps so far.
    `plan`: an `Essence`; what an older clipa wrote has none, and no counters.
    """

    step: int
    samples: int
    recipe_digest: str
    losses: tuple[float, ...] = ()
    counters: Counters = Counters()
    plan: msgspec.Raw = msgspec.Raw(b"null")
    schema: int = SCHEMA

    @property
    def history(self) -> History:
        """What the steps before have left."""
        return History(self.losses, self.counters)


class Snapshot(NamedTuple):
    """What one rank writes of a checkpoint, in the host's memory: files and their tensors by name."""

    step: int
    files: dict[str, dict[str, torch.Tensor]]
    copied: torch.cuda.Event | None
    """Reached when the tensors are there; None: they are."""
    history: History = NO_HISTORY


def snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: int, rank: int, world: int, history: History = NO_HISTORY
) -> Snapshot:
    """Copy this rank's share of the state. Every rank must call it; a GPU's host goes on before it is there."""
    weights = model.state_dict()
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{key}.{names[parameter]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    owner = owners(
        {name: value.nbytes for name, value in moments.items()}, world, sum(v.nbytes for v in weights.values())
    )
    files = {moments_name(rank, world): _on_host(moments, lambda name: owner[name] == rank)}
    if rank == 0:
        files[cards.WEIGHTS_NAME] = _on_host(weights, lambda _: True)
    else:
        _on_host(weights, lambda _: False)
    device = next(model.parameters()).device
    return Snapshot(step, files, _reached(device) if device.type == "cuda" else None, history)


def moments_name(rank: int, world: int) -> str:
    """The file of a rank's share of the moments."""
    return f"{OPTIMIZER}.safetensors" if world == 1 else f"{OPTIMIZER}-{rank + 1:05d}-of-{world:05d}.safetensors"


def owners(sizes: Mapping[str, int], world: int, weights: int) -> dict[str, int]:
    """Which rank writes which tensor, so that all write about as many bytes; the first one writes the weights too."""
    load = [weights, *[0] * (world - 1)]
    found = {}
    for name, size in sizes.items():
        rank = load.index(min(load))
        load[rank] += size
        found[name] = rank
    return found


def write(folder: Path, snapped: Snapshot) -> dict[str, File]:
    """Write a rank's files into a folder that is not a checkpoint yet. Their sizes and digests.

    Raises:
        OSError: the disk failed.
    """
    if snapped.copied is not None:
        snapped.copied.synchronize()
    folder.mkdir(parents=True, exist_ok=True)
    return {name: write_tensors(folder / name, tensors) for name, tensors in snapped.files.items()}


def commit(run: RunDir, plan: Plan, attempt: int, snapped: Snapshot, part: Path, files: Mapping[str, File]) -> int:
    """Make a folder that holds all ranks' files the checkpoint of their step: COMPLETE last, then the rename that makes
    it count. Returns its bytes.

    Raises:
        TrainError: this attempt is no longer the newest.
        OSError: the disk failed.
    """
    step = snapped.step
    state = TrainState(
        step=step,
        samples=step * _batch(plan),
        recipe_digest=plan.recipe_digest,
        losses=snapped.history.losses,
        counters=snapped.history.counters,
        plan=msgspec.Raw(msgspec.json.encode(essence_of(plan))),
    )
    (part / STATE).write_bytes(msgspec.json.encode(state))
    (part / cards.CARD_NAME).write_bytes(msgspec.json.encode(cards.card_of(plan, step)))
    all_files = {**files, **{name: _settled(part / name) for name in (STATE, cards.CARD_NAME)}}
    for left in set(os.listdir(part)) - set(all_files):
        (part / left).unlink()
    write_whole(part / cards.COMPLETE_NAME, msgspec.json.encode(all_files))
    require_newest(run, attempt)
    target = run.step_dir(step)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    sync_folder(run.checkpoints)
    return sum(file.size for file in all_files.values())


def require_newest(run: RunDir, attempt: int) -> None:
    """The fence between attempts: an older one that still runs must not write.

    Raises:
        TrainError: a newer attempt has taken over.
    """
    newest = max(run.claimed(), default=attempt)
    if newest != attempt:
        raise TrainError(f"attempt {attempt} may not commit: attempt {newest} has taken over", where=run.id)


def part_folder(run: RunDir, step: int, attempt: int) -> Path:
    """Where the files of a checkpoint are until it is whole."""
    return run.checkpoints / f".{run.step_dir(step).name}.attempt-{attempt}"


def newest_whole(run: RunDir) -> Found | None:
    """The newest checkpoint whose files are all as written; torn ones are named and passed over."""
    for _, path in reversed(run.complete_checkpoints()):
        try:
            return verify(path)
        except TrainError as error:
            say(f"passing over a checkpoint: {error}")
    return None


def step_of(found: Found) -> int:
    """The step after which a checkpoint was written."""
    return _state(found.path).step


def load(path: Path, plan: Plan, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Restore model and optimizer exactly as they were saved, each rank what it holds of them.

    Raises:
        InputError: the checkpoint is of another plan; nothing was changed.
        TrainError: it cannot be read.
    """
    state = _state(path)
    require_same_plan(state, plan, path)
    put(model, read_tensors(path / cards.WEIGHTS_NAME))
    parameters = dict(model.named_parameters())
    for file in sorted(path.glob(f"{OPTIMIZER}*.safetensors")):
        for full, value in read_tensors(file).items():
            key, _, name = full.partition(".")
            _restore(optimizer, parameters[name], key, value)
    return state


def require_same_plan(state: TrainState, plan: Plan, path: Path) -> None:
    """Refuse to go on from a checkpoint of another plan. How a plan is trained, and where, may have changed.

    Raises:
        InputError: with the keys that differ, where the checkpoint says them.
    """
    try:
        there = msgspec.json.decode(state.plan, type=Essence | None)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        there = None  # a newer clipa with keys that this one does not know
    if there is not None:
        what = differences(there, essence_of(plan))
    else:
        what = "the recipe has another digest" if state.recipe_digest != plan.recipe_digest else ""
    if what:
        raise InputError(
            f"the checkpoint was written by another plan: {what}",
            where=str(path),
            hint=f"a run goes on from its own checkpoints alone; new training starts from these weights with "
            f"clipa submit finetune RECIPE --from {path}",
        )


def _state(path: Path) -> TrainState:
    try:
        return msgspec.json.decode((path / STATE).read_bytes(), type=TrainState)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TrainError(f"what a resume needs cannot be read: {error}", where=str(path / STATE)) from error


def _restore(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, key: str, value: torch.Tensor) -> None:
    if key == "step":
        # AdamW keeps its step counters on the CPU unless it is fused.
        fused = bool(optimizer.param_groups[0].get("fused"))
        optimizer.state[parameter][key] = value.to(parameter.device if fused else "cpu")
    else:
        optimizer.state[parameter][key] = part_of(value, parameter)


def kept(steps: Sequence[int], rule: Checkpoints, batch: int, final_step: int, scores: Mapping[int, float]) -> set[int]:
    """Which of the checkpoints after these steps stay: the newest, the final one, the first one of each stretch of
    `keep_every_samples`, and the one with the best score (the later one of equals).
    """
    stay = {*steps[-rule.keep :], *(step for step in steps if step == final_step)}
    if every := rule.keep_every_samples:
        firsts = {step * batch // every: step for step in sorted(steps, reverse=True) if step * batch >= every}
        stay |= set(firsts.values())
    if scored := [step for step in steps if step in scores]:
        stay.add(max(scored, key=lambda step: (scores[step], step)))
    return stay


def prune(run: RunDir, plan: Plan, rule: Checkpoints, scores: Mapping[int, float]) -> None:
    """Remove the checkpoints that need not stay."""
    complete = dict(run.complete_checkpoints())
    stay = kept(list(complete), rule, _batch(plan), plan.steps, scores)
    for step, path in complete.items():
        if step not in stay:
            # The marker goes first: a folder that is half removed must not look whole.
            (path / cards.COMPLETE_NAME).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def drop_leftovers(run: RunDir) -> None:
    """Remove the half-written folders of attempts that are over; called by the newest attempt, before it saves."""
    for path in run.checkpoints.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _batch(plan: Plan) -> int:
    return int(getattr(plan.settings, "batch", 0))


def _settled(path: Path) -> File:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return File(size=path.stat().st_size, sha256=sha256(path))


def _on_host(tensors: Mapping[str, torch.Tensor], is_kept: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """Copies of the whole tensors that this rank keeps. Shared ones are put together on every rank, one at a time."""
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor.detach())
        if is_kept(name):
            host = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            found[name] = host.copy_(value, non_blocking=True)
    return found


def _reached(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event

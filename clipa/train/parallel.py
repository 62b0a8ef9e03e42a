"""How processes share the training of one model: replicas (DDP) or shards (FSDP2), and what each block does for speed
and memory. Names of parameters stay what they are in an unshared model, compiled or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from clipa.attempt.devices import Ranks
from clipa.model.clip import Clip
from clipa.spec.job import TrainPhase


def fit_out(model: Clip, phase: TrainPhase, device: torch.device) -> None:
    """Make the blocks of both towers compiled, recomputed or neither, as the phase says; before `spread`.

    Blocks are compiled one by one, as in torchtitan: it takes one compilation a tower, and gradients of a block are
    exchanged while the blocks before it still compute.
    """
    is_compiled = phase.compile == "on" or (phase.compile == "auto" and device.type == "cuda")
    if is_compiled:
        # Else DDP would cut the graph of each block where one of its buckets ends.
        torch._dynamo.config.optimize_ddp = False
    for tower in _towers(model):
        recomputed = round(phase.recomputed * len(tower))
        for number, block in enumerate(tower):
            if is_compiled or number < recomputed:
                block.forward = _Forward(block, is_compiled, number < recomputed)


def spread(model: Clip, phase: TrainPhase, ranks: Ranks, precision: str) -> nn.Module:
    """What takes the place of the model's forward pass on this rank; the optimizer is to be made after this.

    Under FSDP2 the blocks travel in the precision that they compute in, and gradients are summed in fp32; what is no
    block (embeddings, positions, the logit scale) stays fp32. Several passes of a step sum their gradients shard by
    shard: no rank ever holds the gradient of the whole model.
    """
    if ranks.world == 1:
        return model
    if phase.parallel == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    half = torch.bfloat16 if precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None,
                                  cast_forward_inputs=False)  # fmt: skip
    for block in (block for tower in _towers(model) for block in tower):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    return model


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that a rank holds a part of. A collective where it is shared out: every rank must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The part of a whole tensor that this rank holds, on the device and shared out as `like` is."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    placed = value.to(like.to_local().device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def put(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Take whole weights of exactly this model, shared out or not."""
    own = dict(model.state_dict())
    assert set(own) == set(weights), sorted(set(own) ^ set(weights))
    for name, value in own.items():
        value.copy_(weights[name] if isinstance(weights[name], DTensor) else part_of(weights[name], value))


def is_shared_out(model: nn.Module) -> bool:
    """Whether ranks hold parts of the weights."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _towers(model: Clip) -> Iterator[list[nn.Module]]:
    yield list(model.image.trunk.blocks)
    yield list(model.text.blocks)


class _Forward:
    """A block's forward pass in training; evaluation takes the plain one, whose shapes change from set to set."""

    def __init__(self, block: nn.Module, is_compiled: bool, is_recomputed: bool) -> None:
        self._block = block
        self._plain: Callable[..., Any] = block.forward
        self._fast: Callable[..., Any] = torch.compile(self._plain) if is_compiled else self._plain
        self._is_recomputed = is_recomputed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._block.training:
            return self._plain(*args, **kwargs)
        if self._is_recomputed and torch.is_grad_enabled():
            # Blocks draw no random numbers: there is no state to save for the second time.
            return checkpoint(self._fast, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        return self._fast(*args, **kwargs)

"""The processes and the device of an attempt, and what they agree on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from clipa.attempt.launcher import launched
from clipa.errors import InputError
from clipa.spec.plan import World


class Ranks(NamedTuple):
    """One process among all: its rank, their number, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: one small all-reduce."""
        return bool(self.greatest((int(flag),))[0])

    def greatest(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """The greatest of all ranks' numbers, one by one: a small all-reduce on the CPU, whatever the device."""
        if self.world == 1:
            return values
        numbers = torch.tensor(values)
        dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
        return tuple(int(number) for number in numbers)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows [n, ...] of all ranks in the order of the ranks, on every rank; n may differ, and be 0."""
        if self.world == 1:
            return rows
        counts = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.world)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=self.device))
        longest = max(int(count) for count in counts)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(world: World, patience_minutes: float = 0.0) -> Iterator[Ranks]:
    """Join the processes of an attempt (env:// rendezvous of torch.distributed), and part at the end.

    Not after an error: NCCL finishes what is under way before it parts (torch's pull request 141510), which never comes
    where other ranks are elsewhere; torchtitan does not either (its pull request 1342).

    Args:
        world: the processes.
        patience_minutes: how long a rank may wait for another; 0: torch's default (10 minutes for NCCL, 30 for gloo).

    Raises:
        InputError: the plan wants a GPU that is not visible, or another number of processes.
    """
    rank, _, count = launched()
    if count != world.processes:
        raise InputError(f"started as {count} process(es), the plan says {world.processes}", where="WORLD_SIZE")
    torch.set_num_threads(world.threads)
    device = _device(world)
    if count == 1:
        yield Ranks(rank, count, device)
        return
    patience = timedelta(minutes=patience_minutes) if patience_minutes else None
    # What ranks say about files, clocks and checkpoints goes over the CPU: no word of it may wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=count, timeout=patience)
    yield Ranks(rank, count, device)
    dist.destroy_process_group()


def _device(world: World) -> torch.device:
    if world.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            "the plan wants a GPU, and torch sees none",
            where=f"torch {torch.__version__}",
            hint="install the CUDA build of torch, or use a cluster profile with gpus = 0",
        )
    # The older names: they set the newer ones too, where Inductor of torch 2.9 to 2.12 refuses these set by themselves.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda", launched().local_rank)
    torch.cuda.set_device(device)
    return device


def precision_of(wanted: str, device: torch.device) -> str:
    """`bf16` or `fp32`; `auto` is bf16 where the device computes it natively."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Private, and not in every torch: without an answer the CPU is taken to have no bf16.
    asked = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return "bf16" if any(supported() for supported in asked if supported) else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which the model computes."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

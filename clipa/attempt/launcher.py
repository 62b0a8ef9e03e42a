"""Which rank this process is, as its launcher says: clipa's supervisor, `torchrun`, or nobody (one process)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from clipa.errors import InputError


class Launched(NamedTuple):
    """Rank of this process, its rank on its node, and the number of processes."""

    rank: int
    local_rank: int
    world_size: int

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints, results and events."""
        return self.rank == 0


def launched(environment: Mapping[str, str] | None = None) -> Launched:
    """Return the rank that RANK, LOCAL_RANK and WORLD_SIZE give this process.

    Raises:
        InputError: they are no numbers, or contradict each other. A process that took itself for rank 1 of 1 would
            train, write nothing and end well.
    """
    found = os.environ if environment is None else environment
    world_size, rank = _number(found, "WORLD_SIZE", 1), _number(found, "RANK", 0)
    local_rank = _number(found, "LOCAL_RANK", 0)
    if world_size < 1 or rank >= world_size or local_rank > rank:
        raise InputError(
            f"rank {rank} (local {local_rank}) of {world_size} processes cannot be",
            where="RANK, LOCAL_RANK, WORLD_SIZE",
            hint="env -u RANK -u LOCAL_RANK -u WORLD_SIZE python -m ... starts one process",
        )
    return Launched(rank, local_rank, world_size)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    word = environment.get(name)
    if word is None:
        return default
    if not (word.isascii() and word.isdecimal() and len(word) < 10):
        raise InputError(f"{word!r} is not a number of processes", where=name, hint=f"unset {name}")
    return int(word)

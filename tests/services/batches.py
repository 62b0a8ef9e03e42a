"""The demo's digits, a phase that reads them, and the processes that do."""

from __future__ import annotations

from pathlib import Path

from clipa.data.shards import ShardSet, open_shards
from clipa.spec.inputs import ImageInput, TextInput
from clipa.spec.job import Optim, Pretrain
from clipa.storage import manifest as manifests


def opened(bucket: Path, split: str) -> ShardSet:
    return open_shards(manifests.decode((bucket / split / "manifest.json").read_bytes()), bucket / split)


def phase(batch: int = 24, size: int = 16) -> Pretrain:
    return Pretrain(
        data="x",
        samples=10_000,
        batch=batch,
        image=ImageInput(size=size),
        text=TextInput(tokens=8),
        optim=Optim(lr=1e-3),
    )


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def server(pid: int) -> int:
    """The process that the workers of a process are forked from."""
    [found] = [c for c in children(pid) if "forkserver" in Path(f"/proc/{c}/cmdline").read_text()]
    return found

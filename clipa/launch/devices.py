"""The GPUs of this machine, and leases on them: one `flock` a GPU, which dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

VISIBLE = "CLIPA_VISIBLE_DEVICES"
"""The submitter's CUDA_VISIBLE_DEVICES: submitit's LocalExecutor overwrites the original for its jobs."""

_LISTED = re.compile(r"^GPU (\d+): (.*) \(UUID: (GPU-[0-9a-fA-F-]+)\)$", re.MULTILINE)


class Gpu(NamedTuple):
    """One GPU as `nvidia-smi -L` lists it."""

    number: int
    name: str
    uuid: str


def gpus(visible: str | None = None) -> list[Gpu]:
    """The NVIDIA GPUs here, limited to `visible` (as in CUDA_VISIBLE_DEVICES: indices or UUIDs) where given."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = [Gpu(int(number), name, uuid) for number, name, uuid in _LISTED.findall(listed.stdout)]
    if visible is None:
        return found
    words = [word.strip() for word in visible.split(",") if word.strip()]
    return [gpu for word in words for gpu in found if word in (str(gpu.number), gpu.uuid)]


class Lease(NamedTuple):
    """Leased GPUs; the locks are held while the descriptors are open."""

    gpus: tuple[Gpu, ...]
    descriptors: tuple[int, ...]


def try_lease(run_root: Path, candidates: Sequence[Gpu], count: int, holder: str) -> Lease | str:
    """`count` of the candidate GPUs, all or none; a sentence that says who has them where they are not free."""
    folder = run_root / ".leases"
    folder.mkdir(parents=True, exist_ok=True)
    taken: list[tuple[Gpu, int]] = []
    busy: list[str] = []
    for gpu in candidates:
        if len(taken) == count:
            break
        descriptor = os.open(folder / f"{gpu.uuid}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            who = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            busy.append(f"GPU {gpu.number} is leased to {who}")
            os.close(descriptor)
            continue
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        taken.append((gpu, descriptor))
    if len(taken) == count:
        return Lease(tuple(gpu for gpu, _ in taken), tuple(descriptor for _, descriptor in taken))
    for _, descriptor in taken:
        os.close(descriptor)
    return f"needs {count} of {len(candidates)} GPUs here: " + ("; ".join(busy) or "there are not as many")


@contextlib.contextmanager
def released_at_end(lease: Lease) -> Iterator[Lease]:
    """Hold a lease for the length of a block."""
    try:
        yield lease
    finally:
        for descriptor in lease.descriptors:
            os.close(descriptor)

"""The GPUs of this machine, and leases on them: one `flock` a GPU, which dies with its holder. What a holder wrote into
the file stays there unless it has ended in order: its containers may then have outlived it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

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


Cleared: TypeAlias = Callable[[str], bool]
"""Whether nothing of a holder that has died is on its GPUs any more, by what it wrote; it may see to that itself."""


def try_lease(
    run_root: Path, candidates: Sequence[Gpu], count: int, holder: str, cleared: Cleared = lambda _: True
) -> Lease | str:
    """`count` of the candidate GPUs, all or none; a sentence that says who has them where they are not free.

    Args:
        run_root: where the locks are.
        candidates: the GPUs that may be used.
        count: how many are needed.
        holder: who asks, for the next one to read.
        cleared: asked of each GPU's last holder where that has not released it.
    """
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
        before = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        if before and not cleared(before):
            busy.append(
                f"GPU {gpu.number} was leased to {before}, which has died, and what it started may still be on it"
            )
            os.close(descriptor)
            continue
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        taken.append((gpu, descriptor))
    if len(taken) == count:
        return Lease(tuple(gpu for gpu, _ in taken), tuple(descriptor for _, descriptor in taken))
    for _, descriptor in taken:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)
    return f"needs {count} of {len(candidates)} GPUs here: " + ("; ".join(busy) or "there are not as many")


@contextlib.contextmanager
def released_at_end(lease: Lease) -> Iterator[Lease]:
    """Hold a lease for the length of a block."""
    try:
        yield lease
    finally:
        for descriptor in lease.descriptors:
            _release(descriptor)


def _release(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # of a bad disk: closed it must be all the same, or nobody else gets the GPU
        os.ftruncate(descriptor, 0)
    os.close(descriptor)

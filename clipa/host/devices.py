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

from clipa.errors import ConfigError
from clipa.spec.counted import counted

VISIBLE = "CLIPA_VISIBLE_DEVICES"
"""The submitter's CUDA_VISIBLE_DEVICES: submitit's LocalExecutor overwrites the original for its jobs."""

_GPU = re.compile(r"^GPU (\d+): (.*) \(UUID: (GPU-[0-9a-fA-F-]+)\)\s*$")
_MIG = re.compile(r"^\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)\s]+)\)\s*$")
_NONE = ("", "-1", "NoDevFiles", "none", "void")
"""Values of CUDA_VISIBLE_DEVICES that mean no GPU; `NoDevFiles` is SLURM's, the last two are NVIDIA's runtime's."""


class Gpu(NamedTuple):
    """One GPU as `nvidia-smi -L` lists it, or one MIG instance of a GPU, whose own UUID `whole` is then."""

    number: int
    name: str
    uuid: str
    whole: str = ""


class Found(NamedTuple):
    """The GPUs that may be used, the names in CUDA_VISIBLE_DEVICES for which there is none, and how many devices, and
    MIG instances among them, nvidia-smi lists.
    """

    gpus: list[Gpu]
    missing: tuple[str, ...] = ()
    listed: int = 0
    instances: int = 0


def gpus(visible: str | None = None) -> list[Gpu]:
    """Return the NVIDIA GPUs of this machine, limited to `visible` (CUDA_VISIBLE_DEVICES) where given.

    Raises:
        ConfigError: a device is named that is not there. The CPU is never taken in its place.
    """
    found = find(visible)
    if found.missing:
        seen = f"nvidia-smi lists {counted(found.listed, 'device')}" if found.listed else "nvidia-smi lists none"
        raise ConfigError(
            f"no GPU is {', '.join(found.missing)}: {seen} here", where="CUDA_VISIBLE_DEVICES",
            allowed="an index, a GPU's UUID or its beginning, a MIG instance's UUID; empty for none",
            hint="nvidia-smi -L shows them; unset CUDA_VISIBLE_DEVICES, or gpus = 0 in the profile (--cluster cpu)",
        )  # fmt: skip
    return found.gpus


def find(visible: str | None = None) -> Found:
    """Return the GPUs of this machine, limited to `visible` where given, and what is named and not there."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
        everything = parse(done.stdout)
    except (OSError, subprocess.TimeoutExpired):
        everything = []
    return select(everything, "all" if visible is None else visible)


def parse(text: str) -> list[Gpu]:
    """Return the devices of `nvidia-smi -L`. A GPU that is divided is its instances: CUDA has no whole one then."""
    found: list[Gpu] = []
    for line in text.splitlines():
        if match := _GPU.match(line):
            found.append(Gpu(int(match[1]), match[2], match[3]))
        elif found and (match := _MIG.match(line)):
            last = found[-1]
            whole = last.whole or last.uuid
            name = last.name.partition(" MIG ")[0]
            if not last.whole:
                found.pop()
            found.append(Gpu(last.number, f"{name} MIG {match[1]}", match[2], whole))
    return found


def select(everything: Sequence[Gpu], visible: str) -> Found:
    """Return the devices that a value of CUDA_VISIBLE_DEVICES names, in its order (CUDA C++ Programming Guide).

    A name is an index, a UUID or its beginning (`GPU-8932f937`), or a MIG instance, also in the older form
    `MIG-GPU-UUID/GI/CI`. Of a divided GPU, an index or its UUID means its first instance. `-1` ends the list.
    """
    found: list[Gpu] = []
    missing: list[str] = []
    for word in (part.strip() for part in visible.split(",")):
        if word in _NONE:
            if word == "":
                continue
            break
        if word == "all":  # NVIDIA's runtime, in a container
            found, missing = list(everything), []
            break
        gpu = _named(everything, word)
        if gpu is None:
            missing.append(word)
        elif gpu not in found:
            found.append(gpu)
    return Found(found, tuple(missing), len(everything), sum(bool(gpu.whole) for gpu in everything))


def _named(everything: Sequence[Gpu], word: str) -> Gpu | None:
    if word.isascii() and word.isdecimal():
        return next((gpu for gpu in everything if gpu.number == int(word)), None)
    lower = word.lower()
    if not lower.startswith(("gpu-", "mig-")) or len(lower) == 4:
        return None
    exact = [gpu for gpu in everything if lower in (gpu.uuid.lower(), gpu.whole.lower())]
    if exact:
        return exact[0]
    matching = [gpu for gpu in everything if gpu.uuid.lower().startswith(lower)]
    if len(matching) == 1:
        return matching[0]
    wholes = {gpu.whole: gpu for gpu in reversed(everything) if gpu.whole and gpu.whole.lower().startswith(lower)}
    if not matching and len(wholes) == 1:
        return next(iter(wholes.values()))
    # The older form names a part of a GPU that newer drivers list by another name: CUDA still takes it.
    whole = lower.removeprefix("mig-").partition("/")[0]
    parts = [gpu for gpu in everything if whole in (gpu.whole.lower(), gpu.uuid.lower())]
    return parts[0]._replace(name=f"{parts[0].name.partition(' MIG ')[0]} MIG", uuid=word,
                             whole=parts[0].whole or parts[0].uuid) if "/" in lower and parts else None  # fmt: skip


def usable(found: Sequence[Gpu]) -> int:
    """Return how many of these one training can use: NCCL joins no MIG instances."""
    return min(len(found), 1) if any(gpu.whole for gpu in found) else len(found)


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
    with contextlib.ExitStack() as given_back:
        for gpu in candidates:
            if len(taken) == count:
                break
            descriptor = os.open(folder / f"{gpu.uuid.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT, 0o666)
            closing = given_back.enter_context(contextlib.ExitStack())
            closing.callback(os.close, descriptor)
            if why := _trouble(gpu, descriptor, cleared):
                busy.append(why)
                closing.close()
                continue
            closing.pop_all()
            given_back.callback(_release, descriptor)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
            taken.append((gpu, descriptor))
        if len(taken) == count:
            given_back.pop_all()
            return Lease(tuple(gpu for gpu, _ in taken), tuple(descriptor for _, descriptor in taken))
    return f"needs {count} of {len(candidates)} GPUs here: " + ("; ".join(busy) or "there are not as many")


def _trouble(gpu: Gpu, descriptor: int, cleared: Cleared) -> str:
    """Lock a GPU's file; why it cannot be leased where it cannot."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        return f"GPU {gpu.number} is leased to {who}"
    before = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
    if before and not cleared(before):
        return f"GPU {gpu.number} was leased to {before}, which has died, and what it started may still be on it"
    return ""


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

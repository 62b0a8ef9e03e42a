"""Work that lives and dies with this process: what `submit` and `resume` do as the first process of a container."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clipa.errors import ConfigError
from clipa.host.devices import gpus
from clipa.registry.liveness import is_alive
from clipa.registry.scan import scan
from clipa.spec.cluster import Cluster
from clipa.spec.user_paths import current_folder

IN_CONTAINER = "CLIPA_IN_CONTAINER"
VARIANT = "CLIPA_VARIANT"
"""Both are set by the image."""


def ends_with_us() -> bool:
    """Whether the end of this process is the end of everything here: it is a container's first, or that one's child.

    The first may be an init (`docker run --init`) or a shell. What `docker exec` starts has no parent in the container.
    """
    return os.environ.get(IN_CONTAINER) == "1" and 1 in (os.getpid(), os.getppid())


def ask_to_leave(runs: Sequence[str], root: Path) -> None:
    """Send TERM to the supervisors of runs: they have their processes save, and write how it ended."""
    found = scan([root]).facts
    holders = {facts.holder or facts.job for run, facts in found.items() if run in runs and facts.ended is None}
    for holder in holders:
        if holder and is_alive(holder):
            os.kill(holder.pid, signal.SIGTERM)


def require_temporary_folder() -> None:
    """A supervisor keeps its stop file there; without one it would die before it could say why.

    Raises:
        ConfigError: no folder for temporary files can be written, as in `docker run --read-only` without more.
    """
    with contextlib.suppress(FileNotFoundError):
        # Python's last resort is the folder where one stands, and a supervisor stands elsewhere.
        if tempfile.gettempdir() != str(current_folder()) or os.environ.get("TMPDIR"):
            return
    raise ConfigError(
        "no folder for temporary files can be written, or all are full",
        where="TMPDIR",
        hint="docker run --tmpfs /tmp ..." if os.environ.get(IN_CONTAINER) == "1" else "TMPDIR=FOLDER",
    )


def forgotten_volume(run_root: Path) -> str:
    """A remark on runs that nobody will find again: those in a container's own file system; empty where they stay."""
    if os.environ.get(IN_CONTAINER) != "1" or os.stat(run_root).st_dev != os.stat("/").st_dev:
        return ""
    return f"{run_root} is in this container, and goes with it: docker run -v RUNS:{run_root} ... keeps the runs"


def wants_gpus() -> bool:
    """Whether this is the image that is made for GPUs."""
    return os.environ.get(VARIANT) == "cuda"


def refuse_forgotten_gpus(cluster: Cluster) -> None:
    """Nobody starts the CUDA image to train on a CPU by accident.

    Raises:
        ConfigError: the CUDA image runs without a GPU, and the profile leaves the choice to clipa.
    """
    if not wants_gpus() or cluster.gpus != "auto" or gpus(os.environ.get("CUDA_VISIBLE_DEVICES")):
        return
    raise ConfigError(
        "no GPU is visible in this container, and this is the CUDA image",
        where=f"cluster {cluster.name}: gpus",
        hint="docker run --gpus all ...   or, to train on the CPU: --cluster cpu",
    )

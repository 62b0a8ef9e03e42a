"""The environment of child processes: one rule for every process that clipa starts (table in docs/training.md).

A shell may hold variables that another launcher has left (`torchrun`, `srun`, `mpirun`, a debugger). Such a variable
can turn the only process of a run into rank 1 of 8, pin all ranks to one core, or have a child import other code than
its parent. So these variables are never inherited: they are set for a child, or they are not there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

RENDEZVOUS = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""Variables by which torch.distributed finds the other ranks (torch.distributed `env://`, torchrun)."""
_LAUNCHERS = ("TORCHELASTIC_", "PET_", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "PMI_", "PMIX_", "MV2_COMM_WORLD_",
              "HYDRA_")  # fmt: skip
_OWN = ("CLIPA_STOP_FILE", "CLIPA_COMING", "CLIPA_MEETING")
"""Variables that a supervisor sets for the ranks of one attempt."""
_THREADS = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "NUMEXPR_", "VECLIB_")
_PYTHON_KEPT = ("PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8",
                "PYTHONIOENCODING")  # fmt: skip
_SLURM = re.compile(r"(?:SLURM|SLURMD|SRUN|SBATCH|SUBMITIT)_")
_SLURM_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


def is_reserved(name: str) -> bool:
    """Return whether a variable says which process of a run a child is: clipa alone sets it."""
    return name in RENDEZVOUS or name in _OWN or name.startswith(_LAUNCHERS)


def child_environment(
    own: Mapping[str, str] | None = None, inherited: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the whole environment of a child process.

    Args:
        own: variables set for this child; they win.
        inherited: variables of the parent, by default those of this process. Reserved ones, settings of thread
            libraries and of Python itself are left out; of PYTHONPATH the absolute folders stay.
    """
    parent = os.environ if inherited is None else inherited
    found = {name: value for name, value in parent.items() if _is_inherited(name)}
    if path := _absolute(found.pop("PYTHONPATH", "")):
        found["PYTHONPATH"] = path
    return {**found, "PYTHONSAFEPATH": "1", **(own or {})}


def tool_environment() -> dict[str, str]:
    """Return the environment of a tool in the foreground (`bench`, `convert`): the user's thread settings stay."""
    return child_environment({name: value for name, value in os.environ.items() if name.startswith(_THREADS)})


def settings_of(profile: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a profile's `[env]` without the reserved ones, which an older clipa accepted."""
    return {name: value for name, value in profile.items() if not is_reserved(name)}


def without_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what a job of SLURM has put into it: a local run is no part of that job."""
    return {name: value for name, value in environment.items() if name in _SLURM_KEPT or not _SLURM.match(name)}


def _is_inherited(name: str) -> bool:
    if is_reserved(name) or name.startswith(_THREADS):
        return False
    return not name.startswith("PYTHON") or name in _PYTHON_KEPT


def _absolute(path: str) -> str:
    return os.pathsep.join(folder for folder in path.split(os.pathsep) if os.path.isabs(folder))

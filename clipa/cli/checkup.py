"""What `clipa doctor` looks at."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa.errors import ConfigError
from clipa.host import container
from clipa.host.devices import find
from clipa.launch import probe
from clipa.launch.folders import run_root_folder
from clipa.launch.probe import Finding
from clipa.registry.disk_errors import mount_trouble, write_trouble
from clipa.registry.scan import scan
from clipa.spec import catalog, training_part
from clipa.spec.counted import counted
from clipa.spec.load import load_cluster


def check_cluster(word: str) -> list[Finding]:
    """Look at a cluster profile and what its site can do.

    Raises:
        ConfigError: no such profile, or not one of SLURM.
    """
    settled = catalog.defaults()
    cluster = load_cluster(catalog.find_cluster(word))
    if cluster.slurm is None:
        raise ConfigError("not a SLURM profile", where=f"--cluster {word}", hint="clipa doctor looks at this machine")
    run_root = run_root_folder(cluster, settled.run_root)
    return list(probe.check(cluster, run_root))


def checkup(roots: Sequence[Path]) -> list[Finding]:
    """Look at the installation, the machine, the run roots and every run in them."""
    findings = [Finding("ok", f"Python {sys.version.split()[0]} in {sys.prefix}")]
    missing = training_part.missing()
    if missing:
        findings.append(Finding("note", f"cannot train here: {', '.join(missing)} missing", training_part.INSTALL))
    else:
        findings.append(Finding("ok", "training part installed"))
    findings.append(_gpus())
    for root in roots:
        findings.append(_root(root))
    for odd in scan(roots).diagnostics:
        findings.append(Finding("note", f"{odd.path}: {odd.problem}", odd.cure))
    findings.append(
        Finding("ok", f"recipes: {', '.join(catalog.recipes())}; clusters: {', '.join(catalog.clusters())}")
    )
    return findings


_LITTLE_BYTES = 10 << 30
_TOO_LITTLE_BYTES = 1 << 30


def _gpus() -> Finding:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = find(named)
    if seen.missing:
        return Finding("bad", f"CUDA_VISIBLE_DEVICES names {', '.join(seen.missing)}, which nvidia-smi does not list",
                       "nvidia-smi -L shows the GPUs; unset CUDA_VISIBLE_DEVICES, or --cluster cpu")  # fmt: skip
    if seen.gpus:
        return Finding("ok", f"GPUs: {', '.join(g.name for g in seen.gpus)}")
    if seen.listed:
        return Finding("note", f"CUDA_VISIBLE_DEVICES={named} hides {counted(seen.listed, 'GPU')}",
                       "unset CUDA_VISIBLE_DEVICES")  # fmt: skip
    if container.wants_gpus():
        return Finding("note", "no GPU is visible, and this is the CUDA image", "docker run --gpus all ...")
    return Finding("ok", "GPUs: none, training uses the CPU")


def _root(root: Path) -> Finding:
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("bad", f"run root {root} cannot be written", "set CLIPA_RUN_ROOT, or run_root in clipa.toml")
    cure = "free some space, or set CLIPA_RUN_ROOT to a folder on another disk"
    if trouble := write_trouble(there) or mount_trouble(there):  # a quota shows only when something is written
        return Finding("bad", f"run root {root}: {trouble}", cure)
    free = shutil.disk_usage(there).free
    said = f"run root {root}: {free / 2**30:.1f} GiB free"
    if free < _LITTLE_BYTES:
        return Finding("bad" if free < _TOO_LITTLE_BYTES else "note", f"{said}: little for checkpoints", cure)
    return Finding("ok", said)

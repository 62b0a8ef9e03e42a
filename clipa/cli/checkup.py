"""What `clipa doctor` looks at."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa.errors import ConfigError
from clipa.host import container
from clipa.host.devices import gpus
from clipa.launch import probe
from clipa.launch.folders import run_root_folder
from clipa.launch.probe import Finding
from clipa.registry.scan import scan
from clipa.spec import catalog, training_part
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


def _gpus() -> Finding:
    if found := gpus():
        return Finding("ok", f"GPUs: {', '.join(g.name for g in found)}")
    if container.wants_gpus():
        return Finding("note", "no GPU is visible, and this is the CUDA image", "docker run --gpus all ...")
    return Finding("ok", "GPUs: none, training uses the CPU")


def _root(root: Path) -> Finding:
    there = root
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("bad", f"run root {root} cannot be written", "set CLIPA_RUN_ROOT, or run_root in clipa.toml")
    free = shutil.disk_usage(there).free
    return Finding("ok", f"run root {root}: {free / 2**30:.1f} GiB free")

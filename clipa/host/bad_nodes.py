"""Nodes that failed their check: looked at before the ranks start, remembered beside the runs, kept off for a while."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from clipa.host import devices
from clipa.host.decide import Verdict
from clipa.registry import events
from clipa.registry.run_dir import RunDir, write_whole
from clipa.registry.trial import Report
from clipa.spec.counted import counted
from clipa.spec.plan import Plan, Record

FOLDER = ".nodes"
FREE_BYTES = 1 << 30
"""Bytes that temporary files of a node must have at least."""
_SMI_S = 20.0


class BadNode(Record, frozen=True, kw_only=True):
    """A node that failed its check: why, and when (Unix time)."""

    name: str
    why: str
    t: float


def trouble(plan: Plan) -> str:
    """Why this node can't take its part of a plan; empty when it can."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < FREE_BYTES:
        return f"{free / 2**20:.0f} MiB free in {tempfile.gettempdir()}, {FREE_BYTES >> 20} are needed"
    need = plan.world.gpus // plan.world.nodes
    if not need:
        return ""
    seen = devices.find(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if len(seen.gpus) < need and not _only_unlisted(seen):
        missing = f" ({', '.join(seen.missing)} does not)" if seen.missing else ""
        return f"{len(seen.gpus)} of {need} GPUs answer{missing}"
    mine = seen.gpus[:need]
    # Other instances of a divided GPU are other people's: their processes say nothing of ours.
    if busy := [
        line for line in _smi("--query-compute-apps=gpu_uuid,pid", [g.uuid for g in mine if not g.whole]) if line
    ]:
        return f"another process is on its GPUs: {busy[0]}"
    wholes = list(dict.fromkeys(gpu.whole or gpu.uuid for gpu in mine))
    for line in _smi("--query-gpu=uuid,ecc.errors.uncorrected.volatile.total", wholes):
        count = line.rpartition(",")[2].strip()
        if count.isdecimal() and int(count):  # "[N/A]" where there is no ECC
            return f"{counted(int(count), 'uncorrectable ECC error')}: {line.partition(',')[0]}"
    return ""


def _only_unlisted(seen: devices.Found) -> bool:
    """Whether all that is missed are MIG instances, and nvidia-smi lists no instance at all here: it cannot tell."""
    return bool(seen.missing) and not seen.instances and all(word.lower().startswith("mig-") for word in seen.missing)


def _smi(query: str, uuids: Sequence[str]) -> list[str]:
    if not uuids:
        return []
    argv = ["nvidia-smi", query, "--format=csv,noheader,nounits", "-i", ",".join(uuids)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines()] if done.returncode == 0 else []


def remember(root: Path, name: str, why: str) -> None:
    """Keep the jobs of this run root off a node for a while."""
    write_whole(root / FOLDER / f"{name}.json", msgspec.json.encode(BadNode(name=name, why=why, t=time.time())))


def known(root: Path, hours: float) -> list[str]:
    """The nodes that failed their check within so many hours."""
    found = []
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            node = msgspec.json.decode(path.read_bytes(), type=BadNode)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            continue
        if time.time() - node.t < hours * 3600:
            found.append(node.name)
    return found


def at_fault(run: RunDir, out: Path, nodes: Sequence[str], error: str, log: events.EventWriter) -> Verdict:
    """The verdict on an attempt whose all-reduce across the nodes failed; who is at fault is remembered.

    Args:
        run: whose attempt.
        out: what the first process of the all-reduce has printed.
        nodes: the names of all nodes.
        error: what is known where that is nothing.
        log: where nodes at fault are recorded.
    """
    try:
        report = msgspec.json.decode(out.read_bytes().strip().splitlines()[-1], type=Report)
    except (OSError, IndexError, msgspec.MsgspecError, UnicodeDecodeError):
        report = Report(why=error)
    named = {nodes[number]: why for number, why in report.bad.items() if 0 <= number < len(nodes)}
    for name, why in named.items():
        log.write(events.BadNode, name=name, why=f"all-reduce: {why}")
        remember(run.path.parent, name, f"all-reduce: {why}")
    if not named:
        together = ", ".join(nodes)
        return Verdict("killed", f"the nodes {together} failed their check, an all-reduce: {report.why}", retry=True)
    said = "; ".join(f"{name}: {why}" for name, why in named.items())
    return Verdict("killed", f"failed its check, an all-reduce across the nodes: {said}", retry=True)

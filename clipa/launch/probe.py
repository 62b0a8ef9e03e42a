"""`clipa doctor --cluster`: the checks of a SLURM profile, from here and from a node.

python -m clipa.launch.probe FOLDER [--interface ib0] [--scratch DIR]      on the node: one line of JSON
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from clipa.errors import ClipaError
from clipa.host import devices
from clipa.host.meeting import meeting
from clipa.launch.snapshot import take
from clipa.slurm import scheduler, site, submission
from clipa.slurm.sbatch import of_site
from clipa.slurm.site_setup import setup_lines
from clipa.spec import training_part
from clipa.spec.cluster import Cluster
from clipa.spec.counted import counted
from clipa.spec.plan import Record
from clipa.spec.slurm import Slurm

PROBE_S = 120.0
"""Seconds that the job on a node may take, its time in the queue included."""
SKEW_S = 5.0
FREE_BYTES, FREE_INODES = 20 << 30, 100_000
_RUNTIMES = ("apptainer", "singularity", "enroot", "docker")
_TOOLS = ("sbatch", "srun", "squeue", "scontrol", "scancel")


class Finding(msgspec.Struct, frozen=True):
    """One finding: `ok`, `note` or `bad`, what it is about, and its cure."""

    state: Literal["ok", "note", "bad"]
    what: str
    cure: str = ""


class Seen(Record, frozen=True, kw_only=True):
    """What a node sees. `answer`: what it read in the shared folder; `clock`: its Unix time; free bytes and inodes."""

    host: str
    python: str
    answer: str
    clock: float
    gpus: int
    cores: int
    missing: tuple[str, ...]
    runtimes: tuple[str, ...]
    scratch_free: int
    resolves: bool
    meeting: str = ""
    trouble: str = ""


def check(cluster: Cluster, run_root: Path) -> Iterator[Finding]:
    """Everything that can be known before a job fails of it."""
    settings = cluster.slurm
    assert settings is not None
    lacking = [name for name in _TOOLS if shutil.which(name) is None]
    if lacking:
        yield Finding("bad", f"not here: {', '.join(lacking)}", cure="type this on a login node of the cluster")
        return
    try:
        there = site.ask(settings.conf)
    except ClipaError as error:
        yield Finding("bad", error.what, cure=error.hint)
        return
    yield Finding("ok", f"SLURM {there.config.get('SLURM_VERSION', '?')} answers")
    yield from _rules(there, settings)
    yield from _partition(there, settings)
    yield from _room(run_root)
    yield from _node(cluster, settings, run_root)


def _rules(there: site.Site, settings: Slurm) -> Iterator[Finding]:
    if there.accounts:
        said = scheduler.command(["sacct", "-X", "-n", "-S", "now-1hours"], settings.conf, scheduler.QUERY_S)
        if said.trouble:
            yield Finding("note", f"accounting: {said.trouble}", cure="nothing to do: status works without")
        else:
            yield Finding("ok", "accounting: sacct answers")
    else:
        yield Finding("note", "no accounting: sacct is not asked", cure="nothing to do: status works without")
    if settings.requeue and not there.requeues:
        yield Finding("bad", "JobRequeue=0: jobs may not be requeued", cure="requeue = false in [slurm]")
    elif settings.requeue:
        yield Finding("ok", "jobs may be requeued")
    if there.config.get("PreemptMode", "OFF") != "OFF" and not there.warns:
        yield Finding(
            state="note",
            what="a preemption sends SIGTERM alone (no send_user_signal): it is heard all the same",
            cure="ask for PreemptParameters=send_user_signal, and set grace_s to the partition's GraceTime",
        )


def _partition(there: site.Site, settings: Slurm) -> Iterator[Finding]:
    found = next(
        (p for p in there.partitions if p.name == settings.partition or (not settings.partition and p.default)), None
    )
    if found is None:
        names = ", ".join(p.name for p in there.partitions)
        yield Finding("bad", f"no partition {settings.partition!r}", cure=f"one of: {names}")
        return
    if found.minutes and settings.minutes > found.minutes:
        yield Finding(
            state="bad",
            what=f"time is {settings.minutes} minutes, {found.name} allows {found.minutes}",
            cure=f"time = {found.minutes}",
        )
    else:
        yield Finding(
            "ok", f"partition {found.name}: {counted(found.nodes, 'node')}, {counted(found.gpus, 'GPU')} each"
        )


def _room(run_root: Path) -> Iterator[Finding]:
    folder = run_root
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    status = os.statvfs(folder)
    free, inodes = status.f_bavail * status.f_frsize, status.f_favail
    small = free < FREE_BYTES or (status.f_files and inodes < FREE_INODES)
    yield Finding(
        state="note" if small else "ok",
        what=f"run root {run_root}: {free / 2**30:.1f} GiB and {inodes:,} inodes free",
        cure="delete old runs, or put run_root elsewhere" if small else "",
    )


def _node(cluster: Cluster, settings: Slurm, run_root: Path) -> Iterator[Finding]:
    """Run the probe on one node, as jobs of this profile would run."""
    folder = run_root / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        word = uuid.uuid4().hex
        (folder / "question").write_text(word)
        seen, trouble = _send(cluster, settings, folder, take(run_root))
        if seen is None:
            yield Finding("bad", f"no answer from a node: {trouble}", cure="squeue -u $USER; then try again")
            return
        yield from _of_node(cluster, settings, seen, word, (folder / "answer").stat().st_mtime)
    except (OSError, ClipaError) as error:
        yield Finding("bad", f"the run root cannot be used: {error}", cure="set run_root in the profile")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _send(cluster: Cluster, settings: Slurm, folder: Path, code: Path) -> tuple[Seen | None, str]:
    assert cluster.gpus != "auto"
    wanted = {**of_site(settings, cluster.gpus), "nodes": 1, "time": 2, "output": str(folder / "log"), "chdir": "/",
              "job-name": "clipa-doctor", **settings.directives}  # fmt: skip
    flags = [f"--{k}" + ("" if v is True else f"={v}") for k, v in wanted.items() if v is not False]
    python = settings.python or sys.executable
    options = [f"--interface={settings.interface}"] if settings.interface else []
    options += [f"--scratch={settings.scratch}"] if settings.scratch else []
    script = folder / "probe.sh"
    quoted = shlex.join([python, "-P", "-m", "clipa.launch.probe", str(folder), *options])
    script.write_text(
        "\n".join(
            [
                "#!/bin/bash",
                *setup_lines(settings.setup, "false"),
                f"export PYTHONPATH={shlex.quote(str(code))}",
                quoted,
                "",
            ]
        )
    )
    said = scheduler.command(["sbatch", "--parsable", *flags, str(script)], settings.conf)
    if said.trouble:
        return None, said.trouble
    taken = submission.parse(said.out)
    if taken is None:
        return None, f"the answer of sbatch names no job: {said.out.strip()[-200:]}"
    job, on = taken.job, scheduler.site_of_plan(settings, taken.cluster)
    deadline = time.monotonic() + PROBE_S
    while time.monotonic() < deadline:
        if (folder / "answer").is_file():
            try:
                return msgspec.json.decode((folder / "answer").read_bytes(), type=Seen), ""
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                return None, f"it cannot be read: {error}"
        found = scheduler.describe_job(job, on)
        if found is not None and found.phase == "over" and not (folder / "answer").is_file():
            log = (folder / "log").read_text(errors="replace").strip() if (folder / "log").is_file() else ""
            return None, f"the job ended as {found.word}: {log.splitlines()[-1] if log else 'it has printed nothing'}"
        time.sleep(0.5)
    found = scheduler.describe_job(job, on)
    scheduler.cancel([job], on)
    return (
        None,
        f"job {job} was {found.word if found else 'not listed'} for {PROBE_S:.0f} s ({found.reason if found else ''})",
    )


def _of_node(cluster: Cluster, settings: Slurm, seen: Seen, word: str, written: float) -> Iterator[Finding]:
    def one(good: bool, what: str, otherwise: str, cure: str, worst: Literal["note", "bad"] = "bad") -> Finding:
        return Finding("ok", what) if good else Finding(worst, otherwise, cure=cure)

    yield one(seen.answer == word, f"{seen.host} sees the run root", f"{seen.host} does not see the run root",
              "put run_root on a shared file system")  # fmt: skip
    yield one(not seen.missing, f"{seen.host}: {seen.python}, everything installed",
              f"{seen.host}: not installed in {seen.python}: {', '.join(seen.missing)}",
              "pip install 'clipa[train]' there, set python in [slurm], or use a container", "note")  # fmt: skip
    wanted = cluster.gpus if cluster.gpus != "auto" else 0
    yield one(seen.gpus >= wanted, f"{seen.host}: {counted(seen.gpus, 'GPU')}",
              f"{seen.host}: {counted(seen.gpus, 'GPU')} visible, the profile wants {wanted}",
              "look at gpu_type, gres, and nvidia-smi -L in a job")  # fmt: skip
    need = (wanted or cluster.processes) * (cluster.threads or 1)
    cores = f"{seen.host}: {counted(seen.cores, 'core')} for a job"
    yield one(seen.cores >= need, cores, f"{cores}, its threads need {need}", "raise cpus, or lower threads", "note")
    skew = abs(seen.clock - written)
    yield one(skew < SKEW_S, f"clocks agree within {skew:.1f} s", f"the clocks of {seen.host} and of the file server "
              f"differ by {skew:.0f} s", "ask for NTP; states that go by heartbeats will be wrong", "note")  # fmt: skip
    if cluster.nodes > 1:
        yield one(seen.resolves and not seen.trouble, f"ranks meet at {seen.meeting}",
                  f"no meeting place: {seen.trouble}", "set interface in [slurm] (ip -br addr)")  # fmt: skip
    yield Finding("ok", f"{seen.host}: {seen.scratch_free / 2**30:.1f} GiB free for temporary files")
    yield Finding("ok", f"container runtimes on {seen.host}: {', '.join(seen.runtimes) or 'none'}")


def look(folder: Path, interface: str, scratch: str) -> Seen:
    """What this node sees."""
    try:
        where, trouble = meeting(interface), ""
        socket.getaddrinfo(where.partition(":")[0], None)
        resolves = True
    except OSError as error:
        where, trouble, resolves = "", str(error), False
    place = os.path.expandvars(scratch) if scratch else tempfile.gettempdir()
    missing = [name for name in ("submitit", *training_part.PACKAGES) if importlib.util.find_spec(name) is None]
    try:
        answer = (folder / "question").read_text()
        free = shutil.disk_usage(place).free
    except OSError as error:
        answer, free, trouble = "", 0, trouble or str(error)
    return Seen(
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(), python=f"Python {sys.version.split()[0]}",
        answer=answer, clock=time.time(), gpus=len(devices.find(os.environ.get("CUDA_VISIBLE_DEVICES")).gpus),
        cores=len(os.sched_getaffinity(0)), missing=tuple(missing),
        runtimes=tuple(name for name in _RUNTIMES if shutil.which(name)), scratch_free=free, resolves=resolves,
        meeting=where, trouble=trouble,
    )  # fmt: skip


def main() -> int:
    """Entry of the module."""
    parser = argparse.ArgumentParser(prog="clipa.launch.probe")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--interface", default="")
    parser.add_argument("--scratch", default="")
    given = parser.parse_args()
    part = given.folder / "answer.part"
    part.write_bytes(msgspec.json.encode(look(given.folder, given.interface, given.scratch)))
    part.rename(given.folder / "answer")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The table of faults: what is done to a run on SLURM, and how the run must end. Written before it was ever run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from clipa.registry import events
from tests.e2e.conftest import CLIPA
from tests.slurm.field import Field, processes_with, until


class Profile(NamedTuple):
    """The profile of a faulty run. `lane`: faults that share a node of their own go one after the other."""

    nodes: int = 1
    partition: str = "main"
    table: str = 'exclude = "node[3-4]"'
    lane: str = ""


class Fault(NamedTuple):
    """`inject` gets the project, the run and a source of chance; `attempts`: at least so many; `says`: in its error."""

    name: str
    inject: Callable[[Field, str, random.Random], object]
    state: str = "DONE"
    attempts: int = 1
    says: str = ""
    profile: Profile = Profile()
    bad_data: bool = False


def _kill_rank(field: Field, run: str, chance: random.Random) -> None:
    os.kill(chance.choice(_ranks(field, run)), chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))


def _ranks(field: Field, run: str) -> list[int]:
    return list(
        until(lambda: [pid for pid, _ in processes_with(f"clipa.train {field.dir(run).path}")], f"{run}: ranks")
    )


def _supervisors(field: Field, run: str, node: int) -> list[int]:
    found = []
    for pid, _ in processes_with(f"submitit.core._submit {field.dir(run).path}/"):
        try:
            if _environment(pid).get("SLURM_PROCID") == str(node):
                found.append(pid)
        except OSError:
            continue
    return found


def _environment(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return {name.decode(): value.decode() for name, _, value in (line.partition(b"=") for line in lines) if name}


def _kill_supervisor(field: Field, run: str, chance: random.Random) -> None:
    os.kill(until(lambda: _supervisors(field, run, 0), f"{run}: supervisor")[0], signal.SIGKILL)  # type: ignore[index]


def _kill_follower(field: Field, run: str, chance: random.Random) -> None:
    os.kill(until(lambda: _supervisors(field, run, 1), f"{run}: second node")[0], signal.SIGKILL)  # type: ignore[index]


def _kill_batch_shell(field: Field, run: str, chance: random.Random) -> None:
    mark = f"/job{int(field.job(run)):05d}/slurm_script"
    for pid, _ in processes_with(mark):
        os.kill(pid, signal.SIGKILL)


def _cancel_step(field: Field, run: str, chance: random.Random) -> None:
    field.slurm.ask("scancel", f"{field.job(run)}.0")


def _requeue(field: Field, run: str, chance: random.Random) -> None:
    field.slurm.ask("scontrol", "requeue", field.job(run))


def _requeue_twice(field: Field, run: str, chance: random.Random) -> None:
    _requeue(field, run, chance)
    field.at_step(run, 1, attempt=2)
    _requeue(field, run, chance)


def _warn(field: Field, run: str, chance: random.Random) -> None:
    field.slurm.ask("scancel", "--signal=USR2", field.job(run))


def _end_time(field: Field, run: str, chance: random.Random) -> None:
    """The trainer is held until the limit strikes: slurmctld looks at the limits only once in a while."""
    ranks = _cut_short(field, run)
    asked = Path(_environment(ranks[0])["CLIPA_STOP_FILE"])
    until(lambda: asked.exists() or not _alive(ranks), f"{run}: its time is over")  # SLURM's TERM may be quicker
    for pid in _alive(ranks):
        os.kill(pid, signal.SIGCONT)
    _as_long_as_before(field, run)


def _as_long_as_before(field: Field, run: str) -> None:
    """The limit that was cut strikes once. Else every attempt would have 2 minutes, of which the warning leaves 30 s:
    on a busy machine less than a start takes, for ever.
    """
    until(lambda: field.said(run, events.Requeued), f"{run}: back in the queue")

    def given_back() -> bool:
        field.slurm.ask("scontrol", "update", f"jobid={field.job(run)}", "TimeLimit=30", check=False)
        return "TimeLimit=00:30:00" in field.slurm.ask("scontrol", "show", "job", field.job(run))

    until(given_back, f"{run}: its time")


def _end_time_hung(field: Field, run: str, chance: random.Random) -> None:
    """The trainer can't save: SLURM kills everything after KillWait."""
    _cut_short(field, run)
    _as_long_as_before(field, run)


def _cut_short(field: Field, run: str) -> list[int]:
    """Hold the trainer, and end its time."""
    ranks = _ranks(field, run)
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    field.slurm.ask("scontrol", "update", f"jobid={field.job(run)}", "EndTime=now+1")
    return ranks


def _alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def _preempt(field: Field, run: str, chance: random.Random) -> None:
    field.slurm.ask(
        "sbatch",
        "-p",
        "high",
        "-w",
        "node3",
        "--exclusive",
        "--mem=0",
        "-t",
        "5",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 1",
    )
    until(lambda: field.said(run, events.Requeued) or field.dir(run).claimed() != [1], f"{run}: preempted")


def _crash_node(field: Field, run: str, chance: random.Random) -> None:
    field.slurm.crash("node4")
    time.sleep(chance.uniform(0, 3))
    field.slurm.start("node4")


def _kill_slurmd(field: Field, run: str, chance: random.Random) -> None:
    pid = int((field.slurm.folder / "run" / "slurmd.node4.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    time.sleep(chance.uniform(0, 3))
    field.slurm.start("node4")


def _restart_controller(field: Field, run: str, chance: random.Random) -> None:
    with field.quiet:
        field.slurm.crash("slurmctld")
        time.sleep(chance.uniform(0, 2))
        field.slurm.start("slurmctld")


def _scancel(field: Field, run: str, chance: random.Random) -> None:
    field.slurm.ask("scancel", field.job(run))


def _cancel(field: Field, run: str, chance: random.Random) -> None:
    field.run("cancel", run)


def _cancel_and_resume(field: Field, run: str, chance: random.Random) -> None:
    field.run("cancel", run)
    field.run("resume", run)


def _old_attempt_lives(field: Field, run: str, chance: random.Random) -> None:
    """The first attempt's trainer goes on somewhere beside the second one's: it must not be able to commit."""
    _requeue(field, run, chance)
    field.at_step(run, 1, attempt=2)
    replaced = time.time()
    argv = [sys.executable, "-m", "clipa.train", str(field.dir(run).path), "--attempt", "1"]
    with open(field.folder / f"{run}.old", "wb") as out:
        old = subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, "CLIPA_STOP_FILE": "/nonexistent"})
    old.wait(120)
    late = [e for e in field.said(run, events.Saved) if e.attempt == 1 and e.t > replaced]
    assert not late, f"an attempt that was replaced has committed: {late}"


def _fill_the_disk(field: Field, run: str, chance: random.Random) -> None:
    """No room for checkpoints, until an attempt has failed of that."""
    folder = field.dir(run).checkpoints
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        until(lambda: [e for e in field.said(run, events.Ended) if "No space" in e.error], f"{run}: a full disk")  # type: ignore[union-attr]
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _ask_a_dead_slurm(field: Field, run: str, chance: random.Random) -> None:
    """squeue and sacct hang: `clipa status` is quick, and not wrong."""
    tools = field.folder / f"tools-{run}"
    tools.mkdir()
    for name in ("squeue", "sacct"):
        (tools / name).write_text("#!/bin/sh\nexec sleep 100\n")
        (tools / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    began = time.monotonic()
    done = subprocess.run([*CLIPA, "status", run, "--json"], cwd=field.folder, env=env, capture_output=True, check=True)
    assert time.monotonic() - began < 20, "two questions of 2 s, on a busy machine"
    assert b'"RUNNING"' in done.stdout, done.stdout


def _nothing(field: Field, run: str, chance: random.Random) -> None:
    """The reference."""


_BROKEN = 'setup = ["export PATH={folder}/broken-{what}:$PATH"]\nexclude = "node[3-4]"'
ON_TWO = Profile(nodes=2)
NODE_3 = Profile(partition="low", table='nodelist = "node3"', lane="node3")
NODE_4 = Profile(table='nodelist = "node4"', lane="node4")

TABLE = (
    Fault("nothing", _nothing),
    Fault("a rank is killed", _kill_rank, attempts=2),
    Fault("a rank of two nodes is killed", _kill_rank, attempts=2, profile=ON_TWO),
    Fault("the supervisor is killed", _kill_supervisor, attempts=2),
    Fault("the supervisor of the second node is killed", _kill_follower, attempts=2, profile=ON_TWO),
    Fault("the batch script is killed", _kill_batch_shell, attempts=2),
    Fault("scancel of the step", _cancel_step, attempts=2),
    Fault("scontrol requeue", _requeue, attempts=2),
    Fault("scontrol requeue, two nodes", _requeue, attempts=2, profile=ON_TWO),
    Fault("scontrol requeue, twice", _requeue_twice, attempts=3),
    Fault("the warning before the time limit", _warn, attempts=2),
    Fault("the time limit", _end_time, attempts=2),
    Fault("the time limit, the trainer hangs", _end_time_hung, attempts=2),
    Fault("preemption", _preempt, attempts=2, profile=NODE_3),
    Fault("the node crashes", _crash_node, attempts=2, profile=NODE_4),
    Fault("slurmd is killed", _kill_slurmd, profile=NODE_4),
    Fault("slurmctld is killed", _restart_controller),
    Fault("scontrol fails", _kill_rank, attempts=2, profile=Profile(table=_BROKEN.replace("{what}", "scontrol"))),
    Fault("scontrol and sbatch fail", _kill_rank, attempts=2, profile=Profile(table=_BROKEN.replace("{what}", "both"))),
    Fault("no requeue allowed", _kill_rank, attempts=2,
          profile=Profile(table='requeue = false\nexclude = "node[3-4]"')),
    Fault("an old attempt lives on", _old_attempt_lives, attempts=2),
    Fault("squeue and sacct hang", _ask_a_dead_slurm),
    Fault("clipa cancel, clipa resume", _cancel_and_resume, attempts=2),
    *([Fault("the disk is full", _fill_the_disk, attempts=2)] if os.geteuid() == 0 else []),  # mounts
    Fault("scancel", _scancel, state="CANCELLED"),
    Fault("clipa cancel", _cancel, state="CANCELLED"),
    Fault("broken data", _nothing, state="FAILED", says="00000.tar", bad_data=True),
)  # fmt: skip
BY_NAME = {fault.name: fault for fault in TABLE}

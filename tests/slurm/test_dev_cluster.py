"""cluster/dev: up in seconds, side by side, down without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.slurm import PROGRAM, Slurm, command, running

CLIPA = str(Path(sys.executable).parent / "clipa")


def _daemons(folder: Path) -> list[str]:
    """Every process whose command line or environment names the folder."""
    mark = str(folder).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
                if mark in line or mark in (entry / "environ").read_bytes():
                    found.append(line.replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def test_two_clusters_side_by_side_and_down_ends_exactly_its_own(slurm: Slurm) -> None:
    with running("--nodes", "1", "--gpus", "0", "--cpus", "4") as other:
        assert "node[1-2]" in slurm.ask("sinfo", "-h")
        assert "node1" in other.ask("srun", "-n1", "printenv", "SLURMD_NODENAME")
        job = other.ask("sbatch", "--parsable", "-n1", "--wrap", "setsid sleep 1000 & wait").strip()
        while other.ask("squeue", "-h", "-j", job, "-o", "%T").strip() != "RUNNING":
            pass
        assert "already up" in command("up", other.folder)
        folder = other.folder
        assert _daemons(folder)
    assert not _daemons(folder)
    assert slurm.ask("srun", "-n1", "--gpus=2", "printenv", "CUDA_VISIBLE_DEVICES").strip() == "0,1"


def test_a_killed_supervisor_is_cleared_by_the_next_up(tmp_path: Path) -> None:
    with running("--nodes", "1", "--gpus", "0") as cluster:
        record = json.loads((cluster.folder / "run" / "processes.json").read_text())
        os.kill(record["supervisor"][0], signal.SIGKILL)
        command("up", cluster.folder, "--nodes", "1", "--gpus", "0")
        assert "idle" in cluster.ask("sinfo", "-h", "-o", "%t")


def test_a_crashed_node_comes_back(slurm: Slurm) -> None:
    slurm.crash("node2")
    slurm.start("node2")
    assert slurm.ask("srun", "-w", "node2", "printenv", "SLURMD_NODENAME").strip() == "node2"
    done = subprocess.run([sys.executable, PROGRAM, "crash", slurm.folder, "node9"], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"no daemon 'node9'" in done.stderr


def test_a_killed_slurmd_is_started_again_beside_what_it_left(tmp_path: Path) -> None:
    with running("--nodes", "1", "--gpus", "0") as cluster:
        job = cluster.ask("sbatch", "--parsable", "-n1", "-o", "/dev/null", "--wrap", "sleep 1000").strip()
        while cluster.ask("squeue", "-h", "-j", job, "-o", "%T").strip() != "RUNNING":
            pass
        os.kill(int((cluster.folder / "run" / "slurmd.node1.pid").read_text()), signal.SIGKILL)
        cluster.start("node1")
        assert cluster.ask("srun", "-n1", "printenv", "SLURMD_NODENAME").strip() == "node1"
        folder = cluster.folder
    assert not _daemons(folder), "the steps that the killed one left are gone too"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["status"], 1, "not up"),
        (["down"], 0, "not up"),
        (["up", f"/tmp/{'x' * 60}"], 1, "give a shorter one"),
    ],
)
def test_the_command_line(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    words = [words[0], *(words[1:] or [str(tmp_path / "none")])]
    done = subprocess.run([CLIPA, "cluster", "dev", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr

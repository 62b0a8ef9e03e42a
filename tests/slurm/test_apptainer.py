"""Ranks in a real Apptainer on a real SLURM: the supervisor of a node starts them, and a killed one comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clipa.registry import events
from tests.slurm.field import Field, processes_with, states, until

if TYPE_CHECKING:
    from tests.services.engine import Engine

pytest_plugins = ["tests.services.engine", "tests.services.apptainer"]
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def sif(engine: Engine, image: str, apptainer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sif") / "clipa.sif"
    env = {**engine.environment, "PATH": f"{apptainer}:{os.environ['PATH']}"}
    words = [sys.executable, "-m", "clipa.cli.main", "image", "export", image, str(file)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file


def test_a_pipeline_on_two_nodes_in_apptainer(field: Field, apptainer: Path, sif: Path) -> None:
    field.profile(
        nodes=2,
        table=f'setup = ["export PATH={apptainer}:$PATH"]\n[container]\nruntime = "apptainer"\nimage = "{sif}"\n'
        f'mounts = ["{field.folder}/bucket"]',
    )
    runs = field.submit("pipeline", "--set", "phases.pretrain.samples=3200", "--set", "phases.finetune.samples=320")
    field.at_step(runs[0], 5)
    inside = [pid for pid, _ in processes_with(f"python -m clipa.train {field.dir(runs[0]).path}")]
    roots = {os.readlink(f"/proc/{pid}/root") for pid in inside}
    mounts = {os.stat(f"/proc/{pid}/ns/mnt").st_ino for pid in inside} - {os.stat("/proc/self/ns/mnt").st_ino}
    assert roots, "the ranks run"
    assert mounts, "in a place of their own"
    os.kill(field.last(runs[0], events.Spawned).pids[0], signal.SIGKILL)  # type: ignore[union-attr]
    field.run("wait", *runs, timeout=1200)
    assert states(field, *runs) == ["DONE"] * 3
    assert field.dir(runs[0]).claimed() == [1, 2]
    until(lambda: not field.processes(), "no process is left")
    said = field.slurm.ask("scontrol", "show", "job", field.job(runs[2]))
    assert '"image":"sha256:' in said, "the job's comment says which image"

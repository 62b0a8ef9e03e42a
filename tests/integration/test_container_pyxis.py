"""`runtime = "pyxis"` with a stand-in for its srun; pyxis itself cannot be installed from packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.services import pyxis

if TYPE_CHECKING:
    from tests.services.slurm import Slurm

pytest_plugins = ["tests.services.slurm"]
CLIPA = str(Path(sys.executable).parent / "clipa")
SMALL = ("--set", "phases.pretrain.samples=5120", "--set", "phases.pretrain.evaluate.sets=[]")


def _project(folder: Path, monkeypatch: pytest.MonkeyPatch, real: str, profile: str) -> Path:
    """A profile with the runtime, an image that is a file, and the stand-in first on PATH. Where its words are kept."""
    tools = folder / "tools"
    tools.mkdir()
    program = tools / "srun"
    program.write_text(f"#!{sys.executable}\n{Path(pyxis.__file__).read_text()}")
    program.chmod(0o755)
    log = folder / "srun.log"
    log.touch()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("CLIPA_TEST_SRUN", real)
    monkeypatch.setenv("CLIPA_TEST_PYXIS_LOG", str(log))
    (folder / "clipa.sqsh").write_bytes(b"hsqs")
    (folder / "clipa.toml").write_text('cluster = "here.toml"\nrun_root = "runs"\n')
    names = ("PATH", "CLIPA_TEST_SRUN", "CLIPA_TEST_PYXIS_LOG")  # a job does not have the submitter's PATH
    env = ", ".join(f'{name} = "{os.environ[name]}"' for name in names)
    (folder / "here.toml").write_text(
        f'env = {{ {env} }}\ngpus = 0\nthreads = 1\nloader_workers = 0\ncache = "{folder}/cache"\n{profile}'
        f'[container]\nruntime = "pyxis"\nimage = "{folder}/clipa.sqsh"\npython = "{sys.executable}"\n'
    )
    return log


def _run(folder: Path, *words: str) -> str:
    done = subprocess.run([CLIPA, *words], cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_word_is_one_that_pyxis_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _project(tmp_path, monkeypatch, "", "processes = 1\n")
    (run,) = json.loads(_run(tmp_path, "submit", "pretrain", "demo", *SMALL, "--json"))["runs"]
    _run(tmp_path, "wait", run)
    (line,) = log.read_text().splitlines()
    assert f"--container-image={tmp_path}/clipa.sqsh" in line
    assert f"{tmp_path}/runs/.code/" in line, "a file that nothing is known of gets the code from the host"
    assert f"-m clipa.train {tmp_path}/runs/{run} --attempt 1" in line
    plan = json.loads((tmp_path / "runs" / run / "plan.json").read_text())
    assert plan["container"]["kind"] == "file"


@pytest.mark.long
def test_a_nested_srun_on_a_real_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Slurm) -> None:
    """Two nodes: each supervisor starts a step of its own on its own node, beside the step that it lives in."""
    real = shutil.which("srun")
    assert real is not None
    site = f'[slurm]\nconf = "{slurm.conf}"\npartition = "main"\ntime = "00:30:00"\ncpus = 4\n'
    log = _project(tmp_path, monkeypatch, real, f'backend = "slurm"\nnodes = 2\nprocesses = 1\n{site}')
    (run,) = json.loads(_run(tmp_path, "submit", "pretrain", "demo", *SMALL, "--json"))["runs"]
    _run(tmp_path, "wait", run)
    lines = log.read_text().splitlines()
    assert len(lines) == 2
    assert len({word for line in lines for word in line.split() if word.startswith("--nodelist=")}) == 2
    assert all("--overlap" in line and "--cpus-per-task=1" in line for line in lines)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--container-image=x.sqsh/", ""),
        ("--container-image=/no/such.sqsh", "no such image"),
        ("--container-mounts=/tmp:relative", "bad value"),
        ("--container-mounts=/no/such:/x:ro", "no such source"),
        ("--container-env=A=B", "bad value"),
        ("--container-env=NOT_SET_ANYWHERE", "not set"),
        ("--container-bind=/x", "no such option"),
        ("--container-writable=yes", "bad value"),
    ],
)
def test_the_stand_in_finds_faults(word: str, said: str) -> None:
    found = pyxis.faults(["--overlap", word])
    assert (said in found[0]) if said else not found

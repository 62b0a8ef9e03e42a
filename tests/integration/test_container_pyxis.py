"""`runtime = "pyxis"` with a stand-in for its srun; pyxis itself cannot be installed from packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clipa.registry.run_dir import RunDir
from tests.services import enroot, pyxis, registry
from tests.services.require import require

if TYPE_CHECKING:
    from tests.services.slurm import Slurm

pytest_plugins = ["tests.services.slurm", "tests.services.digits"]
CLIPA = str(Path(sys.executable).parent / "clipa")
LONG = ("--set", "phases.pretrain.samples=200000", "--set", "phases.pretrain.checkpoint.every_samples=1280")
SMALL = ("--set", "phases.pretrain.samples=5120", "--set", "phases.pretrain.evaluate.sets=[]")


def _project(folder: Path, monkeypatch: pytest.MonkeyPatch, real: str, profile: str, image: str = "") -> Path:
    """A profile with the runtime and an image, and the stand-ins first on PATH. Where their words are kept."""
    tools = folder / "tools"
    tools.mkdir()
    for name, stand_in in (("srun", pyxis), ("enroot", enroot)):
        program = tools / name
        program.write_text(f"#!{sys.executable}\n{Path(stand_in.__file__).read_text()}")
        program.chmod(0o755)
    log = folder / "srun.log"
    log.touch()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("CLIPA_TEST_SRUN", real)
    monkeypatch.setenv("CLIPA_TEST_PYXIS_LOG", str(log))
    default = folder / "clipa.sqsh"
    default.write_bytes(b"hsqs")
    (folder / "clipa.toml").write_text('cluster = "here.toml"\nrun_root = "runs"\n')
    names = ("PATH", "CLIPA_TEST_SRUN", "CLIPA_TEST_PYXIS_LOG")  # a job does not have the submitter's PATH
    env = ", ".join(f'{name} = "{os.environ[name]}"' for name in names)
    (folder / "here.toml").write_text(
        f'env = {{ {env} }}\ngpus = 0\nthreads = 1\nloader_workers = 0\ncache = "{folder}/cache"\n{profile}'
        f'[container]\nruntime = "pyxis"\nimage = "{image or default}"\npython = "{sys.executable}"\n'
    )
    return log


def _run(folder: Path, *words: str) -> str:
    done = subprocess.run([CLIPA, *words], cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_word_is_one_that_pyxis_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_digits: None) -> None:
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
    """Two nodes: each supervisor starts a step of its own on its own node, beside the step that it lives in. The image
    is a registry's tag, which moves; everything that is kept of the run says which it was.
    """
    real = shutil.which("srun")
    assert real is not None
    require(shutil.which("mksquashfs") is not None, "squashfs-tools not installed")
    site = f'[slurm]\nconf = "{slurm.conf}"\npartition = "main"\ntime = "00:30:00"\ncpus = 4\n'
    with registry.serving(tmp_path) as address:
        first = registry.put(address, "me/clipa", "1", {"org.clipa.content": "one"})
        profile = f'backend = "slurm"\nnodes = 2\nprocesses = 1\n{site}'
        log = _project(tmp_path, monkeypatch, real, profile, f"{address}/me/clipa:1")
        (run,) = json.loads(_run(tmp_path, "submit", "pretrain", "demo", *LONG, "--json"))["runs"]
        folder = RunDir(tmp_path / "runs" / run)
        _until(lambda: bool(folder.complete_checkpoints()))
        lines = log.read_text().splitlines()
        assert sum("clipa.train" in line for line in lines) == 2
        assert sum("clipa.attempt.trial" in line for line in lines) == 2, "the all-reduce is in the image too"
        assert len({word for line in lines for word in line.split() if word.startswith("--nodelist=")}) == 2
        assert all("--overlap" in line and "--cpus-per-task=1" in line for line in lines)
        file = tmp_path / "runs" / ".images" / f"{first[7:]}.sqsh"
        assert all(f"--container-image={file}" in line for line in lines)

        digest = json.loads(file.with_name(f"{file.name}.json").read_text())["digest"]
        assert f'"image":"{digest}"' in slurm.ask("scontrol", "show", "job"), "the job's comment says which image"
        kept = json.loads((folder.provenance / "image.json").read_text())
        assert (kept["digest"], kept["source"]) == (digest, f"{address}/me/clipa@{first}")
        assert kept == json.loads(folder.plan.read_text())["container"]
        shown = _run(tmp_path, "runs", "show", run)
        assert digest in shown
        assert f"made from {address}/me/clipa@{first}" in shown
        _run(tmp_path, "cancel", run)

        second = registry.put(address, "me/clipa", "1", {"org.clipa.content": "two"})
        done = subprocess.run([CLIPA, "resume", run], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert f"{address}/me/clipa:1 is {second[7:19]} now; the run goes on with {first[7:19]}" in done.stderr
        _until(lambda: len(log.read_text().splitlines()) == 8)
        assert log.read_text().count(f"--container-image={file}") == 8
        _run(tmp_path, "cancel", run)


def _until(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not reached"
        time.sleep(0.1)


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

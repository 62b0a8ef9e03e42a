"""The local machine with `runtime = "apptainer"`, on a real Apptainer, from a .sif that `clipa image export` wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clipa.registry.run_dir import RunDir
from clipa.spec import plan as plans

if TYPE_CHECKING:
    from tests.services.engine import Engine

pytest_plugins = ["tests.services.engine", "tests.services.apptainer", "tests.services.digits"]
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

CLIPA = str(Path(sys.executable).parent / "clipa")


@pytest.fixture(scope="module")
def sif(engine: Engine, image: str, apptainer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sif") / "clipa.sif"
    env = {**engine.environment, "PATH": f"{apptainer}:{os.environ['PATH']}"}
    words = [CLIPA, "image", "export", image, str(file)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file


def test_a_pipeline_in_apptainer(
    apptainer: Path, sif: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_digits: None
) -> None:
    monkeypatch.setenv("PATH", f"{apptainer}:{os.environ['PATH']}")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.setenv("NOT_PASSED", "leak")
    (tmp_path / "clipa.toml").write_text('cluster = "here.toml"\nrun_root = "runs"\n')
    (tmp_path / "here.toml").write_text(
        f'gpus = 0\nthreads = 1\nprocesses = 2\nloader_workers = 0\ncache = "{tmp_path}/cache"\n'
        f'[container]\nruntime = "apptainer"\nimage = "{sif}"\n'
    )

    def run(*words: str, code: int = 0) -> str:
        done = subprocess.run([CLIPA, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    small = ["--set", "phases.pretrain.samples=6400", "--set", "phases.finetune.samples=6400"]
    runs = json.loads(run("submit", "pipeline", "demo", *small, "--json"))["runs"]
    run("wait", *runs)
    plan = plans.decode(RunDir(tmp_path / "runs" / runs[0]).plan.read_bytes())
    assert plan.container is not None
    assert plan.container.kind == "file"
    assert plan.container.digest == json.loads(sif.with_name("clipa.sif.json").read_text())["digest"]
    assert plan.container.code == "", "the file has the very code that runs here"
    assert plan.container.digest in run("runs", "show", runs[0])

    inside = subprocess.run(
        ["apptainer", "exec", "--containall", str(sif), "/opt/clipa/bin/python", "-c",
         "import os, clipa; print(os.environ.get('NOT_PASSED'), clipa.__file__)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert inside.startswith("None /opt/clipa/"), "the host's environment stays out"

    (long,) = json.loads(run("submit", "pretrain", "demo", "--set", "phases.pretrain.samples=200000", "--json"))["runs"]
    copy = sif.with_name("kept.sif")
    sif.rename(copy)
    try:
        run("cancel", long)
        assert "is gone" in run("resume", long, code=2)
        sif.write_bytes(b"another file")
        assert "another one now" in run("resume", long, code=2)
    finally:
        copy.rename(sif)

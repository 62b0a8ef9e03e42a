"""Commands that are typed in a folder of somebody else's: nothing in it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
import typer

from clipa.cli.main import app
from tests.unit.test_cli_hostile import make

NAMES = ("msgspec", "json", "torch", "numpy", "PIL", "typer", "rich", "submitit", "fsspec", "s3fs", "random", "tomllib",
         "timm", "clipa", "sitecustomize", "usercustomize", "sklearn", "xxhash", "docker", "safetensors", "webdataset",
         "multiprocessing", "simplejpeg", "tokenizers", "open_clip")  # fmt: skip
WORDS = {
    "bench loss": [], "cancel": ["r1"], "convert": ["weights.safetensors", "out"], "data demo": ["digits"],
    "data doctor": ["shards"], "data index": ["shards"], "data shrink": ["shards", "small"], "data stage": ["shards"],
    "data verify": ["shards"], "image build": [], "logs": ["r1"], "reduce show": ["--out", "x.png"],
    "resume": ["r1"], "runs plot": ["--group", "r1"], "runs show": ["r1"], "submit pipeline": ["demo", "--dry-run"],
    "submit pretrain": ["demo", "--dry-run"],
    "sweep": ["demo", "--over", "phases.pretrain.batch=32,64", "--dry-run"],
    "wait": ["r1"], "plan": ["demo"],
    "cluster init": ["mine"], "submit eval": ["demo", "--dry-run"], "submit finetune": ["demo", "--dry-run"],
}  # fmt: skip
"""Arguments that bring a command beyond its usage message; the others get none."""
SKIPPED = {
    "bench": "they time the machine for minutes",
    "cluster dev": "starts real daemons, with a program of clipa's own folder",
}


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    children = getattr(command, "commands", {})
    if not children and not " ".join(path).startswith(tuple(SKIPPED)):
        yield " ".join(path)
    for name, child in children.items():
        yield from _commands(child, (*path, name))


QUICK = ["data index", "data stage", "status"]
COMMANDS = sorted(_commands(typer.main.get_command(app)))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    (folder / "shards").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__file__ + '\\n')\n")
    make(tmp_path / "runs", "r1")
    return folder


@pytest.mark.parametrize("commands", [QUICK, pytest.param(COMMANDS, marks=pytest.mark.long)], ids=["some", "all"])
def test_no_command_imports_from_the_current_folder(hostile: Path, commands: list[str]) -> None:
    environment = {**os.environ, "CLIPA_RUN_ROOT": str(hostile.parent / "runs"), "PYTHONPATH": f":{hostile.parent}:."}
    clipa = Path(sys.executable).parent / "clipa"

    def run(command: str) -> tuple[str, str]:
        argv = [str(clipa), *command.split(), *WORDS.get(command, [])]
        # The interpreter itself would import sitecustomize by this PYTHONPATH before a line of clipa's runs.
        done = subprocess.run(["env", "-u", "PYTHONPATH", *argv], cwd=hostile, env=environment, capture_output=True,
                              text=True, check=False, timeout=120)  # fmt: skip
        return command, done.stderr

    with ThreadPoolExecutor(4) as pool:
        said = dict(pool.map(run, commands))
    ran = hostile.parent / "ran"
    assert not ran.exists(), ran.read_text()
    assert not [command for command, text in said.items() if "Traceback" in text]
    assert not [command for command, text in said.items() if "Usage:" in text and command in WORDS], said


@pytest.mark.parametrize("entries", [":/x", "/x:", ".", "theirs:/x"])
def test_relative_entries_of_pythonpath_reach_no_child(hostile: Path, entries: str) -> None:
    code = (
        "import os, subprocess, sys; from clipa.interpreter import module_argv, protect; protect();"
        "import msgspec; subprocess.run([sys.executable, '-c', 'import msgspec']); "
        "subprocess.run(module_argv('json.tool', '--help'), stdout=subprocess.DEVNULL); print(os.environ['PYTHONPATH'])"
    )
    where = hostile.parent if entries.startswith("theirs") else hostile
    for name in ("sitecustomize", "usercustomize", "clipa", "random"):
        (hostile / f"{name}.py").unlink()  # imported before a line of clipa's runs
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=where, env={**os.environ, "PYTHONPATH": entries},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == ("/x" if "/x" in entries else "")
    assert not (hostile.parent / "ran").exists(), (hostile.parent / "ran").read_text()

"""The base install, without torch and numpy: every command works, or says in a sentence what to install."""

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

ABSENT = (
    "torch torchvision timm webdataset open_clip tokenizers safetensors numpy PIL simplejpeg sklearn scipy obstore nltk"
)
BLOCKER = f"""
import importlib.machinery as machinery
find = machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {ABSENT.split()!r} else find(name, path, target)
machinery.PathFinder.find_spec = staticmethod(find_spec)
"""
NEEDS = "needs clipa's training part"
COMMANDS = {
    "status": ("", 0, ""),
    "logs": ("latest", 2, "no runs"),
    "cancel": ("latest", 2, "no runs"),
    "resume": ("latest", 2, "no runs"),
    "wait": ("latest", 2, "no runs"),
    "plan": ("demo", 0, "digits"),
    "sweep": ("demo --over phases.pretrain.image.size=4,8", 2, "clipa[train]"),
    "recipes": ("", 0, "demo"),
    "doctor": ("", 0, "cannot train here"),
    "convert": ("./weights.npz out", 2, ""),
    "submit pretrain": ("demo", 2, "clipa[train]"),
    "submit finetune": ("demo", 2, ""),
    "submit eval": ("demo", 2, ""),
    "submit pipeline": ("demo", 2, "clipa[train]"),
    "runs plot": ("--group law", 2, ""),
    "runs list": ("", 0, ""),
    "runs show": ("latest", 2, "no runs"),
    "data stage": ("./empty --to there", 2, ""),
    "data index": ("./empty", 2, ""),
    "data verify": ("./empty", 2, ""),
    "data ls": ("", 0, "empty"),
    "data gc": ("--limit 0", 0, ""),
    "data doctor": ("./empty", 2, NEEDS),
    "data shrink": ("./empty there --short-side 64", 2, NEEDS),
    "data demo": ("there", 2, NEEDS),
    "image build": ("", 2, ""),
    "image list": ("", 2, "docker"),
    "image inspect": ("latest", 2, "docker"),
    "image push": ("latest x.example/y", 2, "docker"),
    "image export": ("latest x.tar", 2, "docker"),
    "image prune": ("", 2, "docker"),
    "cluster init": ("mine.toml", 1, ""),
    "cluster dev up": ("--help", 0, ""),
    "cluster dev down": ("--help", 0, ""),
    "cluster dev status": ("--help", 0, ""),
    "bench stage": ("s3://bucket/x --help", 0, ""),
    "bench submit": ("--help", 0, ""),
    "bench data": ("demo", 2, NEEDS),
    "bench train": ("demo", 2, NEEDS),
    "reduce show": ("", 2, NEEDS),
}
"""Command -> its arguments, its exit code, and what it says."""


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from _commands(below, (*path, name))
    else:
        yield " ".join(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose `sitecustomize` hides what the base install lacks, from children too."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    return folder


def test_every_command_works_or_says_what_to_install(base: Path, tmp_path: Path) -> None:
    assert {*_commands(typer.main.get_command(app))} == {*COMMANDS}, "a new command belongs into the list"
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.npz").write_bytes(b"?")
    environment = {**os.environ, "PYTHONPATH": str(base), "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}

    def run(command: str) -> str:
        words, code, said = COMMANDS[command]
        argv = [sys.executable, "-P", "-m", "clipa.cli.main", *command.split(), *words.split()]
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        out = done.stdout + done.stderr
        fine = "Traceback" not in out and done.returncode == code and said.lower() in out.lower()
        return "" if fine else f"clipa {command} {words}: exit code {done.returncode}\n{out}"

    with ThreadPoolExecutor(2) as pool:
        wrong = [report for report in pool.map(run, COMMANDS) if report]
    assert not wrong, "\n".join(wrong)

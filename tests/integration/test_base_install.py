"""The base install, without torch and numpy: every command works, or says in a sentence what to install."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import click
import pytest
import typer
from packaging.requirements import Requirement

from clipa.cli.main import app
from clipa.spec import training_part

ROOT = Path(__file__).resolve().parents[2]
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
    "bench stage": ("./empty", 2, "no shards here"),
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


def _installed_with(requirements: list[str]) -> Iterator[metadata.Distribution]:
    """Yield the packages that pip would install for these requirements, and what those require."""
    seen, todo = set(), [Requirement(line) for line in requirements]
    while todo:
        wanted = todo.pop()
        key = (wanted.name.lower(), frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        yield (found := metadata.distribution(wanted.name))
        for line in found.requires or ():
            more = Requirement(line)
            if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)):
                todo.append(more)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the base install and nothing else: links, so it is made at once."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for found in _installed_with(declared):
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / name).exists():
                (packages / name).symlink_to(str(found.locate_file(name)))
    (packages / "clipa.pth").write_text(f"{ROOT}\n")
    return folder / "bin" / "python"


def test_every_command_works_or_says_what_to_install(base: Path, tmp_path: Path) -> None:
    assert {*_commands(typer.main.get_command(app))} == {*COMMANDS}, "a new command belongs into the list"
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.npz").write_bytes(b"?")
    environment = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none.sock"}

    def run(command: str) -> str:
        words, code, said = COMMANDS[command]
        argv = [str(base), "-P", "-m", "clipa.cli.main", *command.split(), *words.split()]
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        out = done.stdout + done.stderr
        fine = "Traceback" not in out and done.returncode == code and said.lower() in out.lower()
        return "" if fine else f"clipa {command} {words}: exit code {done.returncode}\n{out}"

    with ThreadPoolExecutor(2) as pool:
        wrong = [report for report in pool.map(run, COMMANDS) if report]
    assert not wrong, "\n".join(wrong)


def test_the_training_part_is_what_the_extra_installs() -> None:
    """A package that one command forgets to ask for would be a traceback where just it is missing."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    imported = {"open_clip_torch": "open_clip", "pillow": "PIL", "scikit-learn": "sklearn"}
    names = {re.split(r"[><=\[ ]", line)[0] for line in extra}
    assert {imported.get(name, name) for name in names} - {"sklearn"} == set(training_part.PACKAGES)

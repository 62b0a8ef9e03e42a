"""A real SLURM: cluster/dev with several nodes and made-up GPUs, under one short temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.require import require

PACKAGES = "slurm-wlm munge slurmdbd mariadb-server-core"
PROGRAM = Path(__file__).resolve().parents[2] / "cluster" / "dev"
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@dataclass(frozen=True)
class Slurm:
    """A running cluster."""

    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    def ask(self, *argv: str, check: bool = True, timeout: float = 60) -> str:
        """The output of a SLURM command."""
        done = subprocess.run(
            argv, env={**os.environ, "SLURM_CONF": str(self.conf)}, capture_output=True, text=True,
            timeout=timeout, check=False, cwd=self.folder,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{argv}: {done.returncode} {done.stdout} {done.stderr}"
        return done.stdout

    def crash(self, name: str) -> None:
        """A power cut of a node, or of slurmctld."""
        command("crash", self.folder, name)

    def start(self, name: str) -> None:
        """Boot it again."""
        command("start", self.folder, name)


def command(word: str, folder: Path, *options: str) -> str:
    """Run cluster/dev; its output."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), word, str(folder), *options], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"cluster/dev {word}: {done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def running(*options: str) -> Iterator[Slurm]:
    """A cluster for as long as the block lasts."""
    programs = ["slurmctld", "slurmd", "munged", *(["slurmdbd", "mariadbd"] if "--accounting" in options else [])]
    lacking = [name for name in programs if shutil.which(name, path=_PATH) is None]
    require(not lacking, f"{', '.join(lacking)} not installed: apt-get install --no-install-recommends {PACKAGES}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: slurmstepd's sockets have at most 108 bytes
    try:
        command("up", folder, *options)
        yield Slurm(folder)
    finally:
        command("down", folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """One cluster for the whole session, without accounting: 2 nodes with 2 made-up GPUs each."""
    with running("--nodes", "2", "--gpus", "2", "--cpus", "16") as started:
        yield started

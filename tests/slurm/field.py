"""A stranger's project on a real SLURM: the command line, and a look behind it."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from clipa.registry import events
from clipa.registry.run_dir import RunDir
from tests.e2e.conftest import RECIPE, Road, _shard
from tests.services.slurm import Slurm

PROFILE = """\
backend = "slurm"
gpus = {gpus}
threads = 1
loader_workers = 1
max_attempts = {attempts}
nodes = {nodes}
cache = "{folder}/cache"
{top}
[slurm]
conf = "{conf}"
time = "00:30:00"
partition = "{partition}"
lost_after_s = 5
cpus = 1
mem = "100M"
{table}
"""


class Field(Road):
    """A project folder whose cluster is a SLURM."""

    def __init__(self, folder: Path, slurm: Slurm) -> None:
        super().__init__(folder)
        self.slurm = slurm
        self.quiet = threading.Lock()  # held while something is submitted, and while SLURM cannot take anything

    def profile(
        self,
        name: str = "here",
        partition: str = "main",
        nodes: int = 1,
        attempts: int = 3,
        table: str = "",
        top: str = "",
        gpus: int = 0,
    ) -> None:
        """Write a cluster profile."""
        (self.folder / f"{name}.toml").write_text(
            PROFILE.format(
                attempts=attempts, nodes=nodes, folder=self.folder, top=top, conf=self.slurm.conf, partition=partition,
                gpus=gpus,
                table=table,
            )
        )  # fmt: skip

    def dir(self, run: str) -> RunDir:
        return RunDir(self.folder / "runs" / run)

    def said(self, run: str, *kinds: type[events.Event]) -> list[events.AnyEvent]:
        """What has happened to a run, oldest first."""
        files = sorted(self.dir(run).events.glob("*.jsonl")) if self.dir(run).events.is_dir() else []
        found = [event for path in files for event in events.read(path) if isinstance(event, kinds)]
        return sorted(found, key=lambda event: event.t)

    def last(self, run: str, kind: type[events.Event]) -> events.AnyEvent:
        return until(lambda: self.said(run, kind), f"{run}: {kind.__name__}")[-1]

    def job(self, run: str) -> str:
        found = until(lambda: self.said(run, events.Submitted, events.Started), f"{run}: a job")
        return str(found[-1].job)

    def at_step(self, run: str, step: int, attempt: int = 1) -> None:
        """Wait until a run's trainer has done so many steps."""

        def reached() -> bool:
            return (self.dir(run).beaten_step(attempt) or -1) >= step

        until(reached, f"{run}: step {step} of attempt {attempt}")

    def digest(self, run: str) -> str:
        """The digest of a run's final weights."""
        step, path = self.dir(run).complete_checkpoints()[-1]
        files = msgspec.json.decode((path / "COMPLETE").read_bytes())
        return f"{step}:{files['model.safetensors']['sha256']}"

    def queue(self, run: str) -> list[str]:
        """The jobs of a run that SLURM has not ended yet."""
        out = self.slurm.ask("squeue", "-h", "-o", "%i|%j")
        return [line.partition("|")[0] for line in out.splitlines() if f"|clipa-{run}-a" in line]

    def left(self, run: str) -> list[str]:
        """Processes that work for a run."""
        return [line for line in self.processes() if run in line]


def until(test: Callable[[], object], what: str, seconds: float = 600.0) -> object:  # type: ignore[misc]
    """Poll until the test is true; its answer."""
    deadline = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


def make(folder: Path, slurm: Slurm) -> Field:
    """A project with data and a recipe of 300 steps, a checkpoint every 30."""
    for split, count, seed in (("train", 2, 1), ("test", 1, 9)):
        (folder / "bucket" / split).mkdir(parents=True)
        for shard in range(count):
            _shard(folder / "bucket" / split / f"{shard:05d}.tar", shard * 64, 64, seed)
    recipe = RECIPE.replace("samples = 1600", "samples = 9600").replace("every_samples = 160 ", "every_samples = 960 ")
    (folder / "squares.toml").write_text(recipe)
    (folder / "clipa.toml").write_text(
        'recipe = "squares.toml"\ncluster = "here.toml"\nrun_root = "runs"\n'
        f'[datasets]\nsquares = "{folder}/bucket/train"\n'
        f'held-out = {{ url = "{folder}/bucket/test/{{00000..00000}}.tar" }}\n'
    )
    field = Field(folder, slurm)
    field.profile()
    return field


def processes_with(mark: str) -> Iterator[tuple[int, str]]:
    """(pid, command line) of every process that has a text in its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if mark in line:
                yield int(entry.name), line


def states(field: Field, *runs: str) -> list[str]:
    """The states of runs, from one command."""
    found = {s["run"]: s["state"] for s in json.loads(field.run("status", *runs, "--json"))["runs"]}
    return [found[run] for run in runs]

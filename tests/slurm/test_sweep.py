"""A sweep on a real SLURM: one job array a phase, element by element."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest

from clipa.registry import events
from tests.e2e.conftest import CLIPA
from tests.slurm.field import Field, states, until

AXIS = "phases.pretrain.optim.lr"
LONG = "phases.pretrain.samples=400000"
SHORT = ["--set", "phases.pretrain.samples=3200", "--set", "phases.finetune.samples=320"]


def _sweep(field: Field, lrs: str, *words: str) -> dict[str, list[str]]:
    """Submit a sweep over pretrain and finetune. Returns phase -> runs, in the order of the points."""
    recipe = (field.folder / "squares.toml").read_text()
    (field.folder / "squares.toml").write_text(recipe.partition("[phases.eval]")[0])
    said = json.loads(field.run("sweep", "squares.toml", "--over", f"{AXIS}={lrs}", "--json", *words))
    runs = sorted(said["runs"])
    return {phase: [run for run in runs if run.endswith(phase)] for phase in ("pretrain", "finetune")}


def _arrays(field: Field) -> dict[str, list[str]]:
    """Base id -> what squeue says of each element: index, state, dependency."""
    found: dict[str, list[str]] = {}
    for line in field.slurm.ask("squeue", "-h", "-r", "-o", "%i|%T|%E|%j").splitlines():
        ident, *rest = line.split("|")
        found.setdefault(ident.partition("_")[0], []).append("|".join([ident.partition("_")[2], *rest]))
    return found


def _killed(field: Field, run: str) -> None:
    field.at_step(run, 5)
    os.kill(field.last(run, events.Spawned).pids[0], signal.SIGKILL)  # type: ignore[union-attr]


def _at_once_and_killed(field: Field, lrs: str, at_once: int) -> None:
    """The limit holds, and a rank that is killed costs its own element an attempt, and no other one."""
    runs = _sweep(field, lrs, "--at-once", str(at_once), "--name", "law", *SHORT)
    first, second = (field.job(runs[phase][0]).partition("_")[0] for phase in ("pretrain", "finetune"))
    assert field.slurm.ask("squeue", "-h", "-o", "%E", "-j", second).startswith(f"aftercorr:{first}_*")
    assert len(_arrays(field)) == 2, "one array a phase"
    _killed(field, runs["pretrain"][-1] if at_once > 1 else runs["pretrain"][0])
    seen = 0

    def over() -> bool:
        nonlocal seen
        lines = _arrays(field).get(first, [])
        seen = max(seen, sum("|RUNNING|" in line for line in lines))
        return not _arrays(field)

    until(over, "an empty queue")
    assert seen == at_once
    everything = runs["pretrain"] + runs["finetune"]
    assert states(field, *everything) == ["DONE"] * len(everything)
    attempts = [len(field.dir(run).claimed()) for run in everything]
    assert sorted(attempts) == [1] * (len(everything) - 1) + [2]
    assert {field.job(run).partition("_")[0] for run in everything} == {first, second}, "nothing was submitted again"
    numbers = [field.job(run).partition("_")[2] for run in runs["pretrain"]]
    assert numbers == [str(n + 1) for n in range(len(numbers))], "the index is the number of the point"
    until(lambda: not field.processes(), "no process")


def test_points_are_elements_and_a_killed_one_comes_back_alone(field: Field) -> None:
    _at_once_and_killed(field, "5e-3,4e-3", 1)


@pytest.mark.long
def test_four_points_of_two_phases_two_at_once(field: Field) -> None:
    _at_once_and_killed(field, "5e-3,4e-3,3e-3,2e-3", 2)


@pytest.mark.long
def test_cancel_and_resume_of_elements(field: Field) -> None:
    runs = _sweep(field, "5e-3,4e-3", "--at-once", "1", "--set", LONG)
    one, two = runs["pretrain"]
    field.at_step(one, 3)
    waiting = field.status(two)
    assert (waiting["state"], "JobArrayTaskLimit" in str(waiting["why"])) == ("QUEUED", True)
    field.run("cancel", one)
    assert states(field, one, runs["finetune"][0]) == ["CANCELLED", "BLOCKED"]
    until(lambda: field.status(two)["state"] in ("STAGING", "RUNNING"), "the next one has its place")
    group = one.partition("-01-")[0]
    field.run("cancel", group)
    until(lambda: not _arrays(field), "an empty queue")
    again = field.run("resume", group).split()
    assert sorted(again) == sorted(runs["pretrain"] + runs["finetune"])
    assert len(_arrays(field)) == 2, "arrays again"
    assert field.slurm.ask("squeue", "-h", "-o", "%E", "-j", field.job(runs["finetune"][0])).startswith("aftercorr:")
    field.run("cancel", group)
    until(lambda: not _arrays(field), "an empty queue")
    assert states(field, one, two) == ["CANCELLED"] * 2
    until(lambda: not field.processes(), "no process")


def test_kill_9_of_the_submitter_of_an_array(field: Field) -> None:
    """SLURM has the first array, nobody has written that down, and the second one was never submitted."""
    tools = field.folder / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(f'#!/bin/bash\n{shutil.which("sbatch")} --hold "$@"; kill -9 $PPID\n')
    (tools / "sbatch").chmod(0o755)
    recipe = (field.folder / "squares.toml").read_text()
    (field.folder / "squares.toml").write_text(recipe.partition("[phases.eval]")[0])
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    words = ["sweep", "squares.toml", "--over", f"{AXIS}=5e-3,4e-3", "--set", LONG]
    done = subprocess.run([*CLIPA, *words], cwd=field.folder, env=env, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    runs = sorted(path.name for path in (field.folder / "runs").glob("2*"))
    (base,) = _arrays(field)
    pretrain, finetune = ([run for run in runs if run.endswith(phase)] for phase in ("pretrain", "finetune"))
    assert not field.said(pretrain[0], events.Submitted)
    until(lambda: states(field, *finetune) == ["INTERRUPTED"] * 2, "the rest is known to be lost", 60)
    assert [field.status(run)["job"] for run in pretrain] == [f"{base}_1", f"{base}_2"], "adopted"
    assert [field.job(run) for run in pretrain] == [f"{base}_1", f"{base}_2"], "and that is written down"
    group = runs[0].partition("-01-")[0]
    assert sorted(field.run("resume", group).split()) == finetune
    assert len(_arrays(field)) == 2
    assert f"aftercorr:{base}_*" in field.slurm.ask("squeue", "-h", "-o", "%E", "-j", field.job(finetune[0]))
    field.run("cancel", group)
    until(lambda: not _arrays(field), "an empty queue")

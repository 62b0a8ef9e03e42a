"""The whole road on a real SLURM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from clipa.registry import events
from tests.e2e.conftest import CLIPA
from tests.slurm.field import Field, states, until


def test_a_pipeline_on_two_nodes_is_a_chain_of_jobs(field: Field) -> None:
    field.profile(nodes=2, table="allreduce_s = 0")
    began = time.monotonic()
    runs = field.submit("pipeline", "--name", "first", "--set", "phases.pretrain.samples=1600")
    assert time.monotonic() - began < 15, "submit returns at once"
    jobs = [field.job(run) for run in runs]
    chain = field.slurm.ask("squeue", "-h", "-o", "%i %E", "-j", ",".join(jobs))
    assert f"{jobs[1]} afterok:{jobs[0]}" in chain
    assert f"{jobs[2]} afterok:{jobs[1]}" in chain
    again = json.loads(field.run("submit", "pipeline", "--name", "first", "--json",
                                 "--set", "phases.pretrain.samples=1600"))  # fmt: skip
    assert again["runs"] == runs, "the same name is the same work"
    field.run("wait", *runs)
    assert states(field, *runs) == ["DONE"] * 3
    assert len(field.said(runs[0], events.NodeEnded)) == 1
    score = json.loads(field.run("status", runs[2], "--json"))["runs"][0]["scores"][0]
    assert score["metrics"]["top1"] > 60, "four flat colours are easy"
    assert "step" in field.run("logs", runs[0])
    until(lambda: not field.queue(runs[2]), "an empty queue")
    assert not field.processes()


def test_cancel_ends_the_chain(field: Field) -> None:
    runs = field.submit("pipeline", "--set", "phases.pretrain.samples=400000")
    field.at_step(runs[0], 5)
    field.run("cancel", runs[0])
    until(lambda: not any(field.queue(run) for run in runs), "an empty queue")
    assert states(field, *runs) == ["CANCELLED", "BLOCKED", "BLOCKED"]
    until(lambda: not field.processes(), "no process")
    assert field.dir(runs[0]).complete_checkpoints(), "it has saved before it left"


def test_a_failure_blocks_what_is_behind_it_and_nothing_pends_for_ever(field: Field) -> None:
    for shard in (field.folder / "bucket" / "train").iterdir():
        shard.write_bytes(shard.read_bytes()[:5000])
    runs = field.submit("pipeline")
    out = field.run("wait", *runs, code=1)
    assert states(field, *runs) == ["FAILED", "BLOCKED", "BLOCKED"]
    assert "00000.tar" in out, "the error names the shard"
    until(lambda: not any(field.queue(run) for run in runs), "an empty queue")


def test_dry_run_is_the_whole_script_and_slurms_opinion(field: Field) -> None:
    field.profile(table='secrets = "~/s.env"\npass_env = ["WANDB_API_KEY"]')
    os.environ["WANDB_API_KEY"] = "hush"
    try:
        out = field.run("submit", "pipeline", "--dry-run")
    finally:
        del os.environ["WANDB_API_KEY"]
    assert out.count("#!/bin/bash") == 3
    assert "--test-only: Job" in out
    assert "hush" not in out
    assert not [path for path in (field.folder / "runs").glob("*") if not path.name.startswith(".")]
    field.profile(table='constraint = "nosuch"')
    assert "SLURM refuses it" in field.run("submit", "pretrain", "--dry-run")


def test_what_slurm_refuses_is_said_in_its_words_and_can_be_resumed(field: Field) -> None:
    field.profile(partition="nosuch")
    out = field.run("submit", "pretrain", code=1)
    assert "invalid partition" in out.lower()
    assert states(field, _only(field)) == ["INTERRUPTED"]
    field.profile()
    assert "partition" in field.run("resume", _only(field), code=1).lower(), "it keeps the profile it was planned for"


def _only(field: Field) -> str:
    (path,) = [path for path in (field.folder / "runs").iterdir() if not path.name.startswith(".")]
    return path.name


def test_secrets_and_the_sites_setup_reach_the_ranks_and_no_file(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = field.folder / "s.env"
    secret.write_text("# mine\nTOKEN='hush-hush'\n")
    secret.chmod(0o600)
    (field.folder / "init").mkdir()
    (field.folder / "init" / "bash").write_text('module() { export MODULES="$1 $2"; }\n')
    monkeypatch.setenv("MODULESHOME", str(field.folder))
    field.profile(table=f'secrets = "{secret}"\nsetup = ["module load cuda"]\nscratch = "{field.folder}/local"')
    (run,) = field.submit("pretrain", "--set", "phases.pretrain.samples=400000")
    pid = field.last(run, events.Spawned).pids[0]  # type: ignore[union-attr]
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert b"TOKEN=hush-hush" in environ
    assert b"MODULES=load cuda" in environ
    assert f"TMPDIR={field.folder}/local".encode() in environ
    field.run("cancel", run)
    done = subprocess.run(["grep", "-rl", "hush-hush", str(field.folder / "runs")], capture_output=True, check=False)
    assert done.stdout == b""
    secret.chmod(0o644)
    (run,) = field.submit("pretrain")
    assert "chmod 600" in field.run("wait", run, code=1)


def test_a_setup_line_that_fails_stops_the_run_with_its_words(field: Field) -> None:
    field.profile(table='setup = ["export A=1", "ls /nosuch/module"]')
    (run,) = field.submit("pretrain")
    field.run("wait", run, code=1)
    status = field.status(run)
    assert status["state"] == "FAILED"
    assert "the setup line 'ls /nosuch/module'" in str(status["why"])
    assert "cannot access '/nosuch/module'" in str(status["why"])
    assert "The same error twice" in str(status["why"]), "a wrong line is wrong on every node"
    assert not field.said(run, events.Started)


def test_status_from_another_shell_without_slurm(field: Field) -> None:
    (run,) = field.submit("pretrain", "--set", "phases.pretrain.samples=400000")
    field.at_step(run, 5)
    env = {**os.environ, "PATH": "/usr/bin-not-there"}
    done = subprocess.run(
        [*CLIPA, "status", run, "--json"], cwd="/", env=env, capture_output=True, text=True, check=True
    )
    (status,) = json.loads(done.stdout)["runs"]
    assert status["state"] == "RUNNING"
    field.run("cancel", run)


@pytest.mark.long
def test_where_nothing_may_be_requeued_a_successor_takes_over_and_what_waits_is_pointed_to_it(field: Field) -> None:
    field.profile(table="requeue = false")
    runs = field.submit("pipeline", "--set", "phases.finetune.samples=640")
    first, child = field.job(runs[0]), field.job(runs[1])
    field.at_step(runs[0], 5)
    os.kill(field.last(runs[0], events.Spawned).pids[0], signal.SIGKILL)  # type: ignore[union-attr]
    until(lambda: field.job(runs[0]) != first, "a successor")
    said = field.slurm.ask("squeue", "-h", "-j", child, "-o", "%E")
    assert f"afterok:{field.job(runs[0])}" in said
    field.run("wait", *runs)
    assert states(field, *runs) == ["DONE"] * 3
    assert field.job(runs[1]) == child, "it was never submitted again"

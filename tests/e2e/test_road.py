"""The whole road, and everything that may happen on it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from clipa.registry import events
from clipa.registry.run_dir import RunDir
from tests.e2e.conftest import CLIPA, Road


def _spawned(road: Road, run: str) -> events.Spawned:
    folder = RunDir(road.folder / "runs" / run)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for attempt in reversed(folder.claimed()):
            found = [e for e in events.read(folder.event_file(attempt, "supervisor")) if isinstance(e, events.Spawned)]
            if found:
                return found[-1]
        time.sleep(0.05)
    raise AssertionError("no trainer was started")


def _long(road: Road) -> list[str]:
    """A pipeline that has minutes of work to do."""
    return road.submit("pipeline", "--set", "phases.pretrain.samples=400000")


def _training(status: dict[str, Any]) -> bool:
    return status["state"] == "RUNNING" and int(status["step"]) > 10


def test_a_strangers_pipeline_on_two_processes(road: Road) -> None:
    profile = road.folder / "here.toml"
    profile.write_text(profile.read_text() + "processes = 2\n")
    out = road.run("submit", "pipeline", "--name", "first", "--wait")
    assert "top-1 of colours" in out
    found = json.loads(road.run("status", "first", "--json", cwd=Path("/")))["runs"]
    assert [s["state"] for s in found] == ["DONE", "DONE", "DONE"]
    assert [s["phase"] for s in found] == ["pretrain", "finetune", "eval"]
    assert found[2]["scores"][0]["samples"] == 64
    assert found[2]["scores"][0]["metrics"]["top1"] > 60, "four flat colours are easy"
    assert {score["size"] for score in found[1]["scores"]} == {16, 24}

    made = [path for path in (road.folder / "runs").rglob("*") if not path.is_symlink()]
    assert not [path for path in made if path.stat().st_mode & 0o022 and path.name != ".submit.lock"]
    assert {path.stat().st_mode & 0o777 for path in made if path.name.endswith("_submitted.pkl")} == {0o600}
    assert (next((road.folder / "cache").rglob("*.tar"))).stat().st_mode & 0o777 == 0o664, "a team may share a cache"

    again = json.loads(road.run("submit", "pipeline", "--name", "first", "--json"))
    assert again["runs"] == [s["run"] for s in found], "the same name is the same work"
    assert "there already" in again["already"]
    assert "taken" in road.run("submit", "pipeline", "--name", "first", "--set", "seed=5", code=2)
    assert "nothing to resume" in road.run("resume", "first", code=2)

    shutil.rmtree(Path(os.environ["HOME"]) / ".cache" / "clipa")
    rebuilt = json.loads(road.run("status", "first", "--json", cwd=Path("/")))["runs"]
    for before, after in zip(found, rebuilt, strict=True):
        before.pop("age_s"), after.pop("age_s")
        assert before == after, "the index is only a cache"

    road.run("submit", "eval", "--wait")
    assert json.loads(road.run("status", "latest", "--json"))["runs"][0]["state"] == "DONE"
    assert not road.processes()


def test_kill_9_of_the_trainer_is_survived(road: Road) -> None:
    (run,) = road.submit("pretrain", "--set", "phases.pretrain.samples=40000")
    road.until(run, lambda s: s["state"] == "RUNNING" and int(str(s["step"])) >= 10)
    os.kill(_spawned(road, run).pids[0], signal.SIGKILL)
    status = road.until(run, lambda s: s["state"] == "DONE")
    assert status["attempt"] == 2
    log = RunDir(road.folder / "runs" / run)
    begun = [e for e in events.read(log.event_file(2, "train")) if isinstance(e, events.Begun)]
    assert begun[0].step > 0, "the second attempt starts from a checkpoint"
    road.run("wait", run)


def test_kill_9_of_the_supervisor_shows_interrupted_and_resumes(road: Road) -> None:
    runs = road.submit("pipeline", "--set", "phases.pretrain.samples=40000")
    road.until(runs[0], _training)
    os.kill(_supervisor(road, runs[0]), signal.SIGKILL)
    status = road.until(runs[0], lambda s: s["state"] == "INTERRUPTED", 10)
    assert status["hint"] == f"clipa resume {runs[0]}"
    assert road.status(runs[2])["state"] == "INTERRUPTED", "those behind it are dead too"
    deadline = time.monotonic() + 10
    while left := road.processes():
        assert time.monotonic() < deadline, f"a killed supervisor's children live on: {left}"
        time.sleep(0.1)
    assert road.run("resume", runs[0]).split() == runs
    road.run("wait", *runs)
    assert [road.status(run)["state"] for run in runs] == ["DONE"] * 3
    assert road.status(runs[0])["attempt"] == 2


def _supervisor(road: Road, run: str) -> int:
    found = events.read(RunDir(road.folder / "runs" / run).event_file(1, "supervisor"))
    return next(event.pid for event in found if isinstance(event, events.Started))


def test_cancel_leaves_no_process(road: Road) -> None:
    runs = _long(road)
    road.until(runs[0], _training)
    # A supervisor that is stopped neither leaves nor ends its ranks, and leads no process group.
    stopped = _supervisor(road, runs[0])
    os.kill(stopped, signal.SIGSTOP)
    assert f"kill -CONT {stopped}" in road.status(runs[0])["why"]
    began = time.monotonic()
    road.run("cancel", runs[0])
    assert time.monotonic() - began < 60
    assert [road.status(run)["state"] for run in runs] == ["CANCELLED", "BLOCKED", "BLOCKED"]
    deadline = time.monotonic() + 10
    while left := road.processes():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert road.run("wait", runs[0], code=1)


def test_a_failure_stops_the_phases_behind_it(road: Road) -> None:
    for shard in (road.folder / "bucket" / "train").iterdir():
        shard.write_bytes(shard.read_bytes()[:5000])
    runs = road.submit("pipeline")
    out = road.run("wait", *runs, code=1)
    assert [road.status(run)["state"] for run in runs] == ["FAILED", "BLOCKED", "BLOCKED"]
    assert "00000.tar" in out, "the error names the shard"


def test_output_can_be_captured_and_ctrl_c_only_detaches(road: Road) -> None:
    began = time.monotonic()
    runs = _long(road)
    assert time.monotonic() - began < 20, "submit returns as soon as the work is queued"
    follower = subprocess.Popen([*CLIPA, "wait", runs[0]], cwd=road.folder, stderr=subprocess.PIPE, text=True)
    road.until(runs[0], _training)
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=10)
    assert follower.returncode == 130
    assert "the work goes on" in said
    assert road.status(runs[0])["state"] == "RUNNING"
    road.run("cancel", *runs)


def test_a_closed_terminal_does_not_end_the_work(road: Road) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(road.folder)
        os.execv(
            CLIPA[0], [*CLIPA, "submit", "pretrain", "--name", "t", "--set", "phases.pretrain.samples=400000", "--wait"]
        )
    deadline = time.monotonic() + 60
    seen = b""
    while b"RUNNING" not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(terminal, 4096)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert road.until("t", _training)["state"] == "RUNNING"
    road.run("cancel", "t")


def test_a_leased_gpu_is_waited_for_and_named(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = road.folder / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: Test (UUID: GPU-00000000-0000)'\n")
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (road.folder / "here.toml").write_text(f'gpus = 1\ncache = "{road.folder}/cache"\n')
    leases = road.folder / "runs" / ".leases"
    leases.mkdir(parents=True)
    with open(leases / "GPU-00000000-0000.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("run someone-else")
        lock.flush()
        (run,) = road.submit("pretrain")
        status = road.until(run, lambda s: s["state"] == "WAITING", 30)
        assert "someone-else" in str(status["why"])
    road.until(run, lambda s: s["state"] != "WAITING", 30)
    road.run("cancel", run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "pretrain", "nosuch"], "no recipe"),
        (["submit", "pretrain", "--cluster", "locl"], 'did you mean "local"'),
        (["submit", "pretrain", "--set", "phases.pretrain.bacth=3"], 'did you mean "batch"'),
        (
            ["submit", "pretrain", "--set", "phases.pretrain.image.size=17"],
            "allowed: a multiple of model.image.patch 8 (nearest: 16)",
        ),
        (["submit", "pretrain", "--set", "phases.pretrain.data=nowhere"], "not bound"),
        (["submit", "pretrain", "--set", "phases.pretrain.data=/no/such/folder"], "/no/such/folder"),
        (["submit", "pretrain", "--set", "model.family=v2"], "CLIPA_BERT_VOCAB"),
        (["submit", "finetune"], "no DONE run"),
        (["submit", "finetune", "--from", "nosuch"], "nosuch"),
        (["submit", "finetune", "--from", "/"], "neither a checkpoint nor a run"),
        (["status", "nosuch"], "nosuch"),
        (["plan", "squares.toml", "--set", "model.image.heads=5"], "heads"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_exit_2_and_leaves_nothing(road: Road, words: list[str], said: str) -> None:
    assert said in road.run(*words, code=2)
    runs = road.folder / "runs"
    assert not runs.exists() or not [path for path in runs.iterdir() if not path.name.startswith(".")]


def test_dry_run_shows_the_command_and_submits_nothing(road: Road) -> None:
    out = road.run("submit", "pipeline", "--dry-run")
    assert "-m clipa.train" in out
    assert "-m clipa.eval" in out
    assert "no runs yet" in road.run("status") or not json.loads(road.run("runs", "list", "--json"))["runs"]


def test_submit_and_wait_print_one_document(road: Road) -> None:
    small = ["--set", "phases.pretrain.samples=64", "--set", "phases.pretrain.optim.warmup_samples=0"]
    done = json.loads(road.run("submit", "pretrain", *small, "--wait", "--json"))
    assert done["schema"] == "clipa.submission/1"
    (status,) = done["statuses"]
    assert (done["runs"], status["state"]) == ([status["run"]], "DONE")
    assert json.loads(road.run("wait", *done["runs"], "--json"))["runs"][0]["state"] == "DONE"


def test_junk_in_the_run_root_never_crashes_and_is_named(road: Road) -> None:
    (run,) = road.submit(
        "pretrain", "--set", "phases.pretrain.samples=64", "--set", "phases.pretrain.optim.warmup_samples=0"
    )
    road.run("wait", run)
    root = road.folder / "runs"
    (root / "stray.txt").write_text("?")
    (root / "half").mkdir()
    (root / "half" / "plan.json").write_bytes(b'{"run": "ha')
    (root / "odd" / "plan.json").mkdir(parents=True)
    (root / "loop").symlink_to(root / "loop")
    (root / run / "events" / "1-train.jsonl").open("ab").write(
        b'{"event": "step", "t"\n\xff\xfe\n{"event":"new-kind","t":1}\n'
    )
    (root / run / "events" / "junk").write_bytes(os.urandom(100))
    assert road.status(run)["state"] == "DONE"
    said = road.run("doctor", code=None)
    for name in ("half", "odd", "1-train.jsonl", "junk"):
        assert name in said


def test_a_sweep_is_one_group_and_its_picture_is_drawn_from_the_registry(road: Road) -> None:
    squares = (road.folder / "squares.toml").read_text()
    (road.folder / "two.toml").write_text(squares.partition("[phases.eval]")[0])
    grid = ["sweep", "two.toml", "--over", "phases.pretrain.image.size=8,16", "--name", "law",
            "--set", "phases.pretrain.samples=320", "--set", "phases.finetune.samples=320"]  # fmt: skip
    assert "nearest" in road.run(*grid, "--over", "phases.finetune.image.size=24,25", code=2)
    assert json.loads(road.run("status", "--json"))["runs"] == [], "nothing was submitted"
    assert "2 points" in road.run(*grid, "--dry-run")
    road.run(*grid, "--wait")
    found = json.loads(road.run("status", "law", "--json"))["runs"]
    assert [s["state"] for s in found] == ["DONE"] * 4
    assert len({s["group"] for s in found}) == 1
    assert [s["image_tokens"] for s in found] == [1, 9, 4, 9]
    assert json.loads(road.run(*grid, "--json"))["runs"] == [s["run"] for s in found], "the same name is the same grid"
    assert "taken" in road.run(*grid, "--set", "seed=5", code=2)
    facts = json.loads(road.run("runs", "plot", "--group", "law", "--out", "law.svg", "--json"))
    assert [mark["image_tokens"] for mark in facts["marks"]] == [1, 4]
    assert facts["marks"][0]["compute"] < facts["marks"][1]["compute"]
    assert (road.folder / "law.svg").read_text().count("<circle") == 2
    assert not road.processes()

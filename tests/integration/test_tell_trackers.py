"""W&B offline, MLflow with a file of SQLite, trackio's local database: one run stays one, and each step is there once.

They are optional packages of some hundred MiB: `pip install 'clipa[wandb,mlflow,trackio]'`, then `make test-long`.
"""

import os
import subprocess
import sys

import msgspec
import pytest

from clipa.registry import events
from clipa.registry.run_dir import RunDir, write_whole

pytestmark = [pytest.mark.long, pytest.mark.timeout(280)]
BEGUN = {"steps": 9, "device": "cpu", "precision": "fp32", "processes": 1, "params": 1}
STEPS = list(range(1, 8))


@pytest.fixture
def run(tmp_path):
    """Attempt 1 told five steps and was killed; attempt 2 goes on from the third."""
    made = RunDir(tmp_path / "runs" / "20260101-000000-abcd-pretrain")
    plan = {
        "run": made.id, "group": "20260101-000000-abcd", "created": 0.0, "recipe": "r", "recipe_digest": "d",
        "phase": "pretrain", "cluster": "local", "backend": "local",
        "model": {"embed_dim": 8, "image": {"patch": 4, "width": 16, "layers": 1, "heads": 2},
                  "text": {"width": 8, "layers": 1, "heads": 2}},
        "settings": {"kind": "eval", "sets": ["x"]}, "world": {"processes": 1},
        "limits": {"max_attempts": 1, "time_limit_minutes": 1}, "code": {"version": "0"},
        "run_root": str(made.path.parent), "cache": str(tmp_path), "name": "a name", "steps": 9,
    }  # fmt: skip
    write_whole(made.plan, msgspec.json.encode(plan))
    for attempt, first, last in ((1, 1, 5), (2, 4, 7)):
        log = events.EventWriter(made, attempt, "train")
        log.write(events.Begun, step=first - 1, **BEGUN)
        for step in range(first, last + 1):
            log.write(events.Step, step=step, samples=step, loss=float(step), lr=0.1, logit_scale=14.0, grad_norm=1.0,
                      samples_per_s=1.0, data_wait=0.0)  # fmt: skip
        log.close()
    return made


def _tell(run, name, **env):
    for attempt in (1, 2, 2):
        argv = [sys.executable, "-m", "clipa.tell", str(run.path), "--attempt", str(attempt), "--tracker", name]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=200, env={**os.environ, **env})
        assert done.returncode == 0, done.stderr
    assert not list(run.events.glob("*-tell-*"))


def test_mlflow_with_a_file(run, tmp_path):
    tracking = pytest.importorskip("mlflow.tracking", reason="pip install 'clipa[mlflow]'")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    _tell(run, "mlflow", MLFLOW_TRACKING_URI=store)
    client = tracking.MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("clipa").experiment_id])
    assert found.data.tags["clipa.run"] == run.id
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(step, float(step)) for step in STEPS]


def test_trackio_on_this_machine(run, tmp_path):
    pytest.importorskip("trackio", reason="pip install 'clipa[trackio]'")
    _tell(run, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    read = (
        "import json, sys\nfrom trackio.sqlite_storage import SQLiteStorage as s\n"
        "print(json.dumps([s.get_runs('clipa'), s.get_logs('clipa', sys.argv[1])], default=str))"
    )
    argv = [sys.executable, "-c", read, run.id]
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, env=env, check=True)
    runs, logs = msgspec.json.decode(done.stdout.strip().splitlines()[-1])
    assert runs == [run.id]
    assert [(row["step"], row["train/loss"]) for row in logs] == [(step, float(step)) for step in STEPS]


def _records(raw):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format, in blocks of 32 KiB."""
    at, parts = 7, b""
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        parts += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield parts
            parts = b""


def test_wandb_offline(run):
    pytest.importorskip("wandb", reason="pip install 'clipa[wandb]'")
    from wandb.proto import wandb_internal_pb2

    _tell(run, "wandb", WANDB_MODE="offline")
    told, ids = [], set()
    for file in sorted((run.tracker("wandb") / "wandb").glob("offline-run-*/*.wandb")):
        for raw in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(raw)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                items = {
                    "/".join(i.nested_key) or i.key: msgspec.json.decode(i.value_json) for i in record.history.item
                }
                told.append((items["_step"], items["train/loss"]))
    assert ids == {run.id}
    assert told == [(step, float(step)) for step in STEPS]

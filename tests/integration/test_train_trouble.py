"""A poisoned sample in a real training: named at its step, gone round once, with the same weights after a kill."""

import signal
import subprocess
import sys
import time

import pytest

from clipa.registry import events, skips
from clipa.registry.scan import scan
from tests.services.bucket_runs import Bucket
from tests.services.s3 import client, new_bucket
from tests.services.train_runs import BATCH, make_run

pytest_plugins = ["tests.services.wire"]

STEPS, BAD = 40, 18
POISON = """
import sys, time
import torch
from clipa.train.learner import Learner
from clipa.train.__main__ import main
factor, first, last = float(sys.argv.pop(1)), int(sys.argv.pop(1)), int(sys.argv.pop(1))
forward = Learner._forward
def poisoned(self, batch):
    time.sleep(0.02)
    output = forward(self, batch)
    hit = any(first <= position <= last for position in batch.positions.tolist())
    # All features of so small a model are nearly one vector: what differs between the rows is only their length.
    rows = torch.arange(len(output.image), dtype=torch.float32)[:, None]
    return output._replace(image=output.image * factor * rows) if hit else output
Learner._forward = poisoned
sys.exit(main())
"""
NAN, WILD = "nan", "1"


def _start(run, attempt, factor, first=(BAD - 1) * BATCH + 3, last=(BAD - 1) * BATCH + 3):
    assert run.claim(attempt)
    argv = [sys.executable, "-c", POISON, factor, str(first), str(last), str(run.path), "--attempt", str(attempt)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process):
    out, err = process.communicate(timeout=280)
    assert "Traceback" not in err
    return process.returncode, out + err


def _events(run, attempt, kind):
    return [e for e in events.read(run.event_file(attempt, "train")) if isinstance(e, kind)]


def _weights(run):
    return (run.step_dir(STEPS) / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("factor", "policy", "says"), [
    pytest.param(NAN, {"on_nan": "rollback"}, "not finite at step 18", marks=pytest.mark.long),
    (WILD, {"on_spike": "rollback"}, "at step 18"),
], ids=["not finite", "spike"])  # fmt: skip
def test_it_goes_back_past_the_samples_once_and_a_resume_decides_the_same(tmp_path, factor, policy, says):
    straight, killed = (make_run(tmp_path, name, STEPS, **policy) for name in ("straight", "killed"))
    code, said = _finish(_start(straight, 1, factor))
    assert code == 0, said
    (back,) = _events(straight, 1, events.WentBack)
    assert (back.step, back.to) == (BAD, 16)
    assert says in back.why
    assert [(skip.at, skip.steps) for skip in skips.read(straight)] == [(16, 2)]
    (status,) = scan([straight.path.parent]).statuses[:1]
    assert status.step == STEPS
    process = _start(killed, 1, factor)
    deadline = time.monotonic() + 240
    while not killed.skips.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed.step_dir(STEPS) / "COMPLETE").exists(), "killed too late to prove anything"
    code, said = _finish(_start(killed, 2, factor))
    assert code == 0, said
    assert _events(killed, 2, events.WentBack) == []
    assert _weights(killed) == _weights(straight)


@pytest.mark.long
def test_while_its_shards_are_streamed_it_goes_back_to_the_same_samples_and_past_the_same(tmp_path, server, streamed):
    bucket = Bucket(tmp_path, client(server), new_bucket(server), streamed.url)
    dataset = bucket.dataset("d")
    bucket.stage(dataset)
    runs = [bucket.run(how, (dataset, how), on_spike="rollback") for how in ("stage", "stream")]
    for run in runs:
        code, said = _finish(_start(run, 1, WILD))
        assert code == 0, said
        (back,) = _events(run, 1, events.WentBack)
        assert (back.step, back.to) == (BAD, 16)
    assert _weights(runs[0]) == _weights(runs[1])
    assert not list((bucket.cache / "streamed").iterdir())


def test_trouble_that_comes_again_ends_the_attempt(tmp_path):
    run = make_run(tmp_path, "again", STEPS, on_nan="rollback")
    code, said = _finish(_start(run, 1, NAN, last=10**6))
    assert code == 1
    assert "not finite at step 17, although the samples after step 16 were passed over once" in said
    assert run.complete_checkpoints()[-1][0] == 16


@pytest.mark.parametrize(("policy", "code"), [("note", 0), ("stop", 1)])
def test_a_spike_is_named(tmp_path, policy, code):
    run = make_run(tmp_path, policy, STEPS, on_spike=policy)
    found, said = _finish(_start(run, 1, WILD))
    assert found == code
    assert "the loss rose to " in said
    assert "at step 18, 2." in said
    assert (policy == "note") == any("at step 18" in note.text for note in _events(run, 1, events.Noted))

"""TensorBoard's files of a real training that is killed and resumed, read back by TensorBoard itself."""

import subprocess
import sys
import time
from threading import Thread

import pytest

from clipa.host.attempt import Leaving
from clipa.host.supervisor import Supervisor, Task
from clipa.registry import events
from clipa.registry.run_dir import RunDir
from clipa.tell.stream import Back, Place, not_yet, read_on
from tests.services.train_runs import make_run

STEPS = 60
SCALARS = {
    "train/loss": "loss",
    "train/lr": "lr",
    "train/grad_norm_text": "grad_norm_text",
    "speed/data_wait": "data_wait",
}


def _read_back(run):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(run.tensorboard), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def _last_told(run):
    """Step -> the newest event about it."""
    steps = {}
    for attempt in run.claimed():
        for event in events.read(run.event_file(attempt, "train")):
            if isinstance(event, events.Step):
                steps[event.step] = event
    return steps


def test_a_run_that_was_killed_and_resumed_is_one_curve(tmp_path):
    run = make_run(tmp_path, "killed", STEPS, trackers=("tensorboard",))
    work = Thread(target=Supervisor([Task(str(run.path), 1)], Leaving()).execute)
    work.start()
    deadline = time.monotonic() + 90
    while (run.complete_checkpoints() or [(0, None)])[-1][0] < 12:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (pid,) = [e.pids[0] for e in events.read(run.event_file(1, "supervisor")) if isinstance(e, events.Spawned)]
    subprocess.run(["kill", "-9", str(pid)], check=True)
    work.join(120)
    assert run.claimed() == [1, 2]
    curves, told = _read_back(run), _last_told(run)
    assert sorted(told) == list(range(1, STEPS + 1))
    for name, field in SCALARS.items():
        assert [step for step, _ in curves[name]] == list(range(1, STEPS + 1))
        assert [value for _, value in curves[name]] == pytest.approx([getattr(told[s], field) for s in sorted(told)])


def _tell(run, attempt):
    code = "import sys\nfrom clipa.tell.__main__ import main\nsys.exit(main())"
    argv = [sys.executable, "-c", code, str(run.path), "--attempt", str(attempt), "--tracker", "tensorboard"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def _step(log, step, loss):
    log.write(events.Step, step=step, samples=step, loss=loss, lr=0.1, logit_scale=14.0, grad_norm=None,
              samples_per_s=1.0, data_wait=0.0)  # fmt: skip


def test_a_teller_that_was_killed_before_it_noted_how_far_it_was_tells_nothing_twice(tmp_path):
    run = make_run(tmp_path, "r")
    assert run.claim(1)
    log = events.EventWriter(run, 1, "train")
    for step in range(1, 11):
        _step(log, step, float(step))
    assert _tell(run, 1).returncode == 0
    (run.tracker("tensorboard") / "place.json").write_bytes(b"{}")  # as it was before
    _step(log, 11, 11.0)
    assert _tell(run, 1).returncode == 0
    assert _read_back(run)["train/loss"] == [(step, float(step)) for step in range(1, 12)]


def test_a_tracker_that_fails_is_named_in_the_run(tmp_path):
    run = make_run(tmp_path, "r")
    assert run.claim(1)
    run.tensorboard.write_text("a file where a folder should be")
    done = _tell(run, 1)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (note,) = events.read(run.event_file(1, "tell-tensorboard"))
    assert note.text.startswith("tensorboard is told no more in this attempt: ")


def test_lines_that_are_not_whole_yet_are_left_for_the_next_time(tmp_path):
    run = RunDir(tmp_path / "r")
    log = events.EventWriter(run, 1, "train")
    _step(log, 1, 1.0)
    _step(log, 2, 2.0)
    whole = run.event_file(1, "train").read_bytes()
    run.event_file(1, "train").write_bytes(whole[:-20])
    ((first, place),) = read_on(run, Place(), 1)
    assert first.step == 1
    run.event_file(1, "train").write_bytes(whole)
    ((second, place),) = read_on(run, place, 1)
    assert (second.step, place.offset) == (2, len(whole))
    assert list(read_on(run, place, 1)) == []


def test_what_a_resumed_attempt_does_again_is_told_once_to_trackers_that_do_not_forget(tmp_path):
    run = RunDir(tmp_path / "r")
    begun = {"steps": 9, "device": "cpu", "precision": "fp32", "processes": 1, "params": 1}
    log = events.EventWriter(run, 1, "train")
    for step in range(1, 6):
        _step(log, step, 1.0)
    again = events.EventWriter(run, 2, "train")
    again.write(events.Begun, step=3, **begun)
    for step in range(4, 8):
        _step(again, step, 2.0)
    again.write(
        events.Scored, step=5, set="x", size=8, samples=1, seconds=0.0, metric="top1", value=1.0, metrics={"top1": 1.0}
    )
    place, told, backs = Place(), [], []
    for item, after in read_on(run, place, 2):
        if isinstance(item, Back):
            backs.append(item.step)
        elif (left := not_yet(item, place.steps)).values:
            told.append((left.step, left.values.get("train/loss", left.values.get("eval/x_8px/top1"))))
        place = after
    assert backs == [3]
    assert told == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 1.0), (6, 2.0), (7, 2.0), (5, 1.0)]

"""Checkpoints beside the training: a disk that fails or is slow, a newer attempt, what stays, and the file itself."""

import hashlib
import resource
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from clipa.attempt.devices import Ranks
from clipa.attempt.process import Session
from clipa.attempt.weights import verify, write_tensors
from clipa.errors import TrainError
from clipa.registry import events
from clipa.spec import plan as plans
from clipa.spec.job import Checkpoints
from clipa.train import checkpoint, saver
from clipa.train.checkpoint import kept, owners
from clipa.train.learner import Learner
from clipa.train.saver import Saver
from tests.services.train_runs import make_run
from tests.unit.test_train_parallel import _batch

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def session(tmp_path):
    run = make_run(tmp_path, "x", steps=10)
    assert run.claim(1)
    return Session(run, plans.decode(run.plan.read_bytes()), 1, events.EventWriter(run, 1, "train"))


@pytest.fixture
def learner(session):
    learner = Learner(session.plan, ALONE)
    learner.learn(_batch(0, 0, 1), 0)
    return learner


@pytest.fixture
def files_end_at():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _notes(session):
    return [e.text for e in events.read(session.run.event_file(1, "train")) if isinstance(e, events.Noted)]


def test_a_disk_that_comes_back_gets_the_checkpoint(session, learner, files_end_at, monkeypatch):
    monkeypatch.setattr(saver.time, "sleep", lambda _: files_end_at(resource.RLIM_INFINITY))
    with Saver(session, ALONE) as saves:
        files_end_at(5000)
        saves.save(1, learner.model, learner.optimizer)
        saves.finish(1)
    assert verify(session.run.step_dir(1)).digest == saves.stored[1]
    assert "File too large" in _notes(session)[0]
    assert "trying again" in _notes(session)[0]


def test_a_disk_that_fails_for_good_leaves_the_last_whole_one(session, learner, files_end_at, monkeypatch):
    monkeypatch.setattr(saver, "PAUSES_S", (0.0,))
    with Saver(session, ALONE) as saves:
        saves.save(1, learner.model, learner.optimizer)
        saves.wait()
        files_end_at(5000)
        saves.save(2, learner.model, learner.optimizer)
        saves.wait()  # the training goes on
        with pytest.raises(TrainError, match="File too large"):
            saves.finish(2)
    files_end_at(resource.RLIM_INFINITY)
    assert [step for step, _ in session.run.complete_checkpoints()] == [1]
    assert not list(session.run.checkpoints.glob(".step-*")), "what was half written is gone"
    assert checkpoint.newest_whole(session.run).path == session.run.step_dir(1)
    assert "given up" in _notes(session)[-1]


def test_the_training_goes_on_meanwhile_and_changes_nothing_of_it(session, learner, monkeypatch):
    held, real = threading.Event(), checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a: held.wait(30) and real(*a))
    before = {name: weight.clone() for name, weight in learner.model.state_dict().items()}
    with Saver(session, ALONE) as saves:
        saves.save(1, learner.model, learner.optimizer)
        learner.learn(_batch(1, 0, 1), 1)
        assert not session.run.complete_checkpoints()
        held.set()
        saves.finish(1)
    written = load_file(session.run.step_dir(1) / "model.safetensors")
    assert all(torch.equal(written[name], weight) for name, weight in before.items())
    assert not torch.equal(learner.model.state_dict()["logit_scale"], before["logit_scale"])


def test_one_is_in_flight_at_most(session, learner, monkeypatch):
    real, inside, most = checkpoint.write, [0], [0]

    def counted(*words):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        try:
            return real(*words)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(checkpoint, "write", counted)
    with Saver(session, ALONE) as saves:
        for step in (1, 2, 3):
            saves.save(step, learner.model, learner.optimizer)
        saves.finish(3)
    assert most == [1]
    assert [step for step, _ in session.run.complete_checkpoints()] == [2, 3]


def test_an_attempt_that_is_not_the_newest_commits_nothing(session, learner):
    assert session.run.claim(2)
    with Saver(session, ALONE) as saves:
        saves.save(1, learner.model, learner.optimizer)
        with pytest.raises(TrainError, match="attempt 2 has taken over"):
            saves.wait()
    assert not session.run.complete_checkpoints()


def test_what_is_loaded_is_what_was_saved_and_an_older_file_loads_too(session, learner):
    with Saver(session, ALONE) as saves:
        saves.save(1, learner.model, learner.optimizer)
        saves.finish(1)
    folder = session.run.step_dir(1)
    assert (folder / "optimizer.safetensors").is_file(), "the name that older versions read and wrote"
    other = Learner(session.plan, ALONE)
    assert checkpoint.load(folder, other.model, other.optimizer).step == 1
    for one in (learner, other):
        one.learn(_batch(1, 0, 1), 1)
    left, right = learner.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_file_of_tensors_is_what_the_library_reads(tmp_path):
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "bytes": torch.arange(7, dtype=torch.uint8), "flags": torch.tensor([True, False]), "none": torch.zeros(0, 3),
        "one": torch.tensor(2.5, dtype=torch.float64), "half": torch.randn(3, 5, generator=draw).bfloat16(),
        "turned": torch.randn(4, 6, generator=draw).T, "count": torch.tensor([2**40]),
    }  # fmt: skip
    file = write_tensors(tmp_path / "x", tensors)
    raw = (tmp_path / "x").read_bytes()
    assert (file.size, file.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    read = load_file(tmp_path / "x")
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


@given(st.lists(st.integers(1, 60), unique=True, min_size=1), st.integers(1, 4), st.integers(0, 40),
       st.dictionaries(st.integers(1, 60), st.floats(0, 100)))  # fmt: skip
def test_pruning_again_and_again_keeps_what_was_kept(steps, keep, every, scores):
    rule, steps, batch = Checkpoints(keep=keep, keep_every_samples=every), sorted(steps), 2
    there: list[int] = []
    for step in steps:  # as they are written
        there.append(step)
        seen = {s: value for s, value in scores.items() if s <= step}
        there = sorted(kept(there, rule, batch, 60, seen))
        assert set(steps[: steps.index(step) + 1][-keep:]) <= set(there)
    if every:
        firsts = {min(s for s in steps if s * batch // every == n) for s in steps if (n := s * batch // every)}
        assert firsts <= set(there)
    if 60 in steps:
        assert 60 in there
    if best := [s for s in steps if s in scores]:
        assert max(best, key=lambda s: (scores[s], s)) in there


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 1000)), st.integers(1, 8), st.integers(0, 5000))
def test_ranks_write_about_as_much(sizes, world, weights):
    found = owners(sizes, world, weights)
    assert set(found) == set(sizes)
    load = [weights * (rank == 0) + sum(sizes[n] for n in sizes if found[n] == rank) for rank in range(world)]
    assert max(load) <= max(weights, min(load) + max(sizes.values(), default=0))

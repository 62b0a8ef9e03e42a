"""Checkpoints beside the training: a disk that fails or is slow, a newer attempt, what stays, and the file itself."""

import hashlib
import json
import resource
import threading

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from clipa.attempt.devices import Ranks
from clipa.attempt.process import Session
from clipa.attempt.weights import verify, write_tensors
from clipa.errors import InputError, TrainError
from clipa.registry import events
from clipa.spec import essence
from clipa.spec import plan as plans
from clipa.spec.card import card_of
from clipa.spec.cluster import Dataset
from clipa.spec.essence import differences, essence_of
from clipa.spec.job import Checkpoints, Pretrain
from clipa.spec.plan import Data, Limits, Weights, World
from clipa.train import checkpoint, saver
from clipa.train.checkpoint import History, kept, owners
from clipa.train.learner import Learner
from clipa.train.metrics import Counters
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


def test_the_first_step_has_the_rate_of_the_familys_source(session):
    """JAX warms up from 0, so v2 learns nothing in its first step; open_clip starts with its share of the peak."""
    text = msgspec.structs.replace(session.plan.model.text, tokenizer="bert-wordpiece")
    image = msgspec.structs.replace(session.plan.model.image, pool="gap-norm")
    v2 = msgspec.structs.replace(session.plan.model, family="v2", text=text, image=image)
    peak = session.plan.settings.optim.lr
    for model, rates in ((session.plan.model, (peak / 4, peak / 2)), (v2, (0.0, peak / 4))):
        learner = Learner(msgspec.structs.replace(session.plan, model=model), ALONE)
        batch = _batch(0, 0, 1)._replace(tokens=_batch(0, 0, 1).tokens % 30_000)
        assert [learner.learn(batch, step).lr for step in (0, 1)] == pytest.approx(rates)


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


@pytest.mark.parametrize(("step", "interval", "said"), [(2, 0.0, True), (2, 30.0, False), (10, 0.0, False)])
def test_only_a_checkpoint_slower_than_the_time_between_two_is_a_slow_disk(
    session, learner, monkeypatch, step, interval, said
):
    """The last one of a short run follows the one before it at once, and must wait for it on any disk."""
    monkeypatch.setattr(saver, "_WAIT_S", 0.0)
    monkeypatch.setattr(saver, "_INTERVAL_S", interval)
    with Saver(session, ALONE) as saves:
        saves.save(1, learner.model, learner.optimizer)
        saves.save(step, learner.model, learner.optimizer)
        saves.finish(step)
    assert any("MiB/s): save less often, or to a faster disk" in note for note in _notes(session)) == said


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


def test_what_is_loaded_is_what_was_saved(session, learner):
    history = History((2.5, 2.25), Counters(trained_s=90.5, waited_s=4.25))
    with Saver(session, ALONE) as saves:
        saves.save(1, learner.model, learner.optimizer, history)
        saves.finish(1)
    folder = session.run.step_dir(1)
    other = Learner(session.plan, ALONE)
    state = checkpoint.load(folder, session.plan, other.model, other.optimizer)
    assert (state.step, state.history) == (1, history)
    for one in (learner, other):
        one.learn(_batch(1, 0, 1), 1)
    left, right = learner.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def _older(folder, learner, state):
    """The folder of a checkpoint as clipa 0.1.0 laid it out, with the library that it wrote it with."""
    folder.mkdir(parents=True)
    moments = {
        f"{key}.{name}": value.clone()
        for name, parameter in learner.model.named_parameters()
        for key, value in learner.optimizer.state[parameter].items()
    }
    save_file(
        {name: weight.clone() for name, weight in learner.model.state_dict().items()}, folder / "model.safetensors"
    )
    save_file(moments, folder / "optimizer.safetensors")
    (folder / "state.json").write_text(state)
    (folder / "card.json").write_bytes(msgspec.json.encode(card_of(learner.plan, 1)))
    files = {
        path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
    }
    (folder / "COMPLETE").write_text(json.dumps(files))
    return folder


@pytest.mark.parametrize("state", [
    '{"step":1,"samples":8,"recipe_digest":"d","schema":1}',
    '{"step":1,"samples":8,"recipe_digest":"d","losses":[2.5,2.25],"schema":1}',
])  # fmt: skip
def test_older_checkpoints_load_and_go_on_as_they_would_have(session, learner, state):
    _older(session.run.step_dir(1), learner, state)
    found = checkpoint.newest_whole(session.run)
    assert checkpoint.step_of(found) == 1
    other = Learner(session.plan, ALONE)
    loaded = checkpoint.load(found.path, session.plan, other.model, other.optimizer)
    assert loaded.history == History((2.5, 2.25) if "losses" in state else ())
    for one in (learner, other):
        one.learn(_batch(1, 0, 1), 1)
    left, right = learner.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


def _changed(plan, key, value):
    """The plan with another value of one key: of its own, of the phase, or of the optimizer."""
    if key.startswith("optim."):
        optim = msgspec.structs.replace(plan.settings.optim, **{key.removeprefix("optim."): value})
        return _changed(plan, "optim", optim)
    if hasattr(plan, key):
        return msgspec.structs.replace(plan, **{key: value})
    return msgspec.structs.replace(plan, settings=msgspec.structs.replace(plan.settings, **{key: value}))


@pytest.mark.parametrize(("key", "value", "says"), [
    ("optim.lr", 0.5, "optim.lr is 0.001 there, 0.5 here"), ("seed", 2, "seed is 1 there, 2 here"),
    ("batch", 16, "batch is 8 there, 16 here"), ("loss", "sigmoid", "loss is softmax there, sigmoid here"),
    ("init", Weights(ref="run:x@final", run="x"), "init is none there, run:x@final here"),
    ("mixed", (Data(name="b", source=Dataset(url="s3://b"), manifest="fff", shards=1, bytes=1),), ", fff here"),
])  # fmt: skip
def test_a_checkpoint_of_another_plan_is_refused_and_nothing_is_loaded(session, learner, key, value, says):
    with Saver(session, ALONE) as saves:
        saves.save(1, learner.model, learner.optimizer)
        saves.finish(1)
    folder, other = session.run.step_dir(1), Learner(session.plan, ALONE)
    before = {name: weight.clone() for name, weight in other.model.state_dict().items()}
    with pytest.raises(InputError, match="written by another plan") as error:
        checkpoint.load(folder, _changed(session.plan, key, value), other.model, other.optimizer)
    assert says in str(error.value)
    assert str(folder) in str(error.value)
    assert f"clipa submit finetune RECIPE --from {folder}" in error.value.hint
    assert all(torch.equal(before[name], weight) for name, weight in other.model.state_dict().items())
    assert not other.optimizer.state


@pytest.mark.parametrize(("key", "value"), [
    ("world", World(processes=4, threads=2)), ("limits", Limits(max_attempts=9, time_limit_minutes=1)),
    ("micro_batch", 2), ("parallel", "fsdp"), ("recompute", 1.0), ("compile", "on"), ("env", {"A": "b"}),
    ("checkpoint", Checkpoints(keep=7)), ("log_every_samples", 64), ("on_spike", "rollback"),
])  # fmt: skip
def test_how_and_where_a_plan_is_trained_may_change(session, key, value):
    there, here = essence_of(session.plan), essence_of(_changed(session.plan, key, value))
    assert differences(there, here) == ""


def test_every_key_of_a_phase_is_either_what_is_trained_or_how(session):
    """A new key needs a decision: a checkpoint without it must load, and one that differs in it must not, or may."""
    counted = {
        "data", "samples", "batch", "image", "text", "optim", "loss", "positions", "precision",
        "shuffle_window", "lanes",
    }  # fmt: skip
    assert counted | set(essence._FREE) == set(Pretrain.__struct_fields__)


def test_an_older_checkpoint_of_another_recipe_is_refused(session, learner):
    folder = _older(session.run.step_dir(1), learner, '{"step":1,"samples":8,"recipe_digest":"e","schema":1}')
    with pytest.raises(InputError, match="the recipe has another digest"):
        checkpoint.load(folder, session.plan, learner.model, learner.optimizer)


def test_a_newer_checkpoint_whose_keys_are_not_known_loads(session, learner):
    state = (
        '{"step":1,"samples":8,"recipe_digest":"d","plan":{"settings":{"kind":"pretrain","new":1}},"new":2,"schema":1}'
    )
    folder = _older(session.run.step_dir(1), learner, state)
    assert checkpoint.load(folder, session.plan, learner.model, learner.optimizer).step == 1


@pytest.mark.parametrize("state", ["", "[]", "{}"])
def test_a_state_that_cannot_be_read_is_named(session, learner, state):
    folder = _older(session.run.step_dir(1), learner, state)
    with pytest.raises(TrainError, match="cannot be read"):
        checkpoint.step_of(verify(folder))


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


def test_every_flipped_bit_of_the_marker_is_one_error(tmp_path):
    """A checkpoint whose COMPLETE is damaged is refused as such, so that a run goes on from the one before."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    files = {"model.safetensors": {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}}
    marker = msgspec.json.encode(files)
    for bit in range(8 * len(marker)):
        damaged = bytearray(marker)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "COMPLETE").write_bytes(damaged)
        with pytest.raises(TrainError):
            verify(tmp_path)

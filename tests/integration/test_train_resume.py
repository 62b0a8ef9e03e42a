"""Real trainer processes: kill -9 and resume, one process and two, asked to leave, a loss that is not finite."""

import os
import signal
import subprocess
import sys

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from clipa.attempt.devices import Ranks
from clipa.attempt.process import Session
from clipa.registry import events
from clipa.registry.run_dir import write_whole
from clipa.spec import plan as plans
from clipa.spec.inputs import ImageInput, Jitter
from clipa.train.learner import Learner
from clipa.train.saver import Saver
from tests.services.attempts import STEPS, final_bytes, finish, start, steps_of, until


@pytest.mark.parametrize("world", [1, 4])
def test_killed_and_resumed_is_bit_for_bit_what_was_never_killed(make_run, world):
    straight, killed = make_run("straight", world), make_run("killed", world)
    codes, said = finish(start(straight, 1, world))
    assert codes == [0] * world, said
    ranks = start(killed, 1, world)
    until(lambda: killed.complete_checkpoints())
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    finish(ranks)
    assert not (killed.step_dir(STEPS) / "COMPLETE").exists(), "killed too late to prove anything"
    codes, said = finish(start(killed, 2, world))
    assert codes == [0] * world, said
    begun = [e for e in events.read(killed.event_file(2, "train")) if isinstance(e, events.Begun)]
    assert begun[0].step > 0
    assert final_bytes(killed) == final_bytes(straight)


def test_two_processes_lose_what_one_loses(make_run):
    one, two = make_run("one"), make_run("two", 2)
    for run, world in ((one, 1), (two, 2)):
        codes, said = finish(start(run, 1, world))
        assert codes == [0] * world, said
    left, right = ([e.loss for e in steps_of(run, 1)] for run in (one, two))
    assert len(left) == STEPS
    assert left[:12] == pytest.approx(right[:12], rel=1e-5)


def test_several_passes_see_the_same_random_choices_as_one(make_run):
    """Kept patches and colours are drawn anew in the second pass; so they must be those of the first."""
    image = ImageInput(size=8, tokens=2, reduction="random", jitter=Jitter())
    whole, parts = make_run("whole", image=image), make_run("parts", image=image, micro_batch=3)
    for run in (whole, parts):
        codes, said = finish(start(run, 1, 1))
        assert codes == [0], said
    left, right = ([(e.loss, e.grad_norm) for e in steps_of(run, 1)] for run in (whole, parts))
    for one, other in zip(left[:12], right[:12], strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_asked_to_leave_saves_and_can_be_resumed(make_run):
    run, straight = make_run("stopped"), make_run("straight")
    write_whole(run.stop_file(1), b"")
    codes, said = finish(start(run, 1, 1))
    assert codes == [75], said
    step = run.complete_checkpoints()[-1][0]
    assert 0 < step < STEPS
    assert finish(start(run, 2, 1))[0] == [0]
    spent = [e.trained_s for attempt in (1, 2) for e in steps_of(run, attempt)]
    assert len(spent) == STEPS
    assert sorted(spent) == spent, "the second attempt counts on where the first one stopped"
    assert finish(start(straight, 1, 1))[0] == [0]
    assert final_bytes(run) == final_bytes(straight)


def test_a_torn_checkpoint_is_passed_over(make_run):
    run = make_run("torn")
    assert finish(start(run, 1, 1))[0] == [0]
    good = final_bytes(run)
    torn = run.step_dir(STEPS) / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1] + b"\x00\x01")
    codes, said = finish(start(run, 2, 1))
    assert codes == [0], said
    assert final_bytes(run) == good


def test_a_run_whose_plan_became_another_is_refused_on_all_ranks(make_run):
    run = make_run("other", 2, steps=4)
    plan = plans.decode(run.plan.read_bytes())
    assert run.claim(1)
    alone = Ranks(0, 1, torch.device("cpu"))
    learner = Learner(plan, alone)
    with Saver(Session(run, plan, 1, None), alone) as saver:
        saver.save(2, learner.model, learner.optimizer)
        saver.finish(2)
    before = (run.step_dir(2) / "model.safetensors").read_bytes()
    optim = msgspec.structs.replace(plan.settings.optim, lr=0.5)
    settings = msgspec.structs.replace(plan.settings, optim=optim)
    write_whole(run.plan, plans.encode(msgspec.structs.replace(plan, settings=settings)))
    codes, said = finish(start(run, 2, 2))
    assert codes == [2, 2], said
    assert "written by another plan: optim.lr is 0.001 there, 0.5 here" in said
    assert "Traceback" not in said
    assert [step for step, _ in run.complete_checkpoints()] == [2]
    assert (run.step_dir(2) / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("log_every", [1, 10])
def test_a_loss_that_is_not_finite_keeps_only_good_checkpoints(make_run, log_every):
    run = make_run("nan", log_every=log_every)
    folder = run.path
    code = (
        "import sys\n"
        "from clipa.model.loss import LOSSES\n"
        "real = LOSSES['softmax']\n"
        "calls = iter(range(10**6))\n"
        "LOSSES['softmax'] = lambda *a: real(*a) * (float('nan') if next(calls) == 11 else 1.0)\n"
        "from clipa.train.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "step 12" in done.stderr
    assert "Traceback" not in done.stderr
    assert run.complete_checkpoints()
    for _, path in run.complete_checkpoints():
        assert all(t.isfinite().all() for t in load_file(path / "model.safetensors").values())

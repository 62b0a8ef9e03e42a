"""One recipe on one, two and four processes (gloo), replicated whole and sharded in passes: the same losses."""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch

from clipa.attempt.process import Session
from clipa.data.pipeline import Batch
from clipa.registry.run_dir import RunDir
from clipa.spec import plan as plans
from clipa.train import checkpoint
from clipa.train.learner import Learner
from clipa.train.saver import Saver
from tests.services.ranks import forked
from tests.services.train_runs import BATCH, make_run

STEPS = 20
EXACT, FP32 = 1e-11, 2e-4
"""Relative: in float64 rounding alone; in fp32 it grows over 20 steps of Adam, 3e-6 to 4e-5 were seen."""
WAYS = {"ddp": {}, "fsdp": {"parallel": "fsdp", "micro_batch": 1, "recompute": 0.5}}


def _batch(step, rank, world):
    draw = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 3, 8, 8), dtype=torch.uint8, generator=draw)
    tokens = torch.randint(1, 40_000, (BATCH, 8), generator=draw)
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    return Batch(images[share], tokens[share], torch.arange(step * BATCH, (step + 1) * BATCH)[share])


def _losses(plan, ranks, **settings):
    settings = msgspec.structs.replace(plan.settings, **settings)
    if settings.micro_batch:
        settings = msgspec.structs.replace(settings, micro_batch=BATCH // ranks.world // 2)  # two passes
    learner = Learner(msgspec.structs.replace(plan, settings=settings), ranks)
    outcomes = [learner.learn(_batch(step, ranks.rank, ranks.world), step) for step in range(STEPS)]
    numbers = [(float(outcome.loss), float(outcome.grad_norms.all)) for outcome in outcomes]
    shared = learner.unshared()
    return [*numbers, (float(sum(p.detach().double().sum() for p in shared.parameters())), 0.0)]


def _run(plan, ranks, way, steps, load=None, save=None):
    """Train on from a checkpoint, and write one. The losses, and the weights at the end."""
    settings = msgspec.structs.replace(plan.settings, **WAYS[way])
    learner = Learner(msgspec.structs.replace(plan, settings=settings), ranks)
    if load is not None:
        checkpoint.load(load, plan, learner.model, learner.optimizer)
    losses = [float(learner.learn(_batch(n, ranks.rank, ranks.world), n).loss) for n in steps]
    if save is not None:
        run = RunDir(save)
        with Saver(Session(run, plan, 1, None), ranks) as saver:
            saver.save(steps.stop, learner.model, learner.optimizer)
            saver.finish(steps.stop)
    return losses, learner.unshared().state_dict()


def _resumed(folder, plan, ranks):
    """What is bit for bit the same, and how far the losses are apart, where a run goes on as another one."""
    found = {}
    for first in WAYS:
        run = folder / f"{first}-{ranks.world}"
        losses, weights = _run(plan, ranks, first, range(8))
        _run(plan, ranks, first, range(4), save=run)
        found[f"{first} files"] = len(list(RunDir(run).step_dir(4).glob("optimizer*")))
        for then in WAYS:
            on, others = _run(plan, ranks, then, range(4, 8), load=RunDir(run).step_dir(4))
            same = all(torch.equal(weights[name], others[name]) for name in weights)
            apart = max(abs(a - b) / a for a, b in zip(losses[4:], on, strict=True))
            found[f"{first} {then}"] = [same, apart]
    return found


def _work(folder, ranks):
    world = ranks.world
    plan = plans.decode((folder / "runs" / "same" / "plan.json").read_bytes())
    model = plan.model
    two = msgspec.structs.replace(model, image=msgspec.structs.replace(model.image, layers=2),
                                  text=msgspec.structs.replace(model.text, layers=2))  # fmt: skip
    plan = msgspec.structs.replace(plan, model=two)
    found = {}
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        ways = WAYS if world > 1 else {"ddp": {}}
        found[str(dtype)] = {way: _losses(plan, ranks, **settings) for way, settings in ways.items()}
    if world == 4:
        found["resumed"] = _resumed(folder, plan, ranks)
    if ranks.is_first:
        (folder / f"{world}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    make_run(folder, "same", steps=STEPS)
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=280)
    return {world: json.loads((folder / f"{world}.json").read_text()) for world in (1, 2, 4)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world", [2, 4])
def test_every_number_of_processes_and_every_way_loses_the_same(found, world, way):
    for dtype, tolerance in (("torch.float64", EXACT), ("torch.float32", FP32)):
        expected, seen = (found[w][dtype][name] for w, name in ((1, "ddp"), (world, way)))
        assert len(seen) == STEPS + 1
        for (loss, norm), (loss_1, norm_1) in zip(seen, expected, strict=True):
            assert loss == pytest.approx(loss_1, rel=tolerance), dtype
            assert norm == pytest.approx(norm_1, rel=10 * tolerance), dtype


@pytest.mark.parametrize("way", WAYS)
def test_four_processes_that_resume_are_bit_for_bit_what_never_stopped(found, way):
    assert found[4]["resumed"][f"{way} {way}"] == [True, 0.0]


@pytest.mark.parametrize(("wrote", "loads"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_what_one_way_wrote_loads_the_other_way_with_its_moments(found, wrote, loads):
    assert found[4]["resumed"][f"{wrote} {loads}"][1] < FP32
    assert found[4]["resumed"][f"{wrote} files"] == 4, "each rank writes its share"


def test_the_losses_fall(found):
    losses = [loss for loss, _ in found[1]["torch.float64"]["ddp"][:-1]]
    assert len(set(losses)) == STEPS


if __name__ == "__main__":
    tempfile.tempdir = sys.argv[1]
    folder = Path(sys.argv[1])
    for world in (1, 2, 4):
        forked(world, folder / f"store-{world}", partial(_work, folder))

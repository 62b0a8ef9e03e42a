"""Blocks that torch compiles: the same losses, replicated, sharded, recomputed, in passes; one compilation a tower."""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch

from clipa.spec import plan as plans
from clipa.train import checkpoint
from clipa.train.learner import Learner
from tests.services.ranks import forked
from tests.services.train_runs import make_run
from tests.unit.test_train_parallel import FP32, _batch

pytestmark = pytest.mark.long
STEPS, LAYERS = 3, 3
WAYS = {
    "plain": (1, {}), "recomputed": (1, {"recompute": 1.0}), "passes": (1, {"micro_batch": 4}),
    "ddp": (2, {"micro_batch": 2}), "fsdp": (2, {"parallel": "fsdp", "recompute": 0.5}),
}  # fmt: skip
"""Processes, and what the phase has beside the rest. `plain` goes all the way, through Inductor and a C++ compiler; the
others stop before code is made of their graphs (aot_eager), which is where they differ.
"""


def _losses(plan, ranks, more, is_compiled):
    settings = msgspec.structs.replace(plan.settings, compile="on" if is_compiled else "off", **more)
    learner = Learner(msgspec.structs.replace(plan, settings=settings), ranks)
    losses = [float(learner.learn(_batch(n, ranks.rank, ranks.world), n).loss) for n in range(STEPS)]
    return losses, learner


def _work(folder, name, more, ranks):
    if name != "plain":
        torch.compile = partial(torch.compile, backend="aot_eager")
    plan = plans.decode((folder / "runs" / "same" / "plan.json").read_bytes())
    model = plan.model
    deep = msgspec.structs.replace(model, image=msgspec.structs.replace(model.image, layers=LAYERS),
                                   text=msgspec.structs.replace(model.text, layers=LAYERS))  # fmt: skip
    plan = msgspec.structs.replace(plan, model=deep)
    eager, _ = _losses(plan, ranks, more, False)
    compiled, learner = _losses(plan, ranks, more, True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    names = sorted(checkpoint.snapshot(learner.model, learner.optimizer, 1, 0, 1).files["model.safetensors"])
    plain = sorted(name for name, _ in Learner(plan, ranks).model.state_dict().items())
    if ranks.is_first:
        found = {"eager": eager, "compiled": compiled, "graphs": graphs, "named": names == plain}
        (folder / f"{name}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    make_run(folder, "same", steps=20)
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=290)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in WAYS}


@pytest.mark.parametrize("name", WAYS)
def test_compiled_blocks_lose_the_same_and_are_compiled_once_a_tower(found, name):
    said = found[name]
    assert said["compiled"] == pytest.approx(said["eager"], rel=FP32)
    # The first of two passes has no gradients: that is another graph.
    assert said["graphs"] == 2 * (2 if "micro_batch" in WAYS[name][1] else 1)
    assert said["named"], "a checkpoint has the names of a model that is not compiled"


if __name__ == "__main__":
    tempfile.tempdir = sys.argv[1]
    folder = Path(sys.argv[1])
    for name, (world, more) in WAYS.items():
        forked(world, folder / f"store-{name}", partial(_work, folder, name, more))

"""One recipe on any number of GPUs: what the plan picks for it, and which numbers it refuses."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.errors import ConfigError
from clipa.launch.division import fitting
from clipa.launch.prepare import _in_passes
from clipa.spec import budget, catalog, cost
from clipa.spec.cluster import Cluster
from clipa.spec.job import Recipe, TrainPhase
from clipa.spec.load import load_recipe
from clipa.spec.plan import World

A100 = Cluster(name="a100", gpu_model="A100-80GB")


def _recipe(*words: str) -> Recipe:
    return load_recipe(catalog.find_recipe("clipa-l16-i37-t8"), [f"phases.pretrain.{word}" for word in words]).recipe


def _world(gpus: int) -> World:
    return World(processes=gpus, gpus=gpus)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8, 16, 64, 512])
@pytest.mark.parametrize("recompute", ["0", '"auto"'])
def test_the_plan_picks_passes_for_any_number_of_gpus(gpus: int, recompute: str) -> None:
    recipe = _recipe("micro_batch=0", f"recompute={recompute}")
    asked = recipe.phases["pretrain"]
    phase, note = _in_passes(A100, recipe, asked, _world(gpus))
    assert isinstance(phase, TrainPhase)
    assert isinstance(asked, TrainPhase)
    local = phase.batch // gpus
    assert local % phase.micro_batch == 0
    assert phase.batch == asked.batch
    held = cost.memory_bytes(recipe.model, phase, budget.train_budget(recipe.model, phase), gpus, phase.micro_batch)
    assert held <= cost.FILL * 80e9
    passes = local // phase.micro_batch
    words = f"{passes} passes of {phase.micro_batch:,}" if passes > 1 else "one pass"
    assert note.startswith(f"{words} for the {local:,} samples of a GPU")
    assert note.endswith(f"about {held / 1e9:.0f} of 80 GB (A100-80GB)")
    assert isinstance(phase.recompute, float)
    assert ("of the blocks recomputed" in note) == (phase.recompute > 0)
    assert _in_passes(A100, recipe, phase, _world(gpus)) == (phase, ""), "what is frozen stays"


def test_what_a_recipe_says_is_not_changed() -> None:
    recipe = _recipe("micro_batch=96", "recompute=0.5")
    assert _in_passes(A100, recipe, recipe.phases["pretrain"], _world(8)) == (recipe.phases["pretrain"], "")


def test_without_a_known_gpu_all_samples_pass_at_once() -> None:
    recipe = _recipe("micro_batch=0", 'recompute="auto"')
    asked = recipe.phases["pretrain"]
    plain = msgspec.structs.replace(asked, recompute=0.0)
    assert _in_passes(A100, recipe, asked, World(processes=2)) == (plain, ""), "on a CPU"
    phase, note = _in_passes(Cluster(name="x", gpus=0), recipe, asked, _world(8))
    assert phase == plain
    assert "gpu_model of the cluster profile" in note


def test_what_fits_nowhere_is_said_when_it_is_planned() -> None:
    recipe = load_recipe(catalog.find_recipe("clipa2-bigg14-i36"), ["phases.pretrain.micro_batch=0"]).recipe
    small = Cluster(name="small", gpu_model="A100-40GB")
    assert "too much, take more GPUs" in _in_passes(small, recipe, recipe.phases["pretrain"], _world(8))[1]


@given(st.integers(2, 200), st.integers(1, 250))
def test_a_number_that_does_not_divide_is_refused_with_the_nearest_that_do(batch: int, processes: int) -> None:
    asked = _recipe().phases["pretrain"]
    assert isinstance(asked, TrainPhase)
    optim = msgspec.structs.replace(asked.optim, warmup_samples=0)
    phase = msgspec.structs.replace(asked, batch=batch, samples=1000, optim=optim)
    if batch % processes == 0:
        assert fitting(World(processes=processes), phase, "x") == World(processes=processes)
        return
    with pytest.raises(ConfigError) as error:
        fitting(World(processes=processes), phase, "recipe.toml: phases.pretrain")
    words = error.value.allowed.split()
    offered = [int(word) for word in words[: words.index("process(es),")] if word.isdigit()]
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    assert max(n for n in divisors if n < processes) in offered
    assert set(offered) <= set(divisors)
    assert [n for n in divisors if n > processes][:1] == offered[1:]
    assert error.value.where == "recipe.toml: phases.pretrain.batch"


def test_the_refusal_in_words() -> None:
    with pytest.raises(ConfigError) as error:
        fitting(_world(7), _recipe().phases["pretrain"], "clipa-l16-i37-t8: phases.pretrain")
    assert str(error.value).splitlines()[:2] == [
        "clipa-l16-i37-t8: phases.pretrain.batch: batch 32768 is not divisible by 7 processes",
        "allowed: 4 or 8 process(es), or a batch that is a multiple of 7",
    ]

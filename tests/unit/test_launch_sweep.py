"""A sweep: its axes and points, and plans that refer to each other within their point."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clipa.errors import ConfigError
from clipa.launch import sweep
from clipa.launch.prepare import Prepared
from clipa.registry.jobs import Element
from clipa.registry.scan import Scan
from clipa.slurm import arrays
from clipa.spec import plan as plans
from clipa.spec.load import load_recipe
from clipa.spec.plan import Plan, Weights
from tests.unit.test_registry_state import PLAN


def _no_runs() -> Scan:
    return Scan([], {}, [])


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("a.b=1,2,3", ["a.b=1", "a.b=2", "a.b=3"]),
        (" a = x , y ", ["a=x", "a=y"]),
        ("a=[0.4, 1.0],[0.9, 1.0]", ["a=[0.4, 1.0]", "a=[0.9, 1.0]"]),
        ("a={ size = 8, tokens = 4 },{ size = 16 }", ["a={ size = 8, tokens = 4 }", "a={ size = 16 }"]),
        ('a="x,y",z', ['a="x,y"', "a=z"]),
        ("a=s3://b/x?y=1", ["a=s3://b/x?y=1"]),
    ],
)
def test_an_axis_is_read(words: str, values: list[str]) -> None:
    assert list(sweep.axis(words)) == values


@pytest.mark.parametrize("words", ["a", "=1", "a=", "a=1,", "a=,1", "a=1,2,1"])
def test_a_slip_of_the_pen_is_refused(words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sweep.axis(words)
    assert refused.value.exit_code == 2


def test_the_grid_is_the_product_of_its_axes() -> None:
    points = sweep.grid([sweep.axis("a=1,2"), sweep.axis("b=x,y")])
    assert points == (("a=1", "b=x"), ("a=1", "b=y"), ("a=2", "b=x"), ("a=2", "b=y"))


def test_too_much_and_twice_the_same_are_refused() -> None:
    with pytest.raises(ConfigError, match="same key"):
        sweep.grid([sweep.axis("a=1,2"), sweep.axis("a=3")])
    with pytest.raises(ConfigError, match="289 points"):
        sweep.grid([sweep.axis("a=" + ",".join(map(str, range(17)))), sweep.axis("b=" + ",".join(map(str, range(17))))])


def test_every_point_is_checked_before_any_is_submitted() -> None:
    axes = ["phases.pretrain.image.tokens=16,36,50"]
    with pytest.raises(ConfigError) as refused:
        sweep.settle("pipeline", "scaling-b16", "local", [], axes, "", _no_runs)
    assert "at phases.pretrain.image.tokens=50" in refused.value.where
    assert "nearest: 25, 36, 49, 64" in str(refused.value)


def test_the_published_grid_can_be_swept() -> None:
    text = ["phases.pretrain.text.tokens=4,8,16,32", "phases.pretrain.text.reduction=truncate,random,block,syntax"]
    settled = sweep.settle("pipeline", "scaling-b16", "local", [], text, "grid", _no_runs)
    assert len(settled.requests) == 16
    assert len({request.recipe.digest for request in settled.requests}) == 16
    image = ["phases.pretrain.image.reduction=random,grid,block"]
    changed = ["phases.pretrain.image.size=224"]
    settled = sweep.settle("pretrain", "scaling-l16", "local", changed, image, "", _no_runs)
    assert [request.phases for request in settled.requests] == [("pretrain",)] * 3


def _pipeline() -> Prepared:
    base = msgspec.convert({**PLAN, "run_root": "/r"}, Plan)
    first = msgspec.structs.replace(base, run="old-pretrain", group="old", init=Weights(ref="/w"))
    tune = msgspec.structs.replace(
        base, run="old-finetune", group="old", phase="finetune", parent="old-pretrain",
        init=Weights(ref="run:old-pretrain@final", run="old-pretrain"),
    )  # fmt: skip
    return Prepared((first, tune), {})


def test_plans_of_a_point_refer_to_each_other_and_to_nothing_else() -> None:
    points = [sweep._in_group(_pipeline(), "g", number, (f"a={number}",)).plans for number in (1, 12)]
    for (first, tune), number in zip(points, ("01", "12"), strict=True):
        assert (first.run, tune.run) == (f"g-{number}-pretrain", f"g-{number}-finetune")
        assert (first.group, tune.group, tune.parent) == ("g", "g", first.run)
        assert tune.init == Weights(ref=f"run:{first.run}@final", run=first.run)
        assert first.init == Weights(ref="/w")
    assert points[0][0].point == ("a=1",)
    assert plans.decode(plans.encode(points[1][1])) == points[1][1]


def test_one_array_a_phase_each_behind_the_one_before() -> None:
    plans = [plan for n in (1, 2, 12) for plan in sweep._in_group(_pipeline(), "g", n, (f"a={n}",), 2).plans]
    found = arrays.elements(plans, "a", {})
    assert {place.array for place in found.values()} == {"clipa-g-pretrain-a1", "clipa-g-finetune-a2"}
    assert found["g-12-finetune"] == Element(array="clipa-g-finetune-a2", index=12)
    assert arrays.waits_for(plans[-1], found, {}) == "clipa-g-pretrain-a1"
    assert plans[0].at_once == 2


def test_what_waits_for_different_things_is_not_one_array() -> None:
    """A resume: point 1 has only its fine-tune left, the pretrain of 2 and 3 go on in an array, that of 4 in a job."""
    tunes = [sweep._in_group(_pipeline(), "g", n, ("a",)).plans[1] for n in (1, 2, 3, 4)]
    again = sweep._in_group(_pipeline(), "g", 5, ("a",)).plans
    live = {"g-02-pretrain": "70_2", "g-03-pretrain": "70_3", "g-04-pretrain": "71"}
    found = arrays.elements([*tunes, *again], "r", live)
    assert "g-04-finetune" not in found, "it waits for a job of its own"
    groups: dict[str, set[int]] = {}
    for place in found.values():
        groups.setdefault(place.array, set()).add(place.index)
    assert list(groups.values()) == [{1}, {2, 3}, {5}, {5}]
    assert arrays.waits_for(tunes[1], found, live) == "70"


def test_a_pipeline_is_no_array() -> None:
    assert arrays.elements(_pipeline().plans, "a", {}) == {}


def test_at_once_is_for_slurm() -> None:
    with pytest.raises(ConfigError, match="one after the other") as refused:
        sweep.settle("pretrain", "demo", "local", [], ["phases.pretrain.image.size=4,8"], "", _no_runs, at_once=2)
    assert "--at-once" in refused.value.where


def test_plans_of_older_runs_have_no_point() -> None:
    raw = msgspec.json.decode(plans.encode(_pipeline().plans[0]))
    del raw["point"], raw["element"], raw["at_once"]
    assert plans.decode(msgspec.json.encode(raw)).point == ()


def test_the_recipes_of_the_law_say_commands_that_exist() -> None:
    for name in ("scaling-s16", "scaling-b16", "scaling-l16", "scaling-h14"):
        path = Path(__file__).resolve().parents[2] / "jobs" / f"{name}.toml"
        load_recipe(path)
        commands = [line for line in path.read_text().splitlines() if f"clipa sweep {name}" in line]
        assert commands
        for line in commands:
            axes = [word for word in line.split("'") if word.startswith("phases.")]
            changed = ["phases.pretrain.image.size=224"] if "--set" in line else []
            sweep.settle("pipeline", name, "local", changed, axes, "", _no_runs)


def test_what_all_points_remark_on_is_said_once() -> None:
    points = [Prepared((PLAN,), {}, notes) for notes in (("few samples",), ("few samples", "streamed"))]
    assert sweep.remarks(points) == ("few samples", "streamed")

"""`clipa plan` as people see it: golden files, at 80 and 120 columns. CLIPA_TEST_WRITE=1 writes them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from clipa.cli import costs
from clipa.cli.main import app
from clipa.spec import catalog, cost, points
from clipa.spec.cost import Cost, Place
from clipa.spec.hardware import GPUS
from clipa.spec.load import LoadedRecipe, load_recipe

GOLDEN = Path(__file__).parent / "golden"
A100 = Place(cluster="a100", gpus=8, gpu=GPUS["A100-80GB"], price=1.575)
NOWHERE = Place(cluster="local", gpus=0)


def _cost(loaded: LoadedRecipe, place: Place) -> Cost:
    return cost.cost(loaded.recipe, place, loaded.about.datasets)


def _same_as(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("CLIPA_TEST_WRITE"):
        path.write_text(text)
    assert text == path.read_text(), "if it is meant: CLIPA_TEST_WRITE=1 pytest tests/unit/test_cli_costs.py"


def _drawn(width: int, draw: object) -> str:
    out = Console(file=io.StringIO(), width=width, color_system=None)
    draw(out)  # type: ignore[operator]
    assert isinstance(out.file, io.StringIO)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
    assert "…" not in "".join(lines), "a cell was cut"
    assert max(len(line) for line in lines) <= width
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("name", "place"),
    [("clipa-l16-i37-t8", A100), ("clipa2-bigg14-i36", A100), ("scaling-h14", A100), ("demo", NOWHERE)],
)
def test_the_plan_as_printed(name: str, place: Place, width: int) -> None:
    loaded = load_recipe(catalog.find_recipe(name))
    priced, said = _cost(loaded, place), points.reported(loaded)
    text = _drawn(width, lambda out: costs.print_plan(loaded, priced, said, out))
    if width == 80 or name == "clipa2-bigg14-i36":
        _same_as(f"plan-{name}-{width}.txt", text)


@pytest.mark.parametrize("name", ["scaling-l16", "scaling-b16", "clipa2-h14-i36"])
def test_the_points_as_printed(name: str) -> None:
    loaded = load_recipe(catalog.find_recipe(name))
    priced = [(point, _cost(point.loaded, A100)) for point in points.points(loaded)]
    text = _drawn(80, lambda out: costs.print_points(loaded, priced, out))
    if name == "scaling-l16":
        _same_as(f"points-{name}-80.txt", text)


def test_too_little_memory_is_said_with_the_cure() -> None:
    loaded = load_recipe(catalog.find_recipe("clipa-b16-i50-t16"), ["phases.pretrain.micro_batch=8192"])
    lines = dict(costs.notes(loaded, _cost(loaded, A100), []))
    assert "pretrain needs 173 GB, A100-80GB has 80 GB: lower phases.pretrain.micro_batch" in lines["memory"]


def test_recomputed_blocks_are_shown_where_there_are_some() -> None:
    words = ['phases.pretrain.recompute="auto"', "phases.pretrain.micro_batch=4096"]
    loaded = load_recipe(catalog.find_recipe("clipa-l16-i37-t8"), words)
    priced = _cost(loaded, A100)
    text = _drawn(80, lambda out: costs.print_plan(loaded, priced, [], out))
    (line,) = (line for line in text.splitlines() if "recomputed" in line)
    assert line.split() == ["recomputed", f"{priced.phases['pretrain'].recompute:.0%}"]


def test_json_has_the_facts() -> None:
    done = CliRunner().invoke(app, ["plan", "clipa-l16-i37-t8", "--cluster", "a100", "--json"])
    facts = json.loads(done.output)
    assert facts["cost"]["phases"]["pretrain"]["budget"]["image_tokens"] == 36
    assert facts["cost"]["phases"]["finetune"]["rate"]["source"] == "assumed"
    assert [said["top1"] for said in facts["published"]] == [57.9, 69.3]
    done = CliRunner().invoke(app, ["plan", "scaling-h14", "--points", "--json", "-c", "a100", "--mfu", "0.5"])
    assert [point["published"]["top1"] for point in json.loads(done.output)["points"]] == [70.2, 71.8, 72.8]
    assert {
        p["rate"]["mfu"] for point in json.loads(done.output)["points"] for p in point["cost"]["phases"].values()
    } == {0.5}


def test_changed_recipes_have_nothing_published_beside_them() -> None:
    done = CliRunner().invoke(app, ["plan", "clipa-l16-i37-t8", "-c", "a100", "--set", "phases.pretrain.batch=4096"])
    assert "published" not in done.output
    point = ["plan", "scaling-b16", "-c", "a100", "--set", "phases.pretrain.image.tokens=16"]
    assert "59.9 %" in CliRunner().invoke(app, point).output

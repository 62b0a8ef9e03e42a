"""Accuracy against compute: which score of which run, at which compute, on which line; and the picture of it."""

from __future__ import annotations

import io
import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from clipa.errors import ConfigError, InputError
from clipa.launch import picture as files
from clipa.registry.cascade import reduce
from clipa.registry.curves import Curves, Mark, curves
from clipa.registry.picture import Axis, Series, chart, to_svg
from clipa.registry.state import Facts, RunStatus, Score
from clipa.spec.budget import phase_budget
from clipa.spec.plan import Plan
from tests.unit.test_registry_state import PLAN


def _score(value: float, step: int = 10, name: str = "set", size: int = 8) -> Score:
    return Score(set=name, size=size, step=step, samples=9, metric="top1", value=value, metrics={"top1": value})


def _facts(
    run: str, *scores: Score, parent: str = "", point: tuple[str, ...] = (), init: Any = None, **settings: Any
) -> Facts:
    changed = {
        **PLAN,
        "run": run,
        "parent": parent,
        "point": point,
        "init": init,
        "run_root": "/r",
        "created": float(len(run)),
    }
    changed["settings"] = {**PLAN["settings"], **settings}  # type: ignore[dict-item]
    if settings.get("kind") == "eval":
        changed["settings"] = {"kind": "eval", "sets": ["set"]}
        changed["phase"] = "eval"
    return Facts(path=f"/r/{run}", plan=msgspec.convert(changed, Plan), scores=scores)


def _curves(*facts: Facts, wanted: str = "", shown: int = 0) -> Curves:
    statuses: list[RunStatus] = [reduce(f, lambda _: None, None, 1.0) for f in facts]
    return curves(statuses[shown:], {f.plan.run: f for f in facts}, wanted)


def _macs(facts: Facts) -> int:
    budget = phase_budget(facts.plan.model, facts.plan.settings)
    assert budget is not None
    return budget.compute


def test_compute_is_that_of_all_phases_and_the_score_that_of_the_last() -> None:
    first = _facts("a", _score(30))
    tune = _facts("a2", _score(40), parent="a", kind="finetune", image={"size": 16})
    last = _facts("a3", _score(41), parent="a2", kind="eval")
    found = _curves(first, tune, last)
    (mark,) = found.marks
    assert (mark.value, mark.run, mark.image_tokens, mark.text_tokens) == (41, "a3", 4, 4)
    assert mark.compute == _macs(first) + _macs(tune)
    assert found.left_out == ()


def test_where_the_last_phase_has_no_score_the_one_before_speaks() -> None:
    first = _facts("a", _score(30))
    tune = _facts("a2", parent="a", kind="finetune")
    found = _curves(first, tune)
    (mark,) = found.marks
    assert (mark.value, mark.compute) == (30, _macs(first))
    assert found.left_out == ("a2 UNKNOWN",)


def test_the_newest_score_of_the_wanted_set_at_its_largest_size() -> None:
    run = _facts("a", _score(1, step=5), _score(2, size=4), _score(3), _score(4, name="other"))
    assert _curves(run).marks[0].value == 4
    assert _curves(run, wanted="set").marks[0].value == 3
    assert _curves(run, wanted="none").marks == ()


def test_starting_weights_of_another_group_count() -> None:
    first = _facts("a")
    tune = _facts("b2", _score(40), init={"ref": "run:a@final", "run": "a"}, kind="finetune")
    assert _curves(first, tune, shown=1).marks[0].compute == _macs(first) + _macs(tune)


def test_tokens_move_along_a_line_and_everything_else_makes_one() -> None:
    runs = [
        _facts("a", _score(1), point=("phases.pretrain.image.size=8", "model.image.width=8")),
        _facts("bb", _score(2), point=("phases.pretrain.image.size=16", "model.image.width=8"), image={"size": 16}),
        _facts("ccc", _score(3), point=("phases.pretrain.image.size=8", "model.image.width=16")),
    ]
    marks = _curves(*runs).marks
    assert [(m.series, m.image_tokens) for m in marks] == [
        ("model.image.width=16", 4), ("model.image.width=8", 4), ("model.image.width=8", 16),
    ]  # fmt: skip


def _mark(series: str, tokens: int, value: float, **more: Any) -> Mark:
    return Mark(series=series, image_tokens=tokens, text_tokens=8, compute=tokens * 10**17, value=value,
                set="imagenet-val", size=224, metric="top1", run="r", **more)  # fmt: skip


def test_the_authors_marks_stand_beside_ours() -> None:
    found = Curves(marks=(_mark("scaling-b16", 16, 50.0),))
    marks = files.published({"scaling-b16", "unknown"}, found)
    assert [(m.image_tokens, m.value) for m in marks] == [(16, 59.9), (36, 62.1), (49, 62.9), (100, 63.6), (196, 64.2)]
    assert all(m.published and m.compute > 8e18 for m in marks)
    other = Curves(marks=(msgspec.structs.replace(found.marks[0], set="digits"),))
    assert files.published({"scaling-b16"}, other) == []


def test_an_axis_is_linear_or_logarithmic() -> None:
    assert Axis(low=0, high=10, start=0, end=100, ticks=()).at(5) == 50
    assert Axis(low=1, high=100, start=0, end=100, ticks=(), log=True).at(10) == pytest.approx(50)


LINES = [
    Series(name="a < b & c", points=((1e18, 50.0, "16"), (4e18, 55.0, "49"))),
    Series(name="twin", points=((1e18, 49.0, "16"), (4e18, 55.5, "49")), hollow=True, twin="a < b & c"),
    Series(name="alone", points=((2e18, 51.0, "36"),)),
]


def test_the_picture_shows_every_point_inside_and_no_names_on_each_other() -> None:
    scene = chart("title", "below", "x", "y", LINES)
    assert len(scene.dots) == 5
    assert all(0 < d.x < scene.width and 0 < d.y < scene.height for d in scene.dots)
    names = [w for w in scene.words if w.text in {line.name for line in LINES}]
    heights = sorted(w.y for w in names)
    assert all(below - above >= 12 for above, below in itertools.pairwise(heights))
    assert names[0].colour == names[1].colour or names[1].colour == names[2].colour, "a twin has its line's colour"
    first, second = (d for d in scene.dots if not d.hollow and d.colour == scene.dots[0].colour)
    assert second.y < first.y, "more is higher"


def test_the_svg_is_well_formed_and_says_what_it_shows() -> None:
    root = ElementTree.fromstring(to_svg(chart("title", "below", "x", "y", LINES)))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b & c", "twin", "alone", "title", "16", "2e18"} <= set(texts)
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 5


@pytest.mark.parametrize("points", [((3.0, 7.0, "1"),), ((0.0, 0.0, "1"), (0.0, 0.0, "2"))])
def test_one_point_and_equal_points_are_drawn_too(points: tuple[tuple[float, float, str], ...]) -> None:
    scene = chart("t", "b", "x", "y", [Series(name="s", points=points)])
    assert all(0 < d.x < scene.width and 0 < d.y < scene.height for d in scene.dots)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="no point"):
        chart("t", "b", "x", "y", [])
    status = reduce(_facts("a", _score(1)), lambda _: None, None, 1.0)
    for on, said in (("sett", 'did you mean "set"'), ("", "no run has a score yet")):
        with pytest.raises(InputError, match=said):
            files.require_marks(Curves(marks=()), [status], ["g"], on)


def test_files_that_cannot_be_drawn_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    for out in (tmp_path / "x.pdf", tmp_path / "gone" / "x.svg"):
        with pytest.raises(ConfigError) as refused:
            files.require_format(out, (".svg", ".png"))
        assert refused.value.exit_code == 2


def test_both_formats_are_written_whole(tmp_path: Path) -> None:
    scene = chart("title", "below", "x", "y", LINES)
    files.draw(scene, tmp_path / "law.svg")
    files.draw(scene, tmp_path / "law.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["law.png", "law.svg"]
    image = Image.open(io.BytesIO((tmp_path / "law.png").read_bytes()))
    assert image.size == (2 * scene.width, 2 * scene.height)
    dot = scene.dots[0]
    red, green, blue = (int(part, 16) for part in re.findall("..", dot.colour[1:]))
    assert image.getpixel((round(2 * dot.x), round(2 * dot.y))) == (red, green, blue)


def test_a_broken_scene_leaves_no_file(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "clipa.made.raster", str(tmp_path / "x.png")]
    assert subprocess.run(argv, input=b"{", capture_output=True, check=False).returncode
    assert not list(tmp_path.iterdir())

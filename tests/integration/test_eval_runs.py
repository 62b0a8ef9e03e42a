"""`python -m clipa.eval` on real run directories: every layout, one process and several."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipa.errors import DataError
from clipa.registry import events
from clipa.spec.evalset import EvalSet
from tests.services.eval_runs import make_run, picture, results, score, score_by_ranks, write_checkpoint, write_wds

CLASSES = ["cat", "dog", "eel", "fox", "gnu", "hen"]
TEMPLATES = ["a photo of a {c}.", "the {c}", "a {c} at night"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "step-000000007")


@pytest.fixture(scope="module")
def images() -> list[dict[str, bytes]]:
    return [{"png": picture(n, shape=(40 + n % 7, 52)), "cls": b"%d" % (n % 6)} for n in range(29)]


def test_ranks_do_not_change_a_score(tmp_path: Path, weights: Path, images: list[dict[str, bytes]]) -> None:
    root = write_wds(tmp_path / "wds_x", images, shards=3, classes=CLASSES, templates=TEMPLATES)
    sets = {"x": EvalSet(data=str(root))}
    one = make_run(tmp_path / "one", sets, weights, sizes=(32, 40), batch=8)
    score(one)
    two = make_run(tmp_path / "two", sets, weights, world=2, sizes=(32, 40), batch=8)
    score_by_ranks(two, 2)
    first, second = results(one), results(two)
    assert set(first) == set(second) == {"x-32", "x-40"}
    for name, result in first.items():
        assert result["samples"] == 29
        assert result["metrics"] == second[name]["metrics"]
        assert result["weights"] == second[name]["weights"] != ""
    (scored, _) = [e for e in events.read(one.event_file(1, "train")) if isinstance(e, events.Scored)]
    assert scored.metric == "top1"
    assert scored.value == scored.metrics["top1"] == first["x-32"]["value"]


def test_layouts_agree_and_prompts_are_kept(tmp_path: Path, weights: Path, images: list[dict[str, bytes]]) -> None:
    root = write_wds(tmp_path / "wds_x", images, classes=CLASSES, templates=TEMPLATES)
    folders = tmp_path / "val"
    for number, sample in enumerate(images):
        place = folders / CLASSES[int(sample["cls"])]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.png").write_bytes(sample["png"])
    sets = {
        "shards": EvalSet(data=str(root)),
        "folders": EvalSet(data=str(folders), classes=tuple(CLASSES), templates=tuple(TEMPLATES)),
        "reversed": EvalSet(data=str(folders), classes=tuple(CLASSES[::-1]), templates=tuple(TEMPLATES)),
    }
    run = make_run(tmp_path, sets, weights, batch=10)
    score(run)
    found = results(run)
    assert found["shards-32"]["metrics"] == found["folders-32"]["metrics"]
    assert found["shards-32"]["metrics"] == found["reversed-32"]["metrics"]
    assert len(list((tmp_path / "cache" / "prompts").iterdir())) == 2, "once for each order of the classes"
    kept = sorted((tmp_path / "cache" / "prompts").iterdir())[0]
    kept.write_bytes(kept.read_bytes()[:100])  # a torn one is computed again
    for path in run.evals.iterdir():
        path.unlink()
    score(run)
    assert {name: r["metrics"] for name, r in results(run).items()} == {name: r["metrics"] for name, r in found.items()}
    squashed = make_run(tmp_path / "squash", {"shards": sets["shards"]}, weights, batch=10, resize="squash")
    score(squashed)
    view = results(squashed)["shards-32"]["preprocessing"]
    assert view["resize"] == "squash"  # type: ignore[index]


def test_a_wrong_label_and_a_broken_image_are_named(tmp_path: Path, weights: Path) -> None:
    label = write_wds(tmp_path / "label", [{"png": picture(1), "cls": b"6"}], classes=CLASSES, templates=TEMPLATES)
    run = make_run(tmp_path / "a", {"x": EvalSet(data=str(label))}, weights)
    with pytest.raises(DataError, match="a label of 6 with 6 classes") as caught:
        score(run)
    assert caught.value.where.endswith("0.tar: s00000")
    broken = write_wds(tmp_path / "broken", [{"png": b"no", "cls": b"1"}], classes=CLASSES, templates=TEMPLATES)
    run = make_run(tmp_path / "b", {"x": EvalSet(data=str(broken))}, weights)
    with pytest.raises(DataError, match="cannot be decoded"):
        score(run)
    assert not results(run)

"""`python -m clipa.eval` on real run directories: every layout, one process and several."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from clipa.attempt.process import RESUMABLE
from clipa.errors import DataError
from clipa.eval.probe import STRENGTHS
from clipa.registry import events
from clipa.registry.run_dir import RunDir
from clipa.spec import datacomp
from clipa.spec.evalset import EvalSet
from tests.services.eval_runs import make_run, npy, picture, results, score, score_by_ranks, write_checkpoint, write_wds

CLASSES = ["cat", "dog", "eel", "fox", "gnu", "hen"]
TEMPLATES = ["a photo of a {c}.", "the {c}", "a {c} at night"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "step-000000007")


@pytest.fixture(scope="module")
def images() -> list[dict[str, bytes]]:
    return [{"png": picture(n, shape=(40 + n % 7, 52)), "cls": b"%d" % (n % 6)} for n in range(29)]


def every_task(folder: Path, images: list[dict[str, bytes]]) -> dict[str, EvalSet]:
    """One small set of each task, with the same images."""
    named = {"classes": CLASSES, "templates": TEMPLATES}
    png = [sample["png"] for sample in images]
    plain = write_wds(folder / "wds_x", images, shards=3, **named)
    groups = [{**sample, "npy": npy([n % 4, 0])} for n, sample in enumerate(images)]
    several = [{"png": p, "npy": npy([(n >> k) % 2 for k in range(6)])} for n, p in enumerate(png)]
    captions = [{"png": p, "txt": "\n".join(f"{CLASSES[n % 6]} {n} {k}" for k in range(1 + n % 3)).encode()}
                for n, p in enumerate(png)]  # fmt: skip
    cues = [
        {"png": p, "json": json.dumps({"instance": n // 6, "cue": CLASSES[n // 6], "associated": n % 6 < 2}).encode()}
        for n, p in enumerate(png)
    ]
    return {
        "x": EvalSet(data=str(plain)),
        "groups": EvalSet(data=str(write_wds(folder / "wds_g", groups, shards=2, **named)), metric="worst_group"),
        "several": EvalSet(data=str(write_wds(folder / "wds_m", several, shards=2, kind="multilabel", **named))),
        "captions": EvalSet(data=str(write_wds(folder / "wds_r", captions, shards=3, kind="retrieval"))),
        "cues": EvalSet(data=str(write_wds(folder / "wds_w", cues, shards=2)), task="association"),
    }


def test_ranks_do_not_change_a_score(tmp_path: Path, weights: Path, images: list[dict[str, bytes]]) -> None:
    sets = every_task(tmp_path, images)
    one = make_run(tmp_path / "one", sets, weights, sizes=(32, 40), batch=8)
    score(one)
    two = make_run(tmp_path / "two", sets, weights, world=2, sizes=(32, 40), batch=8)
    score_by_ranks(two, 2)
    first, second = results(one), results(two)
    assert set(first) == set(second) == {f"{name}-{size}" for name in sets for size in (32, 40)}
    for name, result in first.items():
        assert result["samples"] == 29
        assert result["metrics"] == pytest.approx(second[name]["metrics"], abs=1e-3 if "several" in name else 0)
        assert result["weights"] == second[name]["weights"] != ""
        assert result["value"] == result["metrics"][result["metric"]]  # type: ignore[index]
    assert len({result["value"] for result in first.values()}) > 5, "the weights tell the sets apart"
    scored = [e for e in events.read(one.event_file(1, "train")) if isinstance(e, events.Scored)]
    assert [e.metric for e in scored[::2]] == [
        "top1", "worst_group", "mean_average_precision", "mean_recall@1", "jaccard"
    ]  # fmt: skip
    assert scored[0].value == scored[0].metrics["top1"] == first["x-32"]["value"]
    groups, plain = first["groups-32"]["metrics"], first["x-32"]["metrics"]
    assert groups["top1"] == plain["top1"] > groups["worst_group"]  # type: ignore[index]


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


def test_a_set_that_fails_does_not_stop_the_others_and_is_named(tmp_path: Path, weights: Path) -> None:
    broken = write_wds(tmp_path / "broken", [{"png": b"no", "cls": b"1"}], classes=CLASSES, templates=TEMPLATES)
    good = write_wds(tmp_path / "good", [{"png": picture(1), "cls": b"1"}], classes=CLASSES, templates=TEMPLATES)
    run = make_run(tmp_path / "a", {"bad": EvalSet(data=str(broken)), "fine": EvalSet(data=str(good))}, weights)
    with pytest.raises(DataError, match="the other sets are scored, these cannot be: bad at 32 px"):
        score(run)
    assert [event.set for event in _scored(run)] == ["fine"]


def test_a_suite_names_what_is_missing_and_averages_when_nothing_is(
    tmp_path: Path, weights: Path, images: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("wds_mnist_test", "wds_svhn", "wds_vtab-svhn_test"):
        write_wds(tmp_path / "sets" / folder, images[:12], classes=CLASSES, templates=TEMPLATES)
    sets = {"dc": EvalSet(data=str(tmp_path / "sets"), suite="datacomp")}
    run = make_run(tmp_path / "some", sets, weights)
    score(run)
    found = json.loads(next(run.evals.glob("*-dc-32.json")).read_text())
    assert set(found["members"]) == {"MNIST", "SVHN"}
    assert len(found["missing"]) == 36
    assert found["averages"] == {}
    assert found["other_sizes"] == ["MNIST", "SVHN"]
    assert {e.set for e in _scored(run)} == {"dc-mnist", "dc-vtab-svhn"}
    before = {path: path.read_bytes() for path in run.evals.glob("*-dc-*-32.json")}
    score(run)
    assert before == {path: path.read_bytes() for path in run.evals.glob("*-dc-*-32.json")}, "scored once"

    monkeypatch.setattr("clipa.spec.datacomp.SETS", tuple(e for e in datacomp.SETS if e.name in ("MNIST", "SVHN")))
    monkeypatch.setattr("clipa.spec.datacomp.GROUPS", {"average": ("MNIST", "SVHN")})
    run = make_run(tmp_path / "all", sets, weights)
    score(run)
    (last,) = [e for e in _scored(run) if e.set == "dc"]
    values = [e.value for e in _scored(run) if e.set != "dc"]
    assert last.metric == "average"
    assert last.value == pytest.approx(sum(values) / 2)
    assert last.samples == 24


def _scored(run: RunDir) -> list[events.Scored]:
    return [e for e in events.read(run.event_file(1, "train")) if isinstance(e, events.Scored)]


def test_a_probe_learns_what_prompts_do_not_say(tmp_path: Path, weights: Path) -> None:
    def shade(n: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (32, 32), ((n % 3) * 100 + n % 7, 60, 200 - (n % 3) * 90)).save(buffer, "PNG")
        return buffer.getvalue()

    # The classes are named otherwise where it learns: it must answer as it was taught.
    root = write_wds(tmp_path / "wds_p", [{"png": shade(n), "cls": b"%d" % ((n + 1) % 3)} for n in range(15)],
                     classes=CLASSES[:3])  # fmt: skip
    write_wds(root, [{"png": shade(n), "cls": b"%d" % (n % 3)} for n in range(99, 159)], split="train")
    run = make_run(tmp_path, {"x": EvalSet(data=str(root), task="probe")}, weights, batch=16)
    score(run)
    (result,) = results(run).values()
    assert result["metrics"]["top1"] == 0.0  # type: ignore[index]
    assert result["chosen"]["held_out_top1"] == 100.0  # type: ignore[index]
    assert result["chosen"]["l2"] in STRENGTHS  # type: ignore[index]
    assert result["train_manifest"] != result["manifest"]
    kept = sorted((tmp_path / "cache" / "features").iterdir())
    assert len(kept) == 2
    kept[0].write_bytes(b"torn")
    next(run.evals.glob("*.json")).unlink()
    score(run)
    assert next(iter(results(run).values()))["metrics"] == result["metrics"]


def test_an_evaluation_leaves_between_two_sets_and_goes_on(
    tmp_path: Path, weights: Path, images: list[dict[str, bytes]]
) -> None:
    root = write_wds(tmp_path / "wds_x", images[:6], classes=CLASSES, templates=TEMPLATES)
    run = make_run(tmp_path, {"a": EvalSet(data=str(root)), "b": EvalSet(data=str(root))}, weights)
    run.stop_file(1).parent.mkdir(parents=True)
    run.stop_file(1).touch()
    assert score(run) == RESUMABLE
    assert not results(run)
    run.stop_file(1).unlink()
    assert score(run) == 0
    assert set(results(run)) == {"a-32", "b-32"}
    foreign = next(run.evals.glob("*-a-32.json"))
    foreign.write_text(foreign.read_text().replace(str(results(run)["a-32"]["weights"]), "other"))
    assert score(run) == 0
    assert results(run)["a-32"]["weights"] == results(run)["b-32"]["weights"], "of other weights: scored again"

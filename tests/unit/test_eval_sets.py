"""Evaluation sets of every layout: what is recognised, in which order the classes are, and what is refused by name."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clipa.data import imagenet
from clipa.data.shards import ShardSet, open_shards
from clipa.data.sources import (
    Candidate,
    FolderLabels,
    ShardCandidates,
    ShardCaptions,
    ShardGroups,
    ShardTargets,
)
from clipa.errors import ClipaError, ConfigError, DataError, InputError
from clipa.eval.prompts import Prompts, canonical, settled
from clipa.eval.retrieval import cue_prompt
from clipa.launch.evaluation import PinnedSet, pin_set, pin_sets
from clipa.spec import datacomp, plan
from clipa.spec.cluster import Dataset
from clipa.spec.evalset import METRICS, EvalSet
from clipa.staging.stage import stage_run
from tests.services.eval_runs import make_run, npy, picture, write_wds

LABELLED = [{"png": picture(n), "cls": b"%d" % (n % 3)} for n in range(6)]


def pinned(path: Path, **how: object) -> PinnedSet:
    return pin_set("x", EvalSet(data=str(path), **how), lambda word: Dataset(url=word))  # type: ignore[arg-type]


def refused(path: Path, **how: object) -> str:
    with pytest.raises(ClipaError) as caught:
        pinned(path, **how)
    assert caught.value.exit_code == 2
    return str(caught.value)


def class_folders(root: Path, names: list[str], suffix: str = ".JPEG") -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / f"a{suffix}").write_bytes(b"x" * (number + 1))
    return root


def test_a_wds_folder_reads_one_split_in_the_shards_own_order(tmp_path: Path) -> None:
    root = write_wds(tmp_path / "wds_x", LABELLED, shards=12, classes=["a", "b", "c"], templates=["a {c}."])
    write_wds(root, LABELLED, split="train")
    found = pinned(root)
    assert found.data.data.shards == 12
    assert found.manifests[0].url.endswith("/test")
    assert found.data.classes == ("a", "b", "c")
    assert found.data.templates == ("a {c}.",)
    assert pinned(root, split="train").data.data.shards == 1


def test_an_empty_class_name_keeps_its_label(tmp_path: Path) -> None:
    root = write_wds(tmp_path / "wds_x", LABELLED, classes=["a", "b", "", "d"], templates=["a {c}."])
    assert pinned(root).data.classes == ("a", "b", "", "d")


def test_what_is_wrong_with_a_wds_folder_is_named(tmp_path: Path) -> None:
    root = write_wds(tmp_path / "wds_x", LABELLED, shards=3, classes=["a", "b", "c"], templates=["a {c}."])
    assert "allowed: test" in refused(root, split="val")
    (root / "test" / "1.tar").unlink()
    assert "1.tar" in refused(root)
    (root / "test" / "nshards.txt").write_text("many\n")
    assert "nshards.txt holds 'many'" in refused(root)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "dataset_type.txt").write_text("segmentation")
    assert "segmentation" in refused(root)
    (root / "dataset_type.txt").unlink()
    (root / "classnames.txt").unlink()
    assert "has no classes" in refused(root)


def test_an_empty_place_is_refused(tmp_path: Path) -> None:
    assert "no shards here" in refused(tmp_path, classes=("a", "b"), templates=("{}",))


def test_class_folders_are_matched_by_name_not_by_place(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "val", ["cat", "dog", "eel"])
    found = pinned(root, classes=("eel", "cat", "dog"), templates=("{}",))
    assert found.data.data.layout == "folder"
    source = FolderLabels(found.manifests[0], found.data.classes)
    labels = {Path(item.where).parent.name: item.truth for item in map(source.read, range(source.samples))}
    assert labels == {"eel": 0, "cat": 1, "dog": 2}


def test_class_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "val", ["cat", "dog", "eel"])
    said = refused(root, classes=("cat", "dog", "fox"), templates=("{}",))
    assert "fox" in said
    assert "eel" in said
    assert refused(root, classes=("a", "b", "c"), folders=("cat", "dog", "elk"), templates=("{}",)).count("elk") == 1
    (root / "dog" / "notes.txt").write_text("x")
    assert "notes.txt" in refused(root, classes=("cat", "dog", "eel"), templates=("{}",))
    (root / "dog" / "notes.txt").unlink()
    (root / "dog" / "a.JPEG").unlink()
    assert "without an image" in refused(root, classes=("cat", "dog", "eel"), templates=("{}",))


def test_a_folder_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "val", ["cat", "dog"])
    found = pinned(root, classes=("cat", "dog"), templates=("{}",))
    (root / "dog" / "b.JPEG").write_bytes(b"new")
    source = FolderLabels(found.manifests[0], ("cat", "dog"))
    assert source.read(0).truth == 0
    with pytest.raises(DataError, match="changed"):
        source.read(1)


def test_imagenets_lists() -> None:
    every = imagenet.classes("imagenet")
    assert len(every.names) == len(every.wnids) == 1000
    assert every.wnids == tuple(sorted(every.wnids)), "torchvision's ImageFolder numbers the folders in this order"
    by_wnid = dict(zip(every.wnids, every.names, strict=True))
    assert by_wnid["n01440764"] == "tench"
    assert by_wnid["n15075141"] == "toilet paper"
    for part in ("imagenet-a", "imagenet-r"):
        some = imagenet.classes(part)
        assert len(some.names) == 200
        assert all(by_wnid[wnid] == name for wnid, name in zip(some.wnids, some.names, strict=True))
    assert len(imagenet.templates(canonical=False)) == 80
    assert imagenet.templates(canonical=False)[0] == "a bad photo of a {c}."


def test_numbered_folders_are_in_numerical_order() -> None:
    numbers = sorted(str(n) for n in range(1000))
    assert imagenet.folder_order("imagenet", numbers, "x")[:12] == tuple(str(n) for n in range(12))
    wnids = imagenet.classes("imagenet-r").wnids
    assert imagenet.folder_order("imagenet-r", sorted(wnids), "x") == wnids
    with pytest.raises(DataError, match="n01440764"):
        imagenet.folder_order("imagenet", imagenet.classes("imagenet").wnids[1:], "x")
    with pytest.raises(DataError, match="imagenet-a"):
        imagenet.folder_order("imagenet-a", wnids, "x")


def test_imagenet_folders_are_checked_before_queueing(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "val", list(imagenet.classes("imagenet-a").wnids))
    found = pinned(root, names="imagenet-a")
    assert settled(found.data).classes == imagenet.classes("imagenet-a").names
    shutil.rmtree(root / "n01498041")
    assert "199 class folders" in refused(root, names="imagenet-a")
    (root / "stingray").mkdir()
    (root / "stingray" / "x.jpg").write_bytes(b"x")
    assert "stingray" in refused(root, names="imagenet-a")


def test_objectnet_uses_its_own_mapping(tmp_path: Path) -> None:
    class_folders(tmp_path / "images", ["air_freshener", "alarm_clock", "backpack", "zebra"], ".png")
    (tmp_path / "mappings").mkdir()
    labels = {"air_freshener": "Air freshener", "alarm_clock": "Alarm clock", "backpack": "Backpack"}
    (tmp_path / "mappings" / "folder_to_objectnet_label.json").write_text(json.dumps(labels))
    shared = {"Alarm clock": "analog clock; digital clock", "Backpack": "backpack"}
    (tmp_path / "mappings" / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    found = pinned(tmp_path, names="objectnet")
    assert found.data.classes == ("alarm clock", "backpack")
    assert [shard.name for shard in found.manifests[0].shards] == ["alarm_clock", "backpack"]
    assert len(settled(found.data).templates) == 80
    canonical_data = msgspec.structs.replace(found.data, canonical=True)
    assert settled(canonical_data).templates == (*settled(found.data).templates, "{c}")
    assert settled(canonical_data).of("Alarm clock")[-2:] == ["a tattoo of the alarm clock", "alarm clock"]
    own = msgspec.structs.replace(canonical_data, templates=("a {c}.",))
    assert settled(own).templates == ("a {c}.",)
    shutil.rmtree(tmp_path / "images" / "backpack")
    assert "backpack" in refused(tmp_path, names="objectnet")


def test_prompts() -> None:
    assert Prompts(("cat",), ("a {c}.", "the {}!")).of("cat") == ["a cat.", "the cat!"]
    assert Prompts(("x",), ("a {c}.",), canonical=True).of("Kite (bird_of prey)") == ["a kite bird of prey"]
    assert canonical("  A  Photo, of: {it}") == "a photo of it"


@pytest.mark.parametrize(
    "how",
    [
        {"names": "imagenet", "classes": ("a", "b")},
        {"classes": ("a",)},
        {"classes": ("a", "a")},
        {"classes": ("a", "b"), "folders": ("x",)},
        {"templates": ("no place",)},
        {"metric": "top2"},
        {"split": "../up"},
    ],
)
def test_contradictions_are_refused(how: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        EvalSet(data="x", **how)  # type: ignore[arg-type]


def test_errors_are_the_users_to_mend() -> None:
    assert issubclass(ConfigError, InputError)


def opened(tmp_path: Path, samples: list[dict[str, bytes]]) -> ShardSet:
    root = write_wds(tmp_path / "wds_y", samples)
    return open_shards(pinned(root, task="retrieval").manifests[0], root / "test")


def test_captions_of_several_lines_and_of_json(tmp_path: Path) -> None:
    words = [
        ("txt", b"a cat\nthe cat\n"),
        ("json", b'{"caption": ["a"]}'),
        ("txt", b"a\n\nb"),
        ("txt", b""),
        ("json", b"{}"),
    ]
    shards = opened(tmp_path, [{"png": b"x", extension: text} for extension, text in words])
    source = ShardCaptions(shards)
    assert source.read(0).truth == ("a cat", "the cat")
    assert source.read(1).truth == ("a",)
    for number, said in ((2, "empty"), (3, "without a caption"), (4, "not usable")):
        with pytest.raises(DataError, match=said) as caught:
            source.read(number)
        assert caught.value.where.endswith(f"0.tar: s0000{number}")


def test_vectors_of_npy(tmp_path: Path) -> None:
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    members = [npy([1, 0, 1]), npy([1, 0]), npy([0.5, 0, 1]), npy([float("nan")] * 3), b"no", pickled.getvalue()]
    shards = opened(tmp_path, [{"png": b"x", "cls": b"1", "npy": member} for member in members])
    targets = ShardTargets(shards, 3)
    assert targets.read(0).truth == (1.0, 0.0, 1.0)
    for number, said in ((1, "2 numbers for 3"), (2, "0 and 1"), (3, "shape"), (4, "cannot be read"), (5, "Object")):
        with pytest.raises(DataError, match=said):
            targets.read(number)
    groups = ShardGroups(shards, 3, column=2)
    assert groups.read(0).truth == (1, 1)
    for number, said in ((1, "the group is number 2"), (3, "shape")):
        with pytest.raises(DataError, match=said):
            groups.read(number)
    assert ShardGroups(shards, 3, column=0).read(0).truth.group == 1
    with pytest.raises(DataError, match=r"a group of 0\.5"):
        ShardGroups(shards, 3, column=0).read(2)


def test_groups_need_npy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no target"):
        ShardGroups(opened(tmp_path, [{"png": b"x", "cls": b"1"}]), 3, column=0).read(0)
    with pytest.raises(DataError, match="target") as caught:
        ShardTargets(opened(tmp_path, [{"png": b"x", "cls": b"1"}]), 3)
    assert "npy" in str(caught.value)


def test_candidates(tmp_path: Path) -> None:
    good = b'{"instance": 3, "cue": "bat", "associated": true}'
    shards = opened(tmp_path, [{"png": b"x", "json": j} for j in (good, b'{"cue": "bat"}', good.replace(b"bat", b" "))])
    source = ShardCandidates(shards)
    assert source.read(0).truth == Candidate(instance=3, cue="bat", associated=True)
    for number in (1, 2):
        with pytest.raises(DataError):
            source.read(number)
    assert [cue_prompt(cue) for cue in ("Owl", "bat ")] == ["An owl", "A bat"]


def test_class_folders_cannot_answer_everything(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "val", ["cat", "dog"])
    assert "worst_group" in refused(root, classes=("cat", "dog"), templates=("{}",), metric="worst_group")
    assert "mean_recall@1" in refused(root, task="retrieval")


def test_a_probe_needs_other_data_to_learn_from(tmp_path: Path) -> None:
    root = write_wds(tmp_path / "wds_p", LABELLED, classes=["a", "b", "c"])
    assert "allowed: test" in refused(root, task="probe")
    assert "trained on the data that it is scored on" in refused(root, task="probe", train=str(root / "test"))
    write_wds(root, LABELLED[:3], split="train")
    found = pinned(root, task="probe")
    assert found.data.train is not None
    assert found.data.train.manifest != found.data.data.manifest
    assert found.data.metric == "top1"


_METRICS = {
    "-": "top1", "mean_per_class_recall": "mean_per_class_recall", "mean_recall@1": "mean_recall@1",
    "jaccard_score_10-12": "jaccard_10-12", "F1-macro_all": "f1_macro", "acc_worst_region": "worst_group",
    "acc_wg": "worst_group", "acc_top5_wg": "worst_group_top5",
}  # fmt: skip
"""DataComp's main metrics, ours; a task that names none is scored by `acc1`."""
_UNSCORED = {"FairFace", "UTKFace"}
"""Neither has `acc1`, so no main metric (`eval_utils/fairness_eval.py`)."""


def test_datacomps_table_is_the_recorded_one() -> None:
    lines = (Path(__file__).parent / "recorded" / "datacomp-4a8df19.tsv").read_text().splitlines()[1:]
    tasks = {name: (key, int(size), metric, tags) for key, name, size, metric, tags in (x.split("\t") for x in lines)}
    assert set(tasks) == set(datacomp.BY_NAME) | _UNSCORED
    for name, entry in datacomp.BY_NAME.items():
        key, size, metric, _ = tasks[name]
        folder = key.removeprefix("fairness/").replace("/", "-")  # as its download_evalsets.py names it
        assert f"wds_{folder}_test" in entry.folders, name
        assert (entry.size, entry.metric) == (0 if name == "WinoGAViL" else size, _METRICS[metric]), name
        assert entry.metric in METRICS[entry.task]
    tagged = {word: {n for n, task in tasks.items() if word in task[3]} for word in ("vtab_", "retrieval")}
    assert set(datacomp.GROUPS["vtab"]) == tagged["vtab_"]
    assert set(datacomp.GROUPS["retrieval"]) == tagged["retrieval"]
    shifts = {name for name in tasks if name.startswith("ImageNet") and name != "ImageNet 1k"} | {"ObjectNet"}
    assert set(datacomp.GROUPS["imagenet_shifts"]) == shifts
    assert set(datacomp.GROUPS["average"]) == set(datacomp.BY_NAME)


def test_datacomps_averages() -> None:
    every = {entry.name: 100.0 if entry.name == "MNIST" else 50.0 for entry in datacomp.SETS}
    assert datacomp.averages(every)["average"] == pytest.approx((37 * 50 + 100) / 38)
    assert datacomp.averages({**every, "SVHN": 11.0})["vtab"] == pytest.approx((12 * 50 + 11) / 13)
    del every["Flickr"]
    assert set(datacomp.averages(every)) == {"imagenet", "imagenet_shifts", "vtab"}


def test_a_suite_is_the_sets_that_are_there(tmp_path: Path) -> None:
    resolve = lambda word: Dataset(url=word)  # noqa: E731
    suite = EvalSet(data=str(tmp_path), suite="datacomp")
    with pytest.raises(ConfigError, match="none of the 38 sets"):
        pin_sets("dc", suite, resolve)
    named = {"classes": ["a", "b", "c"], "templates": ["a {c}"]}
    write_wds(tmp_path / "wds_mnist_test", LABELLED, **named)
    write_wds(tmp_path / "wds_vtab-pets", LABELLED, **named)
    write_wds(tmp_path / "wds_unheard-of_test", LABELLED, **named)
    found = pin_sets("dc", suite, resolve)
    assert {key: (one.data.member, one.data.metric) for key, one in found.items()} == {
        "dc-mnist": ("MNIST", "top1"),
        "dc-vtab-pets": ("Oxford-IIIT Pet", "mean_per_class_recall"),
    }
    assert {one.data.suite for one in found.values()} == {"dc"}
    with pytest.raises(ValueError, match="says itself"):
        EvalSet(data="x", suite="datacomp", metric="top1")


def test_names_beside_the_shards_must_be_those_of_names(tmp_path: Path) -> None:
    right = list(imagenet.classes("imagenet-r").names)
    root = write_wds(tmp_path / "wds_r", LABELLED, classes=right, templates=["{c}"])
    assert settled(pinned(root, names="imagenet-r").data).classes == tuple(right)
    write_wds(root, LABELLED, classes=[*right[1:], right[0]])
    with pytest.raises(DataError, match="class 0 is 'great white shark' beside the shards, 'goldfish' in imagenet-r"):
        settled(pinned(root, names="imagenet-r").data)
    write_wds(root, LABELLED, classes=right[:-1])
    with pytest.raises(DataError, match="199 classes stand beside"):
        settled(pinned(root, names="imagenet-r").data)


def test_shards_without_a_sample_of_the_kind_are_refused(tmp_path: Path) -> None:
    root = write_wds(tmp_path / "wds_e", [{"png": b"x"}], classes=["a", "b"], templates=["{c}"])
    with pytest.raises(DataError, match="no sample has both an image and a"):
        open_shards(pinned(root).manifests[0], root / "test")


def test_a_folder_of_splits_is_refused_without_listing_it(tmp_path: Path) -> None:
    class_folders(tmp_path / "data" / "train", ["cat", "dog"])
    class_folders(tmp_path / "data" / "val", ["cat", "dog"])
    said = refused(tmp_path / "data", classes=("cat", "dog"), templates=("{}",))
    assert "one level deeper, in train" in said
    class_folders(tmp_path / "odd", ["c\nat", "dog"])
    assert "printable" in refused(tmp_path / "odd", classes=("cat", "dog"), templates=("{}",))


def test_class_folders_are_not_staged(tmp_path: Path) -> None:
    folders = class_folders(tmp_path / "val", ["cat", "dog"])
    shards = write_wds(tmp_path / "wds_x", LABELLED, classes=["a", "b", "c"], templates=["{}"])
    sets = {
        "folders": EvalSet(data=str(folders), classes=("cat", "dog"), templates=("{}",)),
        "shards": EvalSet(data=str(shards)),
    }
    run = make_run(tmp_path, sets, tmp_path / "weights", cache=tmp_path / "unused")
    the_plan = plan.decode(run.plan.read_bytes())
    run.plan.write_bytes(plan.encode(msgspec.structs.replace(the_plan, cache=str(tmp_path / "fresh"))))
    stage_run(run, 1)
    (folder,) = (tmp_path / "fresh" / "staged").iterdir()
    assert [path.name for path in folder.iterdir() if path.suffix == ".tar"] == ["0.tar"]
    assert the_plan.evals["folders"].data.layout == "folder"

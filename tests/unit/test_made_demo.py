import io
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from clipa.data.index import Part
from clipa.data.shards import Reader, caption_of, label_of, open_shards
from clipa.data.tokenizer import tokenizer
from clipa.made import demo, digits
from clipa.made.captions import TEMPLATES, WORDS, caption
from clipa.made.splits import Written
from clipa.reduction.draws import Draws, Purpose
from clipa.spec.cluster import Dataset
from clipa.spec.evalset import EvalSet
from clipa.storage import manifest as manifests
from clipa.storage.dataset import index

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bucket")
    assert demo.write(str(folder)).written
    return folder


def reader(bucket: Path, split: str) -> Reader:
    manifest = manifests.decode((bucket / split / manifests.MANIFEST_NAME).read_bytes())
    return Reader(open_shards(manifest, bucket / split), Part.CAPTION)


def test_scans_are_split_first_and_by_class() -> None:
    _, labels = digits._digits()
    parts = digits.split_scans(labels)
    assert {name: len(part) for name, part in parts.items()} == {"train": 1237, "val": 200, "test": 360}
    assert sorted(number for part in parts.values() for number in part) == list(range(1797))
    for name in ("val", "test"):
        counts = np.bincount(labels[parts[name]], minlength=10)
        assert counts.max() - counts.min() <= 2
        assert parts[name] == digits.split_scans(labels)[name]


def test_no_scan_of_one_split_is_in_another(bucket: Path) -> None:
    scans = {}
    for split in SPLITS:
        found = reader(bucket, split)
        scans[split] = {found.read(number).key.partition("_")[0] for number in range(found.samples)}
        found.close()
    assert not scans["train"] & scans["val"]
    assert not scans["train"] & scans["test"]
    assert not scans["val"] & scans["test"]


def test_the_bucket_is_what_its_manifests_say(bucket: Path) -> None:
    for split, samples in zip(SPLITS, (4948, 200, 360), strict=True):
        manifest = index(Dataset(url=str(bucket / split)))
        assert manifest.samples == samples
        assert all(shard.sha256 for shard in manifest.shards)
        found = open_shards(manifest, bucket / split)
        assert (found.samples, found.skipped) == (samples, 0)


def test_captions_say_nothing_false(bucket: Path) -> None:
    found = reader(bucket, "train")
    labels = Reader(found._shards, Part.LABEL)
    texts = set()
    for number in range(found.samples):
        text, digit = caption_of(found.read(number)), label_of(labels.read(number))
        # Words that are no name of the digit: "one digit, ..." counts, and the halves name their bounds.
        bare = text.replace("one digit", "").replace("more than four", "").replace("less than five", "")
        assert {d for d in range(10) if re.search(rf"\b({WORDS[d]}|{d})\b", bare)} <= {digit}, text
        assert re.search(rf"\b({WORDS[digit]}|{digit})\b", text), text
        assert not re.search("an even" if digit % 2 else "an odd", text), text
        assert not re.search("less than five" if digit > 4 else "more than four", text), text
        assert not re.search(r"\ba (eight|8)", text), text
        texts.add(text)
    found.close()
    labels.close()
    assert len(texts) > 1500


def test_most_captions_keep_their_digit_at_eight_tokens() -> None:
    words = tokenizer("clip-bpe")
    kept = 0
    for place in range(1000):
        digit = place % 10
        row = words.encode([caption(digit, Draws(0, place, Purpose.CAPTION))], 8)[0].tolist()
        names = words.encode([WORDS[digit], str(digit)], 3)[:, 1].tolist()
        kept += bool(set(row) & set(names))
    assert 700 < kept < 950


def test_images_are_smooth_64_pixel_rgb(bucket: Path) -> None:
    found = reader(bucket, "test")
    picture = Image.open(io.BytesIO(found.read(0).image))
    found.close()
    assert (picture.size, picture.mode) == ((64, 64), "RGB")
    pixels = np.asarray(picture.convert("L")).astype(int)
    assert pixels.max() > 200
    assert pixels[0].max() < 40  # a dark margin
    assert np.abs(np.diff(pixels, axis=0)).max() < 100  # no blocks


def test_side_files_fit_an_evaluation_set(bucket: Path) -> None:
    for split in ("val", "test"):
        classes = (bucket / split / manifests.CLASSNAMES).read_text().splitlines()
        templates = (bucket / split / manifests.TEMPLATES).read_text().splitlines()
        assert EvalSet(data="x", classes=tuple(classes), templates=tuple(templates)).classes == WORDS
        assert tuple(templates) == TEMPLATES


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".tar", ".txt")
    }


def test_the_same_bytes_every_time_and_a_complete_bucket_is_left_alone(bucket: Path, tmp_path: Path) -> None:
    first = demo.write(str(tmp_path))
    assert contents(tmp_path) == contents(bucket)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    second = demo.write(str(tmp_path))
    assert not second.written
    assert second.splits == first.splits
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("damage", ["stamp", "torn stamp", "older", "manifest", "torn manifest"])
def test_an_incomplete_or_older_bucket_is_written_again(bucket: Path, tmp_path: Path, damage: str) -> None:
    for path in bucket.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(bucket)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(bucket)).write_bytes(path.read_bytes())
    assert not demo.write(str(tmp_path)).written
    stamp, manifest = tmp_path / "demo.json", tmp_path / "val" / manifests.MANIFEST_NAME
    match damage:
        case "stamp":
            stamp.unlink()
        case "torn stamp":
            stamp.write_bytes(b'{"ver')
        case "older":
            stamp.write_bytes(msgspec.json.encode({"version": digits.VERSION - 1}))
        case "manifest":
            manifest.unlink()
        case "torn manifest":
            manifest.write_bytes(b"[")
    assert demo.write(str(tmp_path)).written
    assert contents(tmp_path) == contents(bucket)


def test_command_prints_facts_and_refuses_a_bad_url(bucket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([str(bucket), "--json"]) == 0
    facts = msgspec.json.decode(capsys.readouterr().out, type=Written)
    assert (facts.written, facts.splits["train"].scans, facts.splits["test"].samples) == (False, 1237, 360)
    assert demo.main([str(bucket)]) == 0
    assert "1237 images" in capsys.readouterr().out
    assert demo.main(["nosuch://bucket"]) == 2
    assert "nosuch://" in capsys.readouterr().err

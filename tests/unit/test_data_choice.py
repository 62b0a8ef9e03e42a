import json
from collections import Counter
from pathlib import Path

import pytest

from clipa.data.choice import CaptionChoice
from clipa.data.index import Part
from clipa.data.shards import Reader, open_shards
from clipa.errors import DataError
from clipa.spec.inputs import TextInput
from tests.unit.test_data_shards import Members, dataset, tar


def reader(folder: Path, txt: bytes | None = None, fields: object = None) -> Reader:
    members: Members = [("a.jpg", b"pixels")]
    members += [("a.txt", txt)] if txt is not None else []
    members += [("a.json", fields if isinstance(fields, bytes) else json.dumps(fields).encode())] if fields else []
    return Reader(open_shards(dataset(folder, tar(members)), folder), Part.CAPTION)


def said(reader: Reader, weights: dict[str, float], positions: range, seed: int = 1) -> list[str]:
    choice = CaptionChoice(weights, seed)
    sample = reader.read(0)
    return [choice.of(reader, 0, sample, position) for position in positions]


def test_each_is_taken_as_often_as_the_recipe_says_and_the_same_at_each_position(tmp_path: Path) -> None:
    found = reader(tmp_path, b"alt text", {"caption": "alt text", "re_caption": ["one", "two"]})
    weights = {"txt": 1.0, "re_caption": 3.0}
    texts = said(found, weights, range(8000))
    counts = Counter(texts)
    # 5 standard deviations of a binomial of 8,000.
    assert abs(counts["alt text"] - 2000) < 5 * 39
    assert abs(counts["one"] - 3000) < 5 * 44
    assert set(counts) == {"alt text", "one", "two"}
    assert said(found, weights, range(4000, 8000)) == texts[4000:]
    assert said(found, weights, range(100), seed=2) != texts[:100]


@pytest.mark.parametrize(
    ("txt", "fields"),
    [(None, {"b": "it"}), (b" \n", {"b": "it"}), (b"it", None), (b"it", {"b": None}), (b"it", {"b": ["", 3]})],
)
def test_where_the_chosen_one_is_missing_another_stands_in(tmp_path: Path, txt: bytes | None, fields: object) -> None:
    assert set(said(reader(tmp_path, txt, fields), {"txt": 1.0, "b": 1.0}, range(20))) == {"it"}


@pytest.mark.parametrize(("txt", "fields"), [(b"", {"c": "x"}), (None, {"b": ""}), (None, b"["), (None, b"[1]")])
def test_a_sample_with_none_of_them_is_a_bad_one(tmp_path: Path, txt: bytes | None, fields: object) -> None:
    with pytest.raises(DataError):
        said(reader(tmp_path, txt, fields), {"txt": 1.0, "b": 1.0}, range(1))


@pytest.mark.parametrize(
    ("extension", "data"),
    [("txt", b" \n"), ("txt", b""), ("json", b"{}"), ("json", b'{"caption": ""}'), ("json", b"[")],
)
def test_an_empty_caption_is_a_bad_sample(tmp_path: Path, extension: str, data: bytes) -> None:
    members = [("a.jpg", b"pixels"), (f"a.{extension}", data)]
    with pytest.raises(DataError):
        said(Reader(open_shards(dataset(tmp_path, tar(members)), tmp_path), Part.CAPTION), {}, range(1))


@pytest.mark.parametrize("weights", [{"txt": 0.0}, {"txt": -1.0}, {"": 1.0}, {"txt": float("nan")}])
def test_weights_are_positive(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="captions"):
        TextInput(tokens=8, captions=weights)


def test_an_input_is_a_key_with_its_captions() -> None:
    one, same = TextInput(tokens=8, captions={"txt": 1.0}), TextInput(tokens=8, captions={"txt": 1.0})
    assert {one: 1}[same] == 1
    assert hash(one) != hash(TextInput(tokens=8))

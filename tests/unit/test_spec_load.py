"""Recipes and profiles: what is refused, and in which words."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.errors import ConfigError
from clipa.spec.catalog import defaults
from clipa.spec.load import load_cluster, load_recipe
from clipa.spec.toml_lines import line_of

BASE: dict[str, Any] = {
    "model": {
        "embed_dim": 32,
        "image": {"patch": 4, "width": 64, "layers": 2, "heads": 2},
        "text": {"width": 32, "layers": 2, "heads": 2},
    },
    "evals": {"held-out": {"data": "x"}},
    "phases": {
        "pretrain": {
            "data": "d",
            "samples": 1000,
            "batch": 10,
            "image": {"size": 16},
            "text": {"tokens": 8},
            "optim": {"lr": 1e-3},
        },
        "eval": {"sets": ["held-out"]},
    },
}


def toml(value: object) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(part) for part in value) + "]"
    return json.dumps(value)


def write(folder: Path, table: dict[str, Any]) -> Path:
    path = folder / "r.toml"
    path.write_text("".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in table.items()))
    return path


def changed(path: str, value: object) -> dict[str, Any]:
    table = copy.deepcopy(BASE)
    here = table
    *folders, last = path.split(".")
    for part in folders:
        here = here[part]
    here[last] = value
    return table


def test_a_good_recipe(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, BASE), ["phases.pretrain.batch=20", "seed=7"])
    assert loaded.recipe.name == "r"
    assert loaded.recipe.seed == 7
    assert loaded.recipe.phases["pretrain"].batch == 20


def test_what_is_known_about_a_recipe_is_no_part_of_it(tmp_path: Path) -> None:
    bare = load_recipe(write(tmp_path, BASE))
    known = load_recipe(write(tmp_path, changed("published", [{"source": "x", "top1": 50.0, "after": "pretrain"}])))
    assert known.digest == bare.digest
    assert known.about.published[0].top1 == 50.0


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("phases.pretrain.bacth", 1, 'did you mean "batch"'),
        ("phases.pretrain.image.siez", 1, 'did you mean "size"'),
        ("model.image.layers", "many", "model.image.layers: expected a whole number, got text in quotes ('many')"),
        ("phases.pretrain.image.size", 17, "nearest: 16"),
        ("phases.pretrain.text.tokens", 2, "3..1024"),
        ("phases.pretrain.samples", 5, "at least 10, one batch"),
        ("phases.pretrain.optim.warmup_samples", 2000, "the phase's samples"),
        ("phases.pretrain.optim.lr", 0.0, "lr cannot be 0.0\nallowed: above 0 and below 10"),
        ("phases.pretrian", {"data": "d"}, 'did you mean "pretrain"'),
        ("published", [{"source": "x", "top1": 1.0, "after": "pretrian"}], 'did you mean "pretrain"'),
        ("published", [{"source": "x"}], "must say why in note"),
        ("datasets", {"d": {"samples": 0, "bytes_per_sample": 1, "source": "x"}}, "must be >= 1"),
        ("phases.eval.sets", ["nosuch"], "is not in [evals] (held-out)"),
        ("evals.held-out.dta", "x", 'did you mean "data"'),
        ("evals.held-out.templates", ["no place"], "exactly once"),
        ("model.text.heads", 5, "heads cannot be 5\nallowed: a divisor of width"),
        ("evals.a b", {"data": "x"}, "letters, digits"),
        ("schema", 99, "newer than this clipa"),
        ("phases", {}, "phases is empty"),
    ],
)
def test_refused_with_the_key(tmp_path: Path, path: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, changed(path, value)))
    assert said in str(caught.value)
    assert "r.toml" in str(caught.value)


@given(st.text(max_size=40), st.binary(max_size=200))
def test_junk_is_refused_in_our_words(tmp_path_factory: pytest.TempPathFactory, override: str, junk: bytes) -> None:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "j.toml").write_bytes(junk)
    for load in (load_recipe, load_cluster):
        try:
            load(folder / "j.toml")
        except ConfigError:
            pass
    try:
        load_recipe(write(folder, BASE), [override])
    except ConfigError:
        pass


@pytest.mark.parametrize(
    ("override", "where", "said"),
    [
        ("phases.pretrain.sampels=6", "--set phases.pretrain.sampels=6: unknown key", 'did you mean "samples"'),
        ("pretrain.samples=64", "--set pretrain.samples=64: unknown key", "--set phases.pretrain.samples=64?"),
        ("phases.pretrain.samples=many", "--set phases.pretrain.samples=many: expected a whole number", ""),
        (
            "phases.pretrain.samples=1e6",
            "--set phases.pretrain.samples=1e6: expected a whole number",
            "number: 1_000_000",
        ),
    ],
)
def test_what_an_override_brought_is_not_said_of_the_file(tmp_path: Path, override: str, where: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(write(tmp_path, BASE), ["seed=7", override])
    assert str(caught.value).startswith(where)
    assert said in str(caught.value)
    assert "r.toml" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "allowed", "hint"),
    [
        ("loss", "sigmiod", "softmax, sigmoid", 'did you mean "sigmoid"?'),
        ("recompute", "some", "a number, auto", ""),
        ("image.reduction", "rezise", "resize, random, grid, block", 'did you mean "resize"?'),
    ],
)
def test_a_word_that_is_none_of_a_keys_values_is_refused_with_them(
    tmp_path: Path, key: str, value: str, allowed: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_recipe(write(tmp_path, changed(f"phases.pretrain.{key}", value)))
    assert error.value.what == f"invalid value {value!r}"
    file, _, path = error.value.where.partition(": ")
    assert re.search(r"r\.toml:[0-9]+$", file)
    assert path == f"phases.pretrain.{key}"
    assert (error.value.allowed, error.value.hint) == (allowed, hint)


RECIPE = """# a recipe
[model]
embed_dim = 32
[model.image]
patch = 4
width = 64
layers = 2
heads = HEADS
[model.text]
width = 32
layers = 2
heads = 2
[phases.pretrain]
data = DATA
samples = 1000
batch = 10  # global
image = { size = 16 }
text = { tokens = 8 }
optim = { lr = LR }
"""
GOOD = {"HEADS": "2", "DATA": '"d"', "LR": "1e-3"}


@pytest.mark.parametrize(
    ("word", "value", "said"),
    [
        ("HEADS", "5", "r.toml:8: model.image.heads: heads cannot be 5\nallowed: a divisor of width 64 (1, 2, 4, 8"),
        ("HEADS", '"2"', "r.toml:8: model.image.heads: expected a whole number, got text in quotes ('2')\nhint: w"),
        ("HEADS", "2\nhaeds = 2", "r.toml:9: model.image.haeds: unknown key"),
        ("LR", "-1", "r.toml:19: phases.pretrain.optim.lr: lr cannot be -1"),
        ("DATA", "01:30:00", "r.toml:14: phases.pretrain.data: expected text in quotes or a list, got time"),
        ("DATA", "01:30:00", 'hint: quote it: "01:30:00"'),
        ("DATA", "s3://bucket/laion", 'hint: text needs quotes: data = "s3://bucket/laion"'),
        ("DATA", "1-00:00:00", 'hint: text needs quotes: data = "1-00:00:00"'),
    ],
)  # fmt: skip
def test_an_error_names_the_line_what_is_allowed_and_how_to_write_it(
    tmp_path: Path, word: str, value: str, said: str
) -> None:
    text = RECIPE
    for name, good in {**GOOD, word: value}.items():
        text = text.replace(name, good)
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(tmp_path / "r.toml")
    assert said in str(caught.value)


def test_a_line_inside_a_multi_line_string_is_not_taken_for_a_key() -> None:
    text = 'note = """\nseed = 1\n[model]\n"""\nseed = -1\n'
    assert line_of(text, "seed") == 5
    assert line_of(text, "model.width") is None


@given(st.text(max_size=200), st.text(max_size=20))
def test_no_text_breaks_the_search_for_a_line(text: str, path: str) -> None:
    line = line_of(text, path)
    assert line is None or 1 <= line <= len(text.splitlines())


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    path = write(tmp_path, BASE)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_recipe(path).recipe.seed == 0


def test_a_wrong_file_is_not_said_of_a_good_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"r\.toml:[0-9]+: phases\.pretrain\.bacth"):
        load_recipe(write(tmp_path, changed("phases.pretrain.bacth", 1)), ["phases.pretrain.batch=20"])


def test_relative_data_of_a_project_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clipa.toml").write_text(
        '[datasets]\na = "data/a"\nb = { url = "../b/{00..11}.tar", access = "auto" }\n'
        'c = "s3://x/y"\nd = "/abs"\ne = "~/e"\n'
    )
    (tmp_path / "below").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing"))
    found = defaults(tmp_path / "below").datasets
    assert {name: data.url for name, data in found.items()} == {
        "a": f"{tmp_path}/data/a",
        "b": f"{tmp_path.parent}/b/{{00..11}}.tar",
        "c": "s3://x/y",
        "d": "/abs",
        "e": "~/e",
    }
    assert found["b"].access == "auto"


def test_a_relative_path_of_an_override_is_relative_to_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    loaded = load_recipe(write(tmp_path, BASE), ["phases.pretrain.data=../shards"])
    assert loaded.recipe.phases["pretrain"].data == str(tmp_path / "shards")

"""Numbers and nesting in settings that would cost memory, time or a traceback."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa.errors import ConfigError, InputError
from clipa.launch import request
from clipa.registry.reading import readable
from clipa.registry.scan import Scan
from clipa.spec import catalog
from clipa.spec.load import load_cluster, load_project, load_recipe
from clipa.spec.plan import Plan
from tests.unit.test_registry_state import PLAN

DEMO = catalog.find_recipe("demo")
BOMBS = {
    "5,000 digits": ("seed", "9" * 5000),
    "4,000 digits": ("phases.pretrain.samples", "9" * 4000),
    "5,000 hexadecimal digits": ("seed", "0x" + "f" * 5000),
    "infinity": ("phases.pretrain.checkpoint.every_minutes", "inf"),
    "no number": ("phases.pretrain.optim.weight_decay", "nan"),
    "too large for a float": ("phases.pretrain.optim.lr", "1e999"),
    "nested lists": ("phases.pretrain.optim", "[" * 3000 + "]" * 3000),
    "nested tables": ("phases.pretrain.optim", "{a=" * 3000 + "1" + "}" * 3000),
    "a deep key": (".".join("a" * 3000), "1"),
    "a deep key of a phase": ("phases.pretrain." + ".".join("a" * 3000), "1"),
    "a long key": ("k" * 100_000, "1"),
}


def refused(act: object) -> InputError:
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        act()  # type: ignore[operator]
    assert time.monotonic() - began < 5
    assert "Traceback" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_an_override_is_refused_in_a_sentence(name: str) -> None:
    key, value = BOMBS[name]
    said = refused(lambda: load_recipe(DEMO, [f"{key}={value}"]))
    assert len(str(said).splitlines()[0]) < 400, "the value is not repeated in full"


@pytest.mark.parametrize("load", [load_recipe, load_cluster, load_project])
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_a_file_is_refused_in_a_sentence(name: str, load: object, tmp_path: Path) -> None:
    key, value = BOMBS[name]
    file = tmp_path / "x.toml"
    file.write_text(f"{key} = {value}\n")
    assert refused(lambda: load(file)).where.startswith(str(file))  # type: ignore[operator]


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("a = 1\n" * 300_000)
    assert "too large" in refused(lambda: load_project(tmp_path / "x.toml")).what


@settings(max_examples=40)
@given(
    st.sampled_from(["seed", "phases.pretrain.samples", "phases.pretrain.optim.lr", "model.embed_dim"]),
    st.one_of(st.integers(), st.floats(), st.text(max_size=9), st.recursive(st.none(), st.lists, max_leaves=5)),
)
def test_any_override_is_taken_or_refused(key: str, value: object) -> None:
    try:
        load_recipe(DEMO, [f"{key}={value}"])
    except ConfigError:
        pass


def test_a_number_that_no_plan_can_have_leaves_no_run(tmp_path: Path) -> None:
    profile = tmp_path / "here.toml"
    profile.write_text(f'run_root = "{tmp_path}/runs"\ncache = "{tmp_path}/cache"\ngpus = 0\n')
    change = "phases.pretrain.samples=100000000000000000000000"
    refused(lambda: request.settle("pretrain", "demo", str(profile), [change], None, "", lambda: Scan([], {}, [])))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("changes", [{"steps": 1 << 60}, {"steps": -1}, {"name": "a\x1b"}])
def test_a_plan_that_could_not_be_read_back_is_refused_before_it_is_written(changes: dict[str, object]) -> None:
    plan = msgspec.structs.replace(msgspec.convert({**PLAN, "run_root": "/r"}, Plan), **changes)
    assert "no run can have this plan" in refused(lambda: readable([plan])).what

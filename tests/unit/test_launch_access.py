"""What a plan decides about the way to its data: staged before, staged while it trains, streamed; and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipa.data.wds import shard_bytes
from clipa.errors import ConfigError
from clipa.host import render
from clipa.launch import request
from clipa.launch.prepare import Prepared
from clipa.registry.run_dir import RunDir
from clipa.registry.scan import Scan
from clipa.storage.dataset import publish_manifest
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Store

EACH, SHARDS = 4, 5
RECIPE = """
[model]
embed_dim = 8
image = { patch = 4, width = 16, layers = 1, heads = 2 }
text = { width = 8, layers = 1, heads = 2 }

[phases.pretrain]
data = DATA
samples = 80
batch = 8
positions = "sincos2d"
precision = "fp32"
shuffle_window = 8
image = { size = 8 }
text = { tokens = 8 }
optim = { lr = 1e-3, warmup_samples = 8 }
"""
CLUSTER = """
gpus = 0
run_root = "ROOT/runs"
cache = "ROOT/cache"
cache_limit_gib = LIMIT
trackers = []
"""
SLURM = """
backend = "slurm"
[slurm]
time = "01:00:00"
python = "/usr/bin/python3"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`one` and `two` say how many samples their shards have, `plain` does not."""
    raw = shard_bytes([(f"{n}", {"jpg": b"j", "txt": b"t"}) for n in range(EACH)])
    for name in ("one", "two", "plain"):
        store = Store(str(tmp_path / name))
        rows = []
        for number in range(SHARDS):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.tar").write_bytes(raw)
            rows.append(
                Shard(name=f"{number}.tar", size=len(raw), version=name, samples=None if name == "plain" else EACH)
            )
        publish_manifest(store, Manifest(url=store.url, shards=tuple(rows)))
    return tmp_path


def planned(folder: Path, data: str, datasets: str, more: str = "", limit: float = 0) -> Prepared:
    (folder / "r.toml").write_text(RECIPE.replace("DATA", data))
    head, _, tables = more.partition("[")
    text = head + CLUSTER.replace("ROOT", str(folder)).replace("LIMIT", str(limit)) + ("[" + tables if tables else "")
    (folder / "c.toml").write_text(f"{text}\n[datasets]\n{datasets.replace('AT', str(folder))}\n")
    settled = request.settle(
        "pretrain", str(folder / "r.toml"), str(folder / "c.toml"), [], None, "", lambda: Scan([], {}, [])
    )
    return request.prepare(settled.request)


ONE = 'one = "AT/one"'
EARLY = "one: training begins on its first shards, and the others are staged meanwhile"


def test_training_begins_on_the_first_shards_of_a_dataset_whose_samples_are_known(folder: Path) -> None:
    found = planned(folder, '"one"', ONE)
    (plan,) = found.plans
    assert [data.name for data in plan.early] == ["one"]
    assert EARLY in found.notes
    said = render.describe([plan], [RunDir(Path(plan.run_root) / plan.run)])
    assert "# one: stage while it trains, " in said
    assert "--early" in said
    assert "clipa.staging.arrive" in said


def test_where_they_are_not_known_all_is_staged_first_and_the_plan_says_why_and_what_counts_them(folder: Path) -> None:
    found = planned(folder, '"plain"', 'plain = "AT/plain"')
    assert found.plans[0].early == ()
    (note,) = [note for note in found.notes if "plain" in note]
    assert "staged before training begins" in note
    assert note.endswith("(clipa data index plain --scan)")
    said = render.describe(found.plans, [RunDir(folder)])
    assert "--early" not in said
    assert "clipa.staging.arrive" not in said


def test_where_staging_is_a_job_of_its_own_nothing_is_left_for_later(folder: Path) -> None:
    early = planned(folder, '"one"', ONE, SLURM)
    assert early.plans[0].early
    apart = planned(folder, '"one"', ONE, SLURM + '[slurm.stage]\npartition = "transfer"\n')
    assert [plan.kind for plan in apart.plans] == ["stage", "pretrain"]
    assert not any(plan.early for plan in apart.plans)
    assert EARLY not in apart.notes


@pytest.mark.parametrize(
    ("how", "limit", "why"), [("stream", 0, 'access = "stream"'), ("auto", 1e-9, "do not fit the cache's")]
)
def test_what_is_streamed_must_be_counted(folder: Path, how: str, limit: float, why: str) -> None:
    bound = f'plain = {{ url = "AT/plain", access = "{how}" }}'
    with pytest.raises(ConfigError) as found:
        planned(folder, '"plain"', bound, limit=limit)
    assert "does not say how many samples each shard has" in found.value.what
    assert why in found.value.what
    assert found.value.hint == "clipa data index plain --scan"


def test_the_datasets_of_a_mixture_each_have_their_own_way(folder: Path) -> None:
    data = '[{ name = "one", weight = 0.75 }, { name = "two", weight = 0.25 }]'
    found = planned(folder, data, f'{ONE}\ntwo = {{ url = "AT/two", access = "stream" }}')
    (plan,) = found.plans
    assert [(d.name, d.access, d.early) for d in plan.trained_on] == [("one", "stage", True), ("two", "stream", False)]
    assert {EARLY, 'two is streamed: access = "stream"'} <= set(found.notes)


def test_two_that_fit_one_by_one_but_not_together_are_not_both_staged(folder: Path) -> None:
    data = '[{ name = "one", weight = 0.75 }, { name = "two", weight = 0.25 }]'
    bound = "\n".join(f'{name} = {{ url = "AT/{name}", access = "auto" }}' for name in ("one", "two"))
    size = planned(folder, '"one"', ONE).plans[0].trained_on[0].bytes
    (plan,) = planned(folder, data, bound, limit=1.5 * size / 2**30).plans
    assert [d.access for d in plan.trained_on] == ["stage", "stream"]

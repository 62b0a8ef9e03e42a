"""The reference pages say what the code reads."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clipa.spec import cluster, job

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
STRUCTS = (
    job.Recipe,
    job.Model,
    job.ImageTower,
    job.TextTower,
    job.Pretrain,
    job.ImageInput,
    job.TextInput,
    job.Optim,
    job.Checkpoints,
    job.Evaluate,
    job.Eval,
    job.EvalSet,
    cluster.Cluster,
    cluster.Dataset,
    cluster.Project,
)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_key_is_documented(struct: type[msgspec.Struct]) -> None:
    missing = [field.name for field in msgspec.structs.fields(struct) if f"`{field.name}`" not in PAGE]
    assert not missing, f"docs/recipes.md does not name {missing}"

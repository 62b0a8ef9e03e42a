"""The reference pages say what the code reads."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clipa.spec import cluster, container, evalset, inputs, job, model, published
from clipa.spec.slurm import Slurm

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
STRUCTS = (
    job.Recipe,
    model.Model,
    model.ImageTower,
    model.TextTower,
    job.Pretrain,
    inputs.ImageInput,
    inputs.TextInput,
    inputs.Jitter,
    job.Optim,
    job.Checkpoints,
    job.Evaluate,
    job.Eval,
    evalset.EvalSet,
    published.About,
    published.Published,
    published.DatasetFacts,
    cluster.Cluster,
    cluster.Dataset,
    container.Container,
    container.ImageBuild,
    cluster.Project,
)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_every_key_is_documented(struct: type[msgspec.Struct]) -> None:
    missing = [field.name for field in msgspec.structs.fields(struct) if f"`{field.name}`" not in PAGE]
    assert not missing, f"docs/recipes.md does not name {missing}"


def test_every_key_of_slurm_is_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "slurm.md").read_text()
    missing = [field.name for field in msgspec.structs.fields(Slurm) if f"`{field.name}`" not in page]
    assert not missing, f"docs/slurm.md does not name {missing}"

"""Run folders are written all or none, and a run's plan is read in one way."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from clipa.errors import InputError, LaunchError, StorageError
from clipa.launch import create, only_one
from clipa.registry import records
from clipa.registry.run_dir import RunDir
from clipa.spec.container import Container, Pinned
from clipa.spec.plan import World
from clipa.spec.slurm import Slurm
from tests.unit.test_slurm_sbatch import batch


def _prepared(root: Path, **changes: object) -> SimpleNamespace:
    plan = batch(Slurm(time=60), World(processes=1)).plan
    names = ("a-pretrain", "a-finetune")
    plans = tuple(msgspec.structs.replace(plan, run=name, run_root=str(root), **changes) for name in names)
    return SimpleNamespace(plans=plans, manifests={})


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may have more than a block: the plan is larger, and what is written before it is not. No fixture: pytest
    tells of the test before it ends a fixture, and may do so in a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_folder(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(StorageError, match="File too large"):
        create.create(_prepared(tmp_path))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    prepared = _prepared(tmp_path)
    runs = create.create(prepared)  # type: ignore[arg-type]
    assert [records.read_plan(run) for run in runs] == list(prepared.plans)
    for damage in (b"", b"{", b"\xff", b"[" * 100_000):
        runs[0].plan.write_bytes(damage)
        with pytest.raises(LaunchError, match="cannot be read"):
            records.read_plan(runs[0])
    with pytest.raises(LaunchError, match="cannot be read"):
        records.read_plan(RunDir(tmp_path / "nobody"))


def test_code_that_changes_while_a_run_is_submitted_is_said(tmp_path: Path) -> None:
    """The container would be told to mount a copy that nobody made."""
    pinned = Pinned(runtime="docker", reference="x", identity="x", digest="", kind="id", settings=Container(image="x"),
                    code=str(tmp_path / ".code" / "0123"))  # fmt: skip
    with pytest.raises(InputError, match="has changed"):
        create.create(_prepared(tmp_path, container=pinned))  # type: ignore[arg-type]
    assert {path.name for path in tmp_path.iterdir()} == {".code"}


def test_whose_run_root_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / only_one.LOCK).mkdir()  # cannot be opened, whoever one is
    for root, is_boxed, said in ((tmp_path / "file", "0", "CLIPA_RUN_ROOT"), (tmp_path, "1", "docker run --user")):
        monkeypatch.setenv("CLIPA_IN_CONTAINER", is_boxed)
        with pytest.raises(InputError, match=said), only_one.only_one(root):
            pass

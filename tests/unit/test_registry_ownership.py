"""Another user's run is read, and nothing else; one's own cannot be written by others."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clipa.cli import words
from clipa.cli.main import main
from clipa.errors import InputError
from clipa.launch import carry_on, create, snapshot
from clipa.launch.look import look
from clipa.registry import events
from clipa.registry.find import find
from clipa.registry.ownership import UMASK, close, distrust_run, files_like, own_folder, restore_umask, run_files
from clipa.registry.run_dir import RunDir, write_whole
from clipa.slurm import sbatch
from clipa.spec.plan import World
from clipa.spec.slurm import Slurm
from tests.unit.test_cli_hostile import make
from tests.unit.test_launch_create import _prepared
from tests.unit.test_slurm_sbatch import batch

STRANGER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def give_away(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, STRANGER, STRANGER)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run root with a run of one's own and a stranger's, both on SLURM; `squeue` tells whose configuration it got."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("squeue", "sacct", "scancel", "scontrol", "sbatch"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $SLURM_CONF $*" >> {tmp_path}/asked\n')
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    runs = tmp_path / "runs"
    for run in ("mine", "theirs"):
        conf = tmp_path / f"{run}.conf"
        conf.write_text("PluginDir=/tmp/evil\n")
        folder = make(runs, run, slurm={"time": 5, "conf": str(conf)}, backend="slurm", group="g", name="n")
        (folder / "events" / "1-supervisor.jsonl").unlink()
        log = events.EventWriter(RunDir(folder), 1, "submit")
        log.write(events.Submitted, job="7" if run == "mine" else "8", scheduler="slurm")
        log.close()
    give_away(runs / "theirs")
    words._root_here.cache_clear()
    monkeypatch.setenv("CLIPA_RUN_ROOT", str(runs))
    monkeypatch.chdir(tmp_path)
    return runs


def asked(root: Path) -> str:
    path = root.parent / "asked"
    return path.read_text() if path.exists() else ""


def run(monkeypatch: pytest.MonkeyPatch, *argv: str) -> object:
    monkeypatch.setattr(sys, "argv", ["clipa", *argv])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@as_root
def test_a_configuration_that_a_strangers_plan_names_is_not_loaded(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "status") == 0
    said = capsys.readouterr()
    assert "mine.conf" in asked(root)
    assert "theirs.conf" not in asked(root)
    assert "of user nobody, whose runs are only read: theirs" in said.err
    assert run(monkeypatch, "status", "--json") == 0
    assert {s["run"]: s["owner"] for s in json.loads(capsys.readouterr().out)["runs"]} == {
        "mine": "",
        "theirs": "nobody",
    }


@as_root
@pytest.mark.parametrize("act", ["cancel", "resume"])
def test_a_strangers_run_is_neither_cancelled_nor_resumed(
    root: Path, act: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(root.rglob("*"))
    assert run(monkeypatch, act, "theirs") == 2
    assert "belongs to user nobody" in capsys.readouterr().err
    assert run(monkeypatch, act, "mine", "theirs") == 2
    assert sorted(root.rglob("*")) == before
    assert "theirs.conf" not in asked(root)
    assert "scancel" not in asked(root)


def test_a_run_that_others_could_have_changed_is_not_resumed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (root / "mine", root / "mine" / "plan.json"):
        before = path.stat().st_mode
        path.chmod(0o777)
        assert "others can write to it" in distrust_run(root / "mine")
        assert run(monkeypatch, "resume", "mine") == 2
        look([root])
        assert "mine.conf" not in asked(root)
        path.chmod(before)
    assert not distrust_run(root / "mine")


@as_root
def test_a_stranger_cannot_slip_a_run_into_ones_own_group_or_name(root: Path) -> None:
    statuses = look([root]).statuses
    for word in ("g", "n", "latest"):
        assert [s.run for s in find(statuses, word)] == ["mine"]
    assert [s.run for s in find(statuses, "theirs")] == ["theirs"]
    plan = json.loads((root / "theirs" / "plan.json").read_text())
    (root / "theirs" / "plan.json").write_text(json.dumps({**plan, "parent": "mine"}))
    assert carry_on.children_of(RunDir(root / "mine")) == []


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
@pytest.mark.parametrize(("readers", "read"), [("", 0o055), ("all", 0o055), ("group", 0o050), ("me", 0)])
def test_nobody_else_can_write_the_files_of_a_run(tmp_path: Path, umask: int, readers: str, read: int) -> None:
    before = os.umask(umask)
    try:
        with run_files(readers):  # type: ignore[arg-type]
            assert os.environ[UMASK] == f"{umask:03o}"
            (folder,) = {run.path for run in create.create(_prepared(tmp_path / "runs"))[:1]}  # type: ignore[arg-type]
            plan = RunDir(folder).plan
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700 | (read & ~umask)
        assert stat.S_IMODE(plan.stat().st_mode) == 0o600 | (read & ~umask & 0o044)
        with files_like(folder):
            write_whole(tmp_path / "later" / "x", b"")
            restore_umask()
            write_whole(tmp_path / "cache" / "x", b"")
        assert (tmp_path / "later").stat().st_mode == folder.stat().st_mode
        assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o777 & ~umask
        assert os.umask(umask) == umask
        assert UMASK not in os.environ
    finally:
        os.umask(before)


def test_a_default_acl_does_not_open_a_run_folder(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    entries = [(1, 7), (4, 7), (32, 7)]  # user, group, other: rwx, with no id (acl(5), Linux's xattr format)
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + mode.to_bytes(2, "little") + b"\xff" * 4 for tag, mode in entries
    )
    try:
        os.setxattr(shared, "system.posix_acl_default", acl)
    except OSError as error:
        pytest.skip(f"no ACLs on this filesystem: {error.strerror}")
    with run_files():
        (shared / "run").mkdir()
        close(shared / "run")
        (shared / "run" / "logs").mkdir()
    assert [p.stat().st_mode & 0o022 for p in (shared / "run", shared / "run" / "logs")] == [0, 0]


def test_a_folder_that_was_there_before_is_no_run_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a-finetune").mkdir()
    with pytest.raises(InputError.__mro__[1], match="cannot be written"):
        create.create(_prepared(tmp_path))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a-finetune"]


@as_root
def test_code_below_a_strangers_folder_is_not_used(tmp_path: Path) -> None:
    (tmp_path / snapshot.FOLDER).mkdir()
    assert own_folder(tmp_path, snapshot.FOLDER) == tmp_path / snapshot.FOLDER
    os.chown(tmp_path / snapshot.FOLDER, STRANGER, STRANGER)
    assert own_folder(tmp_path, snapshot.FOLDER) == tmp_path / f"{snapshot.FOLDER}-{os.geteuid()}"


@pytest.mark.parametrize("harm", ["code", "more code", "mode", "none"])
def test_a_job_executes_only_code_and_tasks_that_nobody_else_can_write(tmp_path: Path, harm: str) -> None:
    """The lines of the batch script, as bash runs them on the node."""
    task, code = tmp_path / "logs" / "1" / "submitit", tmp_path / "code"
    for folder in (task, code / "clipa"):
        folder.mkdir(parents=True)
    (code / "clipa" / "x.py").touch()
    wrong = {"code": code / "clipa" / "x.py", "more code": code / "clipa", "mode": task}.get(harm)
    if wrong:
        wrong.chmod(0o777)
    job = batch(Slurm(time=60), World(processes=1))._replace(code=code, run=RunDir(tmp_path))
    done = subprocess.run(
        ["bash", "-eu", "-c", "\n".join(sbatch._guard(job))], capture_output=True, text=True, check=False
    )
    assert done.returncode == (1 if wrong else 0)
    assert not wrong or str(wrong) in done.stderr

"""Commands typed in odd surroundings: no current folder, no home, closed or narrow streams. Never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

READING = (["status"], ["runs", "list"], ["doctor"], ["plan", "demo"], ["recipes"], ["data", "ls"])
NOBODY = 54321
"""A user id without an entry in the password database."""


def clipa(
    *words: str,
    code: int = 0,
    environment: Mapping[str, str | None] | None = None,
    before: Sequence[str] = (),
    **more: object,
) -> str:
    """Run a command in a process of its own; return stdout and stderr together."""
    kept = {**os.environ, **(environment or {})}
    argv = [*before, sys.executable, "-m", "clipa.cli.main", *words]
    ended = subprocess.run(
        argv,
        env={name: value for name, value in kept.items() if value is not None},
        capture_output=True,
        **more,  # type: ignore[call-overload]
    )
    said = (ended.stdout + ended.stderr).decode(errors="replace")
    assert "Traceback" not in said, said
    assert ended.returncode == code, said
    return said


@pytest.fixture
def deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()


@pytest.mark.usefixtures("deleted")
@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_commands_that_need_no_current_folder_work_in_a_deleted_one(words: list[str]) -> None:
    clipa(*words)


@pytest.mark.usefixtures("deleted")
def test_a_relative_path_in_a_deleted_folder_is_refused_with_the_cure() -> None:
    assert "the current folder was deleted" in clipa("data", "index", "./shards", code=2)


@pytest.fixture
def nobody() -> list[str]:
    """Run as a user without a name and without HOME, who may read and write everything (this Python may be root's)."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become a user without a name (util-linux's setpriv)")
    capability = "+dac_override"
    who = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    return ["setpriv", *who, "--inh-caps", capability, "--ambient-caps", capability]


def test_a_user_without_a_name_or_home_reads_runs_of_a_given_root(nobody: list[str], tmp_path: Path) -> None:
    said = clipa("status", environment={"HOME": None, "CLIPA_RUN_ROOT": str(tmp_path)}, before=nobody)
    assert f"no runs yet in {tmp_path}" in said
    assert "Run roots cannot be remembered (no home folder" in said


@pytest.mark.parametrize("words", READING[1:4], ids=" ".join)
def test_a_user_without_a_home_is_told_what_is_missing(nobody: list[str], words: list[str]) -> None:
    assert "export HOME=" in clipa(*words, environment={"HOME": None}, before=nobody)


def test_data_without_a_home_name_the_variable_that_helps(nobody: list[str]) -> None:
    assert "XDG_CACHE_HOME=" in clipa("data", "ls", environment={"HOME": None}, before=nobody, code=2)


def test_a_home_that_cannot_be_written_is_said(home: Path, tmp_path: Path) -> None:
    (home / ".config").write_text("a file where the folder should be")
    said = clipa("status", environment={"CLIPA_RUN_ROOT": str(tmp_path)})
    assert "Run roots cannot be remembered" in said
    assert "CLIPA_RUN_ROOT=FOLDER clipa status" in said


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_break_nothing(closed: str, tmp_path: Path) -> None:
    command = f'exec "$0" -m clipa.cli.main doctor {closed}'
    assert subprocess.run(["sh", "-c", command, sys.executable], cwd=tmp_path, check=False).returncode == 0


def test_a_terminal_of_ascii_shows_escapes_and_json_stays_utf_8(tmp_path: Path) -> None:
    root = tmp_path / "läufe\udcff"
    root.mkdir()
    recipe = shutil.copy(Path(__file__).parents[2] / "jobs" / "demo.toml", tmp_path / "été.toml")
    environment = {"PYTHONIOENCODING": "ascii", "CLIPA_RUN_ROOT": str(root)}
    assert r"l\xe4ufe" in clipa("doctor", environment=environment)
    said = subprocess.run(
        [sys.executable, "-m", "clipa.cli.main", "plan", str(recipe), "--json"],
        env={**os.environ, **environment},
        capture_output=True, check=True,
    )  # fmt: skip
    assert "été" in json.dumps(json.loads(said.stdout.decode("utf-8")), ensure_ascii=False)


@pytest.mark.parametrize("words", ["plan scaling-l16 --points", "recipes --json"])
def test_a_reader_that_leaves_early_is_no_error(words: str) -> None:
    command = f'set -o pipefail; "$0" -m clipa.cli.main {words} | true'
    ended = subprocess.run(["bash", "-c", command, sys.executable], capture_output=True, text=True, check=False)
    assert "Traceback" not in ended.stderr
    assert ended.returncode in (0, 141), ended.stderr

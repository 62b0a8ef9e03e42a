"""The copy of the code: by content, whatever is committed, once; and the file of secrets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipa.errors import ConfigError, InputError
from clipa.host.node import read_secrets
from clipa.launch import snapshot


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "src" / "thing"
    (folder / "room").mkdir(parents=True)
    (folder / "__init__.py").write_text("word = 1\n")
    (folder / "room" / "a.py").write_text("x = 1\n")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "a.pyc").write_bytes(b"?")
    return folder


def test_the_same_content_is_the_same_folder_and_any_change_is_another(package: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    first = snapshot.take(root, package)
    assert snapshot.take(root, package) == first
    assert sorted(p.name for p in first.rglob("*") if p.is_file()) == ["__init__.py", "a.py"]
    (package / "untracked.py").write_text("y = 2\n")
    second = snapshot.take(root, package)
    (package / "room" / "a.py").write_text("x = 2\n")
    third = snapshot.take(root, package)
    assert len({first, second, third}) == 3
    assert (first / "thing" / "room" / "a.py").read_text() == "x = 1\n", "a queued job runs what was submitted"
    assert not list(root.rglob("*.part"))


@pytest.mark.parametrize("harm", ["changed", "more", "open"])
def test_a_copy_that_was_altered_is_set_aside_and_made_anew(
    package: Path, tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = snapshot.take(tmp_path, package)
    file = copy / "thing" / "room" / "a.py"
    if harm == "changed":
        file.write_text("evil = 1\n")
    elif harm == "more":
        (copy / "sitecustomize.py").write_text("evil = 1\n")
    else:
        file.chmod(0o666)
    assert snapshot.take(tmp_path, package) == copy
    assert sorted(p.name for p in copy.rglob("*") if p.is_file()) == ["__init__.py", "a.py"]
    assert (file.read_text(), file.stat().st_mode & 0o022) == ("x = 1\n", 0)
    assert "set aside" in capsys.readouterr().err
    assert snapshot.take(tmp_path, package) == copy
    assert capsys.readouterr().err == ""


def test_a_job_imports_the_copy(tmp_path: Path) -> None:
    copy = snapshot.take(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONSAFEPATH": "1"}
    code = "import clipa.host.node as m; print(m.__file__)"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(copy))


def test_data_in_the_package_is_refused(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "LARGEST", 10)
    with pytest.raises(ConfigError, match="MiB"):
        snapshot.take(tmp_path / "runs", package)


def test_secrets_are_read_and_nothing_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "s.env"
    path.write_text("# mine\nexport A=1\nB='two words'\n\nC=$(touch /tmp/x)\n")
    path.chmod(0o600)
    assert read_secrets(path) == {"A": "1", "B": "two words", "C": "$(touch /tmp/x)"}


@pytest.mark.parametrize(
    ("mode", "text", "said"),
    [
        (0o640, "A=1", "chmod 600"),
        (0o604, "A=1", "chmod 600"),
        (0o600, "A", "NAME=VALUE"),
        (0o600, "A B=1", "NAME=VALUE"),
    ],
)
def test_secrets_that_others_can_read_or_nobody_can_are_refused(
    tmp_path: Path, mode: int, text: str, said: str
) -> None:
    path = tmp_path / "s.env"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(InputError) as caught:
        read_secrets(path)
    assert said in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_secrets(tmp_path / "none")

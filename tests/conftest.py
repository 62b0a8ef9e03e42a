"""Tests touch nothing of the user's: every one has its own home, caches and run root, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

MARK = f"CLIPA_TEST_SESSION={uuid.uuid4().hex}"

settings.register_profile("here", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("here")


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    name, _, value = MARK.partition("=")
    os.environ[name] = value
    yield
    # multiprocessing's two servers, for our own loader's workers, end with us.
    left = {pid: command for pid, command in _marked() if pid != os.getpid() and not _serves_us(pid, command)}
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"tests left processes behind: {left}"


def _serves_us(pid: int, command: str) -> bool:
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    return "from multiprocessing." in command and int(parent) == os.getpid()


def _marked() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if MARK.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    for name in [*os.environ]:
        if name.startswith(("XDG_", "CLIPA_", "AWS_")) and not name.startswith("CLIPA_TEST"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder

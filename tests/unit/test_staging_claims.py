"""Who does what in a folder that several fill."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clipa.staging.claims import Claims

A, B = "0" * 15 + "1", "f" * 16
HOLDER = "import sys, time; from clipa.staging.claims import Claims; from pathlib import Path; "
HOLDER += "c = Claims(Path(sys.argv[1])); print(c.take(sys.argv[2]), flush=True); time.sleep(60)"


def test_one_has_a_shard_and_the_other_does_not(tmp_path: Path) -> None:
    one, two = Claims(tmp_path), Claims(tmp_path)
    assert one.take(A)
    assert not two.take(A)
    assert two.take(B)
    one.release(A)
    assert two.take(A)
    two.close()
    assert one.take(A)
    assert one.take(B)


def test_a_claim_dies_with_its_holder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path, A], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "True\n"
    mine = Claims(tmp_path)
    assert not mine.take(A)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert mine.take(A)


def test_who_wants_the_folder_gone_needs_it_alone(tmp_path: Path) -> None:
    one, two, remover = Claims(tmp_path), Claims(tmp_path), Claims(tmp_path)
    assert one.be_present()
    assert two.be_present()
    assert not remover.alone()
    one.close()
    two.close()
    assert remover.alone()
    late = Claims(tmp_path)
    assert not late.be_present()


def test_nobody_is_present_in_a_folder_that_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    late = Claims(folder)
    folder.rename(tmp_path / "gone")
    assert not late.be_present()
    folder.mkdir()
    assert not late.be_present()
    shutil.rmtree(tmp_path / "gone")
    assert Claims(folder).be_present()


def test_a_file_system_without_locks_grants_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    one, two = Claims(tmp_path), Claims(tmp_path)
    monkeypatch.setattr(fcntl, "fcntl", none)
    assert one.take(A)
    assert two.take(A)
    assert one.be_present()

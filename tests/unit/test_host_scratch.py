"""The node-local folder of an attempt, and what killed supervisors have left of earlier ones."""

import shutil
import socket
import tempfile

from clipa.host import scratch
from clipa.registry.run_dir import RunDir


def test_what_earlier_attempts_of_the_run_have_left_goes_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run, other = RunDir(tmp_path / "a" / "x"), RunDir(tmp_path / "b" / "x")
    first, beside = scratch.make(run, 9), scratch.make(run, 9)
    (first / "pymp-1").mkdir()
    (first / "stop").touch()
    foreign, strange = scratch.make(other, 1), tmp_path / first.name.replace("-9-", "-x-")
    strange.mkdir()
    later = scratch.make(run, 11)
    assert not first.exists()
    assert not beside.exists()
    third = scratch.make(run, 10)
    assert all(folder.is_dir() for folder in (foreign, strange, later, third)), "a later attempt's is not touched"
    assert len(later.name) <= 30
    assert later.stat().st_mode & 0o077 == 0


def test_a_temporary_folder_that_is_too_long_for_sockets_is_passed_over(tmp_path, monkeypatch):
    """AF_UNIX paths have at most 107 bytes; multiprocessing adds 32 to the folder's."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    run = RunDir(tmp_path / "a" / "x")
    made = scratch.make(run, 1)
    try:
        assert len(str(made)) <= 75
        (made / "pymp-abcdefgh").mkdir()
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(made / "pymp-abcdefgh" / "listener-abcdefgh"))
    finally:
        again = scratch.make(run, 2)
        assert not made.exists(), "what is left is found there too"
        shutil.rmtree(again)

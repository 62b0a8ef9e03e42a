"""The node-local folder of an attempt, and what killed supervisors have left of earlier ones."""

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

"""The doctor on disks and GPU names that are not fit."""

from __future__ import annotations

import pytest

from clipa.cli.checkup import _gpus, _root
from tests.services.mounts import fill, read_only, small_disk


def test_a_full_or_read_only_run_root_is_bad(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        assert (_root(disk / "runs").state, "0.0 GiB free" in _root(disk / "runs").what) == ("bad", True)
        filling = fill(disk)
        assert _root(disk / "runs").state == "bad"
        assert "no space left on the disk" in _root(disk / "runs").what
        filling.unlink()
        read_only(disk, True)
        assert _root(disk / "runs").state == "bad"


def test_a_gpu_that_is_named_and_not_there_is_bad(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    assert _gpus().state == "bad"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _gpus().state == "ok"

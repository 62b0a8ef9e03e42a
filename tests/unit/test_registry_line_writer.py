"""Lines on a bad disk: kept, tried again, never glued, the last words first."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.registry import line_writer
from clipa.registry.line_writer import LineWriter
from tests.services.mounts import fill, small_disk

_KINDS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE, errno.EDQUOT)


class Disk:
    """A disk whose writes do what a script says: an error number, or the number of bytes that go through at most."""

    def __init__(self, script):
        self.script = list(script)

    def write(self, descriptor, raw):
        word = self.script.pop(0) if self.script else 1000
        if word in _KINDS:
            raise OSError(word, os.strerror(word))
        return os.write(descriptor, raw[: max(1, word)])


@given(script=st.lists(st.sampled_from(_KINDS) | st.integers(1000, 1008) | st.sampled_from([1, 2, 3]), max_size=30))
def test_no_line_is_lost_or_glued_whatever_the_disk_does(tmp_path_factory, monkeypatch_module, script):
    monkeypatch_module.setattr(line_writer, "RETRY_S", 0.0)
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    writer = LineWriter(path, write=Disk(script).write)
    lines = [f'{{"n": {n}}}\n'.encode() for n in range(6)]
    for line in lines:
        writer.add(line)
    writer.close(patience=5.0)
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line in lines]
    assert whole == lines


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_a_line_that_a_killed_writer_cut_is_ended_before_the_next(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": ')
    writer = LineWriter(path)
    writer.add(b'{"n": 2}\n')
    writer.close()
    assert path.read_bytes() == b'{"n": 1}\n{"n": \n{"n": 2}\n'


def test_the_last_words_fit_on_a_full_disk_and_the_rest_follows_when_there_is_space(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        writer = LineWriter(disk / "events" / "x.jsonl", reserve=True)
        writer.add(b"first\n")
        filling = fill(disk)
        for number in range(5000):  # more than what is reserved
            writer.add(b"step %d of many that a training tells while its disk is full\n" % number)
        assert "no space left on the disk" in writer.trouble
        writer.add(b"waiting\n", last=True)
        writer.add(b"ended\n", last=True)
        lines = (disk / "events" / "x.jsonl").read_bytes().splitlines()
        assert lines[-2:] == [b"waiting", b"ended"]
        filling.unlink()
        writer.close()
        lines = (disk / "events" / "x.jsonl").read_bytes().splitlines()
        assert sorted(lines) == sorted({*lines})
        assert len(lines) == 5003
        assert os.stat(disk / "events" / "x.jsonl").st_blocks * 512 < len(b"".join(lines)) + 5003 + 8192


def test_a_read_only_disk_loses_nothing(tmp_path):
    path = tmp_path / "x.jsonl"
    disk = Disk([errno.EROFS] * 3)
    writer = LineWriter(path, write=disk.write)
    writer.add(b"a\n")
    assert writer.trouble == f"{tmp_path} is on a read-only file system"
    assert not writer.flush()
    disk.script.clear()
    writer.close()
    assert path.read_bytes() == b"a\n"


def test_lines_that_cannot_be_written_at_all_are_an_error_at_the_end(tmp_path):
    writer = LineWriter(tmp_path / "x.jsonl", write=Disk([errno.EIO] * 1000).write)
    writer.add(b"a\n")
    with pytest.raises(OSError, match=r"1 lines could not be written: the disk of .* fails"):
        writer.close(patience=0.0)


def test_a_file_that_may_not_be_written_is_an_error_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        LineWriter(tmp_path / "file" / "x.jsonl")


def test_of_too_many_lines_that_wait_only_minor_ones_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(line_writer, "KEPT", 100)
    monkeypatch.setattr(line_writer, "RETRY_S", 0.0)
    disk = Disk([errno.EIO] * 100_000)
    writer = LineWriter(tmp_path / "x.jsonl", write=disk.write)
    for number in range(1000):
        writer.add(b"step %d\n" % number, minor=True)
        if number % 100 == 0:
            writer.add(b"saved %d\n" % number)
    disk.script.clear()
    writer.close()
    lines = (tmp_path / "x.jsonl").read_bytes().splitlines()
    assert [line for line in lines if line.startswith(b"saved")] == [b"saved %d" % n for n in range(0, 1000, 100)]
    assert len(lines) <= 101
    assert lines[-1] == b"step 999"

"""An image's file is written once, whole or not at all, whatever the disk does."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipa.errors import ConfigError, StorageError
from clipa.image import file as files
from clipa.image.file import Inside, once
from clipa.image.reference import parse
from clipa.image.tools import enroot_uri

SHA = "sha256:" + "a" * 64


def _make(part: Path) -> Inside:
    assert not part.exists()
    part.write_bytes(b"an image")
    return Inside("r1", "c1", "d1")


def test_once(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x.sif"
    record, made = once(target, "i1", "i1".__eq__, _make)
    assert made
    assert (record.image, record.bytes, record.revision, record.code, record.content) == ("i1", 8, "r1", "c1", "d1")
    assert once(target, "i1", "i1".__eq__, _make) == (record, False)
    assert once(target, "i2", "i2".__eq__, _make)[1], "another image"
    target.write_bytes(b"damaged")
    assert once(target, "i2", "i2".__eq__, _make)[1]
    files.sidecar(target).write_text("{")
    assert once(target, "i2", "i2".__eq__, _make)[1], "a file that nothing is known of"


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_waited_for(tmp_path: Path) -> None:
    """Two processes: the second waits, finds what the first made, and would have found its parts gone otherwise."""
    target = tmp_path / "x.sif"
    program = (
        "import sys, time, pathlib; from clipa.image.file import Inside, once\n"
        "def make(part):\n"
        "    work = part.with_name(part.name + '.work'); work.mkdir(); (work / 'x').touch(); part.write_bytes(b'1')\n"
        "    print('begun', flush=True); sys.stdin.read(); (work / 'x').unlink(); work.rmdir(); return Inside()\n"
        f"print(once(pathlib.Path({str(target)!r}), 'i', 'i'.__eq__, make)[1])\n"
    )

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    killed = start()
    assert killed.stdout is not None
    assert killed.stdout.readline() == "begun\n"
    killed.kill()
    killed.communicate()
    assert len(list(tmp_path.glob(".x.sif.*.part*"))) == 2
    first = start()
    assert first.stdout is not None
    assert first.stdout.readline() == "begun\n"
    assert len(list(tmp_path.glob(".x.sif.*.part*"))) == 2, "its own, and no longer those of the killed one"
    second = start()
    assert first.communicate("")[0] == "True\n"
    assert second.communicate("")[0] == "False\n"
    assert {path.name for path in tmp_path.iterdir()} == {"x.sif", "x.sif.json", ".x.sif.lock"}


def test_without_locks_it_is_still_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Lustre that is mounted without `flock`: nothing of others is swept, because one may be at work."""

    def none(_file: object, _how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    other = tmp_path / ".x.sif.elsewhere.1.part.sif"
    other.touch()
    assert once(tmp_path / "x.sif", "i", "i".__eq__, _make)[1]
    assert other.exists()


def test_a_full_disk_and_a_folder_that_cannot_be(tmp_path: Path) -> None:
    def full(part: Path) -> Inside:
        part.write_bytes(b"some")
        Path("/dev/full").write_bytes(b"more")
        return Inside()

    once(tmp_path / "x.sif", "i", "i".__eq__, _make)
    with pytest.raises(StorageError, match="No space left"):
        once(tmp_path / "x.sif", "i2", "i2".__eq__, full)
    assert files.read(tmp_path / "x.sif") is not None, "what was there stays"
    assert not list(tmp_path.glob("*.part*"))
    with pytest.raises(ConfigError, match="File exists"):
        once(tmp_path / "x.sif" / "y.sif", "i", "i".__eq__, _make)


def test_a_digest_is_read_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    before = files.file_digest(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert files.file_digest(path) != before


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        (f"ghcr.io/me/clipa@{SHA}", f"docker://ghcr.io#me/clipa:{SHA}"),
        (f"localhost:5000/clipa:1@{SHA}", f"docker://localhost:5000#clipa:{SHA}"),
        (f"docker.io/clipa@{SHA}", f"docker://registry-1.docker.io#library/clipa:{SHA}"),
    ],
)
def test_how_enroot_writes_a_pinned_image(name: str, uri: str) -> None:
    assert enroot_uri(parse(name)) == uri

"""What proves that bytes are a shard's."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import google_crc32c
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa.storage.digest import Running, pinned
from clipa.storage.manifest import Shard
from clipa.storage.tars import tar_fault

MIB = 1 << 20


def _etag(data: bytes, part: int) -> str:
    parts = [hashlib.md5(data[at : at + part]).digest() for at in range(0, len(data), part)]
    return f"{hashlib.md5(b''.join(parts)).hexdigest()}-{len(parts)}"


DATA = bytes(range(256)) * 4096 * 17  # 17 MiB
SHARD = {"name": "0.tar", "size": len(DATA)}
PINS = {
    "xxh3": Shard(**SHARD, digest=f"xxh3:{xxhash.xxh3_128_hexdigest(DATA)}"),
    "sha256": Shard(**SHARD, sha256=hashlib.sha256(DATA).hexdigest().upper()),
    "md5": Shard(**SHARD, version=hashlib.md5(DATA).hexdigest()),
    "etag": Shard(**SHARD, version=_etag(DATA, 8 * MIB)),
    "crc32c": Shard(**SHARD, digest=f"crc32c:{google_crc32c.value(DATA):08x}"),
}


def _running(shard: Shard, data: bytes, step: int = 3_000_001) -> Running:
    running = Running(pinned(shard))
    for at in range(0, len(data), step):
        running.update(data[at : at + step])
    return running


@pytest.mark.parametrize("kind", PINS)
def test_the_right_bytes_fit_and_one_wrong_bit_does_not(kind: str) -> None:
    assert pinned(PINS[kind]).kind == kind
    right = _running(PINS[kind], DATA)
    assert right.fits
    assert right.xxh3 == xxhash.xxh3_128_hexdigest(DATA)
    assert not _running(PINS[kind], DATA[:MIB] + bytes([DATA[MIB] ^ 1]) + DATA[MIB + 1 :]).fits


@pytest.mark.parametrize("part", [5, 8, 15, 16])
def test_the_size_of_the_parts_is_found(part: int) -> None:
    assert _running(Shard(**SHARD, version=_etag(DATA, part * MIB)), DATA).fits


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9 * MIB), max_size=6))
def test_pieces_of_any_size_give_the_same_etag(steps: list[int]) -> None:
    running, at = Running(pinned(PINS["etag"])), 0
    for step in [*steps, len(DATA)]:
        running.update(DATA[at : at + step])
        at += step
    assert running.fits


def test_the_cheapest_digest_is_taken() -> None:
    both = Shard(**SHARD, sha256=hashlib.sha256(DATA).hexdigest(), digest=PINS["xxh3"].digest)
    assert pinned(both).kind == "xxh3"


@pytest.mark.parametrize("word", ["1700000000.5 a/0.tar", "0x8DD", "CLjV3a==", "", "0" * 31, "0" * 32 + "-0"])
def test_a_version_that_is_no_etag_of_s3_pins_no_bytes(word: str) -> None:
    assert pinned(Shard(**SHARD, version=word)).kind == ""


def test_a_digest_of_a_newer_clipa_is_passed_over() -> None:
    assert pinned(Shard(**SHARD, digest="blake9:00", sha256="a")).kind == "sha256"
    assert pinned(PINS["md5"], "size").kind == ""


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A tar with a long name (a GNU header of its own), an empty member and 20 ordinary ones."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as file:
        for number in range(20):
            member = tarfile.TarInfo(f"{number:05d}{'x' * 150 * (number == 3)}.jpg")
            member.size = 0 if number == 5 else 1000 + number
            file.addfile(member, io.BytesIO(bytes([number + 1]) * member.size))
    return tmp_path / "a.tar"


def test_a_whole_tar_has_no_fault(tar: Path) -> None:
    assert tar_fault(str(tar)) == ""
    empty = tar.with_name("empty.tar")
    tarfile.open(empty, "w").close()
    assert tar_fault(str(empty)) == ""


@pytest.mark.parametrize("at", [100, 512, 1000, 9000])
def test_a_cut_tar_has_one(tar: Path, at: int) -> None:
    tar.write_bytes(tar.read_bytes()[:at])
    assert ("cut" in tar_fault(str(tar))) == bool(at % 512) or at == 512


def test_holes_and_broken_headers_are_seen(tar: Path) -> None:
    whole = tar.read_bytes()
    tar.write_bytes(whole[:1536] + bytes([whole[1536] ^ 1]) + whole[1537:])
    assert "broken header" in tar_fault(str(tar))
    tar.write_bytes(whole[:1536] + b"\0" * MIB)
    assert "nothing but zeros" in tar_fault(str(tar))
    tar.write_bytes(b"junk" * 1000)
    assert "broken header" in tar_fault(str(tar))

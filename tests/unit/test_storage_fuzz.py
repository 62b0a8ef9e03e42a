"""Tar files of any bytes: four readers that agree with `tarfile` about good ones, and with each other about all others.

What a header says is never believed further than the bytes go: no hang, no memory, no other error than ours.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa.data.index import Part, ShardIndex, build_index
from clipa.errors import DataError
from clipa.storage.members import BrokenTar, Member, members
from clipa.storage.tars import Census, Entry, NotATar, tar_fault, walk

BLOCK = 512
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
OTHERS = (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)

keys = st.sampled_from(["a", "b", "../up", "/etc/passwd", "dir.d/c", "ünï", "./x", "a b\n", "deep/" * 60 + "n" * 120])
extensions = st.sampled_from(
    [".jpg", ".JPG", ".txt", ".json", ".cls", ".npy", "", ".seg.png", "/", ".\udcff", "." + "e" * 90]
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    """The name of a member, its type and its content."""
    name = draw(keys) + draw(extensions)
    kind = draw(st.sampled_from((tarfile.REGTYPE,) * 6 + (tarfile.AREGTYPE, tarfile.CONTTYPE) + OTHERS))
    if kind == tarfile.AREGTYPE and (len(name) > 80 or name.endswith("/")):
        kind = tarfile.REGTYPE  # tarfile takes its own output for a folder where the first 100 bytes end with a slash
    empty = kind in OTHERS or name.endswith("/")
    return name, kind, b"" if empty else draw(st.binary(max_size=1200))


def written(found: list[tuple[str, bytes, bytes]], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, kind, data in found:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), "t/" * 80 if kind == tarfile.SYMTYPE else "x"
            with contextlib.suppress(ValueError):  # a name that USTAR has no room for
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


archives = st.builds(written, st.lists(files(), max_size=8), st.sampled_from(FORMATS))


def of_tarfile(path: Path) -> list[tuple[str, int, int]]:
    """(name, offset, size) of the regular members, as Python's own module reads them."""
    with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
        return [(m.name, m.offset_data, m.size) for m in tar if m.isreg() and not m.issparse()]


def of_walk(path: Path) -> list[tuple[str, int, int]]:
    found: list[Entry] = []
    walk(path, found.append)
    return [(m.name, m.offset, m.size) for m in found if m.regular]


def fed(data: bytes, piece: int) -> int:
    census = Census()
    for at in range(0, len(data), piece):
        census.feed(data[at : at + piece])
    return census.samples


def indexed(path: Path) -> ShardIndex | None:
    """None where the shard is whole, but has the same name twice."""
    try:
        return build_index(path)
    except DataError as error:
        if "two members" in error.what:
            return None
        raise


def usable(index: ShardIndex) -> int:
    parts = (index.counts.captioned, index.counts.labelled, index.counts.targeted)
    return next((count for count in parts if count), 0)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shard") / "a.tar"


@settings(max_examples=60, deadline=None)
@given(archives, st.integers(1, 3000))
def test_a_good_tar_is_read_as_tarfile_reads_it(shard: Path, data: bytes, piece: int) -> None:
    shard.write_bytes(data)
    expected = of_tarfile(shard)
    assert [(name.rstrip("/"), *rest) for name, *rest in of_walk(shard)] == [
        (n.rstrip("/"), *rest) for n, *rest in expected
    ]
    streamed = list(members([data[at : at + piece] for at in range(0, len(data), piece)], 1 << 20))
    assert [(m.size, m.data) for m in streamed if m.regular] == [(n, data[at : at + n]) for _, at, n in expected]
    assert tar_fault(str(shard)) == ""
    index = indexed(shard)
    if index is not None:
        assert usable(index) == fed(data, piece)
        for row in range(len(index.having(Part.IMAGE))):
            offset, size, extension = index.place(row, Part.IMAGE)
            assert (offset, size) in {(at, n) for name, at, n in expected if name.lower().endswith(f".{extension}")}
        index.encode(os.stat(shard))


def sealed(header: bytes) -> bytes:
    """A header of which the checksum holds."""
    block = bytearray(header)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A tar file with faults: cut, patched, pieces doubled or moved, headers that lie under a checksum that holds."""
    data = bytearray(draw(archives))
    for _ in range(draw(st.integers(1, 4))):
        blocks = max(1, len(data) // BLOCK)
        at = draw(st.integers(0, blocks - 1)) * BLOCK
        match draw(st.integers(0, 5)):
            case 0:
                del data[draw(st.integers(0, len(data))) :]
            case 1:
                where, noise = draw(st.integers(0, len(data))), draw(st.binary(min_size=1, max_size=600))
                data[where : where + len(noise)] = noise
            case 2:
                data[at:at] = data[at : at + BLOCK * draw(st.integers(1, 3))]
            case 3:
                del data[at : at + BLOCK * draw(st.integers(1, 3))]
            case 4:
                field = draw(st.sampled_from([b"-0000000777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777\0",
                                              b"\x80" + bytes(10) + b"\x09", b"0x1\0" + bytes(8), b"            ",
                                              b"1_0\0" + bytes(8)]))  # fmt: skip
                header = bytearray(data[at : at + BLOCK].ljust(BLOCK, b"\0"))
                header[124:136] = field
                data[at : at + BLOCK] = sealed(header)
            case 5:
                header = bytearray(data[at : at + BLOCK].ljust(BLOCK, b"\0"))
                header[156] = draw(st.sampled_from(b"LKxgXSVDMN1257Z\0\xff"))
                data[at : at + BLOCK] = sealed(header)
    return bytes(data)


def judged(shard: Path, data: bytes, piece: int) -> None:
    """Every reader says something, and what they say goes together."""
    shard.write_bytes(data)
    fault = tar_fault(str(shard))
    try:
        counted = fed(data, piece)
    except NotATar:
        counted = -1
    with contextlib.suppress(BrokenTar):
        for member in members([data[at : at + piece] for at in range(0, len(data), piece)], 1 << 20):
            assert member.data is None or len(member.data) == member.size
    if counted == -1 or not data:
        with pytest.raises(DataError, match=r"not a whole, uncompressed tar file|has two members"):
            build_index(shard)
        return
    index = indexed(shard)
    assert fault == "" or fault.startswith("nothing but zeros")
    if index is not None:
        assert usable(index) == counted
        index.encode(os.stat(shard))


@settings(max_examples=150, deadline=None)
@given(mutated(), st.integers(1, 3000))
def test_any_fault_is_ours_and_all_readers_see_it(shard: Path, data: bytes, piece: int) -> None:
    judged(shard, data, piece)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(1, 3000))
def test_any_bytes(shard: Path, data: bytes, piece: int) -> None:
    judged(shard, data, piece)
    head = sealed(data[:BLOCK].ljust(BLOCK, b"\0"))
    judged(shard, head + data[BLOCK:], piece)


@pytest.mark.parametrize("kind", [b"0", b"L", b"K", b"x", b"g", b"S", b"Z"])
@pytest.mark.parametrize(
    "size", [b"\x80\0\0\0\x7f" + b"\xff" * 7, b"77777777777\0", b"\x80" + bytes(5) + b"\x40" + bytes(5)]
)
def test_no_memory_is_taken_on_a_headers_word(shard: Path, kind: bytes, size: bytes) -> None:
    header = bytearray(written([("a.jpg", tarfile.REGTYPE, b"")], tarfile.GNU_FORMAT)[:BLOCK])
    header[124:136], header[156:157] = size, kind
    shard.write_bytes(sealed(header) + bytes(4096))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="not a whole"):
            build_index(shard)
        assert tar_fault(str(shard))
        with pytest.raises(NotATar):
            fed(shard.read_bytes(), 1000)
        with pytest.raises(BrokenTar):
            list(members([shard.read_bytes()], 1 << 40))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_length_below_zero_does_not_go_round_for_ever(shard: Path) -> None:
    """CVE-2025-8194: Python 3.11.2's tarfile goes backwards here, and never ends."""
    whole = written([("a.jpg", tarfile.REGTYPE, b"x"), ("a.txt", tarfile.REGTYPE, b"y")], tarfile.GNU_FORMAT)
    for field in (b"\xff" * 10 + b"\xfc\0", b"-0000001000\0"):
        header = bytearray(whole[2 * BLOCK : 3 * BLOCK])
        header[124:136] = field
        shard.write_bytes(whole[: 2 * BLOCK] + sealed(header) + whole[3 * BLOCK :])
        with pytest.raises(DataError, match="broken header at byte 1024"):
            build_index(shard)


def test_a_chain_of_long_names_is_no_recursion(shard: Path) -> None:
    """tarfile calls itself for each."""
    link = written([("n" * 200 + ".jpg", tarfile.REGTYPE, b"")], tarfile.GNU_FORMAT)[: 2 * BLOCK]
    end = written([("z.jpg", tarfile.REGTYPE, b"j"), ("z.txt", tarfile.REGTYPE, b"t")], tarfile.GNU_FORMAT)
    judged(shard, link * 5000 + end, 4096)


def test_a_million_extensions_cost_no_more_than_a_million_members(shard: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(3000):
            tar.addfile(tarfile.TarInfo(f"k{number}.e{number}"))
    shard.write_bytes(out.getvalue())
    assert len(build_index(shard).counts.members) == 20


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("form", ["gnu", "posix", "ustar", "v7", "oldgnu"])
@pytest.mark.parametrize("holes", [3, 60])
def test_what_gnu_tar_writes_with_and_without_holes(tmp_path: Path, form: str, holes: int) -> None:
    """A sparse file is no sample; what follows it is found, also when its map goes on in further blocks."""
    folder = tmp_path / "in"
    folder.mkdir()
    with open(folder / "b.jpg", "wb") as file:
        for hole in range(holes):
            file.seek(hole * (1 << 17))
            file.write(b"x")
    (folder / "a.jpg").write_bytes(b"image")
    (folder / "c.jpg").write_bytes(b"image")
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"caption of {name}")
    (folder / "l.jpg").symlink_to("a.jpg")
    os.link(folder / "a.txt", folder / "l.txt")
    names = ["a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg", "c.txt", "l.jpg", "l.txt"]
    argv = ["tar", f"--format={form}", "--sparse", "-cf", str(tmp_path / "a.tar"), "-C", str(folder), *names]
    made = subprocess.run(argv, capture_output=True, text=True, check=False)
    if made.returncode and form in ("v7", "ustar"):
        argv.remove("--sparse")
        subprocess.run(argv, check=True)
    path = tmp_path / "a.tar"
    assert of_walk(path) == of_tarfile(path)
    assert tar_fault(str(path)) == ""
    index = build_index(path)
    assert usable(index) == fed(path.read_bytes(), 700)
    assert usable(index) == (3 if "b.jpg" in {name for name, _, _ in of_tarfile(path)} else 2)
    found = {m.name: m.data for m in members([path.read_bytes()], 1 << 30) if m.regular}
    assert found["c.jpg"] == b"image"
    assert found["c.txt"] == b"caption of c"
    assert isinstance(next(iter(members([path.read_bytes()], 0))), Member)

"""A tar's samples, counted while its bytes go by, are those that the loader finds in the file."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa.data.index import build_index
from clipa.data.shards import ShardSet
from clipa.errors import DataError
from clipa.storage.tars import Census, NotATar

KEY = st.sampled_from(["a", "b", "dir/a", "dir.x/c", "é", "x" * 120, "y" * 300, ".hidden", ""])
EXTENSION = st.sampled_from(["jpg", "JPG", "png", "txt", "json", "cls", "jpg.txt", "npy", "bin", ""])
MEMBERS = st.lists(st.tuples(KEY, EXTENSION, st.integers(0, 1500)), max_size=12)
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def _tar(members: list[tuple[str, str, int]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for key, extension, size in members:
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size = size
            try:
                tar.addfile(member, io.BytesIO(b"\x01" * size))
            except ValueError:  # too long a name for this format
                continue
    return buffer.getvalue()


def _count(data: bytes, step: int) -> int:
    census = Census()
    for at in range(0, len(data), step):
        census.feed(data[at : at + step])
    return census.samples


@settings(max_examples=60)
@given(MEMBERS, st.sampled_from(FORMATS), st.sampled_from([1, 7, 511, 512, 513, 5000, 1 << 20]))
def test_the_count_is_the_loaders(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str, int]], form: int, step: int
) -> None:
    data = _tar(members, form)
    path = tmp_path_factory.mktemp("tar") / "0.tar"
    path.write_bytes(data)
    try:
        counts = build_index(path).counts
    except DataError:
        return  # two members of one name: the loader refuses such a shard
    assert _count(data, step) == ShardSet((path,), (counts,)).samples


@pytest.mark.parametrize("cut", [100, 700, 1100, 2000])
def test_a_cut_tar_is_not_counted(cut: int) -> None:
    data = _tar([("a", "jpg", 1000), ("a", "txt", 10)], tarfile.GNU_FORMAT)
    with pytest.raises(NotATar):
        _count(data[:cut], 512)


def test_a_broken_header_is_not_counted() -> None:
    data = bytearray(_tar([("a", "jpg", 1000), ("a", "txt", 10)], tarfile.GNU_FORMAT))
    data[512] ^= 1
    with pytest.raises(NotATar, match="header at byte 512"):
        _count(bytes(data), 512)


def test_extensions_are_told_as_webdataset_does(tmp_path: Path) -> None:
    from clipa.data.wds import split_name
    from clipa.storage.tars import _KEY

    for name in ("a.jpg", "d.x/a.b.c", "a", ".a", "a.", "x/.b.txt", "a\nb.jpg"):
        match, rule = _KEY.fullmatch(name), split_name(name)
        assert (match is not None and bool(match[1]) and bool(match[2])) == (rule is not None), name
        if rule and match:
            assert (match[1], match[2].lower()) == rule

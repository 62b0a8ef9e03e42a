"""The members of a tar file as its bytes go by."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from clipa.storage.members import BrokenTar, Member, members
from clipa.storage.tars import member_length

NAMES = some.text(some.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=150).filter(
    lambda name: not name.endswith("/")
)
CONTENTS = some.lists(some.tuples(NAMES, some.binary(max_size=1200)), max_size=5)


def written(content: list[tuple[str, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in content:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@given(CONTENTS, some.sampled_from((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)), some.integers(1, 3000))
@settings(max_examples=200, deadline=None)
def test_what_tarfile_writes_is_read(content: list[tuple[str, bytes]], form: int, size: int) -> None:
    found = list(members(pieces(written(content, form), size), 1 << 20))
    assert [(m.name, m.data) for m in found] == content
    assert all(m.regular and m.size == len(m.data or b"") for m in found)


def test_members_that_are_no_files() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo("a.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    found = list(members([buffer.getvalue()], 1 << 20))
    assert [(m.name, m.regular, m.data) for m in found][1:] == [
        ("link", False, None),
        ("hard", False, None),
        ("a.txt", True, b"abc"),
    ]


def test_a_member_that_is_too_large_is_passed_over() -> None:
    data = written([("a", b"x" * 2000), ("b", b"y")], tarfile.GNU_FORMAT)
    assert list(members([data], 1999)) == [Member("a", 2000, True, None), Member("b", 1, True, b"y")]


CONTENT = [("000.jpg", b"j" * 700), ("000.txt", b"words"), ("x" * 120 + ".jpg", b"k" * 10)]
WHOLE = written(CONTENT, tarfile.GNU_FORMAT)
END = WHOLE.rindex(b"k") // 512 * 512 + 512
"""Where the last member ends: from there on there are only zeros."""


@given(some.integers(1, len(WHOLE) - 1), some.integers(1, 2000))
@settings(max_examples=300, deadline=None)
def test_a_cut_is_seen(at: int, size: int) -> None:
    # Cut between two members, or in the zeros at the end, it is a whole tar file that holds less, to every reader.
    starts = {0, 512 + 1024, 512 + 1024 + 1024, END}
    if at in starts or (at > END and at % 512 == 0):
        assert len(list(members(pieces(WHOLE[:at], size), 1 << 20))) <= len(CONTENT)
        return
    if at > END + 512:
        return
    with pytest.raises(BrokenTar) as caught:
        list(members(pieces(WHOLE[:at], size), 1 << 20))
    assert caught.value.fault == "cut"


@given(some.integers(0, END - 1), some.integers(1, 255))
@settings(max_examples=500, deadline=None)
def test_a_flipped_byte_is_seen_in_headers_and_never_crashes(at: int, flip: int) -> None:
    broken = bytearray(WHOLE)
    broken[at] ^= flip
    try:
        found = list(members([bytes(broken)], 1 << 20))
    except BrokenTar:
        return
    assert len(found) == len(CONTENT), "a flip in a header has lost a member in silence"


@given(some.binary(max_size=4000), some.integers(1, 2000))
@settings(max_examples=300, deadline=None)
def test_any_bytes(data: bytes, size: int) -> None:
    with contextlib.suppress(BrokenTar):
        list(members(pieces(data, size), 1 << 20))


@given(some.binary(min_size=512, max_size=512))
@settings(max_examples=200, deadline=None)
def test_a_header_of_any_bytes_with_a_checksum_that_holds(block: bytes) -> None:
    header = bytearray(block)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    try:
        found = list(members([bytes(header) + bytes(2048)], 1 << 20))
    except BrokenTar:
        return
    assert all(m.data is None or len(m.data) == m.size for m in found)


def test_no_length_goes_backwards() -> None:
    header = bytearray(written([("a", b"")], tarfile.GNU_FORMAT)[:512])
    header[124:136] = b"-7777777777\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert member_length(bytes(header)) is None
    with pytest.raises(BrokenTar):
        list(members([bytes(header) + bytes(1024)], 100))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (WHOLE + WHOLE, "behind"),
        (WHOLE[:END] + bytes(512) + b"x" * 512, "behind"),
        (WHOLE + bytes(100_000), "behind"),
        (b"\x1f\x8b" + bytes(600), "header"),
        (b"PK\3\4" + b"z" * 600, "header"),
        (b"x", "cut"),
    ],
    ids=["two in one", "a tail", "a hole", "gzip", "zip", "one byte"],
)
def test_faults(data: bytes, fault: str) -> None:
    with pytest.raises(BrokenTar) as caught:
        list(members([data], 1 << 20))
    assert caught.value.fault == fault

"""What a tar file holds, told by its headers: block after block, no seek, no file, no path is made of a name.

Stricter than `tarfile`, and bounded by the bytes that are there: `tarfile` takes a broken header for the end, allocates
what a header says, recurses from one long name to the next, and a negative length takes it backwards, for ever
(CVE-2025-8194). What GNU tar, bsdtar and Python write is read as they mean it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
LABELS = ("cls",)
TARGETS = ("npy",)
"""Extensions of a sample's members that are read, the preferred one first."""

BLOCK = 512
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
"""webdataset's rule: the key ends before the first dot of the base name."""
_PAX_LENGTH = re.compile(rb"([0-9]{1,9}) ")
_NUMBER = re.compile(rb"[ ]*([0-7]*)[ ]*")
_REGULAR = b"0\x007"
_WITHOUT_DATA = b"123456"
"""Links, devices, folders: whatever their size says, no data follow."""
_ABOUT_THE_NEXT = b"LKxXg"
"""Long names, and pax records about the next member, or about all."""
_LONGEST = 1 << 20
"""Bytes of a long name or of pax records that are taken at most."""
_IMAGE, _CAPTION, _LABEL, _TARGET = 1, 2, 4, 8
_BIT = {
    **dict.fromkeys(IMAGES, _IMAGE),
    **dict.fromkeys(CAPTIONS, _CAPTION),
    **dict.fromkeys(LABELS, _LABEL),
    **dict.fromkeys(TARGETS, _TARGET),
}


class NotATar(Exception):
    """The bytes are not those of a whole tar file."""


class Entry(NamedTuple):
    """A member: its name as it is written, where its data begin, and how many bytes they have.

    `regular`: the data are those of a file. Not so for links, folders, devices, sparse files.
    """

    name: str
    offset: int
    size: int
    regular: bool


class Walk:
    """Understands the blocks of a tar file: wants the `need` bytes at `at`, again and again until it is `over`."""

    def __init__(self) -> None:
        self.at, self.need, self.over = 0, BLOCK, False
        self._kind = 0  # of the header whose content is wanted next; 0: a header is
        self._length = 0
        self._name: str | None = None
        self._size: int | None = None
        self._sparse = False
        self._held: Entry | None = None  # a sparse file whose map goes on in the next block

    @property
    def between(self) -> bool:
        """Whether the file may end here: all that was begun is complete."""
        return not (self._kind or self._held or self._name is not None or self._size is not None or self._sparse)

    def take(self, block: bytes) -> Entry | None:
        """The `need` bytes at `at`. Returns a member when one is complete; `at` is behind its data then.

        Raises:
            NotATar: a broken header.
        """
        began, self.at = self.at, self.at + self.need
        if self._kind:
            self._named(block[: self._length])
            self._kind, self.need = 0, BLOCK
            return None
        if self._held is not None:
            return self._mapped(self._held, bool(block[504]))
        if not block.strip(b"\0"):
            if not self.between:
                raise NotATar(f"nothing follows the name at byte {began}")
            self.over = True
            return None
        length = member_length(block)
        if length is None:
            raise NotATar(f"a broken header at byte {began}")
        kind = block[156]
        if kind in _ABOUT_THE_NEXT:
            if length > _LONGEST:
                raise NotATar(f"a name of {length} bytes at byte {began}")
            if length:
                self._kind, self._length, self.need = kind, length, _padded(length)
            return None
        return self._member(block, kind, length)

    def _member(self, block: bytes, kind: int, length: int) -> Entry | None:
        name = short_name(block) if self._name is None else self._name
        # As before 1988: a folder is a file whose name says so. A long name is none of that time.
        is_folder = kind == 0 and self._name is None and name.endswith("/")
        if is_folder or kind in _WITHOUT_DATA:
            length = 0
        elif self._size is not None:
            length = self._size
        regular = kind in _REGULAR and not is_folder and not self._sparse
        self._name, self._size, self._sparse = None, None, False
        entry = Entry(name, self.at, length, regular)
        return self._mapped(entry, bool(block[482])) if kind == ord("S") else self._whole(entry)

    def _mapped(self, entry: Entry, goes_on: bool) -> Entry | None:
        """A sparse file of GNU tar's old format: the data begin behind the blocks of its map."""
        self._held = entry if goes_on else None
        return None if goes_on else self._whole(entry._replace(offset=self.at))

    def _whole(self, entry: Entry) -> Entry:
        self.at += _padded(entry.size)
        return entry

    def _named(self, body: bytes) -> None:
        """What is said of the member that follows: GNU's long names, and the records of pax headers."""
        if self._kind == ord("L"):
            self._name = _text(body.split(b"\0")[0])
        elif self._kind in b"xX":
            for key, value in pax_records(body):
                if key in (b"path", b"GNU.sparse.name"):
                    self._name = _text(value)
                elif key == b"size":
                    if not value.isdigit() or len(value) > 20:
                        raise NotATar(f"a size of {value[:20]!r} before byte {self.at}")
                    self._size = int(value)
                self._sparse = self._sparse or key.startswith(b"GNU.sparse.")


def walk(path: str | os.PathLike[str], take: Callable[[Entry], None]) -> int:
    """Tell every member of a tar file on disk, by its headers alone. Returns where its end was found.

    Raises:
        NotATar: after the members that were still whole.
        OSError: it cannot be read.
    """
    steps = Walk()
    with open(path, "rb", buffering=0) as file:
        size = file.seek(0, 2)
        while not steps.over:
            if steps.at > size:
                raise NotATar(f"cut inside a member: {size} of {steps.at} bytes")
            if steps.at == size and steps.between:
                return size
            block = os.pread(file.fileno(), steps.need, steps.at)
            if len(block) < steps.need:
                raise NotATar(f"cut inside the header at byte {steps.at}")
            if entry := steps.take(block):
                take(entry)
    return steps.at - BLOCK


class Census:
    """Counts the samples of a tar file whose bytes are fed to it in order, in pieces of any size."""

    def __init__(self) -> None:
        self._samples: dict[str, int] = {}
        self._walk = Walk()
        self._have = bytearray()
        self._at = 0

    def feed(self, chunk: bytes) -> None:
        """The next bytes.

        Raises:
            NotATar: a header whose checksum does not hold.
        """
        view, steps = memoryview(chunk), self._walk
        while view.nbytes and not steps.over:
            wanted = steps.at - self._at or steps.need - len(self._have)
            part = view[:wanted]
            view = view[part.nbytes :]
            if self._at < steps.at:
                self._at += part.nbytes
                continue
            self._have += part
            if len(self._have) == steps.need:
                have, self._have = bytes(self._have), bytearray()
                self._at += len(have)
                entry = steps.take(have)
                if entry and entry.regular:
                    self.count(entry.name)

    @property
    def samples(self) -> int:
        """Samples so far with an image and a caption; where there are none, an image and a label; else a target.

        Raises:
            NotATar: the bytes ended inside a member.
        """
        if self._have or self._at < self._walk.at or not self._walk.between:
            raise NotATar(f"cut at byte {self._at + len(self._have)}")
        with_image = [bits for bits in self._samples.values() if bits & _IMAGE]
        counts = (sum(1 for bits in with_image if bits & part) for part in (_CAPTION, _LABEL, _TARGET))
        return next((count for count in counts if count), 0)

    def count(self, name: str) -> None:
        """A regular member of that name."""
        match = _KEY.fullmatch(name)
        if match and (bit := _BIT.get(match[2].lower())):
            self._samples[match[1]] = self._samples.get(match[1], 0) | bit


def short_name(block: bytes) -> str:
    """The name in a tar header, and its prefix where the format has one."""
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def pax_records(records: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a pax header: `LENGTH KEY=VALUE` and a newline each, up to the first that is none."""
    at, found = 0, []
    while match := _PAX_LENGTH.match(records, at):
        end = at + int(match[1])
        if end <= match.end() or end > len(records):
            break
        key, _, value = records[match.end() : end - 1].partition(b"=")
        found.append((key, value))
        at = end
    return found


def member_length(header: bytes) -> int | None:
    """Bytes of the member behind a tar header; None where its checksum does not hold."""
    if sum(header) - sum(header[148:156]) + 8 * 32 != _octal(header[148:156]):
        return None
    if header[124] & 0x80:
        return int.from_bytes(header[125:136], "big") if header[124] == 0x80 else None  # 0xff: below zero
    return _octal(header[124:136])


def _octal(field: bytes) -> int | None:
    """A number as tar writes it: it ends at the first NUL, and none is 0. Never below zero."""
    found = _NUMBER.fullmatch(field.split(b"\0", 1)[0])
    return int(found[1] or b"0", 8) if found else None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


PADDING = 64 << 10
"""Zeros at the end that are no hole: writers pad to a record (GNU tar: 10 KiB)."""


def tar_fault(path: str) -> str:
    """Why a file is not a whole tar file, by its headers alone (6 us each); empty when nothing is wrong.

    Catches what is cut and most of what has holes. What lies inside the members is not looked at.
    """
    try:
        end = walk(path, lambda _: None)
        size = os.path.getsize(path)
    except NotATar as error:
        return str(error)
    return "" if size - end <= PADDING else f"nothing but zeros from byte {end} on"

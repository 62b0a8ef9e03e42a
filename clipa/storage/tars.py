"""What a shard's tar holds, told while its bytes go by: no seek, no file, no image is looked at."""

from __future__ import annotations

import re

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
LABELS = ("cls",)
TARGETS = ("npy",)
"""Extensions of a sample's members that are read, the preferred one first."""

_BLOCK = 512
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
"""webdataset's rule: the key ends before the first dot of the base name."""
_PAX_LENGTH = re.compile(rb"([0-9]{1,9}) ")
_REGULAR = b"0\0"
_IMAGE, _CAPTION, _LABEL, _TARGET = 1, 2, 4, 8
_BIT = {
    **dict.fromkeys(IMAGES, _IMAGE),
    **dict.fromkeys(CAPTIONS, _CAPTION),
    **dict.fromkeys(LABELS, _LABEL),
    **dict.fromkeys(TARGETS, _TARGET),
}


class NotATar(Exception):
    """The bytes are not those of a whole tar file."""


class Census:
    """Counts the samples of a tar file whose bytes are fed to it in order, in pieces of any size."""

    def __init__(self) -> None:
        self._samples: dict[str, int] = {}
        self._have = bytearray()
        self._at = 0
        self._next = 0
        self._long: tuple[int, int, int] | None = None  # where the name of the next member lies, and its kind
        self._name = ""
        self._over = False

    def feed(self, chunk: bytes) -> None:
        """The next bytes.

        Raises:
            NotATar: a header whose checksum does not hold.
        """
        view = memoryview(chunk)
        while view.nbytes and not self._over:
            skip = min(view.nbytes, self._next - self._at) if self._at < self._next else 0
            if skip:
                view, self._at = view[skip:], self._at + skip
                continue
            need = self._long[1] if self._long else _BLOCK
            take = view[: need - len(self._have)]
            self._have += take
            view, self._at = view[take.nbytes :], self._at + take.nbytes
            if len(self._have) == need:
                have, self._have = bytes(self._have), bytearray()
                self._take(have)

    @property
    def samples(self) -> int:
        """Samples so far with an image and a caption; where there are none, an image and a label; else a target.

        Raises:
            NotATar: the bytes ended inside a member.
        """
        if self._have or self._at < self._next or self._long:
            raise NotATar(f"cut at byte {self._at}")
        with_image = [bits for bits in self._samples.values() if bits & _IMAGE]
        counts = (sum(1 for bits in with_image if bits & part) for part in (_CAPTION, _LABEL, _TARGET))
        return next((count for count in counts if count), 0)

    def _take(self, block: bytes) -> None:
        if self._long:
            self._named(block)
            return
        if not block.strip(b"\0"):
            self._over = True
            self._next = self._at
            return
        length = member_length(block)
        if length is None:
            raise NotATar(f"a broken header at byte {self._at - _BLOCK}")
        padded = -(-length // _BLOCK) * _BLOCK
        kind = block[156]
        self._next = self._at + padded
        if kind in b"Lx" and 0 < length <= 1 << 20:
            self._long = (self._at, padded, kind)
            self._text = length
            self._next = self._at
        elif kind in _REGULAR:
            self.count(self._name or short_name(block))
            self._name = ""
        elif kind not in b"Kg":
            self._name = ""

    def _named(self, block: bytes) -> None:
        """The name of the member that follows: GNU's long names, and the `path` of pax headers."""
        assert self._long
        _, _, kind = self._long
        self._long = None
        body = block[: self._text]
        if kind == ord("L"):
            self._name = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif name := pax_path(body):
            self._name = name

    def count(self, name: str) -> None:
        """A regular member of that name."""
        match = _KEY.fullmatch(name)
        if match and (bit := _BIT.get(match[2].lower())):
            self._samples[match[1]] = self._samples.get(match[1], 0) | bit


def short_name(block: bytes) -> str:
    """The name in a tar header, and its prefix where the format has one."""
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def pax_path(records: bytes) -> str:
    """The `path` in the records of a pax header (`LENGTH KEY=VALUE` and a newline each); empty where there is none."""
    at, path = 0, b""
    while found := _PAX_LENGTH.match(records, at):
        end = at + int(found[1])
        key, _, value = records[found.end() : end - 1].partition(b"=")
        if end <= found.end() or end > len(records):
            break
        if key == b"path":
            path = value
        at = end
    return path.decode("utf-8", "surrogateescape")


def member_length(header: bytes) -> int | None:
    """Bytes of the member behind a tar header; None where its checksum does not hold."""
    try:
        stated = int(header[148:156].strip(b"\0 ") or b"0", 8)
        if sum(header) - sum(header[148:156]) + 8 * 32 != stated:
            return None
        field = header[124:136]
        if field[0] & 0x80:
            return int.from_bytes(field[1:], "big")
        length = int(field.strip(b"\0 ") or b"0", 8)
        return length if length >= 0 else None  # else whoever adds lengths would go backwards, for ever
    except ValueError:
        return None


_PADDING = 64 << 10


def tar_fault(path: str) -> str:
    """Why a file is not a whole tar file, by its headers alone (8 us each); empty when nothing is wrong.

    Catches what is cut and most of what has holes. What lies inside the members is not looked at.
    """
    at = 0
    with open(path, "rb", buffering=0) as file:
        size = file.seek(0, 2)
        while at < size:
            file.seek(at)
            header = file.read(_BLOCK)
            if len(header) < _BLOCK:
                return f"cut inside the header at byte {at}"
            if not header.strip(b"\0"):
                # The end: writers pad with zeros to a record (GNU tar: 10 KiB); more of them are a hole.
                return "" if size - at <= _PADDING else f"nothing but zeros from byte {at} on"
            length = member_length(header)
            if length is None:
                return f"a broken header at byte {at}"
            at += _BLOCK + -(-length // _BLOCK) * _BLOCK
    return "" if at == size else f"cut inside a member: {size} of {at} bytes"

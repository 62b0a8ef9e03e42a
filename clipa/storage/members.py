"""The members of a tar file as its bytes go by: names and contents, from any store, without a seek or a file.

Stricter than `tarfile`, which takes a broken header for the end and never looks at what lies behind the end. Names come
out as they are written: nothing here makes a path of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

from clipa.storage.tars import BLOCK, PADDING, NotATar, Walk

Fault: TypeAlias = Literal["cut", "header", "behind"]


class BrokenTar(Exception):
    """Not a whole tar file. `fault`: `cut` (it ends too early), `header` (broken), `behind` (more after its end)."""

    def __init__(self, fault: Fault, what: str) -> None:
        super().__init__(what)
        self.fault: Fault = fault


class Member(NamedTuple):
    """One member. `data` is None where it is no regular file, or larger than what was asked for."""

    name: str
    size: int
    regular: bool
    data: bytes | None


class _Bytes:
    """Takes exactly so many bytes at a time from pieces of any size."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._have = memoryview(b"")
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes; fewer at the end of the file."""
        parts = []
        while count and self._more():
            part = self._have[:count]
            self._have = self._have[part.nbytes :]
            count -= part.nbytes
            self.at += part.nbytes
            parts.append(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def skip(self, count: int) -> int:
        """Pass over `count` bytes; how many there were."""
        left = count
        while left and self._more():
            step = min(left, self._have.nbytes)
            self._have = self._have[step:]
            left -= step
        self.at += count - left
        return count - left

    def _more(self) -> bool:
        while not self._have.nbytes:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._have = memoryview(chunk)
        return True


def members(chunks: Iterable[bytes], largest: int) -> Iterator[Member]:
    """Every member of a tar file, in order.

    Args:
        chunks: its bytes, in pieces of any size.
        largest: bytes of the largest member whose content is wanted.

    Raises:
        BrokenTar: after the members that were still whole.
    """
    source, steps = _Bytes(chunks), Walk()
    while True:
        block = source.take(steps.need)
        if not block and steps.between:
            return
        if len(block) < steps.need:
            raise BrokenTar("cut", f"cut inside the header at byte {source.at - len(block)}")
        try:
            entry = steps.take(block)
        except NotATar as error:
            raise BrokenTar("header", str(error)) from error
        if steps.over:
            _require_the_end(source)
            return
        if entry:
            data = _content(source, entry.size, largest if entry.regular else -1)
            yield Member(entry.name, entry.size, entry.regular, data)


def _content(source: _Bytes, length: int, largest: int) -> bytes | None:
    """The bytes of a member, and its padding passed over; None where there are too many of them."""
    began = source.at
    data = source.take(length) if length <= largest else None
    if data is None:
        source.skip(length)
    padding = -length % BLOCK
    if source.at - began < length or source.skip(padding) < padding:
        raise BrokenTar("cut", f"cut at byte {source.at}, inside the member that begins at byte {began - BLOCK}")
    return data


def _require_the_end(source: _Bytes) -> None:
    began = source.at - BLOCK
    zeros = BLOCK
    while block := source.take(BLOCK):
        if block.strip(b"\0"):
            raise BrokenTar("behind", f"more behind its end, from byte {source.at - len(block)} on")
        zeros += len(block)
    if zeros > PADDING:
        raise BrokenTar("behind", f"nothing but zeros from byte {began} on")

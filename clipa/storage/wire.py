"""GET over a socket with as few copies and calls as there can be: the kernel fills one block of memory per call.

For stores behind an address of their own, as on-premises ones are. On the same stream obstore costs 0.41 CPU seconds a
GiB over HTTP and this 0.21 (`MSG_WAITALL`: one system call and one hand-over of the interpreter's lock a MiB). Over
HTTPS it is about 1.2 and 1.1, with 3,500 context switches instead of 155,000: OpenSSL gives one record of 16 KiB a
call, after two system calls (larger reads through a memory BIO cost in copies what they save in calls). It does the one
thing that staging does nearly all of its time, and nothing else: whatever is not exactly the answer that was asked for
is an `Unexpected`, and obstore or the ranged reads of `Store` have their turn.
"""

from __future__ import annotations

import functools
import mmap
import os
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

BLOCK = 1 << 20
_CONNECT_S = 10.0
_SILENCE_S = 20
_PORTS = {"http": 80, "https": 443}
_HEAD = 16 << 10
_MOST_FAILURES = 3


class Unexpected(Exception):
    """Not the answer that was asked for. `status` is the server's, 0 where there was none."""

    def __init__(self, what: str, status: int = 0) -> None:
        super().__init__(what)
        self.status = status


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The roots of the system (`SSL_CERT_FILE`), and those of `AWS_CA_BUNDLE` as botocore and obstore know it."""
    context = ssl.create_default_context()
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        context.load_verify_locations(bundle)
    return context


def _wrapped(line: socket.socket, host: str) -> ssl.SSLSocket:
    try:
        return _trusted().wrap_socket(line, server_hostname=host)
    except BaseException:
        line.close()
        raise


class _Head(NamedTuple):
    status: int
    fields: dict[str, str]
    rest: bytes


class _Line:
    """One connection, kept for the next request, and the block of memory that it fills."""

    def __init__(self, parts: SplitResult) -> None:
        host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
        self.socket = socket.create_connection((host, port), timeout=_CONNECT_S)
        self._flags = int(socket.MSG_WAITALL)
        if parts.scheme == "https":
            self.socket = _wrapped(self.socket, host)
            self._flags = 0  # a record is all there is to wait for
        # A time-out of Python's would put a poll before each call; the kernel's does not.
        self.socket.settimeout(None)
        limit = struct.pack("ll", _SILENCE_S, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self.block = memoryview(mmap.mmap(-1, BLOCK))

    def ask(self, request: bytes) -> _Head:
        self.socket.sendall(request)
        raw = b""
        while b"\r\n\r\n" not in raw:
            more = self.socket.recv(_HEAD)
            if not more or len(raw) > _HEAD:
                raise Unexpected("no answer")
            raw += more
        head, _, rest = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) < 2 or words[0] != "HTTP/1.1" or not words[1].isdigit():
            raise Unexpected("not HTTP/1.1")
        pairs = (line.partition(":") for line in lines)
        return _Head(int(words[1]), {name.lower(): value.strip() for name, _, value in pairs}, rest)

    def blocks(self, rest: bytes, size: int) -> Iterator[memoryview]:
        """A body of so many bytes, `rest` being its beginning, in blocks that hold until the next one."""
        while size:
            wanted = min(size, BLOCK)
            have = min(len(rest), wanted)
            self.block[:have] = rest[:have]
            rest = rest[have:]
            while have < wanted:
                count = self.socket.recv_into(self.block[have:wanted], 0, self._flags)
                if not count:
                    raise Unexpected("the connection ended")
                have += count
            size -= wanted
            yield self.block[:wanted]


class Wire:
    """Ranged GETs of a process: each thread has a connection a server."""

    def __init__(self) -> None:
        self._mine = threading.local()
        self._works = False
        self._failures = 0

    @property
    def hopeless(self) -> bool:
        """Whether it failed a few times and never brought a byte."""
        return not self._works and self._failures >= _MOST_FAILURES

    def stream(self, url: str, start: int, end: int, etag: str = "") -> Iterator[memoryview]:
        """Bytes start..end of what lies at a URL, in blocks that hold until the next one is asked for.

        Raises:
            Unexpected: another answer, or fewer bytes.
            OSError: trouble on the way.
        """
        parts = urlsplit(url)
        request = _request(parts, start, end, etag)
        lines: dict[str, _Line] = self._mine.__dict__
        line = lines.pop(parts.netloc, None)
        try:
            head = self._asked(line, request) if line else None
            if line is None or head is None:
                line = _Line(parts)
                head = line.ask(request)
            _require_range(head, start, end)
            for block in line.blocks(head.rest, end - start):
                self._works = True
                yield block
            if head.fields.get("connection", "").lower() != "close":
                lines[parts.netloc] = line
        except (OSError, Unexpected):
            self._failures += 1
            raise
        finally:
            # A body that was not read to its end would be the next answer's beginning.
            if line and parts.netloc not in lines:
                line.socket.close()

    def _asked(self, line: _Line, request: bytes) -> _Head | None:
        """The answer on a connection that was kept; None where the server has given it up meanwhile."""
        try:
            return line.ask(request)
        except (OSError, Unexpected):
            line.socket.close()
            return None


def _request(parts: SplitResult, start: int, end: int, etag: str) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc}", f"Range: bytes={start}-{end - 1}"]
    lines += ["Accept-Encoding: identity", "User-Agent: clipa"]
    if etag:
        lines.append(f'If-Match: "{etag}"')
    if any("\r" in line or "\n" in line for line in lines):
        raise Unexpected("a line break in a URL")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _require_range(head: _Head, start: int, end: int) -> None:
    if head.status != 206:
        raise Unexpected(f"HTTP {head.status}", head.status)
    got = head.fields.get("content-range", "").partition("/")[0]
    plain = not head.fields.keys() & {"transfer-encoding", "content-encoding"}
    if not plain or got != f"bytes {start}-{end - 1}" or head.fields.get("content-length") != str(end - start):
        raise Unexpected("not the range that was asked for", head.status)
    if len(head.rest) > end - start:
        raise Unexpected("more than the range that was asked for", head.status)

"""An HTTP proxy that breaks answers on the wire: what a store's clients must survive."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Fault = Literal["ok", "drop", "reset", "500", "503", "short", "flip", "stall"]


class FaultProxy(ThreadingHTTPServer):
    """Passes everything on; the next ranged GETs meet `faults`, in order. `on_range` sees each ranged GET before it."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.faults: list[Fault] = []
        self.met: list[Fault] = []
        self.ranges = 0
        self.stalled = threading.Event()
        self.release = threading.Event()
        self.on_range: Callable[[int], None] = lambda number: None
        self._guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self) -> Fault:
        with self._guard:
            self.ranges += 1
            number = self.ranges
            fault = self.faults.pop(0) if self.faults else "ok"
            self.met.append(fault)
        self.on_range(number)
        return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        ranged = self.command == "GET" and "Range" in self.headers
        fault = self.server.next_fault() if ranged else "ok"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault in ("500", "503"):
            self._answer(int(fault), [("Content-Type", "application/xml")], _ERRORS[fault])
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=30)
        upstream.request(self.command, self.path, body or None, dict(self.headers.items()))
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        keep = [(k, v) for k, v in answer.getheaders() if k.lower() not in _OURS]
        length = len(data) if self.command != "HEAD" else int(answer.getheader("Content-Length") or 0)
        self._break(fault, answer.status, keep, data, length)

    def _break(self, fault: Fault, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
        if fault == "short":
            data, length = data[: len(data) // 2], len(data) // 2
        if fault == "flip":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1 :]
        sent = data[: len(data) // 2] if fault in ("drop", "reset", "stall") else data
        self._answer(status, headers, sent, length)
        if fault == "stall":
            self.server.stalled.set()
            self.server.release.wait(60)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if len(sent) < len(data):
            self.close_connection = True

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        """No lines in the test's output."""


_OURS = ("content-length", "transfer-encoding", "connection", "server", "date")
_ERRORS = {
    "500": b"<Error><Code>InternalError</Code><Message>broken</Message></Error>",
    "503": b"<Error><Code>ServiceUnavailable</Code><Message>busy</Message></Error>",
}


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy in front of `upstream` (http://host:port) for as long as the block lasts."""
    proxy = FaultProxy(upstream)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)

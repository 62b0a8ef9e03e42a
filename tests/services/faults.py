"""An HTTP proxy that breaks answers on the wire: what a store's clients must survive."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Fault = Literal["ok", "drop", "reset", "refuse", "500", "503", "slow", "short", "flip", "stall", "whole"]
"""`drop`, `reset`, `stall`: half of the body, then FIN, RST or silence. `refuse`: closed without an answer. `slow`: 503
SlowDown. `short`: half of the body under a Content-Length that says so. `flip`: one bit. `whole`: 200 and
more than the range, as from a server that knows none."""


class FaultProxy(ThreadingHTTPServer):
    """Passes everything on; the next ranged GETs meet `faults`, in order. `on_range` sees each ranged GET before it,
    `on_path` what is asked for. While it is `away` nothing gets an answer. `keeps_host`: the server is told the proxy's
    name, as signatures need it. `agents`: who asked for ranges.
    """

    daemon_threads = True

    def __init__(self, upstream: str, pem: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.scheme = "https" if pem else "http"
        if pem:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.upstream = upstream.removeprefix("http://")
        self.faults: list[Fault] = []
        self.met: list[Fault] = []
        self.ranges = self.puts = 0
        self.hold_puts = False
        self.keeps_host = True
        self.agents: set[str] = set()
        self.away = False
        self.paths: list[tuple[str, str]] = []
        self.stalled = threading.Event()
        self.release = threading.Event()
        self.on_range: Callable[[int], None] = lambda number: None
        self.on_path: Callable[[str], None] = lambda path: None
        self._guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

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
        if self.server.away:
            self.close_connection = True
            return
        ranged = self.command == "GET" and ("Range" in self.headers or "x-ms-range" in self.headers)
        fault = self.server.next_fault() if ranged else "ok"
        if ranged:
            self.server.agents.add(self.headers.get("User-Agent", ""))
        if ranged:
            self.server.on_path(self.path)
        self.server.paths.append((self.command, self.path))
        if self.command == "PUT":
            self.server.puts += 1
            if self.server.hold_puts:
                self.server.release.wait(60)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault in _ERRORS:
            status, document = _ERRORS[fault]
            self._answer(status, [("Content-Type", "application/xml")], document)
            return
        if fault == "refuse":
            self.close_connection = True
            return
        try:
            headers = {name: value for name, value in self.headers.items() if self._keeps(name)}
            answer, data = self._upstream(body, headers)
        except OSError:
            self.close_connection = True  # the server behind is down: so is the way to it
            return
        keep = [(k, v) for k, v in answer.getheaders() if k.lower() not in _OURS]
        length = len(data) if self.command != "HEAD" else int(answer.getheader("Content-Length") or 0)
        self._break(fault, answer.status, keep, data, length)

    def _keeps(self, name: str) -> bool:
        return self.server.keeps_host or name.lower() != "host"

    def _upstream(self, body: bytes, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        try:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _break(self, fault: Fault, status: int, headers: list[tuple[str, str]], data: bytes, length: int) -> None:
        if fault == "whole":
            status, data, length = 200, data + data, 2 * length
            headers = [(k, v) for k, v in headers if k.lower() != "content-range"]
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
    "500": (500, b"<Error><Code>InternalError</Code><Message>broken</Message></Error>"),
    "503": (503, b"<Error><Code>ServiceUnavailable</Code><Message>busy</Message></Error>"),
    "slow": (503, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"),
}


@contextmanager
def fault_proxy(upstream: str, pem: Path | None = None) -> Iterator[FaultProxy]:
    """A proxy in front of `upstream` (http://host:port) for as long as the block lasts; with `pem` it speaks HTTPS."""
    proxy = FaultProxy(upstream, pem)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release.set()
        proxy.shutdown()
        proxy.server_close()
        thread.join(10)

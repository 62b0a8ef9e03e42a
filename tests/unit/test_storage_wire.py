from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipa.storage.wire import BLOCK, Unexpected, Wire, _trusted
from tests.services.loopback import certify

Serve = Callable[..., str]
ASKED: list[bytes] = []


def _answer(body: bytes, start: int = 0, size: int | None = None, **other: str) -> bytes:
    size = len(body) if size is None else size
    fields = {"Content-Length": str(size), "Content-Range": f"bytes {start}-{start + size - 1}/999999999", **other}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 206 Partial Content\r\n{head}\r\n".encode() + body


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server that gives each connection the next list of answers, one a request, and then hangs up."""
    ASKED.clear()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work(connections: tuple[list[bytes], ...]) -> None:
            for answers in connections:
                with server.accept()[0] as line:
                    for answer in answers:
                        ASKED.append(line.recv(65536))
                        line.sendall(answer)

        def start(*connections: list[bytes]) -> str:
            threading.Thread(target=work, args=(connections,), daemon=True).start()
            return f"http://127.0.0.1:{server.getsockname()[1]}/bucket/a%20b.tar?sign=%2Fx"

        yield start


def _read(wire: Wire, url: str, start: int, end: int, etag: str = "") -> list[bytes]:
    return [bytes(block) for block in wire.stream(url, start, end, etag)]


def test_a_range_comes_in_blocks_and_the_connection_is_kept(serve: Serve) -> None:
    body = bytes(range(256)) * 4096 * 2 + b"tail"
    wire, url = Wire(), serve([_answer(body, 5), _answer(b"xyz")])
    blocks = _read(wire, url, 5, 5 + len(body), "abc")
    assert [len(block) for block in blocks] == [BLOCK, BLOCK, 4]
    assert b"".join(blocks) == body
    assert _read(wire, url, 0, 3) == [b"xyz"]
    assert ASKED[0].startswith(b"GET /bucket/a%20b.tar?sign=%2Fx HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nRange: bytes=5-" in ASKED[0]
    assert b'\r\nIf-Match: "abc"\r\n' in ASKED[0]
    assert b"If-Match" not in ASKED[1]


def test_a_connection_that_the_server_gave_up_is_opened_anew(serve: Serve) -> None:
    wire, url = Wire(), serve([_answer(b"one")], [_answer(b"two", Connection="close")], [_answer(b"six")])
    assert [_read(wire, url, 0, 3) for _ in range(3)] == [[b"one"], [b"two"], [b"six"]]


def test_a_body_that_was_left_is_not_the_next_answer(serve: Serve) -> None:
    wire, url = Wire(), serve([_answer(b"x" * 2 * BLOCK)], [_answer(b"new")])
    stream = wire.stream(url, 0, 2 * BLOCK)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert _read(wire, url, 0, 3) == [b"new"]


ODD = {
    "whole object": (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd", 200),
    "changed": (b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n", 412),
    "elsewhere": (b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://x/\r\n\r\n", 307),
    "other range": (_answer(b"abcd", 1), 206),
    "shorter": (_answer(b"abc", size=3), 206),
    "length that is not the range's": (_answer(b"abcd", Content_Length="3"), 206),
    "no range named": (b"HTTP/1.1 206 OK\r\nContent-Length: 4\r\n\r\nabcd", 206),
    "in chunks": (_answer(b"abcd", Transfer_Encoding="chunked"), 206),
    "packed": (_answer(b"abcd", Content_Encoding="gzip"), 206),
    "too much": (_answer(b"abcde", size=4), 206),
    "cut": (_answer(b"abc", size=4), 0),
    "old": (_answer(b"abcd").replace(b"1.1", b"1.0", 1), 0),
    "no HTTP": (b"\r\n\r\n", 0),
    "nothing": (b"", 0),
    "no end of the head": (b"HTTP/1.1 206 OK\r\n" + b"x" * 70_000, 0),
}


@pytest.mark.parametrize(("answer", "status"), ODD.values(), ids=ODD)
def test_what_was_not_asked_for_is_refused(serve: Serve, answer: bytes, status: int) -> None:
    wire = Wire()
    url = serve([answer], [answer], [answer])
    for _ in range(3):
        assert not wire.hopeless
        with pytest.raises((Unexpected, ConnectionError)) as caught:
            assert _read(wire, url, 0, 4)
        assert getattr(caught.value, "status", 0) == status
    assert wire.hopeless


def test_no_server_is_an_error_of_the_system() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        _read(Wire(), f"http://127.0.0.1:{port}/x", 0, 1)


def test_https_is_read_where_the_certificate_is_trusted_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = bytes(range(256)) * 4096 * 2
    pem = certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def work(server: socket.socket) -> None:
        for _ in range(3):
            with server.accept()[0] as line:
                try:
                    with context.wrap_socket(line, server_side=True) as tls:
                        while tls.recv(65536):
                            tls.sendall(_answer(body))
                except OSError:
                    continue  # the client hung up at the sight of the certificate, or of the name

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=work, args=(server,), daemon=True).start()
        port = server.getsockname()[1]
        _trusted.cache_clear()
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        with pytest.raises(ssl.SSLCertVerificationError):
            _read(Wire(), f"https://127.0.0.1:{port}/x", 0, len(body))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "server.crt"))
        _trusted.cache_clear()
        try:
            with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
                _read(Wire(), f"https://localhost:{port}/x", 0, len(body))
            wire = Wire()
            for _ in range(2):
                blocks = _read(wire, f"https://127.0.0.1:{port}/x", 0, len(body))
                assert [len(block) for block in blocks] == [BLOCK, BLOCK]
                assert b"".join(blocks) == body
        finally:
            _trusted.cache_clear()

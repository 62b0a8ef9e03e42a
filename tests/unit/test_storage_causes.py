"""What goes wrong on the way to a store, by its text: the cause and the cure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipa.errors import ClipaError, InputError, StorageError
from clipa.spec.cluster import Dataset
from clipa.storage import causes, patience
from clipa.storage.dataset import index
from clipa.storage.store import Store
from tests.services.faults import fault_proxy
from tests.services.loopback import certify

Answer = tuple[int, str]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "GIVE_UP_S", 0.3)
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "hush"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], str]]:
    """A server that gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        answer = (200, b"")

        def do_GET(self) -> None:
            status, body = self.answer
            self.send_response(status)
            self.send_header("x-amz-bucket-region", "eu-west-1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command != "HEAD" else b"")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            """No lines in the test's output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

        def start(status: int, code: str) -> str:
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>so it is</Message></Error>"
            Handler.answer = (status, body.encode() if code else b"")
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield start
        server.shutdown()


S3 = {
    "another region": (400, "AuthorizationHeaderMalformed", InputError, "another region", "--region"),
    "elsewhere": (301, "PermanentRedirect", InputError, "another region", "--region"),
    "expired": (400, "ExpiredToken", InputError, "have expired", "log in again"),
    "the clock": (403, "RequestTimeTooSkewed", InputError, "clocks", "clock"),
    "unknown": (403, "InvalidAccessKeyId", InputError, "refuses access.*InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
    "no bucket": (404, "NoSuchBucket", InputError, "nothing at this URL", "endpoint"),
}


@pytest.mark.parametrize(("status", "code", "kind", "what", "hint"), S3.values(), ids=S3)
def test_what_s3_says_is_told_with_its_cure(
    answering: Callable[[int, str], str], status: int, code: str, kind: type[ClipaError], what: str, hint: str
) -> None:
    with pytest.raises(kind, match=what) as caught:
        Store(Dataset(url="s3://b/x", endpoint=answering(status, code))).list()
    assert hint in caught.value.hint
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind", "what"),
    [(401, InputError, "refuses access: 401"), (404, InputError, "missing, first 0.tar"), (500, StorageError, "500")],
)
def test_http_tells_absent_from_refused_and_broken(
    answering: Callable[[int, str], str], status: int, kind: type[ClipaError], what: str
) -> None:
    """fsspec calls all of them absent."""
    with pytest.raises(kind, match=what):
        index(Dataset(url=f"{answering(status, '')}/x/{{0..1}}.tar"))


@pytest.mark.parametrize("url", ["https://127.0.0.1:9/x", "s3://b/x"])
def test_a_server_that_is_not_there_is_said_to_be(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached") as caught:
        index(Dataset(url=url))
    assert "endpoint" in caught.value.hint


def test_a_proxy_that_is_not_there_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:hush@127.0.0.1:9")
    with pytest.raises(StorageError, match="the proxy does not answer") as caught:
        Store("https://example.invalid/x").exists("0.tar")
    assert "HTTPS_PROXY" in caught.value.hint
    assert "hush" not in str(caught.value)


def test_who_waits_for_a_name_that_nobody_answers_to_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clipa.storage.store._SILENT_S", 0.0)
    with pytest.raises(StorageError):
        Store("http://127.0.0.1:9/x").entry("0.tar")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("http://127.0.0.1:9/x/0.tar: the server cannot be reached")


def test_a_certificate_that_nobody_vouches_for_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "GIVE_UP_S", 60.0)
    began = time.monotonic()
    with fault_proxy("http://127.0.0.1:9", certify(tmp_path)) as proxy:
        for url in (f"{proxy.url}/x", "s3://b/x"):
            with pytest.raises(InputError, match="certificate is not trusted") as caught:
                Store(Dataset(url=url, endpoint=proxy.url if url.startswith("s3") else "")).entry("0.tar")
            assert "AWS_CA_BUNDLE" in caught.value.hint
    assert time.monotonic() - began < 20


def test_gcs_says_forbidden_in_words() -> None:
    error = OSError("Forbidden: b/b/o\nx has no storage.objects.list access")
    told = causes.translated(error, "gs", "gs://b/x", str(error))
    assert isinstance(told, InputError)
    assert told.what == "the store refuses access: Forbidden: b/b/o"
    assert "GOOGLE_APPLICATION_CREDENTIALS" in told.hint

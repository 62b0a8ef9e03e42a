"""A small Hugging Face hub on loopback: the part of its documented HTTP API that reading a dataset takes.

https://huggingface.co/docs/hub/api: repository info, tree listings in pages, paths-info, and `resolve`, which for files
in LFS redirects to a signed address of another host with their SHA-256 as the ETag. One dataset, one revision a commit.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_PAGE = 2
_COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """`files` of one dataset; with `token`, whoever has none is told to log in. `flips` answers get a wrong bit."""

    daemon_threads = True

    def __init__(self, dataset: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dataset = dataset
        self.files: dict[str, bytes] = {}
        self.token = ""
        self.flips = 0
        self.redirects = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def told(self, path: str) -> dict[str, Any]:
        """A file as a tree listing tells it."""
        data = self.files[path]
        digest = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()
        lfs = {"oid": digest, "size": len(data), "pointerSize": len(pointer)}
        oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        return {"type": "file", "path": path, "oid": oid, "size": len(data), "lfs": lfs}


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if path.startswith("/cdn/"):
            self._file(path.removeprefix("/cdn/"))
        elif self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self._json({"error": "Invalid username or password."}, 401, {"X-Error-Code": "GatedRepo"})
        elif found := re.fullmatch(rf"/datasets/{self.server.dataset}/resolve/[^/]+/(.+)", path):
            self._resolve(found[1])
        elif found := re.fullmatch(rf"/api/datasets/{self.server.dataset}(?:/(\w+)/([^/]+)(?:/(.*))?)?", path):
            self._api(found[1] or "", found[3] or "", parse_qs(parts.query))
        else:
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
        names = [asked] if isinstance(asked, str) else asked
        self._json([self.server.told(name) for name in names if name in self.server.files])

    def _api(self, what: str, below: str, query: dict[str, list[str]]) -> None:
        if what in ("", "revision"):
            self._json({"id": self.server.dataset, "sha": _COMMIT, "private": False, "siblings": []})
            return
        names = sorted(name for name in self.server.files if not below or name.startswith(f"{below}/"))
        if below and not names:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        rows = [self.server.told(name) for name in names]
        if query.get("recursive") != ["true"]:
            depth = len(below) + 1 if below else 0
            folders = {name[: name.index("/", depth)] for name in names if "/" in name[depth:]}
            rows = [row for row in rows if "/" not in row["path"][depth:]]
            rows += [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in sorted(folders)]
        at = int(query.get("cursor", ["0"])[0])
        more = {}
        if at + _PAGE < len(rows):
            kept = "&".join(f"{key}={value[0]}" for key, value in query.items() if key != "cursor")
            address = f"{self.server.url}{urlsplit(self.path).path}?{kept}&cursor={at + _PAGE}"
            more = {"Link": f'<{address}>; rel="next"'}
        self._json(rows[at : at + _PAGE], headers=more)

    def _resolve(self, name: str) -> None:
        if name not in self.server.files:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        told = self.server.told(name)
        self.server.redirects += 1
        # "localhost" is another host: a client must not take its token there.
        address = f"http://localhost:{self.server.server_address[1]}/cdn/{name}?Signature=hush"
        headers = {"Location": address, "X-Linked-Etag": f'"{told["lfs"]["oid"]}"', "X-Repo-Commit": _COMMIT}
        self._send(302, b"", {**headers, "X-Linked-Size": str(told["size"])})

    def _file(self, name: str) -> None:
        data = self.server.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), int(asked[2] or len(data) - 1) + 1) if asked else (0, len(data))
        piece = data[start:end]
        if self.server.flips and piece:
            self.server.flips -= 1
            piece = bytes([piece[0] ^ 1]) + piece[1:]
        headers = {"Content-Range": f"bytes {start}-{start + len(piece) - 1}/{len(data)}"} if asked else {}
        self._send(206 if asked else 200, piece, headers)

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """No lines in the test's output."""


@contextmanager
def hub(dataset: str) -> Iterator[Hub]:
    """A hub with one empty dataset, for as long as the block lasts."""
    with Hub(dataset) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()

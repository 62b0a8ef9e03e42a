"""Staging among strangers: names that nobody would choose, links, folders that are not ours, secrets in URLs."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipa.spec.cluster import Dataset
from clipa.storage.dataset import index
from clipa.storage.manifest import staged_folder
from clipa.storage.store import Store
from tests.services.faults import FaultProxy
from tests.services.require import require
from tests.services.s3 import client, new_bucket
from tests.services.stage_runs import call, content, make_run, staged_event, write_shards

pytest_plugins = ["tests.services.wire"]

ODD = [
    "a b.tar",
    "ü–日本.tar",
    "x%2Fy.tar",
    "plus+&amp;.tar",
    "hash#q.tar",
    "q?.tar",
    "e\u0301.tar",
    "é.tar",
    "[x].tar",
    "at@x.tar",
]


def clipa(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "clipa.cli.main", "data", *words]
    env = {**os.environ, **environment}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=env)


@pytest.mark.parametrize("transport", ["", "fsspec"])
def test_odd_names_and_empty_objects_keep_their_bytes(
    tmp_path: Path, server: str, streamed: FaultProxy, transport: str
) -> None:
    bucket, s3 = new_bucket(server), client(server)
    for name in ODD:
        s3.put_object(Bucket=bucket, Key=f"x/{name}", Body=name.encode() * 999)
    for name in ("empty.tar", "folder.tar/", "x/"):
        s3.put_object(Bucket=bucket, Key=f"x/{name}", Body=b"")
    words = ["stage", f"s3://{bucket}/x", "--to", str(tmp_path), "--endpoint", streamed.url]
    done = clipa(*words, "--check", "size", CLIPA_TRANSPORT=transport)
    assert (done.returncode, done.stderr) == (0, "")
    found = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    assert found == {**{name: name.encode() * 999 for name in ODD}, "empty.tar": b""}


def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path, server: str, streamed: FaultProxy) -> None:
    bucket = new_bucket(server)
    client(server).put_object(Bucket=bucket, Key="x/../up.tar", Body=b"x" * 999)
    to = tmp_path / "below" / "to"
    done = clipa("stage", f"s3://{bucket}/x", "--to", str(to), "--endpoint", streamed.url)
    assert done.returncode == 2
    assert "refusing the name of an object" in done.stderr
    assert list(tmp_path.rglob("*.tar")) == []


class _Closed(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """No lines in the test's output."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    for number in range(2):
        (tmp_path / "www" / f"{number}.tar").write_bytes(content(number, 9999))
    handler = functools.partial(_Closed, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_a_password_in_a_url_is_nowhere_afterwards(tmp_path: Path, host: str, home: Path) -> None:
    done = clipa("stage", f"http://me:hush@{host}/{{0..1}}.tar", "--json")
    assert done.returncode == 0, done.stderr
    assert "hush" not in done.stdout + done.stderr
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".tar"]) == 2
    assert [path for path in files if b"hush" in path.read_bytes()] == []
    for url in (f"http://{host}/0.tar?X-Amz-Signature=hush", f"http://{host}/x?sig=hush"):
        done = clipa("stage", url)
        assert done.returncode == 2
        assert "a query is of one object" in done.stderr
        assert "hush" not in done.stderr


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    source = Dataset(url=f"file://{tmp_path}/bucket")
    manifest = write_shards(Store(source), 2, 5000)
    to = tmp_path / "to"
    to.mkdir()
    (tmp_path / "victim").write_bytes(b"v" * 4999)
    (to / "0.tar").symlink_to(tmp_path / "victim")
    (to / "1.tar").symlink_to(tmp_path / "nowhere")
    done = clipa("stage", source.url, "--to", str(to))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "victim").read_bytes() == b"v" * 4999
    assert [(to / shard.name).is_symlink() for shard in manifest.shards] == [False, False]
    (tmp_path / "file").touch()
    done = clipa("stage", source.url, "--to", str(tmp_path / "file" / "below"))
    assert done.returncode == 2
    assert "a file is where the folder would be" in done.stderr


def test_a_cache_that_is_mounted_read_only_serves_what_is_in_it(tmp_path: Path) -> None:
    require(os.geteuid() == 0, "mounts a folder read-only: needs root")
    source = Dataset(url=f"file://{tmp_path}/bucket")
    write_shards(Store(source), 2, 5000)
    manifest = index(source)
    run = make_run(tmp_path, source, manifest)
    assert call(run)[::2] == (0, "")
    cache = tmp_path / "cache"
    subprocess.run(["mount", "--bind", cache, cache], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", cache], check=True)
        assert call(run, 2)[::2] == (0, "")
        assert staged_event(run, 2).fetched_bytes == 0
        to = staged_folder(str(cache), manifest.digest)
        assert clipa("verify", str(to)).returncode == 0
        Store(source).write("9.tar", content(9, 5000))
        done = clipa("stage", source.url, "--to", str(to))
        assert done.returncode == 1
        assert "Read-only file system" in done.stderr
    finally:
        subprocess.run(["umount", cache], check=True)

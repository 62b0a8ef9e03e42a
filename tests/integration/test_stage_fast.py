"""The same staging through obstore, in processes of its own: the faults, a changed object, other kinds of stores."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clipa.spec.cluster import Dataset
from clipa.storage.dataset import index
from clipa.storage.manifest import Manifest, staged_folder
from clipa.storage.store import PART
from tests.services.faults import Fault, FaultProxy, fault_proxy
from tests.services.loopback import certify
from tests.services.s3 import client, new_bucket
from tests.services.stage_runs import MIB, call, content, make_run, parts, staged_event, start, until_in_part, whole

pytest_plugins = ["tests.services.wire"]


@pytest.fixture
def proxy(streamed: FaultProxy) -> FaultProxy:
    return streamed


ROOT = Path(__file__).resolve().parents[2]
SIZE = 9 * MIB


def test_nothing_but_staging_processes_imports_the_door_to_obstore() -> None:
    """A process that has used obstore must never fork: no command, supervisor or trainer may come to it."""
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "clipa").rglob("*.py")
        if "import fast" in path.read_text() or "storage.fast" in path.read_text()
    }
    of_their_own = {"clipa/staging/stage.py", "clipa/staging/bring.py", "clipa/staging/publish.py"}
    of_their_own |= {"clipa/staging/arrive.py"}
    # Workers of doctor and shrink, and the streamer: spawned or executed, so that they have nobody's store.
    of_their_own |= {"clipa/data/examine.py", "clipa/data/rewrite.py", "clipa/data/streamer.py"}
    assert users <= of_their_own
    door = "import sys, clipa.storage.fast; sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", door], check=False).returncode == 0


def test_obstore_is_here() -> None:
    assert importlib.util.find_spec("obstore") is not None, "the tests below would test the ranged reads again"


@pytest.fixture
def shards(server: str, proxy: FaultProxy) -> tuple[Dataset, Manifest]:
    bucket = new_bucket(server)
    for number in range(2):
        client(server).put_object(Bucket=bucket, Key=f"x/{number}.tar", Body=content(number, SIZE))
    source = Dataset(url=f"s3://{bucket}/x", endpoint=proxy.url)
    return source, index(source)


FAULTS: dict[str, list[Fault]] = {
    "none": [],
    "all": ["drop", "500", "reset", "refuse", "slow", "drop", "reset", "503"],
    "wrong bytes": ["flip", "short", "whole"],
    "one after the other": ["drop"] * 20,
}


@pytest.mark.parametrize(
    ("transport", "faults"),
    [("", faults) for faults in FAULTS.values()] + [("obstore", FAULTS["none"]), ("obstore", FAULTS["all"])],
    ids=[*FAULTS, "obstore, none", "obstore, all"],
)
def test_faults_cost_time_and_no_byte(
    tmp_path: Path, shards: tuple[Dataset, Manifest], proxy: FaultProxy, transport: str, faults: list[Fault]
) -> None:
    """Without a word plain HTTP is read by `wire`."""
    source, manifest = shards
    run = make_run(tmp_path, source, manifest)
    proxy.faults, proxy.met, proxy.ranges = list(faults), [], 0
    assert call(run, env={**os.environ, "CLIPA_TRANSPORT": transport})[::2] == (0, "")
    assert proxy.met[: len(faults)] == faults
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    assert whole(folder, manifest) == 2
    assert parts(folder) == []
    if not faults:
        assert proxy.ranges == 2, "one stream an object: ranges of 8 MiB would be four"


def test_https_is_read_by_one_stream_an_object_and_survives_the_same(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    pem = certify(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "server.crt"))
    bucket = new_bucket(server)
    for number in range(2):
        client(server).put_object(Bucket=bucket, Key=f"x/{number}.tar", Body=content(number, SIZE))
    with fault_proxy(server, pem) as proxy:
        source = Dataset(url=f"s3://{bucket}/x", endpoint=proxy.url)
        manifest = index(source)
        for attempt, faults in enumerate(([], [*FAULTS["all"], "flip", "short"]), 1):
            run = make_run(tmp_path / str(attempt), source, manifest)
            proxy.faults, proxy.met, proxy.ranges, proxy.agents = list(faults), [], 0, set()
            assert call(run)[::2] == (0, "")
            assert proxy.met[: len(faults)] == faults
            assert whole(staged_folder(str(tmp_path / str(attempt) / "cache"), manifest.digest), manifest) == 2
            if not faults:
                assert (proxy.ranges, proxy.agents) == (2, {"clipa"}), "by `wire`, not by obstore"


def test_after_kill_9_the_stream_goes_on_where_it_was(tmp_path: Path, server: str, proxy: FaultProxy) -> None:
    bucket, size = new_bucket(server), 40 * MIB
    client(server).put_object(Bucket=bucket, Key="x/0.tar", Body=content(0, size))
    source = Dataset(url=f"s3://{bucket}/x", endpoint=proxy.url)
    manifest = index(source)
    run = make_run(tmp_path, source, manifest)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    proxy.faults = ["stall"]
    process = start(run)
    assert proxy.stalled.wait(60)
    until_in_part(folder, 2 * PART + MIB)
    process.kill()
    process.communicate()
    proxy.release.set()
    assert call(run, 2)[::2] == (0, "")
    assert whole(folder, manifest) == 1
    assert parts(folder) == []
    # The journal has a line every 8 MiB or a piece more.
    assert size - 2 * PART - MIB <= staged_event(run, 2).fetched_bytes <= size - 2 * PART


def test_an_object_that_changes_on_the_way_is_refused(tmp_path: Path, server: str, proxy: FaultProxy) -> None:
    bucket = new_bucket(server)
    client(server).put_object(Bucket=bucket, Key="x/0.tar", Body=content(0, SIZE))
    source = Dataset(url=f"s3://{bucket}/x", endpoint=proxy.url)
    manifest = index(source)
    run = make_run(tmp_path, source, manifest)
    proxy.faults = ["drop"]
    proxy.on_range = lambda number: (
        client(server).put_object(Bucket=bucket, Key="x/0.tar", Body=content(5, SIZE)) if number == 2 else None
    )
    code, _, err = call(run)
    assert code == 1
    assert "changed" in err
    assert "Traceback" not in err
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    assert whole(folder, manifest) == 0
    assert parts(folder) == []


def test_an_absent_bucket_is_said_in_our_words(
    tmp_path: Path, shards: tuple[Dataset, Manifest], proxy: FaultProxy
) -> None:
    source, manifest = shards
    gone = make_run(tmp_path, Dataset(url="s3://no-such-bucket/x", endpoint=source.endpoint), manifest)
    code, _, err = call(gone)
    assert code == 2
    assert "nothing at this URL" in err
    assert "Traceback" not in err


def test_http_with_and_without_ranges(tmp_path: Path) -> None:
    """Python's own server knows no ranges, and its pages list no sizes."""
    folder = tmp_path / "www"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.tar").write_bytes(content(number, SIZE))
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{running.server_address[1]}"
        for attempt, (url, transport) in enumerate(
            [(f"{base}/{{0..2}}.tar", ""), (base, "fsspec"), (f"{base}/*.tar", "fsspec")], 1
        ):
            source = Dataset(url=url)
            manifest = index(source)
            run = make_run(tmp_path / str(attempt), source, manifest)
            code, _, err = call(run, env={**os.environ, "CLIPA_TRANSPORT": transport})
            assert code == 0
            # obstore wants ranges: it is given up, and that is said.
            assert (err == "") == bool(transport) or "obstore is not used any more" in err
            assert whole(staged_folder(str(tmp_path / str(attempt) / "cache"), manifest.digest), manifest) == 3
            assert staged_event(run).shards == 3
        running.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """No lines in the test's output."""

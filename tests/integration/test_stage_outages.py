"""Ceph's object gateway, over HTTP and HTTPS, by both transports: every fault, outages, kills, a disk that fills."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from clipa.spec.cluster import Dataset
from clipa.storage.dataset import index
from clipa.storage.digest import pinned
from clipa.storage.manifest import Manifest, staged_folder
from clipa.storage.store import PART
from tests.integration.test_stage_faults import MATRIX, upload_in_parts
from tests.services.faults import Fault, FaultProxy, fault_proxy
from tests.services.require import require
from tests.services.stage_runs import MIB, call, content, make_run, parts, staged_event, start, whole

if TYPE_CHECKING:
    from tests.services.rgw import Rgw

pytest_plugins = ["tests.services.rgw"]
pytestmark = pytest.mark.long

SIZE = 9 * MIB
MANY = 64


class Bucket(NamedTuple):
    """A bucket of shards behind a proxy that can break the wire."""

    source: Dataset
    manifest: Manifest
    proxy: FaultProxy


@pytest.fixture(autouse=True, params=["obstore", "fsspec"])
def _transport(request: pytest.FixtureRequest, rgw: Rgw, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rgw.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CLIPA_TRANSPORT", request.param)


@pytest.fixture(params=["http", "https"])
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def filled(rgw: Rgw) -> str:
    """A bucket with 64 shards under `many/` and two under `two/`, one of them uploaded in parts."""
    bucket, s3 = rgw.new_bucket(), rgw.client()
    for number in range(MANY):
        s3.put_object(Bucket=bucket, Key=f"many/{number}.tar", Body=content(number, SIZE))
    s3.put_object(Bucket=bucket, Key="two/0.tar", Body=content(0, SIZE))
    upload_in_parts(s3, bucket, "two/1.tar", content(1, SIZE), 5 * MIB)
    return bucket


@pytest.fixture
def two(rgw: Rgw, filled: str, wire: str) -> Iterator[Bucket]:
    with fault_proxy(rgw.http, rgw.folder / "rgw.pem" if wire == "https" else None) as proxy:
        source = Dataset(url=f"s3://{filled}/two", endpoint=proxy.url)
        manifest = index(source)
        assert [pinned(shard).kind for shard in manifest.shards] == ["md5", "etag"]
        yield Bucket(source, manifest, proxy)


LONG: dict[str, list[Fault]] = {
    **MATRIX,
    "fin, twenty times": ["drop"] * 20,
    "rst, twenty times": ["reset"] * 20,
    "stall": ["stall"],
}


@pytest.mark.parametrize("faults", LONG.values(), ids=LONG)
def test_every_fault(tmp_path: Path, two: Bucket, faults: list[Fault]) -> None:
    run = make_run(tmp_path, two.source, two.manifest)
    two.proxy.faults, two.proxy.met = list(faults), []
    assert call(run)[::2] == (0, "")
    assert two.proxy.met[: len(faults)] == faults
    folder = staged_folder(str(tmp_path / "cache"), two.manifest.digest)
    assert whole(folder, two.manifest) == 2
    assert parts(folder) == []


def test_bits_that_always_flip(tmp_path: Path, two: Bucket) -> None:
    run = make_run(tmp_path, two.source, two.manifest)
    two.proxy.faults = ["flip"] * 1000
    code, _, err = call(run)
    assert (code, "in 3 downloads" in err, "Traceback" in err) == (1, True, False)
    assert whole(staged_folder(str(tmp_path / "cache"), two.manifest.digest), two.manifest) == 0


def test_an_object_that_is_overwritten_on_the_way(tmp_path: Path, rgw: Rgw, two: Bucket) -> None:
    bucket = rgw.new_bucket()
    rgw.client().put_object(Bucket=bucket, Key="two/0.tar", Body=content(0, SIZE))
    source = Dataset(url=f"s3://{bucket}/two", endpoint=two.proxy.url)
    manifest = index(source)
    two.proxy.faults = ["drop"]
    two.proxy.on_range = lambda number: (
        rgw.client().put_object(Bucket=bucket, Key="two/0.tar", Body=content(5, SIZE)) if number == 2 else None
    )
    code, _, err = call(make_run(tmp_path, source, manifest))
    assert (code, "changed" in err, "Traceback" in err) == (1, True, False)
    assert whole(staged_folder(str(tmp_path / "cache"), manifest.digest), manifest) == 0


def _many(tmp_path: Path, rgw: Rgw, filled: str, wire: str) -> tuple[Dataset, Manifest, Path]:
    source = Dataset(url=f"s3://{filled}/many", endpoint=getattr(rgw, wire))
    manifest = index(source)
    assert len(manifest.shards) == MANY
    return source, manifest, staged_folder(str(tmp_path / "cache"), manifest.digest)


def _until_named(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.tar"))) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("down_s", [6, 30])
def test_after_an_outage_all_64_are_there(tmp_path: Path, rgw: Rgw, filled: str, wire: str, down_s: int) -> None:
    source, manifest, folder = _many(tmp_path, rgw, filled, wire)
    process = start(make_run(tmp_path, source, manifest))
    try:
        _until_named(folder, 5, process)
        rgw.kill()
        at_the_kill = whole(folder, manifest)
        time.sleep(down_s)  # the outage itself
        assert process.poll() is None
    finally:
        rgw.start()
        _, err = process.communicate(timeout=200)
    assert at_the_kill < MANY, "the server died too late: the test proves nothing"
    assert (process.returncode, err) == (0, "")
    assert whole(folder, manifest) == MANY
    assert parts(folder) == []


def test_kill_9_again_and_again(tmp_path: Path, rgw: Rgw, filled: str, wire: str) -> None:
    source, manifest, folder = _many(tmp_path, rgw, filled, wire)
    run = make_run(tmp_path, source, manifest)
    for named in (1, 12, 30):
        process = start(run)
        _until_named(folder, named, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        whole(folder, manifest)
    ready = sum(path.stat().st_size for path in folder.glob("*.tar"))
    kept = sum(part.stat().st_size // PART * PART for part in folder.glob(".*.part"))
    assert call(run, 2)[::2] == (0, "")
    assert whole(folder, manifest) == MANY
    assert staged_event(run, 2).fetched_bytes <= manifest.bytes - ready - kept
    assert parts(folder) == []


def test_three_at_once_fetch_every_byte_once(tmp_path: Path, rgw: Rgw, filled: str, wire: str) -> None:
    source, manifest, folder = _many(tmp_path, rgw, filled, wire)
    run = make_run(tmp_path, source, manifest)
    three = [start(run, attempt) for attempt in (1, 2, 3)]
    assert [process.communicate(timeout=200)[1] for process in three] == ["", "", ""]
    assert whole(folder, manifest) == MANY
    assert sum(staged_event(run, attempt).fetched_bytes for attempt in (1, 2, 3)) == manifest.bytes
    assert sum(staged_event(run, attempt).fetched_bytes > 0 for attempt in (1, 2, 3)) > 1, "one did it all"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], check=False).returncode == 0
    if not mounted and os.environ.get("CI") != "true":
        require(False, "may not mount a small file system (needs root)")
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def test_a_disk_that_others_fill_meanwhile(tmp_path: Path, two: Bucket, small_disk: Path) -> None:
    """18 MiB to fetch and 64 MiB in reserve fit at the start; then somebody else takes the space."""
    run = make_run(small_disk, two.source, two.manifest)
    hog = small_disk / "hog"

    def fill_it(number: int) -> None:
        if number == 1:
            free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
            hog.write_bytes(b"x" * (free - 3 * MIB))

    two.proxy.on_range = fill_it
    code, _, err = call(run)
    assert (code, "No space left" in err, "Traceback" in err) == (1, True, False)
    folder = staged_folder(str(small_disk / "cache"), two.manifest.digest)
    assert whole(folder, two.manifest) < 2
    hog.unlink()
    two.proxy.on_range = lambda number: None
    assert call(run, 2)[::2] == (0, "")
    assert whole(folder, two.manifest) == 2

"""Staging from a real S3 server over a wire that breaks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from clipa.errors import InputError, StorageError
from clipa.spec.cluster import Dataset
from clipa.staging.stage import stage
from clipa.storage import patience
from clipa.storage.dataset import index, publish_manifest
from clipa.storage.manifest import Manifest, staged_folder
from clipa.storage.store import Store
from tests.services.faults import Fault, FaultProxy
from tests.services.s3 import new_bucket
from tests.services.stage_runs import MIB, call, content, make_run, parts, staged_event, start, whole, write_shards

pytest_plugins = ["tests.services.wire"]


@pytest.fixture
def source(server: str, proxy: FaultProxy) -> Dataset:
    return Dataset(url=f"s3://{new_bucket(server)}/laion", endpoint=proxy.url)


@pytest.fixture
def shards(source: Dataset) -> Manifest:
    """Two shards of two ranges each."""
    manifest = write_shards(Store(source), 2, 9 * MIB)
    publish_manifest(Store(source), manifest)
    return manifest


def test_a_bucket_is_indexed_and_staged(tmp_path: Path, source: Dataset, shards: Manifest) -> None:
    assert index(source) == shards
    run = make_run(tmp_path, source, shards)
    code, _, err = call(run)
    assert (code, err) == (0, "")
    assert whole(staged_folder(str(tmp_path / "cache"), shards.digest), shards) == 2


def test_the_endpoint_may_come_from_the_environment(
    source: Dataset, shards: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", source.endpoint)
    assert index(Dataset(url=source.url)) == shards


@pytest.mark.parametrize(
    "faults",
    [["drop"], ["drop"] * 6, ["reset", "reset"], ["500"] * 6, ["503"] * 6, ["short", "short"], ["ok", "short"]],
    ids="-".join,
)
def test_a_broken_wire_costs_time_and_no_bytes(
    tmp_path: Path, source: Dataset, shards: Manifest, proxy: FaultProxy, faults: list[Fault]
) -> None:
    proxy.faults, proxy.met = list(faults), []
    done = stage(shards, source, str(tmp_path))
    folder = staged_folder(str(tmp_path), shards.digest)
    assert proxy.met[: len(faults)] == faults
    assert whole(folder, shards) == 2
    assert done.fetched_bytes == shards.bytes
    assert parts(folder) == []


def test_two_versions_of_an_object_are_not_mixed(tmp_path: Path, server: str, proxy: FaultProxy) -> None:
    """No checksums here: the ETag has to tell."""
    source = Dataset(url=f"s3://{new_bucket(server)}/x", endpoint=proxy.url)
    direct = Store(Dataset(url=source.url, endpoint=server))
    direct.write("0.tar", content(0, 9 * MIB))
    pinned = index(source)
    proxy.on_range = lambda number: direct.write("0.tar", content(1, 9 * MIB)) if number == 2 else None
    with pytest.raises(StorageError, match="changed"):
        stage(pinned, source, str(tmp_path))
    assert proxy.ranges == 2
    assert list(tmp_path.rglob("*.tar")) == []


def test_a_server_that_hangs_does_not_keep_a_run_from_leaving(
    tmp_path: Path, source: Dataset, shards: Manifest, proxy: FaultProxy
) -> None:
    run = make_run(tmp_path, source, shards)
    folder = staged_folder(str(tmp_path / "cache"), shards.digest)
    proxy.faults = ["stall"] * 4
    process = start(run)
    assert proxy.stalled.wait(60)
    run.stop_file(1).parent.mkdir(parents=True, exist_ok=True)
    run.stop_file(1).touch()
    asked = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75, err
    assert time.monotonic() - asked < 5
    assert whole(folder, shards) == 0
    proxy.release.set()
    proxy.faults = []
    assert call(run, attempt=2)[0] == 0
    assert whole(folder, shards) == 2
    assert parts(folder) == []
    assert staged_event(run, 2).fetched_bytes == shards.bytes


def test_a_server_that_stays_broken_is_an_error(
    tmp_path: Path, source: Dataset, shards: Manifest, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "GIVE_UP_S", 1.0)
    proxy.faults = ["500"] * 1000
    with pytest.raises(StorageError, match="the store failed"):
        stage(shards, source, str(tmp_path))
    assert whole(staged_folder(str(tmp_path), shards.digest), shards) == 0


def test_a_wrong_bucket_fails_at_once(source: Dataset) -> None:
    began = time.monotonic()
    with pytest.raises(InputError):
        index(Dataset(url="s3://no-such-bucket-here/x", endpoint=source.endpoint))
    assert time.monotonic() - began < 15

"""Going on after a kill: parts resume by range, and only as far as their journals vouch for them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from clipa.errors import StorageError
from clipa.spec.cluster import Dataset
from clipa.staging.part import Part, journal_of
from clipa.staging.stage import stage
from clipa.storage import patience
from clipa.storage.manifest import Manifest, staged_folder
from clipa.storage.store import PART, Store
from tests.services.faults import FaultProxy
from tests.services.s3 import new_bucket
from tests.services.stage_runs import MIB, call, content, make_run, parts, staged_event, start, whole, write_shards

pytest_plugins = ["tests.services.wire"]

SIZE = 3 * PART + MIB


@pytest.fixture
def local(tmp_path: Path) -> Dataset:
    return Dataset(url=f"file://{tmp_path}/bucket")


def _left(folder: Path, manifest: Manifest, ranges: int) -> Path:
    """A part file as a process leaves it that dies after so many ranges."""
    folder.mkdir(parents=True, exist_ok=True)
    part = Part(folder / manifest.shards[0].name, manifest.shards[0])
    with part:
        for number in range(ranges):
            part.append(content(0, SIZE)[number * PART : (number + 1) * PART])
    return part.path


def test_after_kill_9_only_the_rest_is_read(tmp_path: Path, server: str, proxy: FaultProxy) -> None:
    source = Dataset(url=f"s3://{new_bucket(server)}/x", endpoint=proxy.url)
    manifest = write_shards(Store(source), 1, SIZE)
    run = make_run(tmp_path, source, manifest)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    proxy.faults = ["ok", "ok", "stall"]
    process = start(run)
    assert proxy.stalled.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    proxy.release.set()
    assert len(parts(folder)) == 1
    assert whole(folder, manifest) == 0
    before = proxy.ranges
    assert call(run, attempt=2)[0] == 0
    assert whole(folder, manifest) == 1
    assert proxy.ranges - before == 2
    assert staged_event(run, 2).fetched_bytes == SIZE - 2 * PART
    assert parts(folder) == []
    assert list(folder.rglob("*.sums")) == []


def test_a_part_whose_store_fails_is_kept(
    tmp_path: Path, server: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "GIVE_UP_S", 0.5)
    source = Dataset(url=f"s3://{new_bucket(server)}/x", endpoint=proxy.url)
    manifest = write_shards(Store(source), 1, SIZE)
    proxy.faults = ["ok", *["500"] * 1000]
    with pytest.raises(StorageError, match="the store failed"):
        stage(manifest, source, str(tmp_path))
    proxy.faults = []
    assert stage(manifest, source, str(tmp_path)).fetched_bytes == SIZE - PART
    assert whole(staged_folder(str(tmp_path), manifest.digest), manifest) == 1


@pytest.mark.parametrize(("at", "kept"), [(0, 0), (PART, PART), (2 * PART - 1, PART)])
def test_a_bit_that_flips_in_a_part_costs_its_range_and_those_behind(
    tmp_path: Path, local: Dataset, at: int, kept: int
) -> None:
    manifest = write_shards(Store(local), 1, SIZE)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    left = _left(folder, manifest, 2)
    with open(left, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    assert stage(manifest, local, str(tmp_path / "cache")).fetched_bytes == SIZE - kept
    assert whole(folder, manifest) == 1


@pytest.mark.parametrize("harm", ["cut", "no journal", "torn journal", "junk"])
def test_a_torn_part_is_no_help_and_no_harm(tmp_path: Path, local: Dataset, harm: str) -> None:
    manifest = write_shards(Store(local), 1, SIZE)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    left = _left(folder, manifest, 2)
    if harm == "cut":
        os.truncate(left, PART + 5)
    if harm == "no journal":
        journal_of(left).unlink()
    if harm == "torn journal":
        os.truncate(journal_of(left), 60)
    if harm == "junk":
        (folder / ".junk.part").write_bytes(b"x")
    kept = {"cut": PART, "no journal": 0, "torn journal": PART, "junk": 2 * PART}[harm]
    assert stage(manifest, local, str(tmp_path / "cache")).fetched_bytes == SIZE - kept
    assert whole(folder, manifest) == 1


def test_the_part_of_another_shard_is_not_taken_over(tmp_path: Path, local: Dataset) -> None:
    manifest = write_shards(Store(local), 2, SIZE)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    left = _left(folder, manifest, 1)
    (folder / left.name.replace(left.name.split(".")[1], "0" * 16)).write_bytes(left.read_bytes())
    assert stage(manifest, local, str(tmp_path / "cache")).fetched_bytes == 2 * SIZE - PART
    assert whole(folder, manifest) == 2
    assert parts(folder) == []


def test_a_verified_shard_is_hashed_again_only_when_touched_or_asked(tmp_path: Path, local: Dataset) -> None:
    manifest = write_shards(Store(local), 2, MIB)
    cache = str(tmp_path / "cache")
    stage(manifest, local, cache)
    shard = staged_folder(cache, manifest.digest) / "0.tar"
    stat = shard.stat()

    def spoil(times: tuple[int, int]) -> None:
        shard.write_bytes(b"?" * MIB)
        os.utime(shard, ns=times)

    spoil((stat.st_atime_ns, stat.st_mtime_ns))
    assert stage(manifest, local, cache).fetched_bytes == 0  # the receipt vouches for it: nothing was hashed
    assert stage(manifest, local, cache, verify=True).fetched_bytes == MIB
    spoil((0, 0))
    assert stage(manifest, local, cache).fetched_bytes == MIB
    assert whole(shard.parent, manifest) == 2


def test_torn_receipts_cost_a_hash_and_nothing_else(tmp_path: Path, local: Dataset) -> None:
    manifest = write_shards(Store(local), 2, MIB)
    cache = str(tmp_path / "cache")
    stage(manifest, local, cache)
    receipts = staged_folder(cache, manifest.digest) / ".receipts.jsonl"
    receipts.write_bytes(b"\xff{torn" + receipts.read_bytes()[:20])
    assert stage(manifest, local, cache).fetched_bytes == 0
    assert receipts.read_bytes().count(b'"xxh3"') == 2

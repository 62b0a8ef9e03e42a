"""The fault matrix: what a wire, a proxy, a disk or another process does to a download. Nothing wrong gets a name.

The shards are pinned by nothing but what an S3 server says of them, which is the hard case: an ETag.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from clipa.errors import StorageError
from clipa.spec.cluster import Dataset
from clipa.staging.stage import stage
from clipa.storage.dataset import index
from clipa.storage.digest import pinned
from clipa.storage.manifest import Manifest, staged_folder
from tests.services.faults import Fault, FaultProxy
from tests.services.s3 import client, new_bucket
from tests.services.stage_runs import MIB, content, make_run, parts, staged_event, start, whole

pytest_plugins = ["tests.services.wire"]

SIZE = 9 * MIB


def upload_in_parts(s3: Any, bucket: str, key: str, data: bytes, part: int) -> None:
    """A multipart upload as other tools make it: its ETag is no MD5 of the object."""
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    done = []
    for number, at in enumerate(range(0, len(data), part), 1):
        sent = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=data[at : at + part])
        done.append({"PartNumber": number, "ETag": sent["ETag"]})
    s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": done})


@pytest.fixture(params=["one part", "many parts"])
def shards(request: pytest.FixtureRequest, server: str, proxy: FaultProxy) -> tuple[Dataset, Manifest]:
    """Two shards of two ranges each, pinned by their ETags."""
    bucket, s3 = new_bucket(server), client(server)
    for number in range(2):
        if request.param == "one part":
            s3.put_object(Bucket=bucket, Key=f"x/{number}.tar", Body=content(number, SIZE))
        else:
            upload_in_parts(s3, bucket, f"x/{number}.tar", content(number, SIZE), 5 * MIB)
    source = Dataset(url=f"s3://{bucket}/x", endpoint=proxy.url)
    manifest = index(source)
    kind = {"one part": "md5", "many parts": "etag"}[request.param]
    assert [pinned(shard).kind for shard in manifest.shards] == [kind, kind]
    return source, manifest


MATRIX: dict[str, list[Fault]] = {
    "fin": ["drop", "drop"],
    "rst": ["reset", "reset"],
    "refused": ["refuse", "refuse"],
    "500": ["500", "500"],
    "503": ["503", "503"],
    "slow down": ["slow", "slow"],
    "short": ["short", "short"],
    "flip": ["flip"],
    "flip in the second": ["ok", "flip"],
    "no ranges": ["whole"],
    "all of it": ["drop", "500", "reset", "flip", "short", "slow", "refuse", "drop"],
}


@pytest.mark.parametrize("faults", MATRIX.values(), ids=MATRIX)
def test_every_fault_costs_time_and_no_byte(
    tmp_path: Path, shards: tuple[Dataset, Manifest], proxy: FaultProxy, faults: list[Fault]
) -> None:
    source, manifest = shards
    proxy.faults, proxy.met = list(faults), []
    stage(manifest, source, str(tmp_path))
    folder = staged_folder(str(tmp_path), manifest.digest)
    assert proxy.met[: len(faults)] == faults
    assert whole(folder, manifest) == 2
    assert parts(folder) == []


def test_bits_that_flip_every_time_never_get_a_name(
    tmp_path: Path, shards: tuple[Dataset, Manifest], proxy: FaultProxy
) -> None:
    source, manifest = shards
    proxy.faults = ["flip"] * 100
    with pytest.raises(StorageError, match="in 3 downloads") as caught:
        stage(manifest, source, str(tmp_path))
    assert manifest.shards[0].version in str(caught.value) or manifest.shards[1].version in str(caught.value)
    folder = staged_folder(str(tmp_path), manifest.digest)
    assert whole(folder, manifest) == 0
    proxy.faults = []
    stage(manifest, source, str(tmp_path))
    assert whole(folder, manifest) == 2


def test_what_a_dead_holder_had_claimed_is_taken_over(
    tmp_path: Path, server: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = new_bucket(server)
    client(server).put_object(Bucket=bucket, Key="x/0.tar", Body=content(0, SIZE))
    source = Dataset(url=f"s3://{bucket}/x", endpoint=proxy.url)
    manifest = index(source)
    run = make_run(tmp_path, source, manifest)
    proxy.faults = ["ok", "stall"]
    holder = start(run, 1)
    assert proxy.stalled.wait(60)
    heir = start(run, 2)
    try:
        assert heir.stdout
        assert any(line.startswith("0.0 of") for line in heir.stdout), "it says so once it waits for the claim"
        assert proxy.ranges == 2, "the second fetched what the first was about"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        proxy.release.set()
    _, err = heir.communicate(timeout=60)
    assert (heir.returncode, err) == (0, "")
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    assert whole(folder, manifest) == 1
    assert parts(folder) == []
    assert staged_event(run, 2).fetched_bytes == MIB, "the range that the dead one had was read again"

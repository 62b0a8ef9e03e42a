"""Staging from Ceph's object gateway: real signatures, real multipart uploads, HTTPS, and a server that dies."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clipa.errors import InputError
from clipa.registry.events import Step
from clipa.spec.cluster import Dataset
from clipa.staging.stage import stage
from clipa.storage.dataset import index, publish_manifest
from clipa.storage.manifest import staged_folder
from clipa.storage.store import Store
from tests.services.bucket_runs import SHARDS, Bucket, in_thread, said, supervised, until
from tests.services.stage_runs import MIB, call, content, make_run, start, whole, write_shards

if TYPE_CHECKING:
    from tests.services.rgw import Rgw

pytest_plugins = ["tests.services.rgw"]


@pytest.fixture(autouse=True)
def _credentials(rgw: Rgw, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rgw.environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("wire", ["http", "https"])
def test_a_bucket_is_written_indexed_and_staged(tmp_path: Path, rgw: Rgw, wire: str) -> None:
    source = Dataset(url=f"s3://{rgw.new_bucket()}/laion", endpoint=getattr(rgw, wire))
    wrote = write_shards(Store(source), 3, 9 * MIB)
    publish_manifest(Store(source), wrote)
    assert index(source) == wrote
    run = make_run(tmp_path, source, wrote)
    assert call(run)[::2] == (0, "")
    assert whole(staged_folder(str(tmp_path / "cache"), wrote.digest), wrote) == 3


@pytest.mark.long
def test_a_run_streams_one_dataset_and_begins_on_the_first_shards_of_another_while_the_server_dies(
    tmp_path: Path, rgw: Rgw
) -> None:
    """Over HTTPS, through the supervisor. What the weights must be is tests/integration/test_early.py's."""
    bucket = Bucket(tmp_path, rgw.client(), rgw.new_bucket(), rgw.https)
    early, streamed = bucket.dataset("early"), bucket.dataset("streamed", 9)
    run = bucket.run("r", (early, "early"), (streamed, "stream"), steps=60)

    def dies_and_comes_back() -> None:
        until(lambda: said(run, "train", Step))
        rgw.kill()
        rgw.start()

    dying = in_thread(dies_and_comes_back)
    assert supervised(run) == 0
    dying.join()
    assert bucket.whole(early) == SHARDS
    assert bucket.whole(streamed) == 0
    assert not list((bucket.cache / "streamed").iterdir())


def test_a_file_is_uploaded_in_parts_and_arrives(tmp_path: Path, rgw: Rgw) -> None:
    source = Dataset(url=f"s3://{rgw.new_bucket()}/x", endpoint=rgw.http)
    data = content(0, 101 * MIB)
    (tmp_path / "big").write_bytes(data)
    Store(source).write("0.tar", tmp_path / "big")
    manifest = index(source)
    assert manifest.shards[0].version.endswith("-3"), "three parts: a multipart upload"
    stage(manifest, source, str(tmp_path))
    assert (staged_folder(str(tmp_path), manifest.digest) / "0.tar").read_bytes() == data


def test_a_wrong_secret_is_refused_at_once_and_not_shown(rgw: Rgw, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Dataset(url=f"s3://{rgw.new_bucket()}/x", endpoint=rgw.http)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"refuses access.*SignatureDoesNotMatch") as caught:
        index(source)
    assert time.monotonic() - began < 10
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    assert "not-the-secret" not in str(caught.value)


def test_anonymous_access_to_a_closed_bucket_is_refused(rgw: Rgw) -> None:
    with pytest.raises(InputError, match="refuses access"):
        index(Dataset(url=f"s3://{rgw.new_bucket()}/x", endpoint=rgw.http, anonymous=True))


def test_a_folder_is_not_confused_with_a_longer_name(rgw: Rgw) -> None:
    bucket = rgw.new_bucket()
    for folder in ("laion", "laion2"):
        Store(Dataset(url=f"s3://{bucket}/{folder}", endpoint=rgw.http)).write(f"{folder}.tar", b"x")
    assert [s.name for s in index(Dataset(url=f"s3://{bucket}/laion", endpoint=rgw.http)).shards] == ["laion.tar"]


def test_a_server_that_dies_and_comes_back_costs_time_only(tmp_path: Path, rgw: Rgw) -> None:
    source = Dataset(url=f"s3://{rgw.new_bucket()}/x", endpoint=rgw.http)
    manifest = write_shards(Store(source), 24, 9 * MIB)
    run = make_run(tmp_path, source, manifest)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    process = start(run)
    try:
        deadline = time.monotonic() + 60
        while not list(folder.glob("*.tar")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        rgw.kill()
        at_the_kill = whole(folder, manifest)
        time.sleep(3)  # the outage itself: longer than s3fs's own retries
    finally:
        rgw.start()
        _, err = process.communicate(timeout=120)
    assert at_the_kill < 24, "the server died too late: the test proves nothing"
    assert (process.returncode, err) == (0, "")
    assert whole(folder, manifest) == 24


@pytest.mark.parametrize("wire", ["http", "https"])
def test_a_marker_is_written_once_and_files_by_obstore(
    tmp_path: Path, rgw: Rgw, wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ceph honours If-None-Match; the upload runs in a process of its own, as all that uses obstore."""
    source = Dataset(url=f"s3://{rgw.new_bucket()}/x", endpoint=getattr(rgw, wire))
    store = Store(source)
    assert store.write_new("COMPLETE", b"1")
    assert not store.write_new("COMPLETE", b"2")
    assert store.read("COMPLETE") == b"1"
    (tmp_path / "big").write_bytes(content(0, 40 * MIB))
    code = "import sys; from pathlib import Path; from clipa.storage.fast import FastStore, open_store; "
    code += "from clipa.spec.cluster import Dataset; s = open_store(Dataset(url=sys.argv[1], endpoint=sys.argv[2])); "
    code += "assert isinstance(s, FastStore); s.write('0.tar', Path(sys.argv[3]))"
    subprocess.run([sys.executable, "-c", code, source.url, source.endpoint, tmp_path / "big"], check=True, timeout=60)
    assert store.entry("0.tar").version.endswith("-3"), "three parts of 16 MiB"
    assert store.read("0.tar") == content(0, 40 * MIB)

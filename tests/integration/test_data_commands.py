"""`clipa data stage|index|verify|ls|gc` as a user meets them, on folders and an S3 server."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from clipa.spec.cluster import Dataset
from clipa.storage import manifest as manifests
from clipa.storage.store import Store
from tests.services.faults import FaultProxy
from tests.services.s3 import client, new_bucket

pytest_plugins = ["tests.services.wire"]


@pytest.fixture
def proxy(streamed: FaultProxy) -> FaultProxy:
    return streamed


CLIPA = [sys.executable, "-m", "clipa.cli.main", "data"]


def clipa(*words: str, code: int = 0, cwd: Path | None = None) -> str:
    done = subprocess.run([*CLIPA, *words], capture_output=True, text=True, check=False, timeout=120, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code != 2 else done.stderr


def shard(number: int, samples: int, size: int = 2000) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for sample in range(samples):
            for extension, length in (("jpg", size), ("txt", 20), ("json", 50)):
                member = tarfile.TarInfo(f"{number:05d}{sample:04d}.{extension}")
                member.size = length
                tar.addfile(member, io.BytesIO(bytes([number + 1]) * length))
    return buffer.getvalue()


@pytest.fixture
def bucket(server: str, proxy: FaultProxy) -> str:
    """img2dataset's layout: shards, statistics and parquet side by side, without a manifest."""
    name, s3 = new_bucket(server), client(server)
    for number in range(4):
        s3.put_object(Bucket=name, Key=f"laion/{number:05d}.tar", Body=shard(number, 10 + number))
        s3.put_object(Bucket=name, Key=f"laion/{number:05d}.parquet", Body=b"PAR1")
        if number != 3:
            stats = {"count": 100, "successes": 10 + number, "failed_to_download": 3, "status_dict": {"success": 1}}
            s3.put_object(Bucket=name, Key=f"laion/{number:05d}_stats.json", Body=json.dumps(stats).encode())
    return f"s3://{name}/laion"


def _manifest(url: str, endpoint: str) -> manifests.Manifest:
    return manifests.decode(Store(Dataset(url=url, endpoint=endpoint)).read(manifests.MANIFEST_NAME))


def test_from_a_bucket_to_a_verified_folder(tmp_path: Path, bucket: str, proxy: FaultProxy) -> None:
    at = ["--endpoint", proxy.url]
    assert "samples not known" in clipa("index", bucket, *at)
    assert [s.samples for s in _manifest(bucket, proxy.url).shards] == [10, 11, 12, None]
    said = clipa("index", bucket, "--scan", *at)
    assert "46 samples; 4 scanned" in said
    rows = _manifest(bucket, proxy.url).shards
    assert [s.samples for s in rows] == [10, 11, 12, 13]
    assert all(s.digest.startswith("xxh3:") for s in rows)
    assert "46 samples; 0 scanned" in clipa("index", bucket, "--scan", *at)

    to = tmp_path / "here"
    assert "verified: 4 by xxh3" in clipa("stage", bucket, "--to", str(to), *at)
    assert (to / "00003.tar").read_bytes() == shard(3, 13)
    assert "4 right" in clipa("verify", str(to))
    # The copy is a dataset of its own, with all that is known of the source.
    assert "manifest " + _manifest(bucket, proxy.url).digest in clipa("stage", str(to), "--to", str(tmp_path / "copy"))

    data = bytearray(shard(1, 11))
    data[600] ^= 1
    (to / "00001.tar").write_bytes(data)
    (to / "00002.tar").unlink()
    said = clipa("verify", str(to), code=1)
    assert "2 right" in said
    assert "wrong: 1: 00001.tar" in said
    assert "missing: 1: 00002.tar" in said
    clipa("stage", bucket, "--to", str(to), *at)
    assert "4 right" in clipa("verify", str(to))


def test_events_for_programs(tmp_path: Path, bucket: str, proxy: FaultProxy) -> None:
    words = ["stage", bucket, "--shards", "{00000..00001}", "--to", str(tmp_path), "--endpoint", proxy.url, "--jsonl"]
    said = [json.loads(line) for line in clipa(*words).splitlines()]
    assert [e["event"] for e in said if e["event"] != "progress"] == ["found", "staged"]
    assert said[-1]["shards"] == 2
    assert said[-1]["fetched_bytes"] == said[0]["bytes"] == said[-2]["done"]
    assert {e["schema"] for e in said} == {"clipa.data-event/1"}
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["00000.tar", "00001.tar"]
    done = json.loads(clipa(*words[:-1], "--json"))
    assert (done["schema"], done["shards"], done["fetched_bytes"]) == ("clipa.data-staged/1", 2, 0)


def test_a_dataset_by_its_name_with_the_profile_of_its_bucket(tmp_path: Path, bucket: str, proxy: FaultProxy) -> None:
    (tmp_path / "clipa.toml").write_text(f'[datasets]\nlaion = {{ url = "{bucket}", endpoint = "{proxy.url}" }}\n')
    assert "4 shards" in clipa("stage", "laion", cwd=tmp_path)
    assert "fetched 0 B" in clipa("stage", f"{bucket}/*.tar", cwd=tmp_path), "a URL is reached as its neighbour is"
    listed = clipa("ls", cwd=tmp_path)
    assert bucket in listed
    (found,) = json.loads(clipa("ls", "--json", cwd=tmp_path))["entries"]
    assert found["shards"] == 4
    assert "4 right" in clipa("verify", found["path"])
    assert "4 right" in clipa("verify", "laion", cwd=tmp_path)
    assert "would remove" in clipa("gc", "--limit", "10kB", "--dry-run")
    assert Path(found["path"]).is_dir()
    assert "removed" in clipa("gc", "--limit", "0")
    assert not Path(found["path"]).exists()
    assert "empty" in clipa("ls")
    assert "clipa data stage laion" in clipa("verify", "laion", code=2, cwd=tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stage", "no-such-name"), "neither a URL"),
        (("stage", "s3://{0..3}/x"), "last part"),
        (("stage", "nope://x/y"), "cannot open nope://"),
        (("stage", "/tmp/no/such/folder"), "no shards"),
        (("stage", "http://127.0.0.1:1/x", "--profile", "p"), "profile does not apply to http://"),
        (("index", "s3://b/x/{0..3}.tar"), "a manifest is of a whole folder"),
        (("gc",), "how much may stay"),
        (("gc", "--limit", "many"), "is no size"),
        (("verify", "/tmp"), "no manifest.json here"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input(words: tuple[str, ...], said: str, proxy: FaultProxy) -> None:
    assert said in clipa(*words, code=2)


def _started(*words: str, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([*CLIPA, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def test_ctrl_c_and_the_same_command_again(tmp_path: Path, bucket: str, proxy: FaultProxy) -> None:
    words = ["stage", bucket, "--to", str(tmp_path), "--endpoint", proxy.url]
    proxy.faults = ["ok", "ok", "stall", "stall"]
    process = _started(*words, process_group=0)
    assert proxy.stalled.wait(60)
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - asked < 10
    assert process.returncode == 130, err
    assert (out, "the same command goes on from here" in err, "Traceback" in err) == ("", True, False)
    proxy.release.set()
    proxy.faults = []
    assert "4 shards" in clipa(*words)
    assert "4 right" in clipa("verify", str(tmp_path))


def test_a_scan_goes_on_where_it_was_killed(bucket: str, proxy: FaultProxy) -> None:
    words = ["index", bucket, "--scan", "--endpoint", proxy.url]
    proxy.faults = ["ok", "ok", "ok", "stall", "stall"]  # the third shard's statistics came without a range
    process = _started(*words)
    assert proxy.stalled.wait(60)
    journal = Path(os.environ["HOME"]) / ".cache/clipa/index"
    deadline = time.monotonic() + 30
    while not any(path.read_bytes().count(b"{") for path in journal.glob("*.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    proxy.release.set()
    proxy.faults = []
    said = clipa(*words)
    assert "46 samples" in said
    assert "4 scanned" not in said
    assert list(journal.iterdir()) == []

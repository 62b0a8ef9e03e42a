"""A dataset that is streamed while a real trainer reads it: the same bytes in the same order as a staged one."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clipa.data.wds import shard_bytes
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.cluster import Dataset
from clipa.storage import manifest as manifests
from clipa.storage.manifest import Manifest, Shard
from tests.services.attempts import final_bytes, finish, start, until
from tests.services.faults import FaultProxy, fault_proxy
from tests.services.s3 import client, new_bucket, s3_server
from tests.services.train_runs import jpeg

SHARDS, EACH = 6, 24


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with fault_proxy(server) as running:
        yield running


class Pair:
    """Runs of one dataset of six shards, staged or streamed."""

    def __init__(self, make: Callable[..., RunDir], cache: Path, server: str, url: str) -> None:
        self._make, self._cache = make, cache
        bucket, s3, rows = new_bucket(server), client(server), []
        for number in range(SHARDS):
            samples = range(number * EACH, (number + 1) * EACH)
            raw = shard_bytes([(f"{n:04d}", {"jpg": jpeg(n), "txt": f"number {n}".encode()}) for n in samples])
            s3.put_object(Bucket=bucket, Key=f"d/{number}.tar", Body=raw)
            rows.append(
                Shard(name=f"{number}.tar", size=len(raw), sha256=hashlib.sha256(raw).hexdigest(), samples=EACH)
            )
            self._last = raw
            write_whole(cache / "raw" / f"{number}.tar", raw)
        self.manifest = Manifest(url=f"s3://{bucket}/d", shards=tuple(rows))
        self._source = Dataset(url=self.manifest.url, endpoint=url, access="stream")

    def run(self, name: str, access: str, world: int = 1, manifest: Manifest | None = None, **settings: Any) -> RunDir:
        manifest = manifest or self.manifest
        run = self._make(name, world, shuffle_window=40, **settings)
        plan = plans.decode(run.plan.read_bytes())
        assert plan.data is not None
        data = msgspec.structs.replace(plan.data, source=self._source, manifest=manifest.digest, access=access)
        write_whole(run.plan, plans.encode(msgspec.structs.replace(plan, data=data)))
        write_whole(run.manifest(manifest.digest), manifests.encode(manifest))
        if access == "stage":
            for shard in manifest.shards:
                raw = (self._cache / "raw" / shard.name).read_bytes()
                write_whole(manifests.staged_folder(str(self._cache), manifest.digest) / shard.name, raw)
        return run


@pytest.fixture
def pair(make_run: Callable[..., RunDir], tmp_path: Path, server: str, proxy: FaultProxy) -> Pair:
    return Pair(make_run, tmp_path / "cache", server, proxy.url)


def streamed_folder(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "streamed").rglob("*") if path.is_file()]


def down_for(proxy: FaultProxy, seconds: float, after: int) -> None:
    """Let the server answer nothing for a while, from the n-th ranged GET on."""
    real, since = proxy.next_fault, []

    def fault() -> Any:
        found = real()
        if proxy.ranges >= after and not since:
            since.append(time.monotonic())
        return "refuse" if since and time.monotonic() < since[0] + seconds else found

    proxy.next_fault = fault  # type: ignore[method-assign]


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.long), 2])
def test_streamed_is_bit_for_bit_staged_and_survives_an_outage(
    pair: Pair, proxy: FaultProxy, tmp_path: Path, world: int
) -> None:
    staged, streamed = pair.run("staged", "stage", world), pair.run("streamed", "stream", world)
    codes, said = finish(start(staged, 1, world))
    assert codes == [0] * world, said
    down_for(proxy, 6.0, after=4)
    began = time.monotonic()
    codes, said = finish(start(streamed, 1, world))
    assert codes == [0] * world, said
    assert time.monotonic() - began > 6.0
    assert final_bytes(streamed) == final_bytes(staged)
    assert streamed_folder(tmp_path) == []


def test_killed_and_resumed_while_streaming(pair: Pair, tmp_path: Path) -> None:
    staged, streamed = pair.run("staged", "stage"), pair.run("streamed", "stream")
    assert finish(start(staged, 1, 1))[0] == [0]
    [rank] = start(streamed, 1, 1)
    until(lambda: streamed.complete_checkpoints())
    os.kill(rank.pid, signal.SIGKILL)
    finish([rank])
    codes, said = finish(start(streamed, 2, 1))
    assert codes == [0], said
    assert final_bytes(streamed) == final_bytes(staged)
    until(lambda: not streamed_folder(tmp_path))


def test_a_shard_that_is_not_as_the_manifest_says_stops_the_run_by_name(pair: Pair) -> None:
    rows = [msgspec.structs.replace(s, samples=EACH + 1) if n == 3 else s for n, s in enumerate(pair.manifest.shards)]
    run = pair.run("counts", "stream", manifest=msgspec.structs.replace(pair.manifest, shards=tuple(rows)))
    codes, said = finish(start(run, 1, 1))
    assert codes == [1]
    assert "d/3.tar" in said
    assert f"{EACH} samples have an image and a caption, the manifest says {EACH + 1}" in said
    assert "Traceback" not in said

"""Datasets in a bucket, and runs that read them: staged, streamed, or staged while they train."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from clipa.data.wds import shard_bytes
from clipa.host.attempt import Leaving
from clipa.host.supervisor import Supervisor, Task
from clipa.registry import events
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.cluster import Dataset
from clipa.spec.job import Portion
from clipa.spec.plan import Data
from clipa.storage import manifest as manifests
from clipa.storage.manifest import Manifest, Shard
from tests.services.train_runs import jpeg, make_run

SHARDS, EACH, STEPS = 24, 8, 40


class Bucket:
    """Datasets in a bucket, written by a client of the tests' own, and runs that read them from a URL."""

    def __init__(self, folder: Path, s3: Any, bucket: str, url: str) -> None:
        self.folder, self.cache, self._url = folder, folder / "cache", url
        self._s3, self.name, self._raw = s3, bucket, dict[tuple[str, str], bytes]()

    def dataset(self, name: str, shards: int = SHARDS) -> Manifest:
        rows = []
        for number in range(shards):
            samples = range(number * EACH, (number + 1) * EACH)
            raw = shard_bytes([(f"{n:04d}", {"jpg": jpeg(n), "txt": f"{name} {n}".encode()}) for n in samples])
            self._s3.put_object(Bucket=self.name, Key=f"{name}/{number}.tar", Body=raw)
            self._raw[f"s3://{self.name}/{name}", f"{number}.tar"] = raw
            digest = hashlib.sha256(raw).hexdigest()
            rows.append(Shard(name=f"{number}.tar", size=len(raw), sha256=digest, samples=EACH))
        return Manifest(url=f"s3://{self.name}/{name}", shards=tuple(rows))

    def staged(self, manifest: Manifest) -> Path:
        return manifests.staged_folder(str(self.cache), manifest.digest)

    def whole(self, manifest: Manifest) -> int:
        """How many shards are there. Fails when a final name holds anything else."""
        found = [shard for shard in manifest.shards if (self.staged(manifest) / shard.name).exists()]
        for shard in found:
            assert (self.staged(manifest) / shard.name).read_bytes() == self._raw[manifest.url, shard.name]
        return len(found)

    def stage(self, manifest: Manifest) -> None:
        for shard in manifest.shards:
            write_whole(self.staged(manifest) / shard.name, self._raw[manifest.url, shard.name])

    def run(self, name: str, *read: tuple[Manifest, str], steps: int = STEPS, **settings: Any) -> RunDir:
        """A run that reads datasets in equal shares, each `stage`, `early` or `stream`."""
        if len(read) > 1:
            settings["data"] = tuple(Portion(name=manifest.url, weight=1.0) for manifest, _ in read)
        run = make_run(self.folder, name, steps, shuffle_window=2 * EACH, **settings)
        data = [
            Data(
                name=manifest.url.rpartition("/")[2], source=Dataset(url=manifest.url, endpoint=self._url),
                manifest=manifest.digest, shards=len(manifest.shards), bytes=manifest.bytes, samples=manifest.samples,
                access="stream" if how == "stream" else "stage", early=how == "early",
            )
            for manifest, how in read
        ]  # fmt: skip
        for manifest, _ in read:
            write_whole(run.manifest(manifest.digest), manifests.encode(manifest))
        plan = plans.decode(run.plan.read_bytes())
        write_whole(run.plan, plans.encode(msgspec.structs.replace(plan, data=data[0], mixed=tuple(data[1:]))))
        return run


def supervised(run: RunDir) -> int:
    return Supervisor([Task(str(run.path), 1)], Leaving()).execute()


def weights(run: RunDir, steps: int = STEPS) -> bytes:
    return (run.step_dir(steps) / "model.safetensors").read_bytes()


def said(run: RunDir, writer: str, kind: type, attempt: int = 1) -> list[Any]:
    return [e for e in events.read(run.event_file(attempt, writer)) if isinstance(e, kind)]


def until(condition: Callable[[], Any], seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread

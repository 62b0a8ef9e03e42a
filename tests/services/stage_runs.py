"""Run directories for staging tests, and what must be true of a staging folder at any moment."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

from clipa.registry import events
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan
from clipa.spec.cluster import Dataset
from clipa.spec.job import Eval
from clipa.spec.model import ImageTower, Model, TextTower
from clipa.storage import manifest as manifests
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Store

MIB = 1 << 20


@functools.cache
def content(number: int, size: int) -> bytes:
    """Bytes that repeat nowhere within a shard and differ between shards."""
    return b"".join(hashlib.sha256(b"%d %d" % (number, block)).digest() * 1024 for block in range(size // 32768 + 1))[
        :size
    ]


def write_shards(store: Store, count: int, size: int) -> Manifest:
    """Shards 0.tar, 1.tar, ... and their manifest, with checksums."""
    shards = []
    for number in range(count):
        data = content(number, size)
        store.write(f"{number}.tar", data)
        shards.append(Shard(name=f"{number}.tar", size=size, sha256=hashlib.sha256(data).hexdigest()))
    return Manifest(url=store.url, shards=tuple(shards))


def make_run(folder: Path, source: Dataset, manifest: Manifest, init: str = "") -> RunDir:
    """A run directory whose plan reads one evaluation set, and weights where `init` is a URL."""
    run = RunDir(folder / "runs" / "r1")
    data = plan.Data(
        name="set", source=source, manifest=manifest.digest, shards=len(manifest.shards), bytes=manifest.bytes
    )
    tower = {"width": 64, "layers": 1, "heads": 1}
    the_plan = plan.Plan(
        run="r1",
        group="g",
        created=0.0,
        recipe="r",
        recipe_digest="0",
        phase="eval",
        cluster="here",
        backend="local",
        model=Model(embed_dim=8, image=ImageTower(patch=4, **tower), text=TextTower(**tower)),
        settings=Eval(sets=("set",)),
        world=plan.World(processes=1),
        limits=plan.Limits(max_attempts=1, time_limit_minutes=1),
        code=plan.Code(version="0"),
        run_root=str(folder / "runs"),
        cache=str(folder / "cache"),
        evals={"set": plan.EvalData(data=data, classes=("a", "b"), templates=("{}",))},
        init=plan.Weights(ref=init) if init else None,
    )
    write_whole(run.manifest(manifest.digest), manifests.encode(manifest))
    write_whole(run.plan, plan.encode(the_plan))
    return run


def start(run: RunDir, attempt: int = 1, **how: object) -> subprocess.Popen[str]:
    """The staging process of a run."""
    argv = [sys.executable, "-m", "clipa.staging.stage", str(run.path), "--attempt", str(attempt)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)  # type: ignore[call-overload]


def call(run: RunDir, attempt: int = 1, **how: object) -> tuple[int, str, str]:
    """Stage a run: exit code, output, errors."""
    process = start(run, attempt, **how)
    try:
        out, err = process.communicate(timeout=120)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def staged_event(run: RunDir, attempt: int = 1) -> events.Staged:
    """The record of a staging that went well."""
    (event,) = events.read(run.event_file(attempt, "stage"))
    assert isinstance(event, events.Staged)
    return event


def whole(folder: Path, manifest: Manifest) -> int:
    """How many final names are there. Fails when one of them holds anything but its shard."""
    count = 0
    for shard in manifest.shards:
        path = folder / shard.name
        if path.exists():
            assert path.read_bytes() == content(int(path.stem), shard.size), f"{shard.name} is wrong"
            count += 1
    return count


def until_in_part(folder: Path, size: int) -> None:
    """Wait until so many bytes lie in part files."""
    deadline = time.monotonic() + 30
    while sum(part.stat().st_size for part in folder.glob(".*.part")) < size:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def parts(folder: Path) -> list[str]:
    """Part files of shards. Those of small records (`..about.json`, `.pins/`) are swept when they are old."""
    found = [name for at, _, names in os.walk(folder) for name in names if Path(at).name != ".pins"]
    return [name for name in found if name.endswith(".part") and not name.startswith("..")]

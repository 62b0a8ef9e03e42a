"""A tiny run with real shards, made without a command line, for tests of what trains it and what watches that."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
from PIL import Image

from clipa.data.wds import shard_bytes
from clipa.registry import records
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.cluster import Dataset
from clipa.spec.inputs import ImageInput, TextInput
from clipa.spec.job import Checkpoints, Optim, Pretrain
from clipa.spec.model import ImageTower, Model, TextTower
from clipa.spec.plan import Code, Data, Limits, Plan, World
from clipa.storage import manifest as manifests
from clipa.storage.manifest import Manifest, Shard

BATCH = 8
WORDS = ("red", "green", "blue", "grey")
SQUARES = ImageInput(size=8)


def jpeg(number: int, side: int = 16) -> bytes:
    """A picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (number * 37 % 256, number * 91 % 256, number * 53 % 256)).save(out, "JPEG")
    return out.getvalue()


def make_run(
    folder: Path, name: str, steps: int = 40, *, world: World = World(processes=1),  # noqa: B008 - frozen
    limits: Limits = Limits(max_attempts=3, time_limit_minutes=5), lr: float = 1e-3, save_steps: int = 4,  # noqa: B008
    log_steps: int = 1, trackers: tuple[str, ...] = (), side: int = 16, **settings: object,
) -> RunDir:  # fmt: skip
    """A pretraining of a model of a few hundred weights, its shard staged. Nothing is submitted."""
    raw = shard_bytes(
        [(f"{n:04d}", {"jpg": jpeg(n, side), "txt": f"a {WORDS[n % 4]} {n}".encode()}) for n in range(48)]
    )
    bucket = folder / "bucket"
    bucket.mkdir(exist_ok=True)
    (bucket / "a.tar").write_bytes(raw)
    manifest = Manifest(url=f"file://{bucket}", shards=(Shard(name="a.tar", size=len(raw), version="1"),))
    write_whole(manifests.staged_folder(str(folder / "cache"), manifest.digest) / "a.tar", raw)
    phase = Pretrain(
        data="squares", samples=steps * BATCH, batch=BATCH, image=SQUARES, text=TextInput(tokens=8),
        optim=Optim(lr=lr, warmup_samples=4 * BATCH), positions="sincos2d", precision="fp32",
        checkpoint=Checkpoints(every_samples=save_steps * BATCH), log_every_samples=log_steps * BATCH,
    )  # fmt: skip
    model = Model(embed_dim=8, image=ImageTower(patch=4, width=16, layers=1, heads=2),
                  text=TextTower(width=8, layers=1, heads=2))  # fmt: skip
    data = Data(name="squares", source=Dataset(url=manifest.url), manifest=manifest.digest, shards=1, bytes=len(raw))
    run = RunDir(folder / "runs" / name)
    plan = Plan(
        run=name, group="g", created=0.0, recipe="r", recipe_digest="d", phase="pretrain", cluster="local",
        backend="local", model=model, settings=msgspec.structs.replace(phase, **settings), world=world, limits=limits,
        code=Code(version="0"), seed=1, data=data, run_root=str(folder / "runs"), cache=str(folder / "cache"),
        steps=steps, warmup_steps=4, trackers=trackers,
    )  # fmt: skip
    write_whole(run.manifest(manifest.digest), manifests.encode(manifest))
    write_whole(run.plan, plans.encode(plan))
    records.write_intent(run, 1, 1, "submit")
    return run

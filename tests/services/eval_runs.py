"""Small evaluation sets of every layout, a random-weight checkpoint, and run directories that score it."""

from __future__ import annotations

import io
import json
import os
import socket
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image

from clipa.attempt.devices import Ranks
from clipa.attempt.process import Session
from clipa.attempt.weights import File, sha256, write_tensors
from clipa.data.decode import decode_eval
from clipa.data.pipeline import normalise
from clipa.data.tokenizer import tokenizer
from clipa.data.wds import shard_bytes
from clipa.data.wordpiece import ENTRIES, SPECIAL
from clipa.eval.__main__ import evaluate
from clipa.launch.evaluation import pin_sets
from clipa.model.clip import Clip
from clipa.registry import events
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import card as cards
from clipa.spec import plan
from clipa.spec.cluster import Dataset
from clipa.spec.evalset import EvalSet
from clipa.spec.family import FAMILIES, OPENAI_MEAN, OPENAI_STD
from clipa.spec.job import Eval
from clipa.spec.model import ImageTower, Model, TextTower
from clipa.storage import manifest as manifests

MODEL = Model(
    embed_dim=24,
    image=ImageTower(patch=8, width=48, layers=2, heads=3),
    text=TextTower(width=32, layers=2, heads=2),
)
MODEL_V2 = Model(
    family="v2-open_clip",
    embed_dim=24,
    image=ImageTower(patch=8, width=48, layers=2, heads=3, pool="gap-norm"),
    text=TextTower(width=32, layers=2, heads=2, tokenizer=FAMILIES["v2-open_clip"].tokenizer),
)
SIZE, TOKENS = 32, 20


def write_vocabulary(folder: Path) -> Path:
    """A folder as open_clip's HFTokenizer reads it: a WordPiece vocabulary of BERT's size, of single letters."""
    entries = [f"[unused{number}]" for number in range(104)]
    for entry, number in SPECIAL.items():
        entries[number] = entry
    entries += [
        mark + sign for mark in ("", "##") for sign in string.ascii_lowercase + string.digits + string.punctuation
    ]
    entries += [f"[unused{number}]" for number in range(len(entries), ENTRIES)]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    said = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def picture(number: int, kind: str = "PNG", shape: tuple[int, int] = (40, 52)) -> bytes:
    """An image of (height, width) pixels, another one for every number."""
    chance = np.random.default_rng(number)
    coarse = chance.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def write_wds(
    folder: Path,
    samples: Sequence[Mapping[str, bytes]],
    *,
    split: str = "test",
    shards: int = 1,
    classes: Sequence[str] = (),
    templates: Sequence[str] = (),
    kind: str = "",
) -> Path:
    """A `wds_*` folder of CLIP_benchmark's layout."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    numbered = [(f"s{number:05d}", dict(sample)) for number, sample in enumerate(samples)]
    for shard in range(shards):
        part = numbered[len(numbered) * shard // shards : len(numbered) * (shard + 1) // shards]
        (folder / split / f"{shard}.tar").write_bytes(shard_bytes(part))
    (folder / split / "nshards.txt").write_text(str(shards))
    for name, lines in ((manifests.CLASSNAMES, classes), (manifests.TEMPLATES, templates)):
        if lines:
            (folder / name).write_text("\n".join(lines) + "\n")
    if kind:
        (folder / "dataset_type.txt").write_text(kind)
    return folder


def npy(values: Sequence[float]) -> bytes:
    """The bytes of a `npy` member."""
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values))
    return buffer.getvalue()


def write_checkpoint(folder: Path, seed: int = 0, model: Model = MODEL) -> Path:
    """A whole checkpoint of random weights that tell images and words apart."""
    torch.manual_seed(seed)
    clip = Clip(model, SIZE, TOKENS, "learnable").eval()
    _spread(clip, model)
    folder.mkdir(parents=True)
    write_tensors(folder / cards.WEIGHTS_NAME, clip.state_dict())
    card = cards.Card(
        model=model,
        image_size=SIZE,
        text_tokens=TOKENS,
        positions="learnable",
        mean=model.traits.mean,
        std=model.traits.std,
        step=7,
    )
    (folder / cards.CARD_NAME).write_bytes(msgspec.json.encode(card))
    files = {
        name: File(size=(folder / name).stat().st_size, sha256=sha256(folder / name))
        for name in (cards.WEIGHTS_NAME, cards.CARD_NAME)
    }
    (folder / cards.COMPLETE_NAME).write_bytes(msgspec.json.encode(files))
    return folder


@torch.no_grad()
def _spread(clip: Clip, model: Model) -> None:
    """Random weights see nearly the same in all images, so that one class gets them all and any code passes.

    The biases of the last LayerNorms are moved so that features have no common part.
    """
    for parameter in clip.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    pixels = np.stack([decode_eval(picture(n), SIZE, "") for n in range(64)])
    images = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), OPENAI_MEAN, OPENAI_STD)
    tokens = tokenizer(model.text.tokenizer).encode(
        [f"{a} {b}" for a in "abcdefgh" for b in ("cat", "dog", "x y")], TOKENS
    )
    for bias, last, see in (
        (clip.image.trunk.norm.bias, clip.image.trunk.head, lambda: clip.encode_image(images)),
        (clip.text.ln_final.bias, clip.text.projection, lambda: clip.encode_text(tokens)),
    ):
        pooled = []
        hook = last.register_forward_pre_hook(lambda _, given, pooled=pooled: pooled.append(given[0]))
        see()
        hook.remove()
        bias.sub_(pooled[0].mean(dim=0))


def make_run(
    folder: Path,
    sets: Mapping[str, EvalSet],
    weights: Path,
    *,
    world: int = 1,
    cache: Path | None = None,
    **how: object,
) -> RunDir:
    """A run directory that scores these sets, and their shards in its cache."""
    run = RunDir(folder / "runs" / "r1")
    cache = cache or folder / "cache"
    evals = {}
    for name, eval_set in sets.items():
        for key, pinned in pin_sets(name, eval_set, lambda word: Dataset(url=word)).items():
            evals[key] = pinned.data
            for data, manifest in zip((pinned.data.data, pinned.data.train), pinned.manifests, strict=False):
                assert data is not None
                write_whole(run.manifest(manifest.digest), manifests.encode(manifest))
                _staged(data, manifest, cache)
    the_plan = plan.Plan(
        run="r1",
        group="g",
        created=0.0,
        recipe="r",
        recipe_digest="0",
        phase="eval",
        cluster="here",
        backend="local",
        model=MODEL,
        settings=Eval(sets=tuple(sets), precision="fp32", **how),  # type: ignore[arg-type]
        world=plan.World(processes=world, loader_workers=0),
        limits=plan.Limits(max_attempts=1, time_limit_minutes=1),
        code=plan.Code(version="0"),
        run_root=str(folder / "runs"),
        cache=str(cache),
        evals=evals,
        init=plan.Weights(ref=str(weights)),
    )
    write_whole(run.plan, plan.encode(the_plan))
    run.claim(1)
    return run


def _staged(data: plan.Data, manifest: manifests.Manifest, cache: Path) -> None:
    """What staging does for a local source, without its process."""
    if data.layout == "folder":
        return
    target = manifests.staged_folder(str(cache), manifest.digest)
    target.mkdir(parents=True, exist_ok=True)
    source = Path(manifest.url.removeprefix("file://"))
    for shard in manifest.shards:
        place = target / shard.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((source / shard.name).read_bytes())


def score(run: RunDir) -> int:
    """Score in this process, as `python -m clipa.eval` does on one rank; the exit code."""
    the_plan = plan.decode(run.plan.read_bytes())
    session = Session(run, the_plan, 1, events.EventWriter(run, 1, "train"))
    assert session.log is not None
    try:
        return evaluate(session, Ranks(0, 1, torch.device("cpu")))
    finally:
        session.log.close()


def score_by_ranks(run: RunDir, world: int) -> None:
    """Run `python -m clipa.eval` as so many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(world):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}  # fmt: skip
        argv = [sys.executable, "-m", "clipa.eval", str(run.path), "--attempt", "1"]
        ranks.append(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env))
    said = []
    try:
        for process in ranks:
            said.append(process.communicate(timeout=240)[0])
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert {process.returncode for process in ranks} == {0}, "\n".join(said)


def results(run: RunDir) -> dict[str, dict[str, object]]:
    """The results of a run by `<set>-<size>`."""
    found = {}
    for path in sorted(run.evals.glob("*.json")):
        result = json.loads(path.read_text())
        found[f"{result['set']}-{result['preprocessing']['size']}"] = result
    return found

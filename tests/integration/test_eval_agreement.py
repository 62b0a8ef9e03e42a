"""The same folders and weights through CLIP_benchmark's own code and open_clip's own model: the same numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from clipa.attempt.weights import read_tensors
from clipa.data.tokenizer import tokenizer
from clipa.model.open_clip_names import to_open_clip
from clipa.model.torchvision_guard import import_torchvision
from clipa.spec.card import WEIGHTS_NAME
from clipa.spec.evalset import EvalSet
from clipa.spec.model import Model
from clipa.storage.vocabulary import VARIABLE
from tests.services.eval_runs import (
    MODEL,
    MODEL_V2,
    SIZE,
    TOKENS,
    make_run,
    npy,
    picture,
    results,
    score,
    write_checkpoint,
    write_vocabulary,
    write_wds,
)

CLASSES = ["cat", "dog", "eel", "fox", "gnu", "hen", "ibis"]
TEMPLATES = ["a photo of a {c}.", "the {c}", "a {c} at night"]
SHAPES = [(40, 52), (61, 37), (33, 32), (128, 90), (32, 200)]
COUNT = 61


@pytest.fixture(scope="module", params=["v1", "v2-open_clip"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model of each family that open_clip computes; v2 gets a made-up vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(write_vocabulary(tmp_path_factory.mktemp("words") / "bert")))
        tokenizer.cache_clear()
        yield {"v1": MODEL, "v2-open_clip": MODEL_V2}[request.param]
    tokenizer.cache_clear()


@pytest.fixture(scope="module")
def weights(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "step-000000007", model=model)


@pytest.fixture(scope="module")
def peer(model: Model, weights: Path) -> SimpleNamespace:
    """CLIP_benchmark's functions, and an open_clip model with our weights."""
    import_torchvision()
    from clip_benchmark.datasets import builder
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
    from open_clip.factory import get_model_config
    from open_clip.model import CLIP
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
    from open_clip.transform import image_transform

    zeroshot_classification.accuracy = accuracy
    image, text = model.image, model.text
    config = get_model_config({"v1": "ViT-B-16", "v2-open_clip": "ViT-L-14-CLIPA"}[model.family])
    config["embed_dim"] = model.embed_dim
    config["vision_cfg"] |= {"layers": image.layers, "width": image.width, "head_width": image.width // image.heads,
                             "patch_size": image.patch, "image_size": SIZE}  # fmt: skip
    config["text_cfg"] |= {"context_length": TOKENS, "width": text.width, "heads": text.heads, "layers": text.layers}
    theirs = CLIP(**config)
    theirs.load_state_dict(to_open_clip(model, read_tensors(weights / WEIGHTS_NAME)))
    words = (
        SimpleTokenizer(context_length=TOKENS)
        if model.family == "v1"
        else HFTokenizer(os.environ[VARIABLE], context_length=TOKENS, strip_sep_token=True)
    )
    return SimpleNamespace(
        family=model.traits,
        model=theirs.eval(),
        tokenizer=words,
        transform=image_transform,
        builder=builder,
        classification=zeroshot_classification,
        retrieval=zeroshot_retrieval,
    )


def accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...] = (1,)) -> list[float]:
    """CLIP_benchmark's own, with `.item()` in the place of float(array of one), which NumPy 2.4 refuses."""
    pred = output.topk(max(topk), 1, True, True)[1].t()
    correct = pred.eq(target.view(1, -1).expand_as(pred))
    n = len(target)
    return [correct[:k].reshape(-1).float().sum(0, keepdim=True).item() / n for k in topk]


def their_view(peer: SimpleNamespace, resize: str) -> Any:
    mode = {"shorter": "shortest", "squash": "squash"}[resize]
    return peer.transform(
        SIZE,
        is_train=False,
        mean=peer.family.mean,
        std=peer.family.std,
        resize_mode=mode,
        interpolation=peer.family.interpolation,
    )


def theirs(peer: SimpleNamespace, root: Path, resize: str = "shorter") -> dict[str, float]:
    builder: ModuleType = peer.builder
    kind = root / "dataset_type.txt"
    retrieval = kind.is_file() and kind.read_text() == "retrieval"
    data = builder.build_dataset(
        dataset_name="wds/x", root=str(root), transform=their_view(peer, resize), split="test", download=False,
        task="zeroshot_retrieval" if retrieval else "zeroshot_classification",
    )  # fmt: skip
    collate = {"collation_fn": builder.image_captions_collate_fn} if retrieval else {}
    loader = torch.utils.data.DataLoader(data.batched(16, **collate), batch_size=None, shuffle=False)
    with torch.no_grad():
        if retrieval:
            found = peer.retrieval.evaluate(
                peer.model, loader, peer.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
            )
        else:
            found = peer.classification.evaluate(
                peer.model, loader, peer.tokenizer, data.classes, data.templates, "cpu", amp=False
            )
    return {name: 100.0 * value for name, value in found.items()}


def ours(tmp_path: Path, root: Path, weights: Path, resize: str = "shorter") -> dict[str, float]:
    run = make_run(tmp_path, {"x": EvalSet(data=str(root))}, weights, batch=9, resize=resize)
    score(run)
    (result,) = results(run).values()
    assert result["samples"] == COUNT
    return result["metrics"]  # type: ignore[return-value]


@pytest.mark.parametrize("resize", ["shorter", "squash"])
def test_classification(tmp_path: Path, weights: Path, peer: SimpleNamespace, resize: str) -> None:
    kinds = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")]
    samples = []
    for n in range(COUNT):
        extension, kind = kinds[n % 3]
        samples.append({extension: picture(n, kind, SHAPES[n % 5]), "cls": b"%d" % (n % 7)})
    root = write_wds(tmp_path / "wds_x", samples, shards=2, classes=CLASSES, templates=TEMPLATES)
    found, expected = ours(tmp_path, root, weights, resize), theirs(peer, root, resize)
    assert found["top1"] == pytest.approx(expected["acc1"], abs=1e-4)
    assert found["top5"] == pytest.approx(expected["acc5"], abs=1e-4)
    assert found["mean_per_class_recall"] == pytest.approx(expected["mean_per_class_recall"], abs=1e-4)
    assert 0 < found["top1"] < 60, "the weights must tell the images apart, or any code would pass"


def test_multilabel(tmp_path: Path, weights: Path, peer: SimpleNamespace) -> None:
    chance = np.random.default_rng(3)
    targets = chance.random((COUNT, len(CLASSES))) < 0.2
    targets[:, 4] = False  # a class that no image has
    samples = [
        {"png": picture(n, "PNG", SHAPES[n % 5]), "npy": npy(row.astype(np.int64))} for n, row in enumerate(targets)
    ]
    root = write_wds(tmp_path / "wds_x", samples, shards=2, classes=CLASSES, templates=TEMPLATES, kind="multilabel")
    found, expected = ours(tmp_path, root, weights), theirs(peer, root)
    assert found["mean_average_precision"] == pytest.approx(expected["mean_average_precision"], abs=1e-3)


def test_retrieval(tmp_path: Path, weights: Path, peer: SimpleNamespace) -> None:
    samples = []
    for n in range(COUNT):
        captions = [f"picture {n} of {CLASSES[(n * k) % 7]}, {'dark ' * (k % 3)}view {k}" for k in range(1, 2 + n % 5)]
        samples.append({"jpg": picture(n, "JPEG", SHAPES[n % 5]), "txt": "\n".join(captions).encode()})
    root = write_wds(tmp_path / "wds_x", samples, shards=2, kind="retrieval")
    found, expected = ours(tmp_path, root, weights), theirs(peer, root)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
    mean = (expected["image_retrieval_recall@1"] + expected["text_retrieval_recall@1"]) / 2
    assert found["mean_recall@1"] == pytest.approx(mean, abs=1e-4)
    assert 0 < found["image_retrieval_recall@10"] < 100

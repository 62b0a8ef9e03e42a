"""CLIPA's JAX weights: a synthetic file of the published layout and widths gives the published formulae's features."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch

from clipa.attempt.weights import read_tensors, verify
from clipa.errors import ConfigError
from clipa.model.clip import Clip
from clipa.model.convert import convert
from clipa.model.jax_names import Arrays, model_of, weights_of
from clipa.model.sources import Wishes
from clipa.model.torchvision_guard import import_torchvision
from clipa.spec.card import WEIGHTS_NAME
from clipa.spec.family import FAMILIES, PRESETS

import_torchvision()
from open_clip.convert import load_big_vision_weights  # noqa: E402
from open_clip.transformer import TextTransformer  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

WORDS, LAYERS, TOKENS, GRID = 500, 2, 8, 3
Named = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, family in list(FAMILIES.items()):
        monkeypatch.setitem(FAMILIES, name, msgspec.structs.replace(family, vocabulary=WORDS))


def published(size: str) -> Named:
    """Parameters as clipa_jax names and shapes them, at which every trait shows (see test_model_agreement.loud)."""
    chance = np.random.default_rng(4)
    preset, found = PRESETS[size], {}

    def add(name: str, *shape: int, scale: float, mean: float = 0.0) -> None:
        found[name] = (mean + scale * chance.standard_normal(shape)).astype(np.float32)

    def norm(name: str, width: int) -> None:
        add(f"{name}/scale", width, scale=0.2, mean=1.0)
        add(f"{name}/bias", width, scale=0.2)

    for tower, part in (("img", preset.image), ("txt", preset.text)):
        w, heads, mlp = part.width, part.heads, part.mlp
        for layer in range(LAYERS):
            block = f"{tower}/Transformer/encoderblock_{layer}"
            attention = f"{block}/MultiHeadDotProductAttention_0"
            norm(f"{block}/LayerNorm_0", w)
            norm(f"{block}/LayerNorm_1", w)
            for name in ("query", "key", "value"):
                add(f"{attention}/{name}/kernel", w, heads, w // heads, scale=1.5 * w**-0.5)
                add(f"{attention}/{name}/bias", heads, w // heads, scale=0.2)
            add(f"{attention}/out/kernel", heads, w // heads, w, scale=1.5 * w**-0.5)
            add(f"{attention}/out/bias", w, scale=0.2)
            add(f"{block}/MlpBlock_0/Dense_0/kernel", w, mlp, scale=0.3 * w**-0.5)
            add(f"{block}/MlpBlock_0/Dense_0/bias", mlp, scale=0.2, mean=-2.3)
            add(f"{block}/MlpBlock_0/Dense_1/kernel", mlp, w, scale=20 * mlp**-0.5)
            add(f"{block}/MlpBlock_0/Dense_1/bias", w, scale=0.2)
        norm(f"{tower}/encoder_norm", w)
        add(f"{tower}/head/kernel", w, preset.embed_dim, scale=w**-0.5)
    add("img/embedding/kernel", preset.patch, preset.patch, 3, preset.image.width, scale=0.01)
    add("img/cls", 1, 1, preset.image.width, scale=0.01)
    add("txt/Embed_0/embedding", WORDS, preset.text.width, scale=0.01)
    add("txt/pos_embedding", 1, TOKENS, preset.text.width, scale=0.01)
    return found | {"t": np.array([2.3], dtype=np.float32)}


def reference(p: Named, tower: str, x: np.ndarray) -> np.ndarray:
    """The towers' blocks and pooling in float64, from the formulae of vit.py and text_transformer.py."""

    def norm(v: np.ndarray, name: str) -> np.ndarray:
        centred = v - v.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]

    for layer in range(LAYERS):
        block = f"{tower}/Transformer/encoderblock_{layer}"
        attention = f"{block}/MultiHeadDotProductAttention_0"
        y = norm(x, f"{block}/LayerNorm_0")
        q, k, v = (
            np.einsum("bnw,whd->bhnd", y, p[f"{attention}/{n}/kernel"]) + p[f"{attention}/{n}/bias"][:, None]
            for n in ("query", "key", "value")
        )
        logits = np.einsum("bhnd,bhmd->bhnm", q / np.sqrt(q.shape[-1]), k)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = np.einsum("bhnm,bhmd->bnhd", weights / weights.sum(-1, keepdims=True), v)
        x = x + np.einsum("bnhd,hdw->bnw", mixed, p[f"{attention}/out/kernel"]) + p[f"{attention}/out/bias"]
        y = norm(x, f"{block}/LayerNorm_1") @ p[f"{block}/MlpBlock_0/Dense_0/kernel"]
        y = y + p[f"{block}/MlpBlock_0/Dense_0/bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + y @ p[f"{block}/MlpBlock_0/Dense_1/kernel"] + p[f"{block}/MlpBlock_0/Dense_1/bias"]
    last = f"{tower}/encoder_norm"
    pooled = norm(x[:, 1:].mean(1), last) if tower == "img" else norm(x, last)[:, -1]
    z = pooled @ p[f"{tower}/head/kernel"]
    return z / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-8)


def sincos(grid: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:grid, :grid].reshape(2, -1, 1)
    omega = 1.0 / 10_000.0 ** (np.arange(width // 4) / (width // 4 - 1))
    table = np.concatenate([np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)], axis=1)
    return np.concatenate([np.zeros((1, width)), table])


def reference_features(p: Named, images: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kernel = p["img/embedding/kernel"].astype(np.float64)
    side, width = kernel.shape[0], kernel.shape[-1]
    b, _, size, _ = images.shape
    grid = size // side
    patches = images.transpose(0, 2, 3, 1).reshape(b, grid, side, grid, side, 3)
    x = np.einsum("bipjqc,pqcw->bijw", patches, kernel).reshape(b, grid * grid, width)
    x = np.concatenate([np.broadcast_to(p["img/cls"], (b, 1, width)), x], axis=1) + sincos(grid, width)
    text = p["txt/Embed_0/embedding"][ids] + p["txt/pos_embedding"]
    return reference(p, "img", x), reference(p, "txt", text.astype(np.float64))


def write(folder: Path, arrays: Named, prefix: str = "params/") -> Path:
    np.savez(folder / "clipa.npz", **{f"{prefix}{name}": array for name, array in arrays.items()})
    return folder / "clipa.npz"


@pytest.mark.parametrize(
    ("size", "prefix"),
    [
        ("S/16", "params/"),
        pytest.param("L/14", "", marks=pytest.mark.long),
        pytest.param("H/14", "opt/target/", marks=pytest.mark.long),
    ],
)
@torch.no_grad()
def test_features_are_those_of_the_published_formulae(size: str, prefix: str, tmp_path: Path) -> None:
    arrays, preset = published(size), PRESETS[size]
    path = write(tmp_path, arrays, prefix)
    done = convert(path, tmp_path / "mine", Wishes(image_size=GRID * preset.patch))
    model, card = done.card.model, verify(tmp_path / "mine").card
    assert (model.family, model.image.heads, model.text.heads) == ("v2", preset.image.heads, preset.text.heads)
    assert (card.positions, card.image_size, card.text_tokens) == ("sincos2d", GRID * preset.patch, TOKENS)
    clip = Clip(model, card.image_size, TOKENS, card.positions).eval()
    clip.load(read_tensors(tmp_path / "mine" / WEIGHTS_NAME))
    chance = np.random.default_rng(0)
    ids = chance.integers(1, WORDS, (3, TOKENS))
    ids[1, 5:] = 0
    for grid in (GRID, 5):  # positions of another grid are recomputed
        images = 0.1 * chance.standard_normal((2, 3, grid * preset.patch, grid * preset.patch))
        image, text = reference_features(arrays, images, ids)
        found = clip.encode_image(torch.from_numpy(images).float()), clip.encode_text(torch.from_numpy(ids))
        for ours, theirs in zip(found, (image, text), strict=True):
            assert np.abs(ours.numpy() - theirs).max() < 1e-5
    assert clip.logit_scale.item() == pytest.approx(2.3)


@torch.no_grad()
def test_tensors_are_those_of_open_clips_loader(tmp_path: Path) -> None:
    """The peer knows big_vision's own layout: the last norms inside the encoders, biases of patches and heads."""
    arrays = published("S/16")
    preset = PRESETS["S/16"]
    renamed = {}
    for name, array in arrays.items():
        name = name.replace("img/encoder_norm", "img/Transformer/encoder_norm")
        name = name.replace("txt/encoder_norm", "txt/Transformer/encoder_norm")
        renamed[name.replace("txt/Transformer", "txt/Encoder_0")] = array
    width = preset.image.width
    extra = {"img/embedding/bias": width, "txt/head/bias": preset.embed_dim, "b": 1}
    extra_arrays = {name: np.zeros(count, np.float32) for name, count in extra.items()}
    table = {"img/pos_embedding": sincos(GRID, width).astype(np.float32)[None]}
    path = write(tmp_path, renamed | extra_arrays | table)
    image = VisionTransformer(GRID * 16, 16, num_classes=0, embed_dim=width, depth=LAYERS, num_heads=6, fc_norm=False)
    text = TextTransformer(TOKENS, WORDS, 384, 6, LAYERS, output_dim=384, proj_bias=True, no_causal_mask=True)
    image.attn_pool = None
    theirs = SimpleNamespace(
        visual=SimpleNamespace(trunk=image), text=text, logit_scale=torch.zeros(()), logit_bias=torch.zeros(())
    )
    load_big_vision_weights(theirs, str(path))
    read = Arrays(path)
    model = model_of(read, "v2", "gap-norm")
    ours = weights_of(read, model, GRID)
    trunk = {f"image.trunk.{name}": weight for name, weight in image.state_dict().items()}
    assert not trunk.pop("image.trunk.patch_embed.proj.bias").any()
    for name, weight in trunk.items():
        assert torch.equal(ours.pop(name), weight), name
    pairs = {"ln_1": "ln_1", "ln_2": "ln_2", "proj": "attn.out_proj", "fc_1": "mlp.c_fc", "fc_2": "mlp.c_proj"}
    state = text.state_dict()
    for number in range(LAYERS):
        there = f"transformer.resblocks.{number}."
        for part in ("weight", "bias"):
            assert torch.equal(ours.pop(f"text.blocks.{number}.qkv.{part}"), state[f"{there}attn.in_proj_{part}"])
            for mine, name in pairs.items():
                assert torch.equal(ours.pop(f"text.blocks.{number}.{mine}.{part}"), state[f"{there}{name}.{part}"])
    for name in ("token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias"):
        assert torch.equal(ours.pop(f"text.{name}"), state[name])
    assert torch.equal(ours.pop("text.projection.weight"), state["text_projection.weight"])
    assert torch.equal(ours.pop("logit_scale")[0], theirs.logit_scale)
    assert set(ours) == {"image.trunk.head.weight"}, "SigLIP's image tower has no head; all else was compared"


def test_brain_floats_are_read(tmp_path: Path) -> None:
    arrays = published("S/16")
    kernel = torch.from_numpy(arrays["img/embedding/kernel"])
    arrays["img/embedding/kernel"] = kernel.bfloat16().view(torch.int16).numpy().view("V2")
    read = Arrays(write(tmp_path, arrays))
    assert torch.equal(read.take("img/embedding/kernel"), kernel.bfloat16().float())


def test_bad_files_are_named_and_nothing_is_left(tmp_path: Path) -> None:
    arrays = published("S/16")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "pickled.npz", **(arrays | {"img/embedding/kernel": np.array([{"a": 1}], dtype=object)}))
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    less = {name: array for name, array in arrays.items() if not name.startswith("txt/Transformer/encoderblock_1/Mlp")}
    one_tower = {name: array for name, array in arrays.items() if name.startswith("img/")}
    more = arrays | {"img/MAPHead_0/probe": np.ones((1, 1, 384), np.float32)}
    biased = arrays | {"img/embedding/bias": np.ones(384, np.float32)}
    cases = {
        "torn": "no .npz",
        "pickled": "broken",
        "other": "img/embedding/kernel is missing",
        "less": "encoderblock_1/MlpBlock_0",
        "one": "missing|no encoder blocks",
        "more": "MAPHead_0/probe",
        "biased": "img/embedding/bias",
        "words": "the token embedding has 499 rows",
        "whole": "doesn't say for which image size",
    }
    words = arrays | {"txt/Embed_0/embedding": arrays["txt/Embed_0/embedding"][1:]}
    for name, content in (("less", less), ("one", one_tower), ("more", more), ("biased", biased), ("words", words)):
        np.savez(tmp_path / f"{name}.npz", **content)
    np.savez(tmp_path / "whole.npz", **arrays)
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, message in cases.items():
        said = ""
        try:
            convert(tmp_path / f"{name}.npz", tmp_path / "out", Wishes(image_size=0 if name == "whole" else 48))
        except ConfigError as error:
            said = str(error)
        assert any(word in said for word in message.split("|")), f"{name}: {said or 'accepted'}"
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(ConfigError, match="not divisible"):
        convert(tmp_path / "whole.npz", tmp_path / "out", Wishes(image_size=50))

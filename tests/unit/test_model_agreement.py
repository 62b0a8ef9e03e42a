"""Every family computes what open_clip computes with the same weights, at the published widths and two layers.

The comparisons can fail: each is followed by the same one with another GELU, epsilon, mask or pooling, which must not
pass.
"""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import torch
from torch import nn

from clipa.model.clip import Clip
from clipa.model.open_clip_names import from_open_clip, names, to_open_clip
from clipa.model.posembed import sincos2d
from clipa.model.torchvision_guard import import_torchvision
from clipa.model.towers import ImageEncoder
from clipa.spec.family import FAMILIES, PRESETS, VOCABULARY
from clipa.spec.model import ImageTower, Model, TextTower

import_torchvision()
from open_clip.factory import get_model_config  # noqa: E402
from open_clip.model import CLIP, resize_pos_embed, resize_text_pos_embed  # noqa: E402

TOLERANCE = 1e-5
WORDS = 600
"""Rows of the token embeddings here: the published ones would be most of the work. Their number is checked below."""

PUBLISHED = {"L/14": "ViT-L-14-CLIPA", "H/14": "ViT-H-14-CLIPA", "bigG/14": "ViT-bigG-14-CLIPA", "B/16": "ViT-B-16"}
TANH = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}
"""open_clip's own keys for what CLIPA's JAX code computes."""


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, family in list(FAMILIES.items()):
        monkeypatch.setitem(FAMILIES, name, msgspec.structs.replace(family, vocabulary=WORDS))


def ours_of(size: str, family: str, pool: str) -> Model:
    preset = PRESETS[size]
    towers = {
        name: {"width": t.width, "layers": 2, "heads": t.heads, "mlp_ratio": round(t.mlp / t.width, 4)}
        for name, t in (("image", preset.image), ("text", preset.text))
    }
    words = FAMILIES[family].tokenizer
    return Model(
        family=family,
        embed_dim=preset.embed_dim,
        image=ImageTower(patch=preset.patch, pool=pool, **towers["image"]),
        text=TextTower(tokenizer=words, **towers["text"]),
    )


def built(model: Model, pixels: int, tokens: int, positions: str = "learnable") -> Clip:
    """Our model without its random start, which would be most of the work: `loud` or `load` fills it."""
    with torch.device("meta"):
        clip = Clip(model, pixels, tokens, positions)
    return clip.to_empty(device="cpu").eval()


def theirs_of(size: str, family: str, pool: str, pixels: int, tokens: int) -> CLIP:
    config = get_model_config(PUBLISHED[size])
    config["vision_cfg"] |= {"layers": 2, "image_size": pixels} | (TANH if family == "v2" else {})
    config["text_cfg"] |= {"layers": 2, "context_length": tokens, "vocab_size": WORDS} | (
        TANH if family == "v2" else {}
    )
    if family == "v1":
        config["vision_cfg"] |= {"pool_type": "tok" if pool == "cls" else "avg"}
        config["vision_cfg"] |= {"final_ln_after_pool": pool == "gap-norm"}
    config.pop("custom_text", None)
    with pytest.MonkeyPatch.context() as patch:  # it is filled by load_state_dict
        for name in ("kaiming_uniform_", "xavier_uniform_", "normal_", "uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        return CLIP(**config).eval()


@torch.no_grad()
def loud(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights at which a wrong GELU, epsilon, mask or pooling shows: with small random ones all of them pass.

    Hidden units rest near -2.3, where the two GELUs differ by 2 % of their value instead of 0.02 %, and speak loudly.
    Embeddings are small, so that epsilon matters beside their variance.
    """
    chance = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=chance)
        first, second = (any(word in name for word in words) for words in (("fc1", "fc_1"), ("fc2", "fc_2")))
        if parameter.ndim == 1:
            parameter.copy_(("bias" not in name) - 2.3 * first + 0.2 * noise)
        elif any(word in name for word in ("embed", "cls")):
            parameter.copy_(0.01 * noise)
        else:
            scale = 0.3 if first else 20.0 if second else 1.5
            parameter.copy_(scale * parameter.shape[1] ** -0.5 * noise)
    return model.eval()


def images_and_tokens(family: str, pixels: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    chance = torch.Generator().manual_seed(7)
    images = 0.1 * torch.randn(2, 3, pixels, pixels, generator=chance)
    ids = torch.randint(1, WORDS - 1, (3, tokens), generator=chance)
    for row, length in enumerate((tokens, tokens - 3, 4)):
        ids[row, length:] = 0
        if family == "v1":
            ids[row, length - 1] = WORDS - 1
    return images, ids


Features = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def features(model: Clip | CLIP, family: str, pixels: int, tokens: int) -> Features:
    """Normalised features of images and texts."""
    images, ids = images_and_tokens(family, pixels, tokens)
    if isinstance(model, Clip):
        return model.encode_image(images), model.encode_text(ids)
    return model.encode_image(images, normalize=True), model.encode_text(ids, normalize=True)


def apart(ours: Features, theirs: Features) -> tuple[float, float]:
    """Largest differences of image and text features."""
    return tuple((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))  # type: ignore[return-value]


def distance(ours: Clip, theirs: CLIP, family: str, pixels: int, tokens: int) -> tuple[float, float]:
    return apart(features(ours, family, pixels, tokens), features(theirs, family, pixels, tokens))


def _other_gelu(model: Clip) -> None:
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "none" if module.approximate == "tanh" else "tanh"


def _other_eps(model: Clip) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5 if module.eps == 1e-6 else 1e-6


def _other_pool(model: Clip) -> None:
    model.image.pool = {"cls": "gap", "gap": "gap-norm", "gap-norm": "gap-all"}[model.image.pool]
    model.text.pool = "last" if model.text.pool == "eot" else "eot"


def _other_mask(model: Clip) -> None:
    for block in model.text.blocks:
        block.causal = not block.causal


SWAPS = {"gelu": (_other_gelu, 2), "eps": (_other_eps, 2), "pooling": (_other_pool, 2), "mask": (_other_mask, 1)}
CASES = [
    ("B/16", "v1", "cls"),
    ("B/16", "v1", "gap"),
    ("B/16", "v1", "gap-norm"),
    ("L/14", "v2-open_clip", "gap-norm"),
    ("H/14", "v2-open_clip", "gap-norm"),
    ("bigG/14", "v2-open_clip", "gap-norm"),
    ("L/14", "v2", "gap-norm"),
]


@pytest.mark.parametrize(("size", "family", "pool"), CASES)
def test_features_are_open_clips_and_a_wrong_trait_is_seen(size: str, family: str, pool: str) -> None:
    model = ours_of(size, family, pool)
    pixels = 4 * model.image.patch
    ours = loud(built(model, pixels, 12))
    theirs = theirs_of(size, family, pool, pixels, 12)
    theirs.load_state_dict(to_open_clip(model, ours.state_dict()))
    expected = features(theirs, family, pixels, 12)
    assert max(apart(features(ours, family, pixels, 12), expected)) < TOLERANCE
    for name, (swap, towers) in SWAPS.items():
        swap(ours)
        wrong = apart(features(ours, family, pixels, 12), expected)
        assert min(wrong[2 - towers :]) > 30 * TOLERANCE, f"another {name} passes: {wrong}"
        if name == "pooling":
            ours.image.pool, ours.text.pool = pool, model.traits.text_pool
        else:
            swap(ours)


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_shapes_are_open_clips(size: str) -> None:
    config, preset = get_model_config(PUBLISHED[size]), PRESETS[size]
    vision, text = config["vision_cfg"], config["text_cfg"]
    heads = vision["width"] // vision.get("head_width", 64)
    assert (vision["width"], vision["layers"], heads) == (preset.image.width, preset.image.layers, preset.image.heads)
    assert int(vision["width"] * vision.get("mlp_ratio", 4.0)) == preset.image.mlp
    assert (text["width"], text["layers"], text["heads"]) == (preset.text.width, preset.text.layers, preset.text.heads)
    assert config["embed_dim"] == preset.embed_dim
    assert text["vocab_size"] == VOCABULARY["clip-bpe" if size == "B/16" else "bert-wordpiece"]


RESIZED = [("B/16", "v1", "cls"), ("L/14", "v2-open_clip", "gap-norm")]


@pytest.mark.parametrize(("size", "family", "pool"), RESIZED)
@pytest.mark.parametrize(("before", "after"), [((3, 8), (5, 16)), ((6, 16), (4, 6))])
def test_weights_of_another_size_give_open_clips_features(
    size: str, family: str, pool: str, before: tuple[int, int], after: tuple[int, int]
) -> None:
    model = ours_of(size, family, pool)
    patch = model.image.patch
    stored = loud(built(model, before[0] * patch, before[1])).state_dict()
    ours = built(model, after[0] * patch, after[1])
    ours.load(stored)
    theirs = theirs_of(size, family, pool, after[0] * patch, after[1])
    state = to_open_clip(model, stored)
    resize_pos_embed(state, theirs)
    resize_text_pos_embed(state, theirs)
    theirs.load_state_dict(state)
    assert max(distance(ours, theirs, family, after[0] * patch, after[1])) < TOLERANCE


def published_sincos(grid: int, width: int) -> torch.Tensor:
    """big_vision's posemb_sincos_2d with a class token's row of zeros, from its formula: sin x, cos x, sin y, cos y."""
    y, x = (axis.flatten().double() for axis in torch.meshgrid(*2 * [torch.arange(grid)], indexing="ij"))
    omega = 1.0 / 10_000.0 ** (torch.arange(width // 4).double() / (width // 4 - 1))
    y, x = y[:, None] * omega, x[:, None] * omega
    table = torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)
    return torch.cat([torch.zeros(1, width), table.float()])


def triangle(table: torch.Tensor, tokens: int) -> torch.Tensor:
    """jax.image.resize(..., "bilinear") along the first axis, from its definition: a triangle as wide as the step."""
    step = table.shape[0] / tokens
    centre = (torch.arange(tokens) + 0.5) * step - 0.5
    weights = (1 - (centre[:, None] - torch.arange(table.shape[0])).abs() / max(step, 1.0)).clamp(min=0)
    return (weights / weights.sum(dim=1, keepdim=True)) @ table


@pytest.mark.parametrize("positions", ["sincos2d", "learnable"])
@pytest.mark.parametrize(("before", "after"), [((3, 8), (5, 16)), ((6, 16), (4, 6))])
def test_v2_recomputes_its_positions(positions: str, before: tuple[int, int], after: tuple[int, int]) -> None:
    model = ours_of("L/14", "v2", "gap-norm")
    pre = loud(built(model, before[0] * 14, before[1], "sincos2d"))
    table = published_sincos(before[0], 1024)
    with torch.no_grad():
        pre.image.trunk.pos_embed.copy_(table[None])  # loud() changes fixed tables too
    torch.testing.assert_close(sincos2d(before[0], 1024, "moco"), table, rtol=0, atol=1e-6)
    ours = built(model, after[0] * 14, after[1], positions)
    ours.load(pre.state_dict())
    theirs = theirs_of("L/14", "v2", "gap-norm", after[0] * 14, after[1])
    state = to_open_clip(model, pre.state_dict())
    state["visual.positional_embedding"] = published_sincos(after[0], 1024)
    state["positional_embedding"] = triangle(state["positional_embedding"], after[1])
    theirs.load_state_dict(state)
    assert max(distance(ours, theirs, "v2", after[0] * 14, after[1])) < TOLERANCE
    images, _ = images_and_tokens("v2", after[0] * 14, after[1])
    with torch.no_grad():  # an evaluation at another size than the tower's obeys the same rule
        there = pre.encode_image(images)
        torch.testing.assert_close(there, theirs.encode_image(images, normalize=True), rtol=0, atol=TOLERANCE)


def test_v1_interpolates_a_fixed_table_and_v2_a_trained_one() -> None:
    for family, pool, start in (("v1", "cls", "sincos2d"), ("v2", "gap-norm", "learnable")):
        tower = ImageTower(patch=14, width=64, layers=1, heads=2, pool=pool)
        before, after = (ImageEncoder(tower, grid * 14, 8, start, FAMILIES[family]) for grid in (3, 5))
        state = {"visual.positional_embedding": before.trunk.pos_embed[0].detach()}
        resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(5, 5))))
        fitted = after.fitted(before.trunk.pos_embed.detach())
        torch.testing.assert_close(fitted[0], state["visual.positional_embedding"])


@torch.no_grad()
def test_gap_all_averages_the_class_token_too() -> None:
    model = ours_of("B/16", "v1", "gap-all")
    ours = loud(built(model, 64, 12))
    theirs = theirs_of("B/16", "v1", "cls", 64, 12)
    theirs.load_state_dict(to_open_clip(model, ours.state_dict()))
    images, _ = images_and_tokens("v1", 64, 12)
    visual = theirs.visual
    pooled = visual.ln_post(visual.transformer(visual._embeds(images)).mean(dim=1)) @ visual.proj
    expected = nn.functional.normalize(pooled, dim=-1)
    torch.testing.assert_close(ours.encode_image(images), expected, rtol=0, atol=TOLERANCE)
    ours.image.pool = "gap-norm"
    assert (ours.encode_image(images) - expected).abs().max() > 30 * TOLERANCE


@pytest.mark.parametrize("family", ["v1", "v2", "v2-open_clip"])
def test_names_are_all_of_both_models_and_come_back(family: str) -> None:
    size, pool = ("B/16", "cls") if family == "v1" else ("L/14", "gap-norm")
    model = ours_of(size, family, pool)
    weights = loud(built(model, 4 * model.image.patch, 12)).state_dict()
    table = names(model)
    assert set(table) == set(weights)
    assert set(table.values()) == set(theirs_of(size, family, pool, 4 * model.image.patch, 12).state_dict())
    back = from_open_clip(model, to_open_clip(model, weights))
    assert all(torch.equal(back[name], weight) and back[name].shape == weight.shape for name, weight in weights.items())


def test_patches_have_no_bias_and_v2_no_norm_before_the_blocks() -> None:
    for family, pool in (("v1", "cls"), ("v2", "gap-norm"), ("v2-open_clip", "gap-norm")):
        trunk = built(ours_of("L/14", family, pool), 28, 8).image.trunk
        assert trunk.patch_embed.proj.bias is None
        assert isinstance(trunk.norm_pre, nn.LayerNorm) == (family == "v1")

"""The two model families that go by the name of CLIPA, and what belongs to each. They are never mixed.

`v1`            CLIPA's torch code and OpenCLIP: byte-pair tokens, causal text, LayerNorm before the blocks, exact GELU.
`v2`            CLIPA-v2 as published (JAX, big_vision): WordPiece, no mask, no LayerNorm before the blocks, tanh GELU.
`v2-open_clip`  the same weights as open_clip's `ViT-*-CLIPA` configs compute them: exact GELU, epsilon 1e-5, bicubic
                positions.

Sources: UCSC-VLAA/CLIPA (clipa_torch/open_clip, clipa_jax/models/{vit,text_transformer,two_towers}.py), open_clip's
model_configs/ViT-{L,H,bigG}-14-CLIPA.json. CLIPA's torch code averages the patches before the last LayerNorm in its
first releases (`gap-norm`) and patches and class token in its last one (`gap-all`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

FamilyName: TypeAlias = Literal["v1", "v2", "v2-open_clip"]
TokenizerName: TypeAlias = Literal["clip-bpe", "bert-wordpiece", "bert-wordpiece-sep"]
InitName: TypeAlias = Literal["open_clip", "jax", "jax-t5x"]
Pool: TypeAlias = Literal["cls", "gap", "gap-norm", "gap-all"]
Augment: TypeAlias = Literal["torchvision", "tensorflow"]
Interpolation: TypeAlias = Literal["bicubic", "bilinear"]
Rgb: TypeAlias = tuple[float, float, float]

OPENAI_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """What a family fixes.

    Attributes:
        tokenizer: of captions and prompts. `bert-wordpiece-sep` keeps the last place of [SEP], which is blanked, as
            open_clip's HFTokenizer with `strip_sep_token` does; `bert-wordpiece` has no such place.
        vocabulary: rows of the token embedding (v2 has 32,000 for 30,522 entries, as published).
        causal: whether a text token sees only those before it.
        text_pool: `eot`: at the end-of-text token; `last`: at the last position, whatever stands there.
        norm_pre: LayerNorm between position embedding and blocks of the image tower.
        activation: exact or tanh-approximated GELU, in both towers.
        eps: epsilon of every LayerNorm.
        pools: how the image tower may be pooled; the first is the default.
        sincos: frequencies 10000^(-i/(w/4)) (`mae`) or 10000^(-i/(w/4-1)) (`moco`) of the fixed positions.
        new_grid: what fixed image positions become at another image size: `resized` (antialiased bicubic, as any
            other table) or `recomputed` from the formula.
        new_length: how text positions are resized: `linear` (open_clip, CLIPA's torch code) or `antialias` (the
            triangle filter of jax.image.resize, which differs when a text becomes shorter).
        init: of random weights, see clipa.model.random_start.
        warmup_offset: the rate of step i of the warm-up is (i + offset) / steps of the peak: 1, or 0 in JAX.
        interpolation: of images, in training and evaluation.
        augment: whose crops and color jitter, see clipa.data.crop and clipa.data.augment.
        crop_ratio: aspect ratios of a crop, width over height.
        mean, std: of the pixels, in [0, 1].
        max_scale: the largest factor of the similarities (exp of the logit scale); None: no limit.
    """

    tokenizer: TokenizerName
    vocabulary: int
    causal: bool
    text_pool: Literal["eot", "last"]
    norm_pre: bool
    activation: Literal["gelu", "gelu-tanh"]
    eps: float
    pools: tuple[Pool, ...]
    sincos: Literal["mae", "moco"]
    new_grid: Literal["resized", "recomputed"]
    new_length: Literal["linear", "antialias"]
    init: InitName
    warmup_offset: Literal[0, 1]
    interpolation: Interpolation
    augment: Augment
    crop_ratio: tuple[float, float]
    mean: Rgb
    std: Rgb
    max_scale: float | None


_V1 = Family(
    tokenizer="clip-bpe",
    vocabulary=49_408,
    causal=True,
    text_pool="eot",
    norm_pre=True,
    activation="gelu",
    eps=1e-5,
    pools=("cls", "gap", "gap-all", "gap-norm"),
    sincos="mae",
    new_grid="resized",
    new_length="linear",
    init="open_clip",
    warmup_offset=1,
    interpolation="bicubic",
    augment="torchvision",
    crop_ratio=(3 / 4, 4 / 3),
    mean=OPENAI_MEAN,
    std=OPENAI_STD,
    max_scale=100.0,
)
_V2 = Family(
    tokenizer="bert-wordpiece",
    vocabulary=32_000,
    causal=False,
    text_pool="last",
    norm_pre=False,
    activation="gelu-tanh",
    eps=1e-6,
    pools=("gap-norm", "cls"),
    sincos="moco",
    new_grid="recomputed",
    new_length="antialias",
    init="jax",
    warmup_offset=0,
    interpolation="bilinear",
    augment="tensorflow",
    crop_ratio=(0.75, 1.33),
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    max_scale=None,
)
FAMILIES: dict[FamilyName, Family] = {
    "v1": _V1,
    "v2": _V2,
    "v2-open_clip": msgspec.structs.replace(
        _V2,
        tokenizer="bert-wordpiece-sep",
        activation="gelu",
        eps=1e-5,
        new_grid="resized",
        new_length="linear",
        init="open_clip",
        warmup_offset=1,
        augment="torchvision",
        crop_ratio=(3 / 4, 4 / 3),
        max_scale=100.0,
    ),
}
VOCABULARY: dict[TokenizerName, int] = {family.tokenizer: family.vocabulary for family in FAMILIES.values()}
"""Rows of the token embedding of each tokenizer."""


class Size(msgspec.Struct, frozen=True):
    """Width, layers, heads and hidden width of a tower's feed-forward part, in channels."""

    width: int
    layers: int
    heads: int
    mlp: int


class Preset(msgspec.Struct, frozen=True):
    """A published model size: patch in pixels, width of the common space, and the two towers."""

    patch: int
    embed_dim: int
    image: Size
    text: Size


_S, _B, _L, _H, _G = (
    Size(384, 12, 6, 1536),
    Size(768, 12, 12, 3072),
    Size(1024, 24, 16, 4096),
    Size(1280, 32, 16, 5120),
    Size(1664, 48, 16, 8192),
)
_B_TEXT, _L_TEXT, _H_TEXT, _G_TEXT = (
    Size(512, 12, 8, 2048),
    Size(768, 12, 12, 3072),
    Size(1024, 24, 16, 4096),
    Size(1280, 32, 20, 5120),
)
PRESETS: dict[str, Preset] = {
    "S/16": Preset(16, 384, _S, _S),
    "B/16": Preset(16, 512, _B, _B_TEXT),
    "L/16": Preset(16, 768, _L, _L_TEXT),
    "L/14": Preset(14, 768, _L, _L_TEXT),
    "H/14": Preset(14, 1024, _H, _H_TEXT),
    "bigG/14": Preset(14, 1280, _G, _G_TEXT),
}

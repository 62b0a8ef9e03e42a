"""open_clip's model configuration as a model of ours, and back; what either cannot express is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from clipa.errors import ConfigError
from clipa.spec.card import Card
from clipa.spec.family import FAMILIES, Family, FamilyName, Pool, Rgb
from clipa.spec.model import ImageTower, Model, TextTower

NAME = "open_clip_config.json"
BERT = "bert-base-uncased"
_RESIZE: dict[FamilyName, str] = {"v1": "shortest", "v2": "squash", "v2-open_clip": "squash"}
"""How published models of the family see an image at evaluation (open_clip's pretrained.py)."""

_HARMLESS = {
    "patch_dropout", "output_tokens", "custom_text", "init_logit_scale", "nonscalar_logit_scale", "pad_id", "eos_id",
    "attn_pooler_queries", "attn_pooler_heads", "timm_pool", "timm_proj", "timm_model_pretrained",
    "hf_model_pretrained", "reduction_mask",
}  # fmt: skip
"""Keys that change nothing of what the weights compute, or that mean something beside a key that is refused only."""


_Layers = Annotated[int, msgspec.Meta(ge=1, le=1_000)]
_Size = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
_Length = Annotated[int, msgspec.Meta(ge=1, le=65_536)]
_Vocabulary = Annotated[int, msgspec.Meta(ge=1, le=4_000_000)]


class _Activation(msgspec.Struct, frozen=True, omit_defaults=True):
    approximate: Literal["none", "tanh"] = "none"


class _Norm(msgspec.Struct, frozen=True):
    eps: float = 1e-5


class Vision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The keys of `vision_cfg` that our image tower knows, with open_clip's defaults."""

    layers: _Layers = 12
    width: _Size = 768
    head_width: _Size = 64
    mlp_ratio: float = 4.0
    patch_size: _Size = 16
    image_size: _Size = 224
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    final_ln_after_pool: bool = False
    pool_type: str = "tok"
    act_kwargs: _Activation | None = None
    norm_kwargs: _Norm | None = None


class _TokenizerKeys(msgspec.Struct, frozen=True, omit_defaults=True):
    strip_sep_token: bool = False


class Text(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The keys of `text_cfg` that our text tower knows, with open_clip's defaults."""

    context_length: _Length = 77
    vocab_size: _Vocabulary = 49_408
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: _TokenizerKeys | None = None
    width: _Size = 512
    heads: _Size = 8
    layers: _Layers = 12
    mlp_ratio: float = 4.0
    no_causal_mask: bool = False
    pool_type: str = "argmax"
    proj_type: str = "linear"
    act_kwargs: _Activation | None = None
    norm_kwargs: _Norm | None = None


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`model_cfg`. A logit bias means that the weights were trained with the sigmoid loss."""

    embed_dim: _Size
    vision_cfg: Vision
    text_cfg: Text
    init_logit_bias: float | None = None


class Preprocess(msgspec.Struct, frozen=True, kw_only=True):
    """`preprocess_cfg`: how images enter."""

    size: int | tuple[int, int] = 224
    mode: str = "RGB"
    mean: Rgb = FAMILIES["v1"].mean
    std: Rgb = FAMILIES["v1"].std
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """`open_clip_config.json`."""

    model_cfg: ModelConfig
    preprocess_cfg: Preprocess | None = None


def decode(raw: bytes, where: str) -> Config:
    """A configuration from JSON: of a folder, or one of open_clip's own `model_configs/*.json`.

    Raises:
        ConfigError: not one, or it asks for something that no family of ours computes.
    """
    try:
        table = msgspec.json.decode(raw, type=dict[str, Any])
        table = table if "model_cfg" in table else {"model_cfg": table}
        _refuse_unknown(table["model_cfg"], ModelConfig, where, "")
        return msgspec.convert(table, Config)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"this is no configuration of open_clip that clipa can use: {error}", where=where) from error


def _refuse_unknown(table: Any, to: Any, where: str, path: str) -> None:
    """A key that is set and that our towers don't know would be computed wrongly in silence."""
    if not isinstance(table, dict):
        return
    known = {field.name: field.type for field in msgspec.structs.fields(to)}
    for key, value in table.items():
        name = f"{path}{key}"
        kind = next((k for k in _STRUCTS if key in known and k in _parts(known[key])), None)
        if kind is not None:
            _refuse_unknown(value, kind, where, f"{name}.")
        elif key not in known and key not in _HARMLESS and value:
            raise ConfigError(
                f"{key} is {value!r}: no family of clipa computes that", where=f"{where}: {name}",
                allowed=f"plain vision and text transformers: families {', '.join(FAMILIES)}",
            )  # fmt: skip


_STRUCTS = (Vision, Text, _Activation, _Norm, _TokenizerKeys)


def _parts(kind: Any) -> tuple[Any, ...]:
    return getattr(kind, "__args__", (kind,))


def model_of(config: ModelConfig, where: str) -> Model:
    """The model of ours that computes the same.

    Raises:
        ConfigError: no family computes it; the message names the traits in the way.
    """
    vision, text = config.vision_cfg, config.text_cfg
    family = _family_of(config, where)
    pools: dict[tuple[str, bool], Pool] = {
        ("tok", False): "cls", ("tok", True): "cls", ("avg", False): "gap", ("avg", True): "gap-norm",
    }  # fmt: skip
    pool = pools.get((vision.pool_type, vision.final_ln_after_pool))
    if pool is None or vision.width % vision.head_width:
        raise ConfigError(
            f"pool_type {vision.pool_type!r} with head_width {vision.head_width} is not known", where=where,
            allowed="pool_type tok or avg; a head_width that divides the width",
        )  # fmt: skip
    try:
        return Model(
            family=family,
            embed_dim=config.embed_dim,
            image=ImageTower(
                patch=vision.patch_size, width=vision.width, layers=vision.layers, mlp_ratio=vision.mlp_ratio,
                heads=vision.width // vision.head_width, pool=pool,
            ),
            text=TextTower(
                width=text.width, layers=text.layers, heads=text.heads, mlp_ratio=text.mlp_ratio,
                tokenizer=FAMILIES[family].tokenizer,
            ),
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"clipa has no such model: {error}", where=where) from error


def _family_of(config: ModelConfig, where: str) -> FamilyName:
    vision, text = config.vision_cfg, config.text_cfg
    tanh = [c.act_kwargs is not None and c.act_kwargs.approximate == "tanh" for c in (vision, text)]
    eps = [c.norm_kwargs.eps if c.norm_kwargs else 1e-5 for c in (vision, text)]
    stripped = text.tokenizer_kwargs is not None and text.tokenizer_kwargs.strip_sep_token
    found = {
        "vision.activation": "gelu-tanh" if tanh[0] else "gelu",
        "text.activation": "gelu-tanh" if tanh[1] else "gelu",
        "vision.eps": eps[0],
        "text.eps": eps[1],
        "vision.norm_pre": not vision.no_ln_pre,
        "text.causal": not text.no_causal_mask,
        "text.text_pool": {"argmax": "eot", "last": "last"}.get(text.pool_type, text.pool_type),
        "text.vocabulary": text.vocab_size,
        "text.proj_type": text.proj_type,
        "text.tokenizer": "bert" if text.hf_tokenizer_name and stripped else text.hf_tokenizer_name or "clip",
    }
    wrong = {name: _differences(found, family) for name, family in FAMILIES.items()}
    nearest = min(wrong, key=lambda name: len(wrong[name]))
    if wrong[nearest]:
        raise ConfigError(
            f"no family of clipa computes this model; {nearest} is the nearest, but " + "; ".join(wrong[nearest]),
            where=where,
        )
    return nearest


def _differences(found: Mapping[str, object], family: Family) -> list[str]:
    """What differs from a family, in words."""
    given = {"proj_type": "linear", "tokenizer": family.tokenizer.partition("-")[0]}
    own = {trait: given.get(trait) or getattr(family, trait) for trait in (key.partition(".")[2] for key in found)}
    pairs = ((key, value, own[key.partition(".")[2]]) for key, value in found.items())
    return [f"{key} is {value!r}, not {other!r}" for key, value, other in pairs if value != other]


def config_of(card: Card) -> Config:
    """The configuration with which open_clip computes what the card's model computes, at the card's sizes.

    Raises:
        ConfigError: open_clip cannot express the model.
    """
    model, family = card.model, card.model.traits
    image, text = model.image, model.text
    if image.pool == "gap-all":
        raise ConfigError(
            "open_clip cannot compute this model: it averages the patches alone, gap-all the class token too",
            where="image.pool", allowed="cls, gap, gap-norm",
        )  # fmt: skip
    act = _Activation("tanh") if family.activation == "gelu-tanh" else None
    norm = _Norm(family.eps) if family.eps != 1e-5 else None
    is_bert = family.tokenizer != "clip-bpe"
    return Config(
        model_cfg=ModelConfig(
            embed_dim=model.embed_dim,
            vision_cfg=Vision(
                image_size=card.image_size, layers=image.layers, width=image.width, patch_size=image.patch,
                head_width=image.width // image.heads, mlp_ratio=image.mlp_ratio, no_ln_pre=not family.norm_pre,
                pool_type="tok" if image.pool == "cls" else "avg", final_ln_after_pool=image.pool == "gap-norm",
                pos_embed_type="sin_cos_2d" if card.positions == "sincos2d" else "learnable",
                act_kwargs=act, norm_kwargs=norm,
            ),
            text_cfg=Text(
                context_length=card.text_tokens, vocab_size=family.vocabulary, width=text.width, heads=text.heads,
                layers=text.layers, mlp_ratio=text.mlp_ratio, no_causal_mask=not family.causal,
                pool_type="argmax" if family.text_pool == "eot" else "last",
                hf_tokenizer_name=BERT if is_bert else None,
                tokenizer_kwargs=_TokenizerKeys(strip_sep_token=True) if is_bert else None,
                act_kwargs=act, norm_kwargs=norm,
            ),
            init_logit_bias=-10.0 if card.loss == "sigmoid" else None,
        ),
        preprocess_cfg=Preprocess(
            size=card.image_size, mean=card.mean, std=card.std, interpolation=family.interpolation,
            resize_mode=_RESIZE[model.family],
        ),
    )  # fmt: skip

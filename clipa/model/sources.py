"""Where weights come from: a checkpoint or run of ours, open_clip's folders and files, CLIPA's JAX `.npz`.

Nothing foreign is unpickled: safetensors, arrays of numpy without pickles, and torch files by `weights_only`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch

from clipa.attempt.weights import found_at, read_tensors, read_torch
from clipa.data.open_clip_file import package_file
from clipa.errors import ConfigError, MissingPart, TrainError
from clipa.model import jax_names, open_clip_config
from clipa.model.clip import Clip
from clipa.model.open_clip_names import from_open_clip, names
from clipa.registry.run_dir import RunDir
from clipa.spec.card import COMPLETE_NAME, WEIGHTS_NAME, Card
from clipa.spec.family import FAMILIES, FamilyName, Pool
from clipa.spec.model import Model

TORCH = (".bin", ".pt", ".pth")
_IN_FOLDER = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
"""The order in which open_clip looks for weights in a folder (factory._find_checkpoint_in_dir)."""


_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""Prefixes that DDP, torch.compile and training frameworks put before a weight's name, in any combination."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asks for beside the source: 0 and "" leave it to the source."""

    model: str = ""
    family: FamilyName | None = None
    pool: Pool | None = None
    image_size: int = 0
    text_tokens: int = 0


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A card, the float32 weights that belong to it, what they came from, and what a person should know."""

    card: Card
    weights: Mapping[str, torch.Tensor]
    kind: str
    notes: tuple[str, ...] = ()


def read(path: Path, wishes: Wishes) -> Source:
    """Weights from wherever they are, at the wished sizes: positions are resized by the family's rule.

    Raises:
        ConfigError: not a source, a model that no family computes, or a wish that the source cannot meet.
    """
    if (path / COMPLETE_NAME).is_file() or RunDir(path).plan.is_file():
        return _settled(_from_checkpoint(path), wishes)
    if (path / open_clip_config.NAME).is_file():
        return _settled(_from_open_clip(_weights_in(path), path / open_clip_config.NAME), wishes)
    if path.suffix == ".npz" and path.is_file():
        return _settled(_from_jax(path, wishes), wishes)
    if path.suffix in (".safetensors", *TORCH) and path.is_file():
        return _settled(_from_open_clip(path, _config_for(path, wishes.model)), wishes)
    raise ConfigError(
        "no weights that clipa can read" if path.exists() else "no such file or folder", where=str(path),
        allowed=f"a checkpoint or run of clipa, a folder with {open_clip_config.NAME}, a .safetensors, .bin, .pt or "
        ".pth file of open_clip, or an .npz of CLIPA's JAX code",
    )  # fmt: skip


def _from_checkpoint(path: Path) -> Source:
    try:
        found = found_at(path)
        return Source(card=found.card, weights=read_tensors(found.path / WEIGHTS_NAME), kind="clipa")
    except TrainError as error:
        raise ConfigError(error.what, where=error.where, hint=error.hint) from error


def _weights_in(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError("the folder has a configuration but no weights", where=str(folder), allowed=", ".join(_IN_FOLDER))


def _config_for(path: Path, model: str) -> Path:
    """The configuration of a file of weights: `--model`, else what lies beside it."""
    beside = path.parent / open_clip_config.NAME
    if not model:
        if beside.is_file():
            return beside
        raise ConfigError(
            "weights alone don't say of which model they are", where=str(path),
            hint="name open_clip's configuration: --model ViT-B-16, --model ViT-L-14-CLIPA, or a .json file",
        )  # fmt: skip
    if model.endswith(".json"):
        return Path(model)
    try:
        return package_file("open_clip", f"model_configs/{model}.json")
    except MissingPart as error:
        raise ConfigError(
            f"open_clip has no model {model!r}", where="--model",
            allowed="a name of open_clip.list_models(), or a .json file",
        ) from error  # fmt: skip


def _from_open_clip(path: Path, config_path: Path) -> Source:
    try:
        config = open_clip_config.decode(config_path.read_bytes(), str(config_path))
    except OSError as error:
        raise ConfigError(f"the configuration cannot be read: {error}", where=str(config_path)) from error
    model = open_clip_config.model_of(config.model_cfg, str(config_path))
    try:
        state = read_torch(path) if path.suffix in TORCH else read_tensors(path)
    except TrainError as error:
        raise ConfigError(error.what, where=error.where, hint=error.hint) from error
    state = {_plain(name): weight for name, weight in state.items()}
    state.pop("attn_mask", None)
    _require_names(model, state, path)
    seen = config.preprocess_cfg or open_clip_config.Preprocess(mean=model.traits.mean, std=model.traits.std)
    notes = [f"the folder's {config_path.name} has no preprocess_cfg: the family's mean and std are taken"]
    notes = [] if config.preprocess_cfg else notes
    if config.preprocess_cfg and seen.interpolation not in (model.traits.interpolation, "random"):
        notes.append(
            f"trained with {seen.interpolation} images; family {model.family} has {model.traits.interpolation}"
        )
    if config.preprocess_cfg and seen.resize_mode != "shortest":
        way = 'evaluate with resize = "squash"' if seen.resize_mode == "squash" else "clipa has no such resize"
        mode = seen.resize_mode
        notes.append(f"open_clip resizes images of these weights by {mode}, which the card does not keep: {way}")
    card = Card(
        model=model,
        image_size=config.model_cfg.vision_cfg.image_size,
        text_tokens=config.model_cfg.text_cfg.context_length,
        positions="sincos2d" if config.model_cfg.vision_cfg.pos_embed_type == "sin_cos_2d" else "learnable",
        mean=seen.mean,
        std=seen.std,
        loss="sigmoid" if "logit_bias" in state else "softmax",
        origin=path.name,
    )
    notes += _contradictions(card, state)
    return Source(card=card, weights=from_open_clip(model, state), kind="open_clip", notes=tuple(notes))


def _contradictions(card: Card, state: Mapping[str, torch.Tensor]) -> list[str]:
    """Return a note for each table of positions whose length is not the configuration's: it is resized on reading."""
    patches = (card.image_size // card.model.image.patch) ** 2 + 1
    lengths = (("positional_embedding", "context_length", card.text_tokens),
               ("visual.positional_embedding", "image_size", patches))  # fmt: skip
    return [
        f"{name} has {len(state[name])} positions, the configuration's {key} means {length}: they are resized, "
        "and features change; correct the configuration if it is wrong"
        for name, key, length in lengths
        if state[name].ndim and len(state[name]) != length  # a single number is refused by its shape, later
    ]


def _plain(name: str) -> str:
    """Return a weight's name in open_clip's CLIP, without the prefixes of wrappers and of CustomTextCLIP."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name.removeprefix("text.")


def _require_names(model: Model, state: Mapping[str, torch.Tensor], path: Path) -> None:
    wanted = set(names(model).values())
    if any(name.startswith(("text_model.", "vision_model.")) for name in state):
        raise ConfigError(
            "these weights have the names of transformers' CLIPModel, which clipa does not read", where=str(path),
            allowed="weights with the names of open_clip's CLIP",
            hint="most models are published for open_clip too: take its open_clip_model.safetensors",
        )  # fmt: skip
    odd = sorted(wanted - set(state)), sorted(set(state) - wanted - {"logit_bias"})
    for what, some in zip(("are missing", "have no place in the model"), odd, strict=True):
        if some:
            raise ConfigError(
                f"{len(some)} weights {what}, the first is {some[0]}", where=str(path),
                hint="is this the configuration of these weights?",
            )  # fmt: skip


def _from_jax(path: Path, wishes: Wishes) -> Source:
    arrays = jax_names.Arrays(path)
    family = wishes.family or "v2"
    model = jax_names.model_of(arrays, family, wishes.pool or "gap-norm")
    size = jax_names.grid_of(arrays) * model.image.patch or wishes.image_size
    stored = "img/pos_embedding" in arrays
    if not size or size % model.image.patch:
        what = f"image size {size} is not divisible by the patch {model.image.patch}"
        raise ConfigError(
            what if size else "the file has fixed positions, so it doesn't say for which image size",
            where=str(path), hint=f"give the size it was trained at, such as --image-size {16 * model.image.patch}",
        )  # fmt: skip
    text_tokens = jax_names.text_tokens_of(arrays)
    card = Card(
        model=model,
        image_size=size,
        text_tokens=text_tokens,
        positions="learnable" if stored else "sincos2d",
        mean=model.traits.mean,
        std=model.traits.std,
        origin=path.name,
    )
    weights = jax_names.weights_of(arrays, model, size // model.image.patch)
    notes = () if wishes.pool else ("how the image tower pools is not stored: gap-norm is taken (else: --pool cls)",)
    return Source(card=card, weights=weights, kind="jax", notes=notes)


def _settled(source: Source, wishes: Wishes) -> Source:
    """The source in the wished family and sizes, every weight in float32 and of the right shape."""
    card, notes = source.card, list(source.notes)
    if wishes.pool and wishes.pool != card.model.image.pool:
        raise ConfigError(
            f"the weights pool by {card.model.image.pool}, not {wishes.pool}", where="--pool",
            hint="--pool is for .npz files, which do not say",
        )  # fmt: skip
    model = _in_family(card.model, wishes.family, notes)
    size, tokens = wishes.image_size or card.image_size, wishes.text_tokens or card.text_tokens
    _require_sizes(size, tokens, model.image.patch)
    if (size, tokens) != (card.image_size, card.text_tokens):
        notes.append(
            f"positions are those of {size} px and {tokens} tokens, from {card.image_size} px and {card.text_tokens}"
        )
    card = msgspec.structs.replace(card, model=model, image_size=size, text_tokens=tokens)
    with torch.device("meta"):  # shapes alone: bigG's random start would take minutes and 10 GB
        clip = Clip(model, size, tokens, card.positions, card.loss)
    try:
        fitted = clip.fitted({name: weight.float() for name, weight in source.weights.items()})
    except TrainError as error:
        hint = "take another checkpoint" if "NaN" in error.what else "is this the model of these weights?"
        raise ConfigError(error.what, where=card.origin or card.run, hint=hint) from error
    return msgspec.structs.replace(source, card=card, weights=fitted, notes=tuple(notes))


def _require_sizes(size: int, tokens: int, patch: int) -> None:
    if size % patch or not 0 < size <= 4096:
        raise ConfigError(
            f"image size {size} is not divisible by the patch {patch}, or not in 1..4096", where="--image-size",
            allowed=f"a multiple of {patch}",
        )  # fmt: skip
    if not 3 <= tokens <= 1024:
        raise ConfigError(f"{tokens} text tokens", where="--text-tokens", allowed="3..1024")


def _in_family(model: Model, family: FamilyName | None, notes: list[str]) -> Model:
    """The same weights computed by another family, where its towers have the same weights: v2 and v2-open_clip."""
    if family is None or family == model.family:
        return model
    own, other = model.traits, FAMILIES[family]
    if (own.norm_pre, own.vocabulary) != (other.norm_pre, other.vocabulary):
        raise ConfigError(
            f"families are not mixed: the weights are of {model.family}, not {family}", where="--family",
            allowed=model.family if model.family == "v1" else "v2, v2-open_clip",
        )  # fmt: skip
    traits = [
        field
        for field in ("activation", "eps", "tokenizer", "new_grid")
        if getattr(own, field) != getattr(other, field)
    ]
    changes = ", ".join(f"{field} {getattr(own, field)} -> {getattr(other, field)}" for field in traits)
    notes.append(f"computed as {family} instead of {model.family}, so features change slightly: {changes}")
    text = msgspec.structs.replace(model.text, tokenizer=other.tokenizer)
    return msgspec.structs.replace(model, family=family, text=text)

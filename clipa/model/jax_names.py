"""The weights of CLIPA's JAX code (`.npz`, big_vision's layout) as ours.

Layout: clipa_jax/models/{vit,text_transformer,two_towers}.py. Kernels are [in, out], those of attention [in, heads,
head width] and back, convolutions [height, width, in, out]. big_vision itself keeps the last LayerNorm inside
`Transformer` or `Encoder_0`: that is read too.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from clipa.errors import ConfigError
from clipa.model.posembed import sincos2d
from clipa.spec.family import FAMILIES, FamilyName, Pool
from clipa.spec.model import ImageTower, Model, TextTower

_BRAIN_FLOAT = np.dtype("V2")
"""What numpy makes of a stored bfloat16: two bytes without a meaning."""

_PREFIXES = ("params/", "opt/target/", "")
_ENCODERS = {"img": ("Transformer/",), "txt": ("Transformer/", "Encoder_0/")}


_MOST_EXPANDED = 1_100
"""Bytes that deflate can make of one byte are at most 1,032, so more is a lie."""


class Arrays:
    """The parameters of an `.npz`, by name without prefix, as float32 tensors."""

    def __init__(self, path: Path) -> None:
        """Nothing is unpickled.

        Raises:
            ConfigError: not such a file, or without the parameters of two towers.
        """
        self.where = str(path)
        try:
            opened = np.load(path, allow_pickle=False)
            if not isinstance(opened, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            self._file = opened
            keys = list(self._file)
        except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise ConfigError(f"this is no .npz of arrays: {error}", where=self.where) from error
        self._prefix = next((p for p in _PREFIXES if f"{p}img/embedding/kernel" in keys), None)
        if self._prefix is None:
            raise ConfigError(
                "these are not the parameters of two towers of CLIPA's JAX code: img/embedding/kernel is missing",
                where=self.where, allowed="img/..., txt/... and t, with the prefix params/, opt/target/ or none",
            )  # fmt: skip
        self.left = {key.removeprefix(self._prefix) for key in keys if key.startswith(self._prefix)}
        self.left = {key for key in self.left if key == "t" or key.startswith(("img/", "txt/"))}

    def __contains__(self, name: str) -> bool:
        return name in self.left

    def take(self, name: str) -> torch.Tensor:
        """A parameter, which then no longer counts as left over.

        Raises:
            ConfigError: it is missing, or no array of numbers.
        """
        self.left.discard(name)
        return self.peek(name)

    def _require_bytes(self, key: str) -> None:
        """Compare an array's header with the bytes behind it: numpy allocates what the header claims.

        Raises:
            ValueError: the header claims other bytes than the archive holds, or more than the file can be.
        """
        archive = self._file.zip
        assert archive is not None
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
        if math.prod(shape) * dtype.itemsize > info.file_size:
            raise ValueError(f"its header claims {list(shape)} {dtype}, the archive holds {info.file_size:,} bytes")
        if info.file_size > _MOST_EXPANDED * max(info.compress_size, 1):
            raise ValueError(f"{info.compress_size:,} bytes would expand to {info.file_size:,}")

    def peek(self, name: str) -> torch.Tensor:
        """A parameter that stays."""
        try:
            self._require_bytes(f"{self._prefix}{name}")
            array = self._file[f"{self._prefix}{name}"]
        except (KeyError, ValueError, OSError, EOFError, MemoryError, zlib.error, zipfile.BadZipFile) as error:
            raise ConfigError(f"the parameter {name} is missing or broken: {error}", where=self.where) from error
        if array.dtype == _BRAIN_FLOAT:
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).float()
        if array.dtype.kind not in "fiu":
            raise ConfigError(f"the parameter {name} is of type {array.dtype}", where=self.where)
        return torch.from_numpy(array.astype(np.float32))


def model_of(arrays: Arrays, family: FamilyName, pool: Pool) -> Model:
    """The model whose weights these are, from their shapes. How it pools is not stored.

    Raises:
        ConfigError: the shapes are not those of two towers.
    """
    image, text = _encoder(arrays, "img"), _encoder(arrays, "txt")
    sides = {}
    for tower, encoder in (("img", image), ("txt", text)):
        query = arrays.peek(f"{encoder}encoderblock_0/MultiHeadDotProductAttention_0/query/kernel")
        hidden = arrays.peek(f"{encoder}encoderblock_0/MlpBlock_0/Dense_0/kernel")
        sides[tower] = (query.shape[0], query.shape[1], hidden.shape[1])
    patch, embed_dim = arrays.peek("img/embedding/kernel").shape[0], arrays.peek("img/head/kernel").shape[1]
    words = arrays.peek("txt/Embed_0/embedding").shape[0]
    if words != FAMILIES[family].vocabulary:
        raise ConfigError(
            f"the token embedding has {words:,} rows, that of family {family} {FAMILIES[family].vocabulary:,}",
            where=arrays.where,
        )
    (width, heads, mlp), (text_width, text_heads, text_mlp) = sides["img"], sides["txt"]
    try:
        return Model(
            family=family,
            embed_dim=embed_dim,
            image=ImageTower(
                patch=patch, width=width, layers=_layers(arrays, image), heads=heads, mlp_ratio=_ratio(mlp, width),
                pool=pool,
            ),
            text=TextTower(
                width=text_width, layers=_layers(arrays, text), heads=text_heads,
                mlp_ratio=_ratio(text_mlp, text_width), tokenizer=FAMILIES[family].tokenizer,
            ),
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"clipa has no such model: {error}", where=arrays.where) from error


def _ratio(mlp: int, width: int) -> float:
    """A ratio that gives this hidden width: four digits, as open_clip's configs have, where they are enough."""
    short = round(mlp / width, 4)
    return short if int(width * short) == mlp else math.nextafter(mlp / width, math.inf)


def grid_of(arrays: Arrays) -> int:
    """Patches a side of the stored image positions; 0 where they were fixed, and so are not stored."""
    name = "img/pos_embedding"
    return math.isqrt(arrays.peek(name).shape[1] - 1) if name in arrays else 0


def text_tokens_of(arrays: Arrays) -> int:
    """Length of the stored text positions."""
    return arrays.peek("txt/pos_embedding").shape[1]


def weights_of(arrays: Arrays, model: Model, grid: int) -> dict[str, torch.Tensor]:
    """The parameters under our names, for images of grid x grid patches where positions are not stored.

    Raises:
        ConfigError: a parameter is missing, unknown, or not zero where our towers have none.
    """
    trunk = "image.trunk."
    found = {
        f"{trunk}cls_token": arrays.take("img/cls"),
        f"{trunk}patch_embed.proj.weight": arrays.take("img/embedding/kernel").permute(3, 2, 0, 1),
        f"{trunk}pos_embed": arrays.take("img/pos_embedding")
        if "img/pos_embedding" in arrays
        else sincos2d(grid, model.image.width, model.traits.sincos)[None],
        f"{trunk}head.weight": arrays.take("img/head/kernel").T,
        "text.token_embedding.weight": arrays.take("txt/Embed_0/embedding"),
        "text.positional_embedding": arrays.take("txt/pos_embedding")[0],
        "text.projection.weight": arrays.take("txt/head/kernel").T,
        "logit_scale": arrays.take("t").reshape(1),
    }
    image_parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    text_parts = ("ln_1", "ln_2", "qkv", "proj", "fc_1", "fc_2")
    for tower, blocks, last, layers, parts in (
        ("img", f"{trunk}blocks", f"{trunk}norm", model.image.layers, image_parts),
        ("txt", "text.blocks", "text.ln_final", model.text.layers, text_parts),
    ):
        encoder = _encoder(arrays, tower)
        for number in range(layers):
            for mine, weight in zip(parts, _block(arrays, encoder, number), strict=True):
                found[f"{blocks}.{number}.{mine}.weight"], found[f"{blocks}.{number}.{mine}.bias"] = weight
        found |= _last_norm(arrays, tower, encoder, last)
    _require_nothing_left(arrays)
    return {name: weight.contiguous() for name, weight in found.items()}


def _encoder(arrays: Arrays, tower: str) -> str:
    """Path of a tower's encoder.

    Raises:
        ConfigError: there is none.
    """
    for name in _ENCODERS[tower]:
        if f"{tower}/{name}encoderblock_0/LayerNorm_0/scale" in arrays:
            return f"{tower}/{name}"
    raise ConfigError(
        f"the tower {tower} has no encoder blocks", where=arrays.where,
        allowed=" or ".join(f"{tower}/{name}encoderblock_0, ..." for name in _ENCODERS[tower]),
    )  # fmt: skip


def _layers(arrays: Arrays, encoder: str) -> int:
    return sum(key.startswith(f"{encoder}encoderblock_") and key.endswith("/LayerNorm_0/scale") for key in arrays.left)


Pair = tuple[torch.Tensor, torch.Tensor]


def _block(arrays: Arrays, encoder: str, number: int) -> tuple[Pair, ...]:
    """Weight and bias of both norms, query-key-value, attention's projection, and both layers of the feed-forward."""

    def get(name: str) -> torch.Tensor:
        return arrays.take(f"{encoder}encoderblock_{number}/{name}")

    attention = "MultiHeadDotProductAttention_0"
    three = ("query", "key", "value")
    qkv = torch.cat([get(f"{attention}/{part}/kernel").flatten(1).T for part in three])
    qkv_bias = torch.cat([get(f"{attention}/{part}/bias").flatten() for part in three])
    norms = [(get(f"LayerNorm_{n}/scale"), get(f"LayerNorm_{n}/bias")) for n in (0, 1)]
    dense = [(get(f"MlpBlock_0/Dense_{n}/kernel").T, get(f"MlpBlock_0/Dense_{n}/bias")) for n in (0, 1)]
    out = (get(f"{attention}/out/kernel").flatten(0, 1).T, get(f"{attention}/out/bias"))
    return (*norms, (qkv, qkv_bias), out, *dense)


def _last_norm(arrays: Arrays, tower: str, encoder: str, mine: str) -> dict[str, torch.Tensor]:
    there = next((p for p in (f"{tower}/", encoder) if f"{p}encoder_norm/scale" in arrays), f"{tower}/")
    return {
        f"{mine}.weight": arrays.take(f"{there}encoder_norm/scale"),
        f"{mine}.bias": arrays.take(f"{there}encoder_norm/bias"),
    }


def _require_nothing_left(arrays: Arrays) -> None:
    """Biases of patches and heads, which big_vision has and CLIPA has not, may be there if they are zero."""
    for name in sorted(arrays.left):
        if name not in ("img/embedding/bias", "img/head/bias", "txt/head/bias") or arrays.peek(name).any():
            raise ConfigError(
                f"the parameter {name} has no place in a tower of clipa", where=arrays.where,
                hint="only CLIPA's own two-tower models can be converted",
            )  # fmt: skip

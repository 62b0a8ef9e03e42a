"""The model of a recipe: a family, two towers, and the width of the space in which they meet."""

from __future__ import annotations

import msgspec

from clipa.spec.base import Struct, require
from clipa.spec.family import FAMILIES, Family, FamilyName, InitName, Pool, TokenizerName

LARGEST = 65_536
"""Width, layers and heads beyond this are mistakes, and would take hours to price."""


class ImageTower(Struct, frozen=True, kw_only=True):
    """A vision transformer. `width` is in channels, `patch` in pixels.

    `pool`: `cls`: the class token; `gap`: the last LayerNorm, then the mean of the patches (open_clip's `avg`);
    `gap-norm`: the mean of the patches, then LayerNorm (CLIPA-v2, and the first releases of CLIPA's torch code);
    `gap-all`: the mean of class token and patches, then LayerNorm (its last release).
    """

    patch: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    pool: Pool = "cls"

    def __post_init__(self) -> None:
        _require_tower(self.width, self.layers, self.heads, self.mlp_ratio)
        require(self.patch >= 1, f"patch must be >= 1 pixel, got {self.patch}")
        require(self.width % 4 == 0, f"width must be a multiple of 4 for 2-D sin-cos positions, got {self.width}")


class TextTower(Struct, frozen=True, kw_only=True):
    """A text transformer; mask, pooling and tokenizer are those of the model's family."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    tokenizer: TokenizerName = "clip-bpe"

    def __post_init__(self) -> None:
        _require_tower(self.width, self.layers, self.heads, self.mlp_ratio)


def _require_tower(width: int, layers: int, heads: int, mlp_ratio: float) -> None:
    for name, value in (("width", width), ("layers", layers), ("heads", heads)):
        require(1 <= value <= LARGEST, f"{name} must be 1 to {LARGEST:,}, got {value}")
    if width % heads:
        divisors = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
        raise ValueError(f"heads must be a divisor of width {width} ({divisors}), got {heads}")
    require(0 < mlp_ratio <= 16, f"mlp_ratio must be in (0, 16], got {mlp_ratio}")


class Model(Struct, frozen=True, kw_only=True):
    """Two towers of one family and the width of the space in which they meet.

    `init`: how random weights are drawn; None: as the family does. It says where training starts, not what the weights
    are: models that differ in nothing else take each other's weights.
    """

    embed_dim: int
    image: ImageTower
    text: TextTower
    family: FamilyName = "v1"
    init: InitName | None = None

    def __post_init__(self) -> None:
        require(1 <= self.embed_dim <= LARGEST, f"embed_dim must be 1 to {LARGEST:,}, got {self.embed_dim}")
        own = self.traits
        require(
            self.text.tokenizer == own.tokenizer,
            f"families are not mixed: family {self.family} has the tokenizer {own.tokenizer}, "
            f"text.tokenizer is {self.text.tokenizer}",
        )
        require(
            self.image.pool in own.pools,
            f"families are not mixed: family {self.family} pools by {' or '.join(own.pools)}, "
            f"image.pool is {self.image.pool}",
        )

    @property
    def traits(self) -> Family:
        """What the model's family fixes, with the model's own random start where it has one."""
        own = FAMILIES[self.family]
        return own if self.init is None else msgspec.structs.replace(own, init=self.init)

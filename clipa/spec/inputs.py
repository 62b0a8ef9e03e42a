"""How images and captions enter a training phase: sizes, reductions, crops, colours."""

from __future__ import annotations

from typing import Literal, TypeAlias

from clipa.spec.base import Struct, require
from clipa.spec.family import OPENAI_MEAN, OPENAI_STD, Augment, Interpolation, Rgb

ImageReduction: TypeAlias = Literal["resize", "random", "grid", "block"]
TextReduction: TypeAlias = Literal["truncate", "random", "block", "syntax"]


class Jitter(Struct, frozen=True, kw_only=True):
    """Colour jitter with `probability`, in a random order, and grey with probability `gray`.

    The defaults are the published ones (SimCLR's jitter at strength 0.4; CLIPA's scripts).
    """

    brightness: float = 0.32
    contrast: float = 0.32
    saturation: float = 0.32
    hue: float = 0.08
    probability: float = 0.8
    gray: float = 0.2

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "probability", "gray"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")
        require(0 <= self.hue <= 0.5, f"hue must be in [0, 0.5], got {self.hue}")


class ImageInput(Struct, frozen=True, kw_only=True):
    """How images enter.

    `size` is in pixels a side, `tokens` the patch tokens that enter the tower (the class token is not counted).
    `resize` makes the image smaller and keeps every patch: one of the two is enough. `random`, `grid` and `block`
    keep `tokens` patches of an image of `size`. `crop_area` and `crop_ratio` are the random resized crop of training
    (area share, aspect ratio). `augment`: whose rules draw crops and color jitter: `torchvision` (RandomResizedCrop,
    ColorJitter) or `tensorflow` (sample_distorted_bounding_box, tf.image). `decode`: `scaled` decodes a JPEG at the
    smallest DCT scale that is enough, and torch resizes; `exact` decodes it in full, and Pillow resizes, as open_clip's
    transforms do, at 2 to 3 times the cost.
    """

    size: int = 0
    tokens: int = 0
    reduction: ImageReduction = "resize"
    crop_area: tuple[float, float] = (0.4, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    augment: Augment = "torchvision"
    interpolation: Interpolation = "bicubic"
    decode: Literal["scaled", "exact"] = "scaled"
    jitter: Jitter | None = None
    mean: Rgb = OPENAI_MEAN
    std: Rgb = OPENAI_STD

    def __post_init__(self) -> None:
        require(0 <= self.size <= 4096, f"size must be 1..4096 pixels, got {self.size}")
        require(0 <= self.tokens <= 2**20, f"tokens must be 1..1048576, got {self.tokens}")
        require(bool(self.size or self.tokens), "give size (pixels) or tokens")
        require(
            self.reduction == "resize" or bool(self.size and self.tokens),
            f"reduction {self.reduction} needs both: size (pixels of the image) and tokens (patches that are kept)",
        )
        low, high = self.crop_area
        require(0 < low <= high <= 1, f"crop_area must satisfy 0 < low <= high <= 1, got {self.crop_area}")
        low, high = self.crop_ratio
        require(0 < low <= high <= 100, f"crop_ratio must satisfy 0 < low <= high <= 100, got {self.crop_ratio}")
        require(all(s > 0 for s in self.std), f"std must be > 0, got {self.std}")


class TextInput(Struct, frozen=True, kw_only=True):
    """How captions enter: `tokens` counts the family's start and end tokens; `reduction` says which are kept.

    `tagger` tells `syntax` what a noun is: `table` looks each word up, `nltk` tags the sentence. `captions`: where a
    sample has several, how often each is taken: `txt` is the txt member, another name a key of the json member, whose
    value is a text or a list of them.
    """

    tokens: int
    reduction: TextReduction = "truncate"
    tagger: Literal["table", "nltk"] = "table"
    captions: dict[str, float] = {}

    def __post_init__(self) -> None:
        require(3 <= self.tokens <= 1024, f"tokens must be 3..1024 (start, one word, end), got {self.tokens}")
        for name, weight in self.captions.items():
            require(bool(name) and 0 < weight < 1e9, f"captions: the weight of {name!r} must be > 0, got {weight}")

    def __hash__(self) -> int:
        """Of everything: a dict has no hash of its own."""
        return hash((self.tokens, self.reduction, self.tagger, tuple(self.captions.items())))

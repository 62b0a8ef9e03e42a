"""What to train: the recipe, its model, its phases and its evaluation sets.

Budgets are in samples; `clipa.spec.budget` is the one converter to steps, tokens and FLOPs.
Defaults are the published ones: CLIPA (arXiv 2305.07017) section 4 and its released scripts.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

SCHEMA = 1


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that a person writes in TOML: frozen, and strict about unknown keys."""


def _require(ok: bool, message: str) -> None:
    # msgspec turns a ValueError of __post_init__ into a ValidationError that names the path of the table.
    if not ok:
        raise ValueError(message)


def _require_name(where: str, name: str) -> None:
    # Names of phases and sets become names of folders and files.
    ok = name.isascii() and name.replace("-", "").replace("_", "").isalnum() and len(name) <= 40
    _require(ok, f"{where}: use letters, digits, - and _ (at most 40) in a name")


class ImageTower(Struct, frozen=True, kw_only=True):
    """A vision transformer. `width` is in channels, `patch` in pixels."""

    patch: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    pool: Literal["cls", "gap"] = "cls"

    def __post_init__(self) -> None:
        _require_tower(self.width, self.layers, self.heads, self.mlp_ratio)
        _require(self.patch >= 1, f"patch must be >= 1 pixel, got {self.patch}")
        _require(self.width % 4 == 0, f"width must be a multiple of 4 for 2-D sin-cos positions, got {self.width}")


class TextTower(Struct, frozen=True, kw_only=True):
    """A causal text transformer, pooled at the end-of-text token."""

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    tokenizer: Literal["clip-bpe"] = "clip-bpe"

    def __post_init__(self) -> None:
        _require_tower(self.width, self.layers, self.heads, self.mlp_ratio)


def _require_tower(width: int, layers: int, heads: int, mlp_ratio: float) -> None:
    _require(width >= 1 and layers >= 1 and heads >= 1, "width, layers and heads must be >= 1")
    _require(width % heads == 0, f"width {width} is not divisible by heads {heads}")
    _require(0 < mlp_ratio <= 16, f"mlp_ratio must be in (0, 16], got {mlp_ratio}")


class Model(Struct, frozen=True, kw_only=True):
    """Two towers and the width of the space in which they meet."""

    embed_dim: int
    image: ImageTower
    text: TextTower

    def __post_init__(self) -> None:
        _require(self.embed_dim >= 1, f"embed_dim must be >= 1, got {self.embed_dim}")


class ImageInput(Struct, frozen=True, kw_only=True):
    """How images enter: `size` in pixels a side; the reduction `resize` keeps every patch of a smaller image.

    `crop_area` and `crop_ratio` are the random resized crop of training (area share, aspect ratio).
    """

    size: int
    reduction: Literal["resize"] = "resize"
    crop_area: tuple[float, float] = (0.4, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        _require(1 <= self.size <= 4096, f"size must be 1..4096 pixels, got {self.size}")
        low, high = self.crop_area
        _require(0 < low <= high <= 1, f"crop_area must satisfy 0 < low <= high <= 1, got {self.crop_area}")
        low, high = self.crop_ratio
        _require(0 < low <= high <= 100, f"crop_ratio must satisfy 0 < low <= high <= 100, got {self.crop_ratio}")
        _require(all(s > 0 for s in self.std), f"std must be > 0, got {self.std}")


class TextInput(Struct, frozen=True, kw_only=True):
    """How captions enter: `tokens` counts the start and end tokens; `truncate` keeps the first ones."""

    tokens: int
    reduction: Literal["truncate"] = "truncate"

    def __post_init__(self) -> None:
        _require(3 <= self.tokens <= 1024, f"tokens must be 3..1024 (start, one word, end), got {self.tokens}")


class Optim(Struct, frozen=True, kw_only=True):
    """AdamW with linear warm-up and cosine decay to 0. `lr` is the peak value for the global batch."""

    lr: float
    warmup_samples: int = 0
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6

    def __post_init__(self) -> None:
        _require(0 < self.lr < 10, f"lr must be in (0, 10), got {self.lr}")
        _require(self.warmup_samples >= 0, f"warmup_samples must be >= 0, got {self.warmup_samples}")
        _require(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}")
        _require(0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, "beta1 and beta2 must be in [0, 1)")
        _require(self.eps > 0, f"eps must be > 0, got {self.eps}")


class Checkpoints(Struct, frozen=True, kw_only=True):
    """When to save, and the rule of pruning: the newest `keep` stay, and the final one always."""

    every_samples: int = 0
    every_minutes: float = 15.0
    keep: int = 2

    def __post_init__(self) -> None:
        _require(self.every_samples >= 0, f"every_samples must be >= 0 (0: never by samples), got {self.every_samples}")
        _require(self.every_minutes > 0, f"every_minutes must be > 0, got {self.every_minutes}")
        _require(self.keep >= 1, f"keep must be >= 1, got {self.keep}")


class Evaluate(Struct, frozen=True, kw_only=True):
    """Which evaluation sets a training phase scores at its end, at which image sizes, and how often before."""

    sets: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    every_samples: int = 0
    batch: int = 256

    def __post_init__(self) -> None:
        _require_sizes(self.sizes, self.batch)
        _require(self.every_samples >= 0, f"every_samples must be >= 0 (0: only at the end), got {self.every_samples}")


def _require_sizes(sizes: tuple[int, ...], batch: int) -> None:
    _require(all(s >= 1 for s in sizes), f"sizes must be >= 1 pixel, got {list(sizes)}")
    _require(batch >= 1, f"batch must be >= 1, got {batch}")


class TrainPhase(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """One training phase. `batch` is global: it does not change with the number of processes."""

    data: str
    samples: int
    batch: int
    image: ImageInput
    text: TextInput
    optim: Optim
    positions: Literal["sincos2d", "learnable"] = "learnable"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    checkpoint: Checkpoints = Checkpoints()
    evaluate: Evaluate = Evaluate()
    log_every_samples: int = 0

    def __post_init__(self) -> None:
        _require(bool(self.data), "data must name a dataset or a URL")
        _require(self.batch >= 2, f"batch must be >= 2 (the contrastive loss needs a negative), got {self.batch}")
        _require(
            self.samples >= self.batch,
            f"samples {self.samples} is less than one batch of {self.batch}",
        )
        _require(
            self.optim.warmup_samples <= self.samples,
            f"optim.warmup_samples {self.optim.warmup_samples} exceeds samples {self.samples}",
        )
        _require(self.log_every_samples >= 0, f"log_every_samples must be >= 0, got {self.log_every_samples}")


class Pretrain(TrainPhase, frozen=True, kw_only=True, tag="pretrain"):
    """Training from random weights on few tokens."""


class Finetune(TrainPhase, frozen=True, kw_only=True, tag="finetune"):
    """Training that starts from the weights of the phase before it."""


class Eval(Struct, frozen=True, kw_only=True, tag_field="kind", tag="eval"):
    """Scoring the weights of the phase before it. No `sizes`: the size that those weights were trained at."""

    sets: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    batch: int = 256
    precision: Literal["auto", "bf16", "fp32"] = "auto"

    def __post_init__(self) -> None:
        _require(len(self.sets) >= 1, "sets must name at least one table of [evals]")
        _require_sizes(self.sizes, self.batch)


Phase: TypeAlias = Pretrain | Finetune | Eval
PHASE_KINDS = ("pretrain", "finetune", "eval")


class EvalSet(Struct, frozen=True, kw_only=True):
    """Zero-shot classification of labelled shards (`jpg` + `cls`).

    `classes` and `templates` may be left out where `classnames.txt` and `zeroshot_classification_templates.txt`
    lie beside the shards (the `wds_*` layout of CLIP_benchmark). A template holds `{}` or `{c}` once.
    """

    data: str
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(bool(self.data), "data must name a dataset or a URL")
        _require(len(self.classes) != 1, "classes needs at least two names")
        _require(len(set(self.classes)) == len(self.classes), "classes has the same name twice")
        for template in self.templates:
            _require(
                template.count("{}") + template.count("{c}") == 1,
                f"template {template!r} must hold {{}} or {{c}} exactly once",
            )


class Recipe(Struct, frozen=True, kw_only=True):
    """Everything that is trained and scored, in the order of its phases."""

    model: Model
    phases: dict[str, Phase]
    name: str = ""
    description: str = ""
    seed: int = 0
    evals: dict[str, EvalSet] = {}
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _require(1 <= self.schema <= SCHEMA, f"schema {self.schema} is newer than this clipa reads ({SCHEMA})")
        _require(0 <= self.seed < 2**63, f"seed must be in [0, 2^63), got {self.seed}")
        _require(bool(self.phases), "phases is empty: give at least one of pretrain, finetune, eval")
        for name in self.evals:
            _require_name(f"evals.{name}", name)
        for position, (name, phase) in enumerate(self.phases.items()):
            self._require_phase(position, name, phase)

    def _require_phase(self, position: int, name: str, phase: Phase) -> None:
        where = f"phases.{name}"
        _require_name(where, name)
        if isinstance(phase, Pretrain):
            _require(position == 0, f"{where}: pretrain must be the first phase")
        if isinstance(phase, Eval):
            sets, sizes = phase.sets, phase.sizes
        else:
            sets, sizes = phase.evaluate.sets, (phase.image.size, *phase.evaluate.sizes)
        for name_of_set in sets:
            _require(
                name_of_set in self.evals,
                f"{where}: evaluation set {name_of_set!r} is not in [evals] ({', '.join(self.evals) or 'empty'})",
            )
        patch = self.model.image.patch
        for size in sizes:
            nearest = max(patch, round(size / patch) * patch)
            _require(
                size % patch == 0,
                f"{where}: image size {size} is not divisible by model.image.patch {patch} (nearest: {nearest})",
            )

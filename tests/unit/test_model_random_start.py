"""Every parameter starts as in the source: its values have the same distribution (mean, spread and shape)."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
import torch

from clipa.model.clip import Clip
from clipa.model.open_clip_names import to_open_clip
from clipa.model.torchvision_guard import import_torchvision
from clipa.spec.family import FAMILIES
from clipa.spec.model import ImageTower, Model, TextTower

import_torchvision()
from open_clip.factory import get_model_config  # noqa: E402
from open_clip.model import CLIP  # noqa: E402

PATCH, PIXELS, TOKENS, WORDS, EMBED = 14, 56, 24, 600, 96
IMAGE, TEXT, LAYERS = 256, 192, 3
"""A depth that is not 12, widths that differ: no two rules give the same numbers."""
LEVEL = 2.5
"""Of the Kolmogorov-Smirnov distance, in units of sqrt((n + m) / nm): chance goes past it once in 130,000 times."""


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, family in list(FAMILIES.items()):
        monkeypatch.setitem(FAMILIES, name, msgspec.structs.replace(family, vocabulary=WORDS))


def fresh(family: str, init: str | None = None) -> tuple[Model, dict[str, torch.Tensor]]:
    own = FAMILIES[family]
    model = Model(
        embed_dim=EMBED,
        image=ImageTower(patch=PATCH, width=IMAGE, layers=LAYERS, heads=4, pool=own.pools[0]),
        text=TextTower(width=TEXT, layers=LAYERS, heads=3, tokenizer=own.tokenizer),
        family=family,
        init=init,
    )
    torch.manual_seed(0)
    return model, Clip(model, PIXELS, TOKENS, "learnable").state_dict()


def by_layer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Up to 40,000 values or a few more of each kind of parameter, whichever block they are of."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, weight in state.items():
        found.setdefault(re.sub(r"blocks\.\d+\.", "blocks.", name), []).append(weight.flatten())
    return {name: torch.cat(parts)[:: 1 + sum(map(len, parts)) // 40_000] for name, parts in found.items()}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The Kolmogorov-Smirnov distance in units of what chance gives for samples of these sizes."""
    both = torch.cat([a, b]).unique()
    shares = [torch.searchsorted(x.sort().values, both, right=True) / len(x) for x in (a, b)]
    worst = (shares[0] - shares[1]).abs().max().item()
    return worst / math.sqrt((len(a) + len(b)) / (len(a) * len(b)))


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        spreads = [f"{x.std(correction=0):.4g}" for x in (values, theirs[name])]
        assert distance(values, theirs[name]) < LEVEL, f"{name}: std {spreads[0]}, the source's {spreads[1]}"


@pytest.mark.parametrize(("family", "config"), [("v1", "ViT-B-16"), ("v2-open_clip", "ViT-H-14-CLIPA")])
def test_every_parameter_starts_as_open_clips(family: str, config: str) -> None:
    model, state = fresh(family)
    settings = get_model_config(config)
    settings["embed_dim"] = EMBED
    settings["vision_cfg"] |= {
        "image_size": PIXELS,
        "patch_size": PATCH,
        "width": IMAGE,
        "layers": LAYERS,
        "head_width": 64,
    }
    settings["text_cfg"] |= {"context_length": TOKENS, "vocab_size": WORDS, "width": TEXT, "heads": 3, "layers": LAYERS}
    settings.pop("custom_text", None)
    torch.manual_seed(1)
    theirs = CLIP(**settings).state_dict()
    assert_alike(by_layer(to_open_clip(model, state)), by_layer(theirs))


def test_an_unlike_start_would_be_seen() -> None:
    assert distance(torch.randn(1000), torch.randn(1000)) < LEVEL
    assert distance(1.4 * torch.randn(20_000), torch.randn(20_000)) > LEVEL
    assert distance(math.sqrt(3) * (2 * torch.rand(20_000) - 1), torch.randn(20_000)) > LEVEL
    assert distance(torch.zeros(500), 0.01 * torch.randn(500)) > LEVEL


# ------------------------------------------------------------------------------ CLIPA's JAX code, typed from its source


def normal(std: float) -> torch.Tensor:
    return std * torch.randn(40_000)


def xavier(fan_in: int, fan_out: int) -> torch.Tensor:
    return math.sqrt(6 / (fan_in + fan_out)) * (2 * torch.rand(40_000) - 1)


def lecun(fan_in: int) -> torch.Tensor:
    """flax's default kernel: variance 1 / fan_in of a normal that is cut at two standard deviations of its own."""
    cut = torch.randn(80_000)
    cut = cut[cut.abs() <= 2]
    return cut * (fan_in**-0.5 / cut.std())


def jax_rules(blocks: str) -> dict[str, torch.Tensor]:
    """The rules of clipa_jax/models (`xavier`) and of models_t5x on the branch t5x (`normal`), under our names."""
    w, t = IMAGE, TEXT
    zero, one = torch.zeros(100), torch.ones(100)

    def residual(width: int) -> torch.Tensor:
        return normal(width**-0.5 * (2 * 12) ** -0.5)  # `depth` of a block is its default, 12

    found = {
        "image.trunk.cls_token": zero,
        "image.trunk.pos_embed": normal(w**-0.5),
        "image.trunk.patch_embed.proj.weight": lecun(3 * PATCH * PATCH),
        "image.trunk.head.weight": normal(w**-0.5),
        "text.token_embedding.weight": normal(0.02),
        "text.positional_embedding": normal(0.01),
        "text.blocks.qkv.weight": normal(t**-0.5),
        "text.blocks.proj.weight": residual(t),
        "text.blocks.fc_1.weight": normal((2 * t) ** -0.5),
        "text.blocks.fc_2.weight": residual(t),
        "text.projection.weight": normal(t**-0.5),
        "logit_scale": torch.full((1,), math.log(1 / 0.07)),
    }
    if blocks == "xavier":
        found["image.trunk.blocks.attn.qkv.weight"] = xavier(w, w)  # three matrices there
        found["image.trunk.blocks.attn.proj.weight"] = xavier(w, w)
        found["image.trunk.blocks.mlp.fc1.weight"] = xavier(w, 4 * w)
        found["image.trunk.blocks.mlp.fc2.weight"] = xavier(4 * w, w)
    else:
        found["image.trunk.blocks.attn.qkv.weight"] = normal(w**-0.5)
        found["image.trunk.blocks.attn.proj.weight"] = residual(w)
        found["image.trunk.blocks.mlp.fc1.weight"] = normal((2 * w) ** -0.5)
        found["image.trunk.blocks.mlp.fc2.weight"] = residual(w)
    image, text = "image.trunk.blocks.", "text.blocks."
    linears = [f"{image}{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    linears += [f"{text}{name}" for name in ("qkv", "proj", "fc_1", "fc_2")]
    norms = [f"{image}norm1", f"{image}norm2", "image.trunk.norm", f"{text}ln_1", f"{text}ln_2", "text.ln_final"]
    biases = {f"{name}.bias": zero for name in (*linears, *norms)}
    return found | biases | {f"{name}.weight": one for name in norms}


@pytest.mark.parametrize(("init", "blocks"), [(None, "xavier"), ("jax-t5x", "normal")])
def test_every_parameter_starts_as_in_clipas_jax_code(init: str | None, blocks: str) -> None:
    _, state = fresh("v2", init)
    torch.manual_seed(1)
    assert_alike(by_layer(state), jax_rules(blocks))


def test_a_models_own_start_does_not_make_it_another_model() -> None:
    """Weights of either start are those of the same model: nothing but the random numbers differs."""
    (plain, ours), (other, theirs) = fresh("v2"), fresh("v2", "jax-t5x")
    assert plain.traits == msgspec.structs.replace(other.traits, init="jax")
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in theirs.items()}

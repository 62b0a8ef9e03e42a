"""FLOPs and parameters: the closed formulas against torch's counter, open_clip's models and the published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from clipa.model.clip import Clip
from clipa.model.torchvision_guard import import_torchvision
from clipa.spec import budget
from clipa.spec.family import FAMILIES, PRESETS, FamilyName
from clipa.spec.job import Pretrain
from clipa.spec.load import load_recipe
from clipa.spec.model import Model

import_torchvision()
import open_clip  # noqa: E402
from open_clip.model import CLIP  # noqa: E402

RECIPE = """
[model]
preset = "{preset}"
family = "{family}"
[model.image]
pool = "{pool}"
[phases.pretrain]
data = "d"
samples = 1000
batch = 100
image = {image}
text = {{ tokens = {text} }}
optim = {{ lr = 1e-3 }}
"""


def _phase(
    folder: Path, preset: str, family: FamilyName, image: str, text: int = 16, pool: str = ""
) -> tuple[Model, Pretrain]:
    path = folder / "r.toml"
    pool = pool or FAMILIES[family].pools[0]
    path.write_text(RECIPE.format(preset=preset, family=family, pool=pool, image=image, text=text))
    recipe = load_recipe(path).recipe
    phase = recipe.phases["pretrain"]
    assert isinstance(phase, Pretrain)
    return recipe.model, phase


def _counted(clip: torch.nn.Module, size: int, text: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        clip(torch.empty(1, 3, size, size, device="meta"), torch.zeros(1, text, dtype=torch.long, device="meta"))
    return counter.get_total_flops()


def _peer(name: str, patch_dropout: float = 0.0) -> CLIP:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        vision = {**config["vision_cfg"], "patch_dropout": patch_dropout}
        return CLIP(config["embed_dim"], vision, config["text_cfg"])


@pytest.mark.parametrize(
    ("preset", "family", "pool"),
    [
        *((preset, family, FAMILIES[family].pools[0]) for preset in PRESETS for family in ("v1", "v2")),
        *(("S/16", family, pool) for family, own in FAMILIES.items() for pool in own.pools),
    ],
)
def test_our_towers_cost_what_the_formula_says(tmp_path: Path, preset: str, family: FamilyName, pool: str) -> None:
    grid = 4
    model, phase = _phase(tmp_path, preset, family, f"{{ tokens = {grid**2} }}", pool=pool)
    with torch.device("meta"):
        clip = Clip(model, phase.image.size, phase.text.tokens, "learnable").eval()
    got = budget.phase_budget(model, phase)
    assert got is not None
    assert sum(p.numel() for p in clip.parameters()) == got.params
    assert _counted(clip, phase.image.size, phase.text.tokens) * 3 == got.flops_per_sample


@pytest.mark.parametrize(
    ("preset", "family", "name", "size", "text"),
    [
        ("B/16", "v1", "ViT-B-16", 224, 77),
        ("L/14", "v2-open_clip", "ViT-L-14-CLIPA", 224, 32),
        ("L/14", "v2-open_clip", "ViT-L-14-CLIPA-336", 336, 32),
        ("H/14", "v2-open_clip", "ViT-H-14-CLIPA", 224, 32),
        ("H/14", "v2-open_clip", "ViT-H-14-CLIPA-336", 336, 32),
        ("bigG/14", "v2-open_clip", "ViT-bigG-14-CLIPA", 224, 32),
    ],
)
def test_open_clips_models_cost_what_the_formula_says(
    tmp_path: Path, preset: str, family: FamilyName, name: str, size: int, text: int
) -> None:
    model, phase = _phase(tmp_path, preset, family, f"{{ size = {size} }}", text)
    peer = _peer(name).eval()
    got = budget.phase_budget(model, phase)
    assert got is not None
    assert sum(p.numel() for p in peer.parameters()) == got.params
    assert _counted(peer, size, text) * 3 == got.flops_per_sample


def test_dropped_patches_cost_nothing(tmp_path: Path) -> None:
    model, phase = _phase(tmp_path, "H/14", "v2-open_clip", '{ size = 224, tokens = 179, reduction = "random" }', 32)
    got = budget.phase_budget(model, phase)
    assert got is not None
    # open_clip embeds all patches and drops them after it, clipa drops them before.
    embedded = 2 * (256 - 179) * 3 * 14 * 14 * 1280
    counted = _counted(_peer("ViT-H-14-CLIPA", patch_dropout=0.3).train(), 224, 32)
    assert (counted - embedded) * 3 == got.flops_per_sample
    assert (got.patches, got.image_tokens) == (256, 179)
    assert got.params == 968_235_009  # the positions of dropped patches are there all the same


@pytest.mark.parametrize(
    ("preset", "family", "image", "text", "gmacs"),
    [
        # open_clip's docs/model_profile.csv counts a multiply-add as two: its numbers, halved.
        ("B/16", "v1", "{ size = 224 }", 77, 41.1 / 2),
        ("L/14", "v2", "{ size = 224 }", 32, 167.5 / 2),
        ("L/14", "v2", "{ size = 336 }", 32, 387.4 / 2),
        ("H/14", "v2", "{ size = 224 }", 32, 354.0 / 2),
        ("H/14", "v2", "{ size = 336 }", 32, 800.9 / 2),
        ("bigG/14", "v2", "{ size = 224 }", 32, 1007.9 / 2),
        ("bigG/14", "v2", "{ size = 336 }", 32, 2271.6 / 2),
        # CLIPA-v2, table 3, whose "GFLOPs" are multiply-adds: no mask at 224, 40 % at 336. Its third number, 135.9
        # for 30 % at 224, is 8 % more than 179 of 256 tokens cost by the count that gives the other two exactly.
        ("H/14", "v2", "{ size = 224 }", 32, 177.0),
        ("H/14", "v2", '{ size = 336, tokens = 345, reduction = "random" }', 32, 237.8),
    ],
)
def test_published_multiply_adds(
    tmp_path: Path, preset: str, family: FamilyName, image: str, text: int, gmacs: float
) -> None:
    got = budget.phase_budget(*_phase(tmp_path, preset, family, image, text))
    assert got is not None
    assert got.macs_per_sample / 1e9 == pytest.approx(gmacs, rel=0.03)


@pytest.mark.parametrize(
    ("preset", "text", "published"),
    [
        ("S/16", 32, {16: 0.032, 36: 0.043, 49: 0.050, 100: 0.079, 196: 0.130}),
        ("B/16", 32, {16: 0.090, 36: 0.134, 49: 0.162, 100: 0.274, 196: 0.467}),
        ("L/16", 32, {16: 0.280, 36: 0.432, 49: 0.532, 100: 0.926, 196: 1.602}),
        ("H/14", 8, {16: 0.559, 25: 0.701, 36: 0.875}),
    ],
)
def test_the_compute_axis_of_the_scaling_law(
    tmp_path: Path, preset: str, text: int, published: dict[int, float]
) -> None:
    """The authors' acc_compute.png, in 1e11 GMACs; all but the 224 px points hold a fine-tune of 131M samples.

    Read off a picture, and the samples (2.56e9) are inferred: L/16 and H/14 come out 2-3 % high, S/16 4-6 %.
    """

    def macs(image: str, text: int) -> int:
        got = budget.phase_budget(*_phase(tmp_path, preset, "v2", image, text))
        assert got is not None
        return got.macs_per_sample

    for tokens, compute in published.items():
        finetune = macs("{ size = 224 }", 32) * 131.072e6 if tokens < 196 else 0
        ours = macs(f"{{ tokens = {tokens} }}", text) * 2.56e9 + finetune
        assert 1.0 < ours / 1e20 / compute < 1.065

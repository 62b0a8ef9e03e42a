"""Hours, dollars, memory and cores: the formulas against torch, against the published figures, and by hand."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention

from clipa.errors import ConfigError
from clipa.host.place import place_of
from clipa.model import attention
from clipa.model.clip import Clip
from clipa.registry import calibration
from clipa.registry.calibration import Calibration
from clipa.spec import budget, catalog, cost
from clipa.spec.cluster import Cluster
from clipa.spec.cost import Cost, Place
from clipa.spec.family import FAMILIES, FamilyName
from clipa.spec.hardware import GPUS, gpu_named, gpu_of
from clipa.spec.job import TrainPhase
from clipa.spec.load import LoadedRecipe, load_cluster, load_recipe
from clipa.spec.model import ImageTower, Model, TextTower
from clipa.spec.points import reported

A100 = Place(cluster="a100", gpus=8, gpu=GPUS["A100-80GB"], price=1.575)
RECIPES = [name for name in catalog.recipes() if name.startswith(("clipa", "scaling"))]


def _priced(name: str, place: Place = A100, **more: object) -> tuple[LoadedRecipe, Cost]:
    loaded = load_recipe(catalog.find_recipe(name))
    return loaded, cost.cost(loaded.recipe, place, loaded.about.datasets, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("family", ["v1", "v2"])
def test_activations_are_what_autograd_keeps(family: FamilyName, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The formula is for GPUs, whose attention keeps no weights; on a CPU the other way is quicker.
    monkeypatch.setattr(
        attention, "_by_products", lambda q, k, v, c: scaled_dot_product_attention(q, k, v, is_causal=c)
    )
    own = FAMILIES[family]
    model = Model(
        embed_dim=32,
        family=family,
        image=ImageTower(patch=4, width=128, layers=4, heads=2, pool=own.pools[0]),
        text=TextTower(width=64, layers=4, heads=2, mlp_ratio=3.0, tokenizer=own.tokenizer),
    )
    shorter = msgspec.structs.replace(
        model,
        image=msgspec.structs.replace(model.image, layers=1),
        text=msgspec.structs.replace(model.text, layers=1),
    )
    size, tokens, samples = 16, 8, 32
    more, less = (_kept_by_autograd(m, size, tokens, samples, bf16) for m in (model, shorter))
    for tower, count, at in ((model.image, 17, 0), (model.text, tokens, 1)):
        expected = samples * cost.activation_bytes(tower, count, bf16) * 3 / 4
        assert more[at] - less[at] == pytest.approx(expected, rel=0.02)


def _kept_by_autograd(model: Model, size: int, tokens: int, samples: int, bf16: bool) -> tuple[int, int]:
    """Bytes that the image and the text tower keep for the backward pass, parameters and their copies left out."""
    clip = Clip(model, size, tokens, "learnable")
    parameters = {p.shape for p in clip.parameters()} | {p.T.shape for p in clip.parameters() if p.ndim == 2}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in parameters:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
        saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        clip.encode_image(torch.randn(samples, 3, size, size))
        image = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        clip.encode_text(torch.full((samples, tokens), 5))
    return image, sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) - image


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_the_machine_that_its_header_names(name: str) -> None:
    loaded, priced = _priced(name)
    for word, phase in priced.phases.items():
        assert phase.memory_bytes < 80e9, f"{word} needs {phase.memory_bytes / 1e9:.1f} GB"
        settings = loaded.recipe.phases[word]
        assert isinstance(settings, TrainPhase)
        local = settings.batch // 8
        assert settings.batch % 8 == 0
        assert local % phase.micro_batch == 0, f"{word}: {local} samples are not whole passes of {phase.micro_batch}"


@pytest.mark.parametrize("name", RECIPES)
def test_published_hours_are_within_reach_of_the_formula(name: str) -> None:
    loaded, priced = _priced(name)
    for published in reported(loaded):
        share = cost.implied_mfu(priced, published)
        assert share is None or 0.17 < share < 0.285, (published.after, share)


def test_hours_and_dollars_by_hand() -> None:
    _, priced = _priced("clipa-l16-i37-t8")
    pretrain = priced.phases["pretrain"]
    rate = 0.25 * 312e12 / pretrain.budget.flops_per_sample
    assert pretrain.gpu_hours == pytest.approx(2_444_001_280 / rate / 3600)
    assert pretrain.hours == pytest.approx(pretrain.gpu_hours / 8)
    assert pretrain.dollars == pytest.approx(pretrain.gpu_hours * 1.575)
    assert priced.gpu_hours == pytest.approx(sum(p.gpu_hours or 0 for p in priced.phases.values()))
    assert priced.shard_bytes == {"laion400m": 407_332_084 * 25_000}
    assert pretrain.checkpoint_bytes == 12 * pretrain.budget.params * 3  # two kept, and one being written
    assert pretrain.loader_cores == pytest.approx(8 * rate * 0.5e-3, abs=1.1)  # 96 px: 2,000 images/s a core


def test_memory_falls_with_the_micro_batch_and_the_tokens() -> None:
    bytes_of = {}
    for words in ([], ["phases.pretrain.micro_batch=512"], ["phases.pretrain.image.tokens=16"]):
        changed = [*words, "phases.pretrain.image.size=0"] if "tokens=16" in "".join(words) else words
        loaded = load_recipe(catalog.find_recipe("clipa-l16-i37-t8"), changed)
        bytes_of[" ".join(words)] = cost.cost(loaded.recipe, A100, {}).phases["pretrain"].memory_bytes
    full, fewer, shorter = bytes_of.values()
    tower = ImageTower(patch=16, width=1024, layers=24, heads=16)
    assert max(fewer, shorter) < full
    assert full - shorter > 1024 * cost.activation_bytes(tower, 20, bf16=True)


@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_the_plan_finds_room_for_one_recipe_on_any_number_of_gpus(gpus: int) -> None:
    words = ["phases.pretrain.micro_batch=0", "phases.finetune.micro_batch=0"]
    recipe = load_recipe(catalog.find_recipe("clipa-l16-i37-t8"), words).recipe
    priced = cost.cost(recipe, msgspec.structs.replace(A100, gpus=gpus), {})
    for name, phase in priced.phases.items():
        settings = recipe.phases[name]
        assert isinstance(settings, TrainPhase)
        local = settings.batch // gpus
        assert local % phase.micro_batch == 0
        assert phase.memory_bytes <= cost.FILL * 80e9 < 80e9
        larger = next(m for m in range(phase.micro_batch + 1, local + 1) if local % m == 0)
        assert cost.memory_bytes(recipe.model, settings, phase.budget, gpus, larger) > cost.FILL * 80e9


def _open(
    recompute: str, micro: int, name: str = "clipa-l16-i37-t8", parallel: str = "ddp"
) -> tuple[Model, TrainPhase]:
    words = [
        f"phases.pretrain.{w}" for w in (f"recompute={recompute}", f"micro_batch={micro}", f'parallel="{parallel}"')
    ]
    recipe = load_recipe(catalog.find_recipe(name), words).recipe
    phase = recipe.phases["pretrain"]
    assert isinstance(phase, TrainPhase)
    return recipe.model, phase


def _held(model: Model, phase: TrainPhase, gpus: int, **changed: float) -> int:
    phase = msgspec.structs.replace(phase, **changed)
    return cost.memory_bytes(model, phase, cost.train_budget(model, phase), gpus, phase.micro_batch)


@pytest.mark.parametrize("micro", [1024, 2048, 4096])
@pytest.mark.parametrize("gpu", ["A100-40GB", "A100-80GB"])
def test_the_smallest_share_of_recomputed_blocks_with_which_a_micro_batch_fits(micro: int, gpu: str) -> None:
    model, phase = _open('"auto"', micro)
    room = cost.FILL * GPUS[gpu].memory_gb * 1e9
    found = cost.in_memory(model, phase, GPUS[gpu], 8)
    assert found.micro_batch == micro
    assert found.recomputed * 24 == pytest.approx(round(found.recomputed * 24)), "whole blocks of the deeper tower"
    assert _held(model, found, 8) <= room
    smaller = [_held(model, found, 8, recompute=n / 24) for n in range(round(found.recomputed * 24))]
    assert min(smaller, default=math.inf) > room
    assert (found.recomputed == 0) == ((micro, gpu) == (1024, "A100-80GB"))


def test_of_what_fits_the_plan_takes_what_computes_least() -> None:
    # With all blocks recomputed L/16 passes at once on 8 x 80 GB, at a share of what several passes cost.
    model, phase = _open('"auto"', 0)
    found = cost.in_memory(model, phase, GPUS["A100-80GB"], 8)
    assert found.micro_batch == phase.batch // 8
    assert 0 < found.recomputed < 1
    # Where even that is too much: passes, with nothing recomputed.
    found = cost.in_memory(model, phase, GPUS["A100-40GB"], 1)
    assert (found.micro_batch < phase.batch, found.recomputed) == (True, 0.0)
    # The largest model does not fit without sharing it out: what needs least.
    model, phase = _open('"auto"', 0, "clipa2-bigg14-i36")
    found = cost.in_memory(model, phase, GPUS["A100-40GB"], 8)
    assert (found.micro_batch, found.recomputed) == (1, 1.0)
    assert _held(model, found, 8) > cost.FILL * 40e9


def test_nothing_is_recomputed_where_no_gpu_is_known_and_a_given_share_stays() -> None:
    model, phase = _open('"auto"', 0)
    found = cost.in_memory(model, phase, None, 8)
    assert (found.micro_batch, found.recompute) == (phase.batch // 8, 0.0)
    model, phase = _open("0.5", 512)
    assert cost.in_memory(model, phase, GPUS["A100-40GB"], 8) == phase


@pytest.mark.parametrize("word", ['"some"', "1.5", "-0.1"])
def test_a_share_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="recompute"):
        _open(word, 0)


def test_shards_and_recomputing_make_room() -> None:
    def held(*words: str) -> int:
        recipe = load_recipe(catalog.find_recipe("clipa2-bigg14-i36"), [f"phases.pretrain.{w}" for w in words]).recipe
        return cost.cost(recipe, A100, {}).phases["pretrain"].memory_bytes

    params = cost.train_budget(load_recipe(catalog.find_recipe("clipa2-bigg14-i36")).recipe.model,
                               _pretrain("clipa2-bigg14-i36")).params  # fmt: skip
    saved = held() - held('parallel="fsdp"')
    assert 0.6 * 22 * params < saved < 22 * params, "of weights, gradients, moments, buckets and copies"
    half, full = (held() - held(f"recompute={share}") for share in (0.5, 1.0))
    assert 0 < half < full
    assert half == pytest.approx(full / 2, rel=0.1)


def _pretrain(name: str) -> TrainPhase:
    phase = load_recipe(catalog.find_recipe(name)).recipe.phases["pretrain"]
    assert isinstance(phase, TrainPhase)
    return phase


def _measured(rate: float, tokens: int = 36, gpu: str = "NVIDIA A100-SXM4-80GB", t: float = 1.0) -> Calibration:
    recipe = load_recipe(catalog.find_recipe("clipa-l16-i37-t8")).recipe
    return Calibration(
        t=t, gpu=gpu, gpus=8, model=recipe.model, patches=tokens, image_tokens=tokens, text_tokens=8,
        micro_batch=1024, samples_per_s=rate * 8,
    )  # fmt: skip


def test_a_measured_rate_goes_before_an_assumed_one() -> None:
    for here in ([_measured(1500.0)], [_measured(1.0, t=0.0), _measured(1500.0)]):
        _, priced = _priced("clipa-l16-i37-t8", measured=here)
        rate = priced.phases["pretrain"].rate
        assert rate is not None
        assert (rate.samples_per_s, rate.measured, rate.source) == (1500.0, True, "measured")
        tune = priced.phases["finetune"].rate  # other tokens: the share of the peak that was measured
        assert tune is not None
        assert tune.mfu == pytest.approx(rate.mfu)
        assert "36 image tokens" in tune.source


def test_the_measurement_nearest_in_flops_counts() -> None:
    _, priced = _priced("clipa-l16-i37-t8", measured=[_measured(500.0, 16), _measured(400.0, 144)])
    rates = [phase.rate for phase in priced.phases.values()]
    assert [("16" in r.source, "144" in r.source) for r in rates if r] == [(True, False), (False, True)]


def test_measurements_elsewhere_do_not_count_and_an_asked_share_goes_first() -> None:
    _, priced = _priced("clipa-l16-i37-t8", measured=[_measured(9e9, gpu="NVIDIA H100 80GB HBM3")])
    assert {p.rate.source for p in priced.phases.values() if p.rate} == {"assumed"}
    _, priced = _priced("clipa-l16-i37-t8", measured=[_measured(9e9)], mfu=0.4)
    assert {p.rate.mfu for p in priced.phases.values() if p.rate} == {0.4}


def test_without_a_gpu_no_hour_is_made_up() -> None:
    _, priced = _priced("clipa-l16-i37-t8", Place(cluster="local", gpus=0))
    assert (priced.gpu_hours, priced.hours, priced.dollars) == (None, None, None)
    assert all(p.rate is None and p.loader_cores is None for p in priced.phases.values())


def test_calibrations_are_read_back_and_what_is_broken_is_passed_over(tmp_path: Path) -> None:
    calibration.write(tmp_path, _measured(2.0, t=2.0))
    written = calibration.write(tmp_path, _measured(1.0, t=1.0))
    (written.parent / "broken.json").write_text("{")
    (written.parent / "foreign.json").write_text("[1]")
    (written.parent / "zero.json").write_bytes(msgspec.json.encode(_measured(0.0)))
    assert [m.samples_per_s for m in calibration.read([tmp_path, tmp_path / "gone"])] == [8.0, 16.0]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200-NVL"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GB200", None),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 3080", None),
    ],
)
def test_gpus_by_the_names_that_drivers_give(name: str, model: str | None) -> None:
    found = gpu_named(name)
    assert (found.model if found else None) == model


def test_a_gpu_that_is_not_in_the_table_needs_its_numbers() -> None:
    with pytest.raises(ConfigError, match="H100-PCIe") as refused:
        gpu_of(Cluster(name="x", gpu_model="H10"))
    assert refused.value.exit_code == 2
    own = gpu_of(Cluster(name="x", gpu_model="B300", gpu_memory_gb=288, gpu_tflops=2500))
    assert own is not None
    assert (own.memory_gb, own.tflops) == (288, 2500)


def test_the_example_profile_is_the_papers_machine() -> None:
    assert place_of(load_cluster(catalog.find_cluster("a100"))) == A100


def test_a_budget_is_the_same_by_both_doors() -> None:
    recipe = load_recipe(catalog.find_recipe("clipa-b16-i50-t16")).recipe
    phase = recipe.phases["pretrain"]
    assert isinstance(phase, TrainPhase)
    assert budget.phase_budget(recipe.model, phase) == budget.train_budget(recipe.model, phase)
    assert budget.phase_budget(recipe.model, recipe.phases["eval"]) is None

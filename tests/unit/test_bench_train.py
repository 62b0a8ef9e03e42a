"""`clipa bench train`: what is timed and what is not, that both sides compute the same, and what becomes of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from clipa.bench import (
    train,
    train_fed,
    train_run,
    train_sides,
    train_windows,
)
from clipa.bench.train_case import Size, Work, made_batches, work_of
from clipa.bench.train_facts import spread
from clipa.bench.train_run import Ask
from clipa.bench.train_sides import DEFAULTS, SAME, Contender
from clipa.bench.train_windows import Budget, Entry
from clipa.cli.main import app
from clipa.errors import ConfigError, InputError, MissingPart, TrainError
from clipa.made import demo
from clipa.spec.budget import train_budget
from clipa.spec.catalog import find_recipe, recipes
from clipa.spec.job import Eval
from clipa.spec.load import load_recipe

CPU = torch.device("cpu")
QUICK = Budget(0.0, 1)
TINY = ("model.image.width=32", "model.image.heads=2", "model.image.layers=1", "model.text.layers=1")


@pytest.fixture
def work() -> Work:
    return work_of("demo", "", TINY, CPU)


def test_sides_take_turns_and_the_warm_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now, steps = [0.0], list[tuple[str, int]]()
    monkeypatch.setattr(train_windows.time, "perf_counter", lambda: now[0])

    def side(name: str, seconds: float) -> Contender:
        def step(number: int) -> torch.Tensor:
            steps.append((name, number))
            now[0] += 100.0 if number < train_windows.WARM_STEPS else seconds
            return torch.tensor(float(number))

        return Contender(name, "", step)

    timed = train_windows.measure(
        [Entry("a", lambda: side("a", 0.25)), Entry("b", lambda: side("b", 0.5))], 8, CPU, Budget(0.0), print
    )
    assert timed["a"].rates == [32.0] * train_windows.FEWEST
    assert timed["b"].rates == [16.0] * train_windows.FEWEST
    assert timed["a"].warm_s == 100.0 * train_windows.WARM_STEPS
    counted = "".join(name for name, _ in steps[2 * train_windows.WARM_STEPS + 2 :])
    assert counted == ("aaaa" + "bb") * train_windows.FEWEST  # windows of a second, turn about
    assert train_windows.ratios(timed, "a")["b"] == spread([2.0] * train_windows.FEWEST)


def test_windows_go_on_for_as_long_as_the_budget_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(train_windows.time, "perf_counter", lambda: now[0])

    def step(_: int) -> torch.Tensor:
        now[0] += 0.5
        return torch.zeros(())

    timed = train_windows.measure([Entry("a", lambda: Contender("a", "", step))], 8, CPU, Budget(12.0), print)
    assert 10 <= len(timed["a"].rates) <= 12


V2 = ("model.family=v2", "model.text.tokenizer=bert-wordpiece", "model.image.pool=gap-norm")


@pytest.mark.parametrize("family", [(), V2], ids=["v1", "v2"])
def test_open_clip_computes_the_same_loss_from_the_same_weights_and_learns_as_we_do(family: tuple[str, ...]) -> None:
    work, size = work_of("demo", "", (*TINY, *family), CPU), Size(6)
    work = work._replace(phase=msgspec.structs.replace(work.phase, optim=_still_rate(work)))
    batches = made_batches(work, size)
    ours, learner = train_sides.ours(work, size, batches)
    start = {key: value.clone() for key, value in learner.model.state_dict().items()}
    theirs = train_sides.theirs(work, size, batches, SAME["fp32"], start)
    for number in range(3):
        mine, other = float(ours.step(number)), float(theirs.step(number))
        assert mine == pytest.approx(other, rel=2e-4 if number else 1e-5), number
    assert mine < float(train_sides.ours(work, size, batches)[0].step(2)), "the steps taught nothing"


def _still_rate(work: Work) -> object:
    """A rate that neither schedule moves, with open_clip's own momentum."""
    return msgspec.structs.replace(work.phase.optim, lr=1e-4, warmup_samples=0, beta2=0.98, eps=1e-6)


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_every_phase_of_every_recipe_has_a_plan_at_any_batch(recipe: str) -> None:
    for name, phase in load_recipe(find_recipe(recipe)).recipe.phases.items():
        if not isinstance(phase, Eval):
            plan = work_of(recipe, name, (), CPU).plan(Size(2))
            assert plan.warmup_steps == pytest.approx(phase.optim.warmup_samples / phase.batch, abs=1)
            assert plan.steps >= 1_000_000


def test_a_case_beside_open_clip(work: Work) -> None:
    found = train_run.measure(work, Size(8), Ask(QUICK, (DEFAULTS, SAME["fp32"]), peak=2.0))
    own, default, same = found.sides
    assert (own.name, own.how, default.how, same.how) == ("clipa", "fp32", "amp", "fp32")
    flops = train_budget(work.recipe.model, work.phase).flops_per_sample
    for side in found.sides:
        assert side.samples_per_s.windows >= train_windows.FEWEST
        assert side.samples_per_s.low <= side.samples_per_s.median <= side.samples_per_s.high
        assert side.tflops == pytest.approx(side.samples_per_s.median * flops / 1e12)
        assert side.mfu == pytest.approx(side.tflops / 2.0)
        assert side.step_ms == pytest.approx(8000 / side.samples_per_s.median)
        assert side.first_loss == pytest.approx(own.first_loss, rel=1e-3)
    assert [ratio.than for ratio in found.ratios] == [default.name, same.name]
    assert all(0 < ratio.times.low <= ratio.times.median <= ratio.times.high for ratio in found.ratios)
    assert found.case.flops_per_sample == flops
    assert not found.calibration


@pytest.mark.parametrize(("at_once", "expected"), [(0, Size(8, 0)), (16, Size(32, 8))])
def test_what_does_not_fit_is_measured_smaller_and_said(
    work: Work, monkeypatch: pytest.MonkeyPatch, at_once: int, expected: Size
) -> None:
    real = train_sides.ours

    def ours(work: Work, size: Size, *rest: object) -> object:
        if (size.at_once or size.batch) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return real(work, size, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(train_sides, "ours", ours)
    said: list[str] = []
    found = train_run.measure(work, Size(32, at_once), Ask(QUICK, tell=said.append))
    assert (found.case.batch, found.case.at_once) == (expected.batch, expected.at_once or expected.batch)
    assert len(found.notes) == (1 if at_once else 2)
    assert all("does not fit in memory" in note and note in said for note in found.notes)


def test_a_rival_that_fails_is_left_out_and_named(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("the compiler has no compiler\nand more")

    monkeypatch.setattr(train_sides, "theirs", broken)
    found = train_run.measure(work, Size(8), Ask(QUICK, (DEFAULTS,)))
    assert [side.name for side in found.sides] == ["clipa"]
    assert not found.ratios
    assert found.notes == (
        "open_clip, defaults is left out, it fails here: RuntimeError: the compiler has no compiler",
    )


def test_torchs_own_failures_are_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(train_sides, "ours", broken)
    assert train.main(["demo", "--batch=4", "--device=cpu"]) == 1
    err = capsys.readouterr().err
    assert "error: torch failed: RuntimeError: no kernel image\nhint:" in err
    assert "Traceback" not in err


def test_another_error_is_no_lack_of_memory(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(train_sides, "ours", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_run.measure(work, Size(32), Ask(QUICK))


def test_waiting_for_shards_is_measured(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.write(str(tmp_path))
    shards = train_fed.shards_of(str(tmp_path / "train"), 1)
    fed = train_fed.fed(work, Size(16), shards, QUICK, lambda _: None)
    assert fed.samples_per_s > 0
    assert 0 <= fed.wait <= 1
    assert fed.workers == 1
    # A trainer that takes no time waits all the time.
    still = SimpleNamespace(phase=work.plan(Size(16)).settings, learn=lambda *_: None)
    monkeypatch.setattr(train_fed, "Learner", lambda *_: still)
    assert train_fed.fed(work, Size(16), shards, QUICK, lambda _: None).wait > 0.8


def test_the_plan_reads_what_was_measured(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    root = tmp_path / "runs"
    monkeypatch.setattr(train_run, "_gpu_name", lambda _: "NVIDIA H100 80GB HBM3")
    found = train_run.measure(work, Size(8), Ask(QUICK, calibrations=root))
    assert Path(found.calibration).is_file()
    profile = tmp_path / "h100.toml"
    profile.write_text('name = "h100"\nbackend = "local"\ngpus = 8\ngpu_model = "H100"\n')
    monkeypatch.setenv("CLIPA_RUN_ROOT", str(root))
    words = [word for change in TINY for word in ("--set", change)]
    done = CliRunner().invoke(app, ["plan", "demo", "--cluster", str(profile), "--json", *words])
    assert done.exit_code == 0, done.output
    rate = json.loads(done.stdout)["cost"]["phases"]["pretrain"]["rate"]
    assert (rate["source"], rate["measured"]) == ("measured", True)
    assert rate["samples_per_s"] == pytest.approx(found.sides[0].samples_per_s.median)


def test_a_missing_open_clip_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip_train.params", None)
    with pytest.raises(MissingPart) as caught:
        train_sides.open_clip()
    assert "pip install" in caught.value.hint


def test_a_model_that_open_clip_cannot_compute_is_refused() -> None:
    work = work_of("demo", "", ("model.image.pool=gap-all",), CPU)
    batches = made_batches(work, Size(4))
    _, learner = train_sides.ours(work, Size(4), batches)
    with pytest.raises(ConfigError, match="open_clip cannot compute this model"):
        train_sides.theirs(work, Size(4), batches, DEFAULTS, dict(learner.model.state_dict()))


def test_steps_that_were_not_applied_are_no_measurement() -> None:
    work = work_of("demo", "", (*TINY, "phases.pretrain.image.std=[1e-44,1e-44,1e-44]"), CPU)  # pixels are infinite
    with pytest.raises(TrainError, match="step 1 was not finite"):
        train_run.measure(work, Size(8), Ask(QUICK))


def test_a_dataset_that_is_bound_to_a_store_is_not_measured_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clipa.toml").write_text('[datasets]\nlaion = "s3://bucket/laion"\n')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        train_fed.shards_of("laion", 0)
    assert "clipa data stage laion" in caught.value.hint

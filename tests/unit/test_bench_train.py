"""`clipa bench train`: what is timed and what is not, that both sides compute the same, and what becomes of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from clipa.bench import (
    train,
    train_call,
    train_fed,
    train_profile,
    train_project,
    train_run,
    train_sides,
    train_windows,
)
from clipa.bench.train_case import Size, Work, made_batches, work_of
from clipa.bench.train_facts import Report, spread
from clipa.bench.train_run import Ask
from clipa.bench.train_sides import DEFAULTS, SAME, Contender
from clipa.bench.train_windows import Budget, Entry
from clipa.cli.main import app
from clipa.errors import ConfigError, InputError, MissingPart, TrainError
from clipa.made import demo
from clipa.registry import calibration
from clipa.registry.calibration import Calibration
from clipa.spec.budget import train_budget
from clipa.spec.catalog import find_recipe, recipes
from clipa.spec.hardware import GPUS
from clipa.spec.job import Eval
from clipa.spec.load import load_recipe
from clipa.train import learner as learners

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


def _calibration(recipe: str, phase: str, rate: float) -> Calibration:
    work = work_of(recipe, phase, (), CPU)
    timed = train_windows.Timed([rate], 0, 0.0, 0.0)
    return msgspec.structs.replace(train_run.calibration_of(work, Size(64), timed), gpu="NVIDIA H100 80GB HBM3")


def test_projected_days_are_samples_over_rates_and_the_slower_of_computing_and_decoding() -> None:
    known = [
        _calibration("clipa-b16-i50-t16", phase, rate) for phase, rate in (("pretrain", 8000.0), ("finetune", 1000.0))
    ]
    found = train_project.projected(GPUS["H100"], known, cores=1_000_000)
    hours = 2_443_992_504 / 8000 / 8 / 3600 + 131_072_000 / 1000 / 8 / 3600
    first = found[0]
    assert (first.recipe, first.said_days, first.said_gpu_hours) == ("clipa-b16-i50-t16", 2.0, 444)
    assert first.compute_days == pytest.approx(hours / 24, rel=1e-3)
    assert first.days == pytest.approx(first.compute_days)
    assert first.gpu_hours == pytest.approx(8 * hours, rel=1e-3)
    assert all("measured (" in basis for basis in first.basis)
    assert ["measured share" in basis for basis in found[2].basis] == [True, True]  # L/16 was not measured
    bound = train_project.projected(GPUS["H100"], known, cores=1)[0]
    assert bound.days == pytest.approx(bound.data_days)
    assert bound.data_days == pytest.approx(first.data_days * 1_000_000, rel=1e-3)
    assert bound.compute_days == first.compute_days


def test_all_measures_comparisons_rates_and_fine_tunes_and_leaves_out_what_time_does_not_allow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_call, "PIPELINES", ("demo",))
    monkeypatch.setattr(train_call, "COMPARED", ("demo",))
    monkeypatch.setattr(train_call, "WINDOWS_S", 0.0)
    monkeypatch.setattr(train_call, "OWN_WINDOWS_S", 0.0)
    monkeypatch.setattr(train_call, "_steps", lambda options: _first_three(options))
    options = _options(tmp_path, minutes=60.0)
    found = train_call.all_cases(options)
    assert [(m.case.phase, len(m.sides), bool(m.calibration)) for m in found] == [
        ("pretrain", 2, False), ("pretrain", 1, True), ("finetune", 1, True),
    ]  # fmt: skip
    assert len(calibration.read([tmp_path])) == 2
    assert len(train_call.all_cases(options._replace(minutes=0.001))) == 1
    assert "left out for lack of time: demo finetune" in capsys.readouterr().err


_REAL_STEPS = train_call._steps


def _first_three(options: train_call.Options) -> list[object]:
    tables = []
    for name in ("demo",):
        pre, tune = (work_of(name, phase, TINY, CPU) for phase in ("pretrain", "finetune"))
        tables = [
            train_call._Step(pre, pre.at_once(), options.rivals, False),
            train_call._Step(pre, pre.share(), (), True),
            train_call._Step(tune, tune.share(), (), True),
        ]
    return list(tables)


def _options(root: Path, minutes: float) -> train_call.Options:
    return train_call.Options(
        recipe="demo", phase="", changes=TINY, rivals=(SAME["fp32"],), device=CPU, batch=0, shards=None,
        minutes=minutes, steps=1, peak=None, cores=0, all=True, profile=None, json=False, calibrations=root,
    )  # fmt: skip


def test_all_begins_with_what_matters_most(tmp_path: Path) -> None:
    steps = _REAL_STEPS(_options(tmp_path, 8.0)._replace(changes=()))
    told = [(s.work.recipe.name, s.work.name, len(s.rivals), s.keeps, s.size.batch, s.size.at_once) for s in steps]
    assert told[:4] == [
        ("clipa-l16-i37-t8", "pretrain", 1, False, 1024, 0),
        ("clipa-b16-i50-t16", "pretrain", 1, False, 2048, 0),
        ("clipa-l16-i37-t8", "pretrain", 0, True, 4096, 1024),
        ("clipa-b16-i50-t16", "pretrain", 0, True, 8192, 2048),
    ]
    assert {(name, phase) for name, phase, _, keeps, *_ in told if keeps} == {
        (name, phase) for name in train_call.PIPELINES for phase in ("pretrain", "finetune")
    }


def test_the_profile_has_a_trace_and_names_the_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--batch=8", "--device=cpu", "--profile", f"--to={tmp_path}", *(f"--set={c}" for c in TINY)]
    assert train.main(words) == 0
    said = capsys.readouterr().out
    for region in (
        "image tower forward",
        "text tower forward",
        "loss",
        "colours",
        "backward",
        "optimizer",
        "the whole step",
    ):
        assert re.search(rf"^{region} +\d", said, re.MULTILINE), region
    trace = json.loads((tmp_path / "clipa.trace.json").read_text())
    assert any(event.get("name") == "region: image tower forward" for event in trace["traceEvents"])
    assert "aten::" in (tmp_path / "clipa.txt").read_text()


def test_regions_are_named_only_while_they_are_recorded(work: Work) -> None:
    learner = train_sides.ours(work, Size(4), made_batches(work, Size(4)))[1]
    before, moved = learner._colours, learners.moved
    with train_profile.named(learner):
        assert learner._colours is not before
        assert learners.moved is not moved
    assert learner._colours is before
    assert learners.moved is moved
    assert not learner.model.image._forward_hooks


def test_the_command_prints_facts_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "train", "demo", "--batch", "8", "--steps", "1", "--minutes", "0.001", "--json"]
    done = CliRunner().invoke(app, [*words, *(w for change in TINY for w in ("--set", change))])
    out, err = capfd.readouterr()
    assert done.exit_code == 0, err
    report = msgspec.json.decode(out, type=Report)
    assert report.machine.device == "CPU"
    assert report.machine.threads >= 1
    assert report.measured[0].case.image_tokens == 4
    assert report.measured[0].sides[0].samples_per_s.median > 0
    assert not report.projected
    assert "not projected" in report.notes[0]


BAD = [
    (["no-such-recipe"], "no recipe 'no-such-recipe'", "clipa recipes"),
    (["demo", "--phase=eval"], "phase eval trains nothing", "--phase pretrain"),
    (["demo", "--phase=pretrian"], "there is no phase 'pretrian'", 'did you mean "pretrain"?'),
    (["demo", "--device=cuda"], "torch sees no GPU here", "--device cpu"),
    (["demo", "--batch=1"], "--batch must be >= 2", ""),
    (["demo", "--minutes=-1"], "--minutes must be >= 0", ""),
    (["demo", "--data=/nowhere/at/all"], "no dataset '/nowhere/at/all'", ""),
    (["demo", "--data=s3://bucket/x"], "where they lie on this machine's disks", "clipa data stage"),
    (["demo", "--write-calibration"], "clipa plan prices GPUs", ""),
    (["--all"], "torch sees none here", "--vs open_clip"),
    (["demo", "--all"], "--all measures recipes", ""),
    (["demo", "--set=phases.pretrain.batch=x"], "batch", ""),
]


@pytest.mark.parametrize(("words", "said", "hint"), BAD, ids=[" ".join(words) for words, *_ in BAD])
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")
def test_bad_input_is_refused(words: list[str], said: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert hint in err


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


@pytest.mark.long
def test_the_whole_comparison_with_its_best_flags(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--batch=8", "--steps=1", "--minutes=0.001", "--vs=open_clip", *(f"--set={c}" for c in TINY)]
    assert train.main(words) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"times as fast as open_clip, (defaults|our precision|best flags) \(", said)) == 3
    assert "amp_bf16, compiled" in said

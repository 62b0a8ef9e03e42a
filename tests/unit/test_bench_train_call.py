"""`clipa bench train` from its words to its report: what is refused, --all in its time, the profile, the projection."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from torch.autograd import DeviceType
from typer.testing import CliRunner

from clipa.bench import train, train_all, train_profile, train_project, train_run, train_sides, train_windows
from clipa.bench.train_all import All, Step
from clipa.bench.train_case import Size, Work, made_batches, work_of
from clipa.bench.train_facts import Measured, Report
from clipa.bench.train_sides import SAME
from clipa.cli.main import app
from clipa.registry import calibration
from clipa.registry.calibration import Calibration
from clipa.spec.hardware import GPUS
from clipa.train import learner as learners

CPU = torch.device("cpu")
TINY = ("model.image.width=32", "model.image.heads=2", "model.image.layers=1", "model.text.layers=1")


@pytest.fixture
def work() -> Work:
    return work_of("demo", "", TINY, CPU)


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


def _asked(root: Path) -> All:
    return All(TINY, (SAME["fp32"],), CPU, 1, None, root)


def _three(what: All) -> list[Step]:
    pre, tune = (work_of("demo", phase, TINY, CPU) for phase in ("pretrain", "finetune"))
    return [
        Step(pre, pre.at_once(), what.rivals, False), Step(pre, pre.share(), (), True),
        Step(tune, tune.share(), (), True),
    ]  # fmt: skip


def test_all_measures_comparisons_rates_and_fine_tunes_and_leaves_out_what_time_does_not_allow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train_all, "WINDOWS_S", 0.0)
    monkeypatch.setattr(train_all, "OWN_WINDOWS_S", 0.0)
    what, found, told = _asked(tmp_path), list[Measured](), list[str]()
    train_all.all_cases(what, _three(what), train_all.time.perf_counter() + 3600, found, told.append)
    assert [(m.case.phase, len(m.sides), bool(m.calibration)) for m in found] == [
        ("pretrain", 2, False), ("pretrain", 1, True), ("finetune", 1, True),
    ]  # fmt: skip
    assert len(calibration.read([tmp_path])) == 2
    assert "clipa: warming up, and compiling where it does" in told
    short = list[Measured]()
    train_all.all_cases(what, _three(what), train_all.time.perf_counter() + 1, short, told.append)
    assert not short
    assert "left out for lack of time: demo finetune" in told


def test_boxes_keep_the_time_and_leave_what_is_over_to_those_that_follow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each case takes all of its box, compilation included: the last one ends in time."""
    now, boxes = [0.0], list[float]()
    monkeypatch.setattr(train_all.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(train_all.train_show, "text_of", lambda _: "")

    def measure(_work: object, _size: object, ask: train_run.Ask) -> object:
        boxes.append(ask.budget.until - now[0])
        now[0] = ask.budget.until if len(boxes) > 1 else 40.0
        return None

    monkeypatch.setattr(train_all, "measure", measure)
    what = _asked(tmp_path)
    steps = train_all.steps_of(what._replace(changes=()))
    train_all.all_cases(what, steps, 470.0, [], print)
    assert len(boxes) == len(steps), "all of them have their turn"
    assert now[0] <= 470.0
    assert boxes[0] == 470 - sum(train_all.BOX_S[bool(step.rivals)] for step in steps[1:])
    assert boxes[1] == 470 - 40 - 6 * 30, "what the first one left over"
    assert boxes[2:] == [30.0] * 6


def test_a_case_that_fails_loses_none_of_those_before_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(train_all, "WINDOWS_S", 0.0)
    real, calls = train_sides.ours, list[int]()

    def ours(*words: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no kernel image\nand more")
        return real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(train_sides, "ours", ours)
    what, found, told = _asked(tmp_path), list[Measured](), list[str]()
    train_all.all_cases(what, _three(what), train_all.time.perf_counter() + 3600, found, told.append)
    assert [m.case.phase for m in found] == ["pretrain", "finetune"]
    assert "demo pretrain is left out, it fails here: no kernel image" in told


HANGS = """
import sys, time
from clipa.bench import train_all
train_all.LAST_S = 1.0
train_all.steps_of = lambda _: []
def all_cases(what, steps, deadline, found, tell):
    found.append("a case")
    time.sleep(600)
train_all.all_cases = all_cases
train_all.in_time(None, train_all._age() + 2.5, lambda found: print(*found, flush=True), print)
"""


def test_a_compiler_that_never_comes_back_costs_no_report() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the time is over: what was under way is left out\na case\n"


def test_a_side_that_warms_up_for_long_gives_signs_and_the_next_ones_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_windows, "SIGN_S", 0.01)
    told = list[str]()
    until = train_windows.time.perf_counter() + 0.2

    def slow(number: int) -> torch.Tensor:
        while train_windows.time.perf_counter() < until or len(told) < 3:
            pass
        return torch.zeros(())

    entries = [
        train_windows.Entry(name, lambda name=name: train_sides.Contender(name, "", slow))  # type: ignore[misc]
        for name in ("a", "b")
    ]
    budget = train_windows.Budget(60.0, 1, until)
    timed = train_windows.measure(entries, 8, CPU, budget, told.append, told.append)
    assert list(timed) == ["a"]
    assert len(timed["a"].rates) == 1, "one window in any case"
    assert told[0] == "a: warming up, and compiling where it does"
    assert told[1] == "a: warming up, and compiling where it does: 0 s so far"
    assert told[-1] == "b is left out for lack of time"


def test_all_begins_with_what_matters_most(tmp_path: Path) -> None:
    steps = train_all.steps_of(_asked(tmp_path)._replace(changes=()))
    told = [(s.work.recipe.name, s.work.name, len(s.rivals), s.keeps, s.size.batch, s.size.at_once) for s in steps]
    assert told[:4] == [
        ("clipa-l16-i37-t8", "pretrain", 1, False, 1024, 0),
        ("clipa-b16-i50-t16", "pretrain", 1, False, 2048, 0),
        ("clipa-l16-i37-t8", "pretrain", 0, True, 4096, 1024),
        ("clipa-b16-i50-t16", "pretrain", 0, True, 8192, 2048),
    ]
    assert {(name, phase) for name, phase, _, keeps, *_ in told if keeps} == {
        (name, phase) for name in train_all.PIPELINES for phase in ("pretrain", "finetune")
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


def test_a_region_of_a_gpu_is_the_time_of_its_kernels_once_of_the_step_by_the_clock() -> None:
    def event(key: str, kind: DeviceType, host: float, device: float) -> SimpleNamespace:
        return SimpleNamespace(key=key, device_type=kind, cpu_time_total=host, device_time_total=device)

    tower, engine = "region: image tower forward", "autograd::engine::evaluate_function: MmBackward0"
    events = [
        event(tower, DeviceType.CPU, 600.0, 9000.0), event(tower, DeviceType.CUDA, 0.0, 9500.0),
        event(engine, DeviceType.CPU, 300.0, 15000.0), event("Optimizer.step#AdamW.step", DeviceType.CPU, 90.0, 3000.0),
        event("aten::mm", DeviceType.CPU, 500.0, 20000.0),
    ]  # fmt: skip
    said = train_profile.regions(events, torch.device("cuda"), 10.0)
    rows = [line.rsplit(maxsplit=3) for line in said.splitlines()[1:-1]]
    assert [(name, float(ms), float(share)) for name, ms, share, _ in rows] == [
        ("backward", 5.0, 50.0), ("image tower forward", 3.0, 30.0), ("optimizer", 1.0, 10.0),
    ]  # fmt: skip
    assert said.splitlines()[-1].split() == ["the", "whole", "step", "10.0"]


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


@pytest.mark.long
def test_the_whole_comparison_with_its_best_flags(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", "--batch=8", "--steps=1", "--minutes=0.001", "--vs=open_clip", *(f"--set={c}" for c in TINY)]
    assert train.main(words) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"times as fast as open_clip, (defaults|our precision|best flags) \(", said)) == 3
    assert "amp_bf16, compiled" in said

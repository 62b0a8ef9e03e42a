"""One call of `clipa bench train`: from its options to a report. What is measured for whom stands here."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

import clipa
from clipa.bench import train_case, train_profile, train_project, train_show, train_sides, train_windows
from clipa.bench.train_all import All, in_time
from clipa.bench.train_case import Size, Work, work_of
from clipa.bench.train_facts import Machine, Measured, Report
from clipa.bench.train_fed import Shards, shards_of
from clipa.bench.train_run import OWN, Ask, measure
from clipa.bench.train_sides import BEST, DEFAULTS, SAME, Flags
from clipa.bench.train_windows import Budget
from clipa.errors import ConfigError
from clipa.registry import calibration, provenance, roots
from clipa.spec.hardware import Gpu, gpu_named
from clipa.terminal import say, say_document

CPU_RECIPE, GPU_RECIPE = "scaling-s16", "clipa-l16-i37-t8"
CPU_BATCH = 32
CASE_MINUTES, ALL_MINUTES = 0.5, 8.0


class Options(NamedTuple):
    """What was asked, with every default settled."""

    recipe: str
    phase: str
    changes: tuple[str, ...]
    rivals: tuple[Flags, ...]
    device: torch.device
    batch: int
    shards: Shards | None
    minutes: float
    steps: int
    peak: float | None
    cores: int
    all: bool
    profile: Path | None
    json: bool
    calibrations: Path | None


def asked(words: argparse.Namespace) -> Options:
    """Settle and check the options.

    Raises:
        InputError: what does not go together, or is not here.
    """
    device = _device(words.device)
    on_gpu = device.type == "cuda"
    _check(words, on_gpu)
    if words.vs or words.all:
        train_sides.open_clip()
    keeps = on_gpu if words.write_calibration is None else words.write_calibration
    known = gpu_named(torch.cuda.get_device_name(device)) if on_gpu else None
    return Options(
        recipe=words.recipe or (GPU_RECIPE if on_gpu else CPU_RECIPE),
        phase=words.phase,
        changes=tuple(words.set),
        rivals=(DEFAULTS, BEST) if words.vs or words.all else (),
        device=device,
        batch=words.batch,
        shards=shards_of(words.data, words.workers) if words.data != "synthetic" else None,
        minutes=words.minutes or (ALL_MINUTES if words.all else CASE_MINUTES),
        steps=words.steps,
        peak=words.peak_tflops or (known.tflops if known else None),
        cores=words.cores,
        all=words.all,
        profile=words.to if words.profile else None,
        json=words.json,
        calibrations=words.calibrations if keeps else None,
    )


def _device(word: str) -> torch.device:
    has = torch.cuda.is_available()
    if word == "cuda" and not has:
        raise ConfigError(
            "torch sees no GPU here", where=f"--device cuda, torch {torch.__version__}", allowed="auto, cpu",
            hint="install the CUDA build of torch (pip install torch), or measure with --device cpu",
        )  # fmt: skip
    if word == "cpu" or not has:
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = True  # as clipa.attempt.devices, and as open_clip's main
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True  # as open_clip's main
    return torch.device("cuda", torch.cuda.current_device())


def _check(words: argparse.Namespace, on_gpu: bool) -> None:
    if words.batch == 1 or words.batch < 0:
        raise ConfigError(f"--batch must be >= 2: a sample needs another to differ from, got {words.batch}")
    for name in ("minutes", "steps", "workers", "cores", "peak_tflops"):
        if getattr(words, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be >= 0, got {getattr(words, name)}")
    if words.all and (words.recipe or words.phase or words.batch or words.set or words.data != "synthetic"):
        raise ConfigError("--all measures recipes, phases and batches of its own", hint="leave the others out")
    if words.all and words.profile:
        raise ConfigError("--profile records one phase", hint="clipa bench train RECIPE --phase PHASE --profile")
    if words.all and not on_gpu:
        raise ConfigError(
            "--all measures B/16 and L/16 at their full sizes, on a GPU; torch sees none here", allowed="one GPU",
            hint="clipa bench train --vs open_clip measures a small model on this CPU",
        )  # fmt: skip
    if words.write_calibration and not on_gpu:
        raise ConfigError(
            "clipa plan prices GPUs: a CPU's rate is none of its calibrations", where="--write-calibration"
        )


def call(options: Options) -> int:
    """Measure, and print the report. Returns the exit code."""
    began, before = time.time(), os.getloadavg()[0]
    if options.profile is not None:
        return _profile(options, options.profile)

    def show(measured: Sequence[Measured]) -> None:
        if options.calibrations is not None:
            roots.remember(options.calibrations)
        report = _report(options, measured, began, before)
        if options.json:
            say_document("clipa.bench-train/1", **msgspec.structs.asdict(report))
        else:
            say(train_show.text(report))

    if options.all:
        what = All(options.changes, options.rivals, options.device, options.steps, options.peak, options.calibrations)
        in_time(what, 60 * options.minutes, show, _tell)
    else:
        show(_one(options))
    return 0


def _tell(words: str) -> None:
    say(f"... {words}", err=True)


def _ask(options: Options, seconds: float, rivals: tuple[Flags, ...] = (), keeps: bool = True) -> Ask:
    kept = options.calibrations if keeps else None
    return Ask(Budget(seconds, options.steps), rivals, options.peak, kept, options.shards, _tell)


def _one(options: Options) -> list[Measured]:
    """One phase: beside its rivals at a batch that passes at once, then as the recipe has it where that is more."""
    work = work_of(options.recipe, options.phase, options.changes, options.device)
    size, whole = _sizes(work, options)
    seconds = 60 * options.minutes
    rivals = (*options.rivals[:1], SAME[work.precision], *options.rivals[1:]) if options.rivals else ()
    found = [measure(work, size, _ask(options, seconds, rivals, whole is None))]
    if whole is not None:
        found.append(measure(work, whole, _ask(options, seconds / 2)))
    return found


def _sizes(work: Work, options: Options) -> tuple[Size, Size | None]:
    """The batch that is compared, and the recipe's own share of a GPU where that passes in several pieces."""
    if options.batch:
        return Size(options.batch), None
    if options.device.type == "cpu":
        return Size(min(CPU_BATCH, work.phase.batch)), None
    at_once, share = work.at_once(), work.share()
    return at_once, share if share.batch > at_once.batch else None


def _report(options: Options, measured: Sequence[Measured], began: float, load: float) -> Report:
    on_gpu = options.device.type == "cuda"
    device = torch.cuda.get_device_name(options.device) if on_gpu else "CPU"
    machine = Machine(
        device=device,
        peak_tflops=options.peak,
        processor=provenance.processor(),
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        clipa=clipa.__version__,
        open_clip=train_sides.open_clip().version if options.rivals else "",
        time=began,
        load=(load, os.getloadavg()[0]),
    )
    if not on_gpu or options.peak is None:
        why = "no GPU was measured" if not on_gpu else "this GPU's peak is not known: give --peak-tflops"
        return Report(machine=machine, measured=tuple(measured), notes=(f"{why}, so the pipelines are not projected",))
    gpu = gpu_named(device) or Gpu(
        device, torch.cuda.get_device_properties(options.device).total_memory / 1e9, options.peak
    )
    gpu = msgspec.structs.replace(gpu, tflops=options.peak)
    known = calibration.read([options.calibrations]) if options.calibrations else []
    if not known:
        return Report(
            machine=machine,
            measured=tuple(measured),
            notes=("no calibration is kept, so the pipelines are not projected",),
        )
    found = train_project.projected(gpu, known, options.cores)
    cores = options.cores or train_project.CORES_PER_GPU * train_case.NODE_GPUS
    notes = tuple(f"assumed: {words.format(cores=cores)}" for words in train_project.ASSUMPTIONS)
    return Report(machine=machine, measured=tuple(measured), projected=tuple(found), notes=notes)


def _profile(options: Options, folder: Path) -> int:
    work = work_of(options.recipe, options.phase, options.changes, options.device)
    size, _ = _sizes(work, options)
    batches = train_case.made_batches(work, size)
    side, learner = train_sides.ours(work, size, batches, OWN)
    start = {name: value.to("cpu", copy=True) for name, value in learner.model.state_dict().items()}
    say(train_show.title(work.case(size)))
    with train_profile.named(learner):
        say(train_profile.profiled(side.name, side.step, options.device, folder))
    for flags in options.rivals:
        rival = train_sides.theirs(work, size, batches, flags, start)
        say(f"\n{rival.name} ({rival.how})")
        say(train_profile.profiled(rival.name, rival.step, options.device, folder))
        train_windows.empty(options.device)
    return 0

"""One case of `clipa bench train` from sizes to facts: smaller where memory ends, beside open_clip where asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import clipa
from clipa.bench import train_case, train_sides, train_windows
from clipa.bench.train_case import Size, Work
from clipa.bench.train_facts import Measured, Ratio, Side
from clipa.bench.train_fed import Shards, fed
from clipa.bench.train_sides import Contender, Flags
from clipa.bench.train_windows import Budget, Entry, Timed
from clipa.errors import TrainError
from clipa.registry import calibration
from clipa.registry.calibration import Calibration
from clipa.spec.counted import counted
from clipa.train.learner import Learner
from clipa.train.yardstick import Yardstick

OWN = "clipa"


class Ask(NamedTuple):
    """What is asked of every case.

    Attributes:
        budget: how long the windows last.
        rivals: open_clip's flags, one side each.
        peak: FLOP/s of the device, in 1e12; None: not known.
        calibrations: the run root that takes the measurement; None: it is not kept.
        shards: real data, beside the made ones.
        tell: told what is going on.
    """

    budget: Budget
    rivals: tuple[Flags, ...] = ()
    peak: float | None = None
    calibrations: Path | None = None
    shards: Shards | None = None
    tell: Callable[[str], None] = lambda _: None


def measure(work: Work, size: Size, ask: Ask) -> Measured:
    """Measure one case, with half the batch for as long as it does not fit.

    Raises:
        TrainError: not even two samples fit.
    """
    notes: list[str] = []
    while True:
        try:
            timed, how, left_out = _timed(work, size, ask)
            break
        except RuntimeError as error:
            if not train_windows.is_out_of_memory(error):
                raise
        # Out of the handler, whose traceback would keep every tensor alive.
        smaller = _halved(size)
        notes.append(f"a batch of {size.batch:,} does not fit in memory: {smaller.batch:,} for every side")
        ask.tell(notes[-1])
        size = smaller
        train_windows.empty(work.device)
    notes += left_out
    train_windows.empty(work.device)
    case = work.case(size)
    sides = tuple(_side(name, how[name], found, case.flops_per_sample, size, ask) for name, found in timed.items())
    ratios = tuple(Ratio(than=name, times=times) for name, times in train_windows.ratios(timed, OWN).items())
    kept = ""
    if ask.calibrations is not None:
        kept = str(calibration.write(ask.calibrations, calibration_of(work, size, timed[OWN])))
    shards = fed(work, size, ask.shards, ask.budget, ask.tell) if ask.shards else None
    return Measured(case=case, sides=sides, ratios=ratios, fed=shards, calibration=kept, notes=tuple(notes))


def _halved(size: Size) -> Size:
    if size.batch < 4:
        raise TrainError("not even two samples fit in memory", hint="another device, or --set a smaller model")
    at_once = size.at_once // 2 if size.at_once else 0
    return Size(size.batch if at_once else size.batch // 2, max(2, at_once) if size.at_once else 0)


def _timed(work: Work, size: Size, ask: Ask) -> tuple[dict[str, Timed], dict[str, str], list[str]]:
    """What the clock says of each side, how it computes, and what was left out."""
    batches = train_case.made_batches(work, size)
    how: dict[str, str] = {}
    start: dict[str, torch.Tensor] = {}
    learners: list[Learner] = []

    def own() -> Contender:
        side, learner = train_sides.ours(work, size, batches, OWN)
        learners.append(learner)
        how[side.name] = side.how
        if ask.rivals:
            start.update({name: value.to("cpu", copy=True) for name, value in learner.model.state_dict().items()})
        return side

    def rival(flags: Flags) -> Callable[[], Contender]:
        def make() -> Contender:
            side = train_sides.theirs(work, size, batches, flags, start)
            how[side.name] = side.how
            return side

        return make

    entries = [Entry(OWN, own), *(Entry(flags.name, rival(flags)) for flags in ask.rivals)]
    left_out: list[str] = []

    def tell(words: str) -> None:
        left_out.append(words)
        ask.tell(words)

    case = work.case(size)
    ask.tell(
        f"{case.recipe} {case.phase}: {size.batch:,} samples a step, {counted(len(entries), 'side')}, "
        f"{ask.budget.seconds:.0f} s"
    )
    timed = train_windows.measure(entries, size.batch, work.device, ask.budget, tell, ask.tell)
    if bad := learners[0].finite.read():
        raise TrainError(
            f"step {bad} was not finite, and no step after it was applied: their time means nothing",
            where=f"{case.recipe} {case.phase}",
            hint=f"--set phases.{case.phase}.optim.lr=1e-5",
        )
    return timed, how, left_out


def _side(name: str, how: str, found: Timed, flops: int, size: Size, ask: Ask) -> Side:
    rate = found.spread
    return Side(
        name=name,
        how=how,
        samples_per_s=rate,
        step_ms=1000 * size.batch / rate.median,
        tflops=rate.median * flops / 1e12,
        mfu=Yardstick(flops, 1, ask.peak * 1e12 if ask.peak else None).mfu(rate.median),
        memory_bytes=found.memory_bytes,
        first_loss=found.first_loss,
        warm_s=found.warm_s,
    )


def calibration_of(work: Work, size: Size, timed: Timed) -> Calibration:
    """What `clipa plan` needs to know of a measurement on one GPU."""
    budget = work.budget
    return Calibration(
        t=time.time(),
        gpu=_gpu_name(work.device),
        gpus=1,
        model=work.recipe.model,
        patches=budget.patches,
        image_tokens=budget.image_tokens,
        text_tokens=budget.text_tokens,
        micro_batch=min(size.at_once or size.batch, size.batch),
        batch=size.batch,
        samples_per_s=timed.spread.median,
        precision=work.precision,
        memory_bytes=timed.memory_bytes,
        version=clipa.__version__,
        torch=str(torch.__version__),
    )


def _gpu_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

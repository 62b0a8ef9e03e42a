"""What `clipa bench train --all` measures of one GPU, the most telling first, in a time that is kept in any case."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from clipa.bench import train_show
from clipa.bench.train_case import Size, Work, work_of
from clipa.bench.train_facts import Measured
from clipa.bench.train_run import Ask, measure
from clipa.bench.train_sides import Flags
from clipa.bench.train_windows import Budget
from clipa.errors import WorkError

PIPELINES = ("clipa-l16-i37-t8", "clipa-b16-i50-t16", "clipa-l16-i17-t16")
"""In the order of their weight: what comes last is left out where time is short."""
COMPARED = PIPELINES[:2]
WINDOWS_S, OWN_WINDOWS_S = 24.0, 8.0
"""Seconds of windows of a comparison and of a rate. The rest of eight minutes goes to compilation and warm-up."""
BOX_S = {True: 130.0, False: 30.0}
"""A case that compares, or not, makes no further side and begins no further round after so much, its compilation and
warm-up included: two comparisons and six rates are 440 s. What a case leaves over goes to those after it.
"""
LEAST_S = {True: 60.0, False: 15.0}
"""A case is not begun with less time than this left: it would hardly be warm."""
LAST_S = 5.0
"""Before the end of the time the report is printed, also where the compiler or the device never comes back."""


class All(NamedTuple):
    """What is asked of all cases; the fields are those of `Options`."""

    changes: tuple[str, ...]
    rivals: tuple[Flags, ...]
    device: torch.device
    steps: int
    peak: float | None
    calibrations: Path | None


class Step(NamedTuple):
    """One case, beside whom, and whether its rate is kept as a calibration."""

    work: Work
    size: Size
    rivals: tuple[Flags, ...]
    keeps: bool

    @property
    def name(self) -> str:
        """Recipe and phase."""
        return f"{self.work.recipe.name} {self.work.name}"


def steps_of(what: All) -> list[Step]:
    """Everything, the most telling first."""
    compared, rates, tunes = [], [], []
    for name in PIPELINES:
        pre, tune = (work_of(name, phase, what.changes, what.device) for phase in ("pretrain", "finetune"))
        if name in COMPARED:
            compared.append(Step(pre, pre.at_once(), what.rivals, False))
        rates.append(Step(pre, pre.share(), (), True))
        tunes.append(Step(tune, tune.share(), (), True))
    return [*compared, *rates[:2], *tunes[:2], rates[2], tunes[2]]


def all_cases(
    what: All, steps: Sequence[Step], deadline: float, found: list[Measured], tell: Callable[[str], None]
) -> None:
    """Measure what there is time for until a moment of `time.perf_counter`, and add it to `found`, case by case."""
    for number, step in enumerate(steps):
        compares = bool(step.rivals)
        left = deadline - time.perf_counter()
        if left < LEAST_S[compares]:
            tell(f"left out for lack of time: {step.name}")
            continue
        others = sum(BOX_S[bool(later.rivals)] for later in steps[number + 1 :])
        box = min(left, max(BOX_S[compares], left - others))
        budget = Budget(WINDOWS_S if compares else OWN_WINDOWS_S, what.steps, time.perf_counter() + box)
        kept = what.calibrations if step.keeps else None
        try:
            found.append(measure(step.work, step.size, Ask(budget, step.rivals, what.peak, kept, None, tell)))
        except (RuntimeError, WorkError) as error:
            if not found:
                raise
            tell(f"{step.name} is left out, it fails here: {str(error).strip().partition(chr(10))[0]}")
            continue
        tell(train_show.text_of(found[-1]))


def in_time(what: All, seconds: float, show: Callable[[Sequence[Measured]], None], tell: Callable[[str], None]) -> None:
    """Measure everything that fits into so many seconds of this process, the imports included, and show it.

    Cases keep their boxes by themselves, but nothing can call a compiler or a device back. So where the last one has
    not come back in the end, what is there is shown, and the process ends.
    """
    steps, found, seconds = steps_of(what), list[Measured](), seconds - _age()
    shown = threading.Lock()

    def end() -> None:
        if not shown.acquire(blocking=False):
            return
        tell("the time is over: what was under way is left out")
        show(tuple(found))
        sys.stderr.flush()
        os._exit(0)

    alarm = threading.Timer(max(0.0, seconds - LAST_S), end)
    alarm.daemon = True
    alarm.start()
    try:
        all_cases(what, steps, time.perf_counter() + seconds - 2 * LAST_S, found, tell)
        shown.acquire()
        show(tuple(found))
    finally:
        alarm.cancel()


def _age() -> float:
    """Seconds since this process began (field 22 of /proc/self/stat, proc(5): ticks since the machine did)."""
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")

"""Steps against the clock: warm-up left out, windows in turn, medians."""

from __future__ import annotations

import contextlib
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from clipa.bench.train_facts import Spread, spread
from clipa.bench.train_sides import Contender

WARM_STEPS = 3
"""Steps before the clock starts: allocators, autotuned kernels and the compiler have seen everything then."""
WINDOW_S = 1.0
"""Seconds that a window lasts at least, where nothing else is said."""
FEWEST = 3
"""Windows of each side at least, so that a median is one."""


SIGN_S = 10.0
"""Seconds from one sign of life to the next while a side warms up: the compiler says nothing for minutes."""


class Budget(NamedTuple):
    """How long to measure: seconds for all sides together, or steps a window (0: as many as last WINDOW_S).

    `until`: the moment (`time.perf_counter`) after which no further side is made and no further round begins, although
    there are fewer than FEWEST then: compilation and warm-up count against it.
    """

    seconds: float
    steps: int = 0
    until: float = math.inf


class Timed(NamedTuple):
    """What the clock says of one side: samples a second by window, peak memory, the first loss, the warm-up."""

    rates: list[float]
    memory_bytes: int
    first_loss: float
    warm_s: float

    @property
    def spread(self) -> Spread:
        """Median, lowest and highest rate."""
        return spread(self.rates)


class _Clock:
    """One side with its counters."""

    def __init__(self, side: Contender, batch: int, device: torch.device) -> None:
        self.side = side
        self.batch = batch
        self.device = device
        self.number = 0
        self.rates: list[float] = []
        self.peak = 0

    def run(self, steps: int) -> float:
        """Take steps; returns the seconds that they last, to the last kernel."""
        settle(self.device)
        began = time.perf_counter()
        for _ in range(steps):
            self.side.step(self.number)
            self.number += 1
        settle(self.device)
        return time.perf_counter() - began

    def warm(self) -> tuple[float, float]:
        """Take the first steps; returns the first loss and the seconds."""
        began = time.perf_counter()
        first = float(self.side.step(0))
        self.number = 1
        self.run(WARM_STEPS - 1)
        return first, time.perf_counter() - began

    def window(self, steps: int) -> None:
        """One counted window."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.rates.append(steps * self.batch / self.run(steps))
        if self.device.type == "cuda":
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(self.device))


def settle(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Entry(NamedTuple):
    """A side that is to be made: its name, and what makes it."""

    name: str
    make: Callable[[], Contender]


def measure(
    entries: Sequence[Entry], batch: int, device: torch.device, budget: Budget, tell: Callable[[str], None],
    sign: Callable[[str], None] = lambda _: None,
) -> dict[str, Timed]:  # fmt: skip
    """Make all sides, warm them up, and let them step in turn: A B A B ..., window by window.

    Args:
        entries: the sides in the order of their turns. One that fails is left out and told, but for the first.
        batch: samples a step.
        device: of all of them.
        budget: how long; at least FEWEST windows of each within its last moment, and one in any case.
        tell: told of a side that is left out.
        sign: told every few seconds that a side still warms up.
    """
    clocks: list[_Clock] = []
    warmth: list[tuple[float, float]] = []
    held: list[int] = []
    for entry in entries:
        if clocks and time.perf_counter() > budget.until:
            tell(f"{entry.name} is left out for lack of time")
            continue
        before = _allocated(device)
        try:
            with _signs(sign, f"{entry.name}: warming up, and compiling where it does"):
                clock = _Clock(entry.make(), batch, device)
                warmth.append(clock.warm())
        except (RuntimeError, AttributeError, ImportError) as error:  # the compiler's errors are RuntimeErrors
            if not clocks or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
                raise
            tell(
                f"{entry.name} is left out, it fails here: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
            )
            continue
        clocks.append(clock)
        held.append(_allocated(device) - before)
    steps = [budget.steps or max(1, round(WINDOW_S / clock.run(1))) for clock in clocks]
    began, rounds = time.perf_counter(), 0
    while _goes_on(rounds, time.perf_counter(), began, budget):
        for clock, count in zip(clocks, steps, strict=True):
            clock.window(count)
        rounds += 1
    return {
        clock.side.name: Timed(clock.rates, max(0, clock.peak - (sum(held) - own)), first, warm)
        for clock, own, (first, warm) in zip(clocks, held, warmth, strict=True)
    }


def _goes_on(rounds: int, now: float, began: float, budget: Budget) -> bool:
    if rounds == 0:
        return True
    return now < budget.until and (rounds < FEWEST or now - began < budget.seconds * (1 - 1 / (rounds + 1)))


@contextlib.contextmanager
def _signs(sign: Callable[[str], None], words: str) -> Iterator[None]:
    """Say what is going on, now and every SIGN_S seconds, until the block ends."""
    over = threading.Event()
    began = time.monotonic()

    def run() -> None:
        while not over.wait(SIGN_S):
            sign(f"{words}: {time.monotonic() - began:.0f} s so far")

    sign(words)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def ratios(timed: dict[str, Timed], own: str) -> dict[str, Spread]:
    """How many times as fast as each other side, window against window of the same round."""
    mine = timed[own].rates
    return {
        name: spread([a / b for a, b in zip(mine, other.rates, strict=True)])
        for name, other in timed.items()
        if name != own
    }


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def empty(device: torch.device) -> None:
    """Give back what sides that are gone have held."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not allocate; on a CPU that is a plain RuntimeError."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error).lower() for word in words)

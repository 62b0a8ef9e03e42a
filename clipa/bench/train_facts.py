"""The facts that `clipa bench train` reports: plain values, as --json prints them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from clipa.spec.plan import Record


class Spread(Record, frozen=True, kw_only=True):
    """The median of several windows, the lowest and the highest of them."""

    median: float
    low: float
    high: float
    windows: int


def spread(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(median=statistics.median(values), low=min(values), high=max(values), windows=len(values))


class Case(Record, frozen=True, kw_only=True):
    """What is measured: a phase of a recipe, `batch` samples a step, `at_once` of them through the towers at once.

    `flops_per_sample`: forward and backward, of the phase's exact tokens (clipa.spec.budget); a second forward pass,
    where samples pass in pieces, is not counted.
    """

    recipe: str
    phase: str
    batch: int
    at_once: int
    patches: int
    image_tokens: int
    text_tokens: int
    params: int
    flops_per_sample: int


class Side(Record, frozen=True, kw_only=True):
    """One program's step.

    Attributes:
        name: whose.
        how: precision, compilation, flags.
        samples_per_s: of this process.
        step_ms: the median step.
        tflops: model FLOPs a second, in 1e12.
        mfu: share of the device's peak; None where the peak is not known.
        memory_bytes: the peak that torch had allocated on a GPU, without what the other sides hold there; 0 on a CPU.
        first_loss: of the first batch with the common starting weights.
        warm_s: seconds until the first windows could be counted: compilation, the allocator, the first steps.
    """

    name: str
    how: str
    samples_per_s: Spread
    step_ms: float
    tflops: float
    mfu: float | None
    memory_bytes: int
    first_loss: float
    warm_s: float


class Ratio(Record, frozen=True, kw_only=True):
    """How many times as fast clipa's step is as another's: the windows of one round, compared with each other."""

    than: str
    times: Spread


class Fed(Record, frozen=True, kw_only=True):
    """Steps whose batches come from shards. `wait`: the share of the time in which the step waited for them."""

    data: str
    samples_per_s: float
    wait: float
    workers: int


class Measured(Record, frozen=True, kw_only=True):
    """One case, measured. `calibration`: the file that `clipa plan` reads from now on; empty: none."""

    case: Case
    sides: tuple[Side, ...]
    ratios: tuple[Ratio, ...] = ()
    fed: Fed | None = None
    calibration: str = ""
    notes: tuple[str, ...] = ()


class Machine(Record, frozen=True, kw_only=True):
    """Where it was measured. `load`: the load average of the last minute, before and after."""

    device: str
    peak_tflops: float | None
    processor: str
    threads: int
    torch: str
    clipa: str
    open_clip: str
    time: float
    load: tuple[float, float]


class Projected(Record, frozen=True, kw_only=True):
    """A published recipe on eight such GPUs: wall-clock days of computing, of decoding, and of the slower one.

    `basis` says for each phase how its rate is known; `said_*` is what the authors report, on eight A100.
    """

    recipe: str
    gpu_hours: float
    compute_days: float
    data_days: float
    days: float
    cores_needed: int
    basis: tuple[str, ...]
    said_days: float
    said_gpu_hours: float


class Report(Record, frozen=True, kw_only=True):
    """All that one call measured."""

    machine: Machine
    measured: tuple[Measured, ...]
    projected: tuple[Projected, ...] = ()
    notes: tuple[str, ...] = ()

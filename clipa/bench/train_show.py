"""The report of `clipa bench train` as people read it: 120 columns, no colours."""

from __future__ import annotations

import time
from collections.abc import Iterator

from clipa.bench.train_facts import Case, Machine, Measured, Projected, Ratio, Report, Side, Spread
from clipa.spec.counted import counted


def text(report: Report) -> str:
    """The whole report."""
    lines = [*_machine(report.machine)]
    for measured in report.measured:
        lines += ["", *_measured(measured)]
    if report.projected:
        lines += ["", *_projected(report.projected)]
    if report.notes:
        lines += ["", *(f"- {note}" for note in report.notes)]
    return "\n".join(lines)


def text_of(measured: Measured) -> str:
    """One case alone."""
    return "\n".join(_measured(measured))


def _machine(machine: Machine) -> Iterator[str]:
    peak = f", peak {machine.peak_tflops:,.0f} TFLOP/s" if machine.peak_tflops else ""
    theirs = f", open_clip {machine.open_clip}" if machine.open_clip else ""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(machine.time))
    yield f"{machine.device}{peak}; {machine.processor}, {counted(machine.threads, 'thread')}"
    before, after = machine.load
    yield f"clipa {machine.clipa}, torch {machine.torch}{theirs}; {when}; load {before:.1f} .. {after:.1f}"


def title(case: Case) -> str:
    """A case in one line."""
    pieces = f" in passes of {case.at_once:,}" if case.at_once < case.batch else ""
    return (
        f"{case.recipe} {case.phase}: {case.image_tokens} image + {case.text_tokens} text tokens, "
        f"{case.batch:,} samples a step{pieces}, {case.params / 1e6:.0f} M parameters"
    )


_HEAD = (
    f"  {'':42} {'samples/s':>10} {'from .. to':>18} {'step':>10} {'TFLOP/s':>8} {'MFU':>6} {'memory':>8} {'loss':>7}"
)


def _measured(measured: Measured) -> Iterator[str]:
    yield title(measured.case)
    yield _HEAD
    for side in measured.sides:
        yield _side(side)
    for ratio in measured.ratios:
        yield _ratio(ratio)
    if measured.fed:
        fed = measured.fed
        yield (
            f"  fed from {fed.data} by {counted(fed.workers, 'worker')}: {fed.samples_per_s:,.1f} samples/s, "
            f"waiting for data {100 * fed.wait:.0f} % of the time"
        )
    if measured.calibration:
        yield f"  clipa plan reads this from now on: {measured.calibration}"
    for note in measured.notes:
        yield f"  {note}"


def _side(side: Side) -> str:
    rate, mfu = side.samples_per_s, "-" if side.mfu is None else f"{100 * side.mfu:.1f} %"
    memory = f"{side.memory_bytes / 1e9:.1f} GB" if side.memory_bytes else "-"
    name = f"{side.name} ({side.how})"
    return (
        f"  {name:42} {rate.median:10,.1f} {_range(rate):>18} {side.step_ms:7,.0f} ms {side.tflops:8.2f} {mfu:>6} "
        f"{memory:>8} {side.first_loss:7.4f}"
    )


def _range(rate: Spread) -> str:
    return f"{rate.low:,.1f} .. {rate.high:,.1f}"


def _ratio(ratio: Ratio) -> str:
    times = ratio.times
    return (
        f"  {times.median:.2f} times as fast as {ratio.than} "
        f"({times.low:.2f} .. {times.high:.2f} in {times.windows} rounds, turn about)"
    )


def _projected(found: tuple[Projected, ...]) -> Iterator[str]:
    yield "the three academic pipelines on 8 such GPUs, and the authors' on 8 A100"
    heads = (("days", 6), ("computing", 10), ("decoding", 9), ("cores", 6), ("GPU-hours", 10))
    said = (("authors: days", 14), ("GPU-hours", 10))
    yield f"  {'':20} " + " ".join(f"{word:>{width}}" for word, width in (*heads, *said))
    for one in found:
        yield (
            f"  {one.recipe:20} {one.days:6.2f} {one.compute_days:10.2f} {one.data_days:9.2f} {one.cores_needed:6,} "
            f"{one.gpu_hours:10,.0f} {one.said_days:14.0f} {one.said_gpu_hours:10,.0f}"
        )
        for basis in one.basis:
            yield f"    {basis}"

"""Where a step's time goes: a Chrome trace, torch's table of operators, and a table by region of the step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from clipa.bench.train_windows import WARM_STEPS, settle
from clipa.train import learner as learners
from clipa.train.learner import Learner

STEPS = 3
"""Steps that are recorded."""
ROWS = 30
"""Operators in the table."""
_ENGINE = "autograd::engine::evaluate_function: "


def profiled(name: str, step: Callable[[int], object], device: torch.device, folder: Path) -> str:
    """Record some steps of one side after its warm-up; returns the tables, which also lie beside the trace.

    Writes `<name>.trace.json` (chrome://tracing, ui.perfetto.dev) and `<name>.txt`.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(WARM_STEPS):
        step(number)
    settle(device)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=kinds, record_shapes=False) as recorded:
        began = time.perf_counter()
        for number in range(STEPS):
            step(WARM_STEPS + number)
        settle(device)
        whole = 1000 * (time.perf_counter() - began) / STEPS  # on a GPU the host is ahead: its own steps are shorter
    stem = "".join(letter if letter.isalnum() else "-" for letter in name)
    recorded.export_chrome_trace(str(folder / f"{stem}.trace.json"))
    events = recorded.key_averages()
    by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    tables = f"{name}\n\n{regions(events, device, whole)}\n\n{events.table(sort_by=by, row_limit=ROWS)}"
    (folder / f"{stem}.txt").write_text(tables)
    return f"{regions(events, device, whole)}\n{folder / stem}.txt, {folder / stem}.trace.json"


def regions(events: Any, device: torch.device, whole: float) -> str:
    """Milliseconds of one step by region, of `whole` by the clock; the backward pass is what autograd's engine calls.

    On a GPU they are those of the kernels that a region has launched.
    """
    spent: dict[str, float] = {}
    # A region is there twice on a GPU: as what the host did, with its kernels, and as a range of the device's own.
    for event in (event for event in events if event.device_type.name == "CPU"):
        name = "backward" if event.key.startswith(_ENGINE) else event.key.removeprefix("region: ")
        if event.key.startswith("Optimizer.step"):
            name = "optimizer"
        if name != event.key:
            us = event.device_time_total if device.type == "cuda" else event.cpu_time_total
            spent[name] = spent.get(name, 0.0) + us / 1000 / STEPS
    lines = [f"{'region':24} {'ms a step':>10} {'share':>7}"]
    for name, ms in sorted(spent.items(), key=lambda item: -item[1]):
        lines.append(f"{name:24} {ms:10.1f} {100 * ms / whole:6.1f} %")
    return "\n".join([*lines, f"{'the whole step':24} {whole:10.1f}"])


@contextlib.contextmanager
def named(learner: Learner) -> Iterator[None]:
    """Name the regions of a learner's step while this lasts: copy, colours, towers and their parts, loss."""
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in _parts(learner.model):
        handles += _hooked(module, name)
    places: list[tuple[Any, str, str]] = [(learner, name, region) for name, region in _CALLS.items()]
    places.append((learners, "moved", "copy to the device"))
    before = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, region), call in zip(places, before, strict=True):
        setattr(owner, name, _recorded(call, region))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for (owner, name, _), call in zip(places, before, strict=True):
            setattr(owner, name, call)


_CALLS = {"_colours": "colours", "_selection": "choice of patches", "_loss": "loss"}
"""The learner's own calls that are named."""


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield "image tower forward", model.get_submodule("image")
    yield "text tower forward", model.get_submodule("text")


def _hooked(module: nn.Module, name: str) -> list[torch.utils.hooks.RemovableHandle]:
    entered: list[Any] = []

    def enter(*_: Any) -> None:
        entered.append(record_function(f"region: {name}"))
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _recorded(call: Callable[..., Any], region: str) -> Callable[..., Any]:
    def recorded(*args: Any) -> Any:
        with record_function(f"region: {region}"):
            return call(*args)

    return recorded

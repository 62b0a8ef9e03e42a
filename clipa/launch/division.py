"""Whether the batch and the lanes of a phase can be divided among processes and nodes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from clipa.errors import ConfigError
from clipa.spec.job import Phase, TrainPhase
from clipa.spec.plan import Data, World


def fitting(world: World, phase: Phase, where: str) -> World:
    """The processes, where the phase can be divided among them.

    A node's samples must be those of whole lanes, or of a part of one: else it would read lanes that others read too.

    Raises:
        ConfigError: it cannot, with the nearest numbers that can.
    """
    if not isinstance(phase, TrainPhase):
        return world
    if phase.batch % world.processes:
        whole = [n for n in range(1, phase.batch + 1) if phase.batch % n == 0]
        near = [n for n in whole if n < world.processes][-1:] + [n for n in whole if n > world.processes][:1]
        raise ConfigError(
            f"batch {phase.batch} is not divisible by {world.processes} processes",
            where=f"{where}.batch",
            allowed=f"{' or '.join(map(str, near))} process(es), or a batch that is a multiple of {world.processes}",
        )
    if phase.lanes % world.nodes and world.nodes % phase.lanes:
        fitting = [n for n in _lanes(phase, world) if n != phase.lanes]
        near = [n for n in fitting if n < phase.lanes][-1:] + [n for n in fitting if n > phase.lanes][:1]
        raise ConfigError(
            f"{phase.lanes} lanes cannot be divided among {world.nodes} nodes",
            where=f"{where}.lanes",
            allowed=f"{' or '.join(map(str, near))} lanes, or a number of nodes that divides {phase.lanes}",
        )
    return world


def remarks(mixed: Sequence[Data], phase: Phase, world: World, where: str) -> tuple[str, str]:
    """What to know about the data of a phase before it runs; empty where there is nothing.

    Raises:
        ConfigError: a dataset has no sample.
    """
    return read_by_each(mixed, phase, world), enough(mixed, phase, where)


def read_by_each(mixed: Sequence[Data], phase: Phase, world: World) -> str:
    """A remark where each of several nodes brings more of a streamed dataset than its part; else empty."""
    streamed = [data.name for data in mixed if data.access == "stream"]
    if not isinstance(phase, TrainPhase) or world.nodes == 1 or not streamed or phase.lanes >= world.nodes:
        return ""
    part = "all" if phase.lanes == 1 else f"1/{phase.lanes}"
    best = next((n for n in _lanes(phase, world) if n >= world.nodes), 0)
    cure = f"; lanes = {best} makes it 1/{world.nodes}, and changes the order of the samples" if best else ""
    return f"each of {world.nodes} nodes reads {part} of {' and '.join(streamed)}{cure}"


def enough(mixed: Sequence[Data], phase: Phase, where: str) -> str:
    """A remark on datasets that have fewer samples than a batch takes from them; empty where none has.

    Raises:
        ConfigError: a dataset has none at all.
    """
    if not isinstance(phase, TrainPhase):
        return ""
    total, few = sum(portion.weight for portion in phase.portions), []
    for data, portion in zip(mixed, phase.portions, strict=True):
        wanted = round(phase.batch * portion.weight / total)
        if data.samples == 0:
            raise ConfigError(
                f"{data.name} has no sample with an image and a caption", where=f"{where}.data",
                hint=f"clipa data doctor {data.name} says what is there",
            )  # fmt: skip
        if data.samples is not None and data.samples < wanted:
            few.append(
                f"{data.name} has {data.samples:,} samples, of which a batch takes {wanted:,}: some come twice in it"
            )
    return "; ".join(few)


def _lanes(phase: TrainPhase, world: World) -> list[int]:
    """The numbers of lanes that divide the batch, and that the nodes divide or are divided by."""
    return [
        n for n in range(1, phase.batch + 1)
        if phase.batch % n == 0 and (n % world.nodes == 0 or world.nodes % n == 0)
    ]  # fmt: skip

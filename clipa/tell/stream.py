"""A run's events as what a tracker wants: values at steps, attempt after attempt, read on from where one stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from clipa.registry import events
from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Record

_OF_STEP = {
    "train/loss": "loss",
    "train/lr": "lr",
    "train/logit_scale": "logit_scale",
    "train/grad_norm": "grad_norm",
    "train/grad_norm_image": "grad_norm_image",
    "train/grad_norm_text": "grad_norm_text",
    "train/samples": "samples",
    "speed/samples_per_s": "samples_per_s",
    "speed/samples_per_s_device": "samples_per_s_device",
    "speed/mfu": "mfu",
    "speed/data_wait": "data_wait",
    "speed/memory_gib": "memory_gib",
    "speed/eta_s": "eta_s",
}
"""Name at a tracker -> field of `events.Step`."""


class Told(NamedTuple):
    """Values at an optimizer step; `t` is Unix time."""

    t: float
    step: int
    values: Mapping[str, float]


class Back(NamedTuple):
    """Training goes on after `step`, in a new attempt or from an older checkpoint: what lies beyond is told anew."""

    t: float
    step: int


class Place(Record, frozen=True, kw_only=True):
    """How far a tracker has been told: bytes of the events of one attempt, and the newest step, of each name too."""

    attempt: int = 1
    offset: int = 0
    step: int = -1
    steps: dict[str, int] = {}


def not_yet(told: Told, steps: Mapping[str, int]) -> Told:
    """What of these values is beyond the newest step that a tracker has for their names.

    A resumed attempt does some steps again, and tells them again: most trackers would show them twice.
    """
    return told._replace(values={name: v for name, v in told.values.items() if told.step > steps.get(name, -1)})


def read_on(run: RunDir, place: Place, newest: int) -> Iterator[tuple[Told | Back, Place]]:
    """What has come since `place`, each with the place behind it, up to attempt `newest`.

    Lines that are not whole yet are left for the next time.
    """
    for attempt in range(place.attempt, newest + 1):
        try:
            raw = run.event_file(attempt, "train").read_bytes()
        except OSError:
            continue
        offset = place.offset if attempt == place.attempt else 0
        for line in raw[offset : raw.rfind(b"\n") + 1].splitlines(keepends=True):
            offset += len(line)
            item = _item(events.parse(line))
            if item is not None:
                steps = {name: max(item.step, place.steps.get(name, -1)) for name in getattr(item, "values", ())}
                place = Place(
                    attempt=attempt,
                    offset=offset,
                    step=max(place.step, item.step),
                    steps={**place.steps, **steps},
                )
                yield item, place


def _item(event: events.AnyEvent | None) -> Told | Back | None:
    if isinstance(event, events.Begun):
        return Back(event.t, event.step)
    if isinstance(event, events.WentBack):
        return Back(event.t, event.to)
    if isinstance(event, events.Step):
        found = {name: getattr(event, field) for name, field in _OF_STEP.items()}
        return Told(event.t, event.step, {name: float(value) for name, value in found.items() if value is not None})
    if isinstance(event, events.Scored) and event.metrics:
        where = f"eval/{event.set}_{event.size}px"
        return Told(event.t, event.step, {f"{where}/{name}": value for name, value in event.metrics.items()})
    return None

"""Steps whose samples a run passes over since it went back to a checkpoint: recorded, so that every attempt does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from clipa.errors import TrainError
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec.plan import Record

SCHEMA = 1


class Skip(Record, frozen=True, kw_only=True):
    """From step `at` (of 0..steps-1) on, the samples are those of so many steps later. `why`: for people."""

    at: int
    steps: int
    why: str = ""


class _File(Record, frozen=True, kw_only=True):
    skips: tuple[Skip, ...]
    schema: int = SCHEMA


def read(run: RunDir) -> tuple[Skip, ...]:
    """What a run has skipped so far, oldest first.

    Raises:
        TrainError: the record cannot be read: going on without it would train on other samples.
    """
    try:
        return msgspec.json.decode(run.skips.read_bytes(), type=_File).skips
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TrainError(f"the record of skipped steps cannot be read: {error}", where=str(run.skips)) from error


def write(run: RunDir, skips: Iterable[Skip]) -> None:
    """Record what is skipped, before anything is done with it."""
    write_whole(run.skips, msgspec.json.format(msgspec.json.encode(_File(skips=tuple(skips))), indent=2))


def stretch(step: int, steps: int, skips: Sequence[Skip]) -> tuple[int, int]:
    """(stop, shift): steps step..stop-1 take the samples of as many steps, `shift` steps later in the stream."""
    stop = min((skip.at for skip in skips if skip.at > step), default=steps)
    return min(stop, steps), sum(skip.steps for skip in skips if skip.at <= step)

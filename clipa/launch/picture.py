"""A picture as a file, and what must hold before it is drawn. The training part makes PNGs, in its own process."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from clipa.errors import ConfigError, InputError, MissingPart, did_you_mean
from clipa.interpreter import module_argv
from clipa.registry.curves import Curves, Mark, reported
from clipa.registry.picture import Scene, to_svg
from clipa.registry.run_dir import write_whole
from clipa.registry.state import RunStatus
from clipa.spec import catalog
from clipa.spec.budget import train_budget
from clipa.spec.child_environment import child_environment
from clipa.spec.job import TrainPhase
from clipa.spec.load import load_recipe
from clipa.spec.points import points


def require_format(out: Path, formats: Sequence[str]) -> None:
    """Refuse a file that cannot be drawn, before anything is read.

    Raises:
        ConfigError: another ending, or no such folder.
        MissingPart: a PNG without Pillow.
    """
    if out.suffix.lower() not in formats:
        raise ConfigError("the picture's format is told by its ending", where=str(out), allowed=", ".join(formats))
    if not out.absolute().parent.is_dir():
        raise ConfigError("there is no such folder", where=str(out.absolute().parent))
    if out.suffix.lower() == ".png" and importlib.util.find_spec("PIL") is None:
        raise MissingPart("a PNG needs Pillow, which is not installed here", where=str(out),
                          hint="an .svg needs nothing; or: pip install 'clipa[train]'")  # fmt: skip


def require_marks(found: Curves, statuses: Sequence[RunStatus], groups: Sequence[str], on: str) -> None:
    """Refuse to draw nothing.

    Raises:
        InputError: no run of these groups has a score, or none on the set `on`.
    """
    if found.marks:
        return
    sets = sorted({score.set for status in statuses for score in status.scores})
    raise InputError(
        f"no run has a score on {on!r}" if on else "no run has a score yet",
        where=", ".join(groups),
        allowed=", ".join(sets),
        hint=(did_you_mean(on, sets) if on else "") or f"clipa status {groups[0]}",
    )


def published(recipes: Iterable[str], found: Curves) -> list[Mark]:
    """The authors' marks of the shipped recipes among these, where ours are ImageNet scores too."""
    if {mark.set for mark in found.marks} != {"imagenet-val"}:
        return []
    marks = []
    shipped = catalog.recipes()
    for name in sorted(set(recipes) & shipped.keys()):
        pairs = []
        for point in points(load_recipe(shipped[name])):
            recipe = point.loaded.recipe
            first = next(p for p in recipe.phases.values() if isinstance(p, TrainPhase))
            pairs.append((point.published, train_budget(recipe.model, first)))
        marks += reported(name, pairs)
    return marks


def draw(scene: Scene, out: Path) -> None:
    """Write the picture, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        if out.suffix.lower() == ".svg":
            write_whole(out.absolute(), to_svg(scene).encode())
            return
        part = out.absolute().with_name(f".{out.name}.part")
        argv = module_argv("clipa.made.raster", str(part))
        done = subprocess.run(
            argv, input=msgspec.json.encode(scene), capture_output=True, check=False, env=child_environment()
        )
        if done.returncode:
            part.unlink(missing_ok=True)
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ConfigError("the picture cannot be written", where=str(out), allowed="".join(last))
        part.replace(out.absolute())
    except OSError as error:
        raise ConfigError(f"the picture cannot be written: {error.strerror}", where=str(out)) from error

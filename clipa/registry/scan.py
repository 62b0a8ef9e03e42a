"""All runs under some run roots: read or remembered, judged, in order, and everything that was odd on the way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec

from clipa.registry.cascade import reduce
from clipa.registry.disk_errors import mount_trouble
from clipa.registry.index import Index, cached, mark_of
from clipa.registry.jobs import Jobs
from clipa.registry.liveness import Identity, is_alive, is_stopped
from clipa.registry.ownership import other_owner
from clipa.registry.reading import Diagnostic, Reading, odd, read
from clipa.registry.run_dir import RunDir
from clipa.registry.state import SILENCE_S, Facts, RunStatus, State

_MARKS = ("plan.json", "events", "intents", "attempts")
"""A folder with one of these is, or was meant to be, a run."""


class Scan(NamedTuple):
    """All runs under some roots: the oldest first, the phases of a group in the order in which they run."""

    statuses: list[RunStatus]
    facts: dict[str, Facts]
    diagnostics: list[Diagnostic]


Ask: TypeAlias = Callable[[Sequence[Facts]], Mapping[str, Jobs]]
"""Asks the schedulers of runs, all in one go. Run -> what its scheduler says of all jobs."""


def scan(
    roots: Sequence[Path], now: float | None = None, only: Collection[str] | None = None, ask: Ask | None = None
) -> Scan:
    """The status of every run under these roots. Never raises.

    Args:
        roots: run roots; those that are not there are passed over.
        now: Unix time.
        only: ids of the runs that are wanted; nothing else is read.
        ask: who knows the jobs of runs that are on SLURM; without it they are judged by their folders alone.
    """
    now = time.time() if now is None else now
    facts: dict[str, Facts] = {}
    with Index() as index:
        diagnostics = index.diagnostics
        for root in _distinct(roots):
            for found in _readings(root, index, only, diagnostics):
                diagnostics.extend(found.diagnostics)
                if found.facts:
                    _keep(facts, found.facts, diagnostics)
    beats = _beats(facts.values(), now)
    asked = cache(is_alive)
    disk = cache(mount_trouble)
    ordered = _in_order(facts)
    jobs = ask(ordered) if ask else {}
    statuses: list[RunStatus] = []
    states: dict[str, State] = {}
    for f in ordered:
        run, parent = f.plan.run, states.get(f.plan.parent)
        status = reduce(f, asked, _beat_age(f, beats, now), now, jobs.get(run), parent, is_stopped)
        status = msgspec.structs.replace(status, owner=other_owner(f.path))
        statuses.append(_with_disk(status, disk(Path(f.path).parent)) if status.state.is_live else status)
        states[run] = statuses[-1].state
    return Scan(statuses, {f.plan.run: f for f in ordered}, diagnostics)


def _with_disk(status: RunStatus, trouble: str) -> RunStatus:
    """Return the status of a live run with what is wrong with its disk."""
    if not trouble or trouble in status.why:
        return status
    return msgspec.structs.replace(status, why=f"{trouble}; {status.why}" if status.why else trouble)


def _distinct(roots: Iterable[Path]) -> Iterator[Path]:
    """Each root once, by whatever path it was given."""
    seen = set()
    for root in roots:
        real = os.path.realpath(root)
        if real not in seen:
            seen.add(real)
            yield root


def _readings(
    root: Path, index: Index, only: Collection[str] | None, diagnostics: list[Diagnostic]
) -> Iterator[Reading]:
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return
    except OSError as error:
        diagnostics.append(odd(root, f"cannot be listed: {error.strerror}", "make it readable, or ask its owner"))
        return
    rows = index.load(root)
    fresh = {}
    for name in names:
        run = RunDir(root / name)
        if (only is not None and name not in only) or not _looks_like_a_run(run):
            continue
        mark = mark_of(run)
        reading = cached(root, name, rows.get(name), mark)
        if reading is None:
            reading = read(run)
            fresh[name] = (mark, reading)
        yield reading
    index.save(root, fresh, rows.keys() - set(names))


def _looks_like_a_run(run: RunDir) -> bool:
    if run.id.startswith("."):
        return False
    return any(os.path.lexists(os.path.join(run.path, mark)) for mark in _MARKS)


def _keep(facts: dict[str, Facts], found: Facts, diagnostics: list[Diagnostic]) -> None:
    """Keep one of two runs of one id: this user's own, then the one that is where its plan says, then the first."""
    known = facts.get(found.plan.run)
    if known is None:
        facts[found.plan.run] = found
        return
    real, copy = sorted((known, found), key=lambda f: (bool(other_owner(f.path)), not _is_at_home(f)))
    facts[found.plan.run] = real
    diagnostics.append(odd(copy.path, f"a copy of {real.path}, passed over", "move it out of the run root"))


def _is_at_home(facts: Facts) -> bool:
    return os.path.realpath(Path(facts.path).parent) == os.path.realpath(facts.plan.run_root)


def _in_order(facts: Mapping[str, Facts]) -> list[Facts]:
    """By age; in a group by the number of runs before it, then as submitted."""
    return sorted(
        facts.values(),
        key=lambda f: (f.plan.created, f.plan.group, _depth(f, facts), f.queued, f.plan.phase),
    )


def _depth(facts: Facts, known: Mapping[str, Facts]) -> int:
    depth, seen = 0, {facts.plan.run}
    parent = known.get(facts.plan.parent)
    while parent is not None and parent.plan.run not in seen and parent.plan.group == facts.plan.group:
        seen.add(parent.plan.run)
        depth += 1
        parent = known.get(parent.plan.parent)
    return depth


def _beats(facts: Iterable[Facts], now: float) -> dict[Identity | str, float]:
    """Newest sign of life (Unix time) of every supervisor, and of every run that has none.

    A supervisor's other runs speak for it: those that wait their turn have no heartbeat of their own.
    """
    newest: dict[Identity | str, float] = {}
    for f in facts:
        if f.ended and now - f.ended.t > SILENCE_S:
            continue  # over for long: it says nothing about the present
        who = f.holder or f.path
        beat = _beat(RunDir(f.path), f.attempt, now)
        if beat is not None:
            newest[who] = max(beat, newest.get(who, beat))
    return newest


def _beat(run: RunDir, attempt: int, now: float) -> float | None:
    """Return the time of the newest heartbeat, of those whose time can be believed where there are any.

    That of the attempt before counts too, for one that is about to restart.
    """
    found = []
    for path in (run.heartbeat(n, writer) for n in (attempt, attempt - 1) for writer in ("node", "train")):
        try:
            found.append(path.stat().st_mtime)
        except OSError:
            continue
    return max([t for t in found if t <= now + SILENCE_S] or found, default=None)


def _beat_age(facts: Facts, beats: Mapping[Identity | str, float], now: float) -> float | None:
    beat = beats.get(facts.holder or facts.path)
    return None if beat is None else now - beat

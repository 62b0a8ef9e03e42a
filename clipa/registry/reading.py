"""Reading one run folder that anything may have happened to: never an exception, always facts or a diagnostic."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from clipa.errors import ConfigError
from clipa.registry import events, records
from clipa.registry.fold import fold
from clipa.registry.run_dir import RunDir
from clipa.registry.state import Facts
from clipa.spec import plan as plans
from clipa.spec.counted import counted
from clipa.spec.job import TrainPhase
from clipa.spec.plan import Plan, Record
from clipa.terminal import one_line

LARGEST_EVENTS = 64 << 20
"""Bytes of an event file that are read, from its end: 300,000 steps."""
LARGEST_RECORD = 16 << 20
LONGEST_LINE = 1 << 20
LONGEST_NAME = 255
LARGEST_NUMBER = 1 << 53
"""Counts above it are not counts, and a float no longer holds them."""

_EVENTS = re.compile(r"([0-9]{1,9})-[^/]+\.jsonl")
_INTENT = re.compile(r"([0-9]{1,9})\.json")
_STOP = re.compile(r"stop-([0-9]{1,9})")
_PART = re.compile(r"\..*\.part")


class Diagnostic(Record, frozen=True, kw_only=True):
    """Something in a run root that is not as clipa left it."""

    path: str
    problem: str
    cure: str = ""


class Reading(Record, frozen=True, kw_only=True):
    """What one folder gave: facts, or none, and what was odd."""

    facts: Facts | None = None
    diagnostics: tuple[Diagnostic, ...] = ()


def read(run: RunDir) -> Reading:
    """Everything in a run folder, whatever its shape."""
    reader = _Reader(run)
    facts = reader.facts()
    return Reading(facts=facts, diagnostics=tuple(reader.odd))


def odd(path: Path | str, problem: object, cure: str = "") -> Diagnostic:
    """A diagnostic about a path, printable whatever bytes its name is made of."""
    if isinstance(problem, OSError):
        problem = problem.strerror or str(problem)
    return Diagnostic(
        path=os.fsencode(path).decode(errors="backslashreplace"),
        problem=str(problem).encode(errors="backslashreplace").decode(),
        cure=cure,
    )


def read_tail(path: Path, largest: int) -> tuple[bytes, bool]:
    """The last bytes of a regular file, and whether these are all of it. Never waits (for the writer of a pipe).

    Raises:
        OSError: not there, not readable, or not a regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        whole = status.st_size <= largest
        if not whole:
            file.seek(-largest, os.SEEK_END)
        return file.read(largest), whole


def implausible(plan: Plan) -> str:
    """Return why no run can have this plan, so that none with it is read or written; an empty string if one can."""
    batch = plan.settings.batch if isinstance(plan.settings, TrainPhase) else 0
    if not (0 <= plan.steps <= LARGEST_NUMBER and batch <= LARGEST_NUMBER and plan.steps * batch <= LARGEST_NUMBER):
        return f"{plan.steps} steps of {batch} samples"
    named = (plan.run, plan.group, plan.name, plan.phase, plan.parent, plan.recipe, plan.cluster)
    if any(one_line(name) != name or len(name) > LONGEST_NAME for name in named):
        return "its names hold control characters, or are too long"
    return ""


def readable(the_plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Return the plans; refuse one that could not be read back, because no command would see its run.

    Raises:
        ConfigError: naming the phase.
    """
    for plan in the_plans:
        try:
            same = plans.decode(plans.encode(plan)) == plan
            trouble = implausible(plan) or ("" if same else "it does not survive being written")
        except (OverflowError, ValueError, msgspec.MsgspecError) as error:
            trouble = str(error)
        if trouble:
            raise ConfigError(f"no run can have this plan: {trouble}", where=f"phases.{plan.phase}",
                              hint="look for a number that is too large")  # fmt: skip
    return tuple(the_plans)


class _Reader:
    """Reads one folder, and remembers what was odd."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.odd: list[Diagnostic] = []

    def facts(self) -> Facts | None:
        plan = self._plan()
        if plan is None:
            return None
        found: list[events.AnyEvent] = []
        unreadable: dict[str, int] = {}
        for attempt, path in self._numbered(self.run.events, _EVENTS, "an event file"):
            try:
                found += self._events(path, attempt)
            except OSError as error:
                unreadable[f"events/{path.name}"] = attempt
                self._note(path, error, "make it readable, or ask its owner")
        intents = dict(self._intents())
        stops = dict(self._stops())
        return fold(str(self.run.path), plan, found, intents, stops, unreadable)

    def _note(self, path: Path, problem: object, cure: str = "") -> None:
        self.odd.append(odd(path, problem, cure))

    def _plan(self) -> Plan | None:
        path = self.run.plan
        foreign = "if it is not a run, move the folder out of the run root"
        try:
            raw, whole = read_tail(path, LARGEST_RECORD)
            if not whole:
                raise OSError(errno.EFBIG, "larger than any plan")
            plan = plans.decode(raw)
        except OSError as error:
            self._note(path, f"no plan: {error.strerror or error}", foreign)
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._note(path, f"no plan: {error}", f"a newer clipa may have written it; {foreign}")
            return None
        if trouble := implausible(plan):
            self._note(path, f"no plan: {trouble}", foreign)
            return None
        if plan.run != self.run.id:
            self._note(path, f"the plan is of the run {plan.run}", "give the folder its name back")
            return None
        if plan.schema > plans.SCHEMA:
            self._note(path, f"of a newer clipa (schema {plan.schema}, this one reads {plans.SCHEMA})", "upgrade clipa")
        return plan

    def _numbered(self, folder: Path, pattern: re.Pattern[str], what: str) -> list[tuple[int, Path]]:
        """(attempt, path) of the files of a folder, in order; a folder that is not there is empty."""
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._note(folder, error, "make it readable, or ask its owner")
            return []
        found = []
        for name in names:
            if match := pattern.fullmatch(name):
                found.append((int(match.group(1)), folder / name))
            elif not _PART.fullmatch(name):
                self._note(folder / name, f"not {what}", "delete it, if nothing of yours is in it")
        return sorted(found)

    def _events(self, path: Path, attempt: int) -> list[events.AnyEvent]:
        raw, whole = read_tail(path, LARGEST_EVENTS)
        found: list[events.AnyEvent] = []
        bad = 0
        for line in _lines(raw, whole):
            event = events.parse(line) if len(line) <= LONGEST_LINE else None
            if event is None or event.attempt != attempt or not _is_plausible(event):
                bad += 1
            else:
                found.append(event)
        if bad:
            self._note(
                path,
                f"{counted(bad, 'line is', 'lines are')} torn, foreign or of a newer clipa",
                "nothing to do: passed over",
            )
        if not whole:
            self._note(path, f"only its last {LARGEST_EVENTS >> 20} MiB were read", "nothing to do")
        return found

    def _intents(self) -> Iterator[tuple[int, records.Intent]]:
        for attempt, path in self._numbered(self.run.path / "intents", _INTENT, "an intent"):
            try:
                intent = msgspec.json.decode(read_tail(path, LARGEST_RECORD)[0], type=records.Intent)
            except records.UNREADABLE as error:
                self._note(path, f"the intent cannot be read: {error}", f"clipa resume {self.run.id}")
                continue
            if intent.attempt != attempt or not 0 <= intent.submission <= attempt:
                self._note(path, f"the intent is of attempt {intent.attempt}", "delete it")
                continue
            yield attempt, intent

    def _stops(self) -> Iterator[tuple[int, records.Stop]]:
        for attempt, path in self._numbered(self.run.path / "control", _STOP, "a request to stop"):
            try:
                yield attempt, records.decode_stop(read_tail(path, LARGEST_RECORD)[0])
            except OSError:
                yield attempt, records.decode_stop(b"")


def _lines(raw: bytes, whole: bool) -> Iterator[bytes]:
    """Lines that are not empty. The first one of a part is torn."""
    lines = raw.split(b"\n")
    yield from (line for line in (lines if whole else lines[1:]) if line.strip())


def _is_plausible(event: events.AnyEvent) -> bool:
    """Whether its numbers can be what they say: a step is a count, and a time is one that a clock shows."""
    step = getattr(event, "step", 0)
    return 0 <= step <= LARGEST_NUMBER and 0 <= event.t <= LARGEST_NUMBER

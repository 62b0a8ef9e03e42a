"""The children of the supervisor that tell trackers of experiments what an attempt records, one a tracker."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clipa.errors import MissingPart
from clipa.host import render
from clipa.host.children import Child
from clipa.host.publishing import finish
from clipa.registry.run_dir import RunDir
from clipa.spec.child_environment import settings_of
from clipa.spec.plan import Plan
from clipa.spec.trackers import TRACKERS

LAST_S = 20.0
"""Seconds that trackers get at the end for what they have not sent yet: what is told is safe in the run's events."""


def require_installed(trackers: Sequence[str], where: str) -> None:
    """Refuse a tracker whose package is not here: supervisors run in this environment.

    Raises:
        MissingPart: with the command that installs it.
    """
    for name in trackers:
        package = TRACKERS[name].package
        if package and importlib.util.find_spec(package) is None:
            raise MissingPart(
                f"the tracker {name} needs the package {package}, which is not installed here",
                where=f"{where}: trackers",
                hint=f"pip install 'clipa[{name}]'",
            )


@contextlib.contextmanager
def alongside(
    run: RunDir, plan: Plan, attempt: int, scratch: Path, tick: Callable[[], None], leave_by: Callable[[], float | None]
) -> Iterator[None]:
    """Tell the plan's trackers for as long as the block lasts, and then what is left.

    Args:
        run: whose events.
        plan: names the trackers.
        attempt: the attempt's number.
        scratch: a private folder.
        tick: called while the last of it is waited for.
        leave_by: the moment (of the monotonic clock) until which may be waited, where that comes before LAST_S.
    """
    until, logs = scratch / "told", run.logs(attempt)
    children = [
        Child(
            render.tell_argv(run, attempt, name, until),
            settings_of(plan.env),
            logs / f"tell-{name}.log",
            logs / f"tell-{name}.err",
        )
        for name in plan.trackers
    ]
    try:
        yield
    finally:
        last = time.monotonic() + LAST_S
        finish(children, until, tick, lambda: min(last, leave_by() or last))

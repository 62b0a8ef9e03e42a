"""The child of the supervisor that publishes checkpoints and results while an attempt trains."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clipa.host import render
from clipa.host.children import Child, last_lines
from clipa.registry import events
from clipa.registry.run_dir import RunDir
from clipa.spec.child_environment import settings_of
from clipa.spec.plan import Plan

_TICK_S = 0.1


class Remote:
    """What is known of the URL when the block of `alongside` is over: `whole` is None where the plan names none."""

    def __init__(self) -> None:
        self.whole: bool | None = None
        self.why = ""


@contextlib.contextmanager
def alongside(
    run: RunDir, plan: Plan, attempt: int, scratch: Path, tick: Callable[[], None], leave_by: Callable[[], float | None]
) -> Iterator[Remote]:
    """Publish for as long as the block lasts, and then what is left.

    Args:
        run: whose checkpoints.
        plan: where to; nothing happens where it names no URL.
        attempt: the attempt's number.
        scratch: a private folder.
        tick: called while the last upload is waited for.
        leave_by: the moment (of the monotonic clock) until which may be waited once the block is over; None: as long
            as it takes.
    """
    remote = Remote()
    if plan.publish is None:
        yield remote
        return
    until = scratch / "published"
    child = _start(run, plan, attempt, until)
    try:
        yield remote
    finally:
        until.touch()
        if child.poll() is not None:
            # It died before its time (memory, a person): what it left undone is one more look away.
            child.sweep()
            child = _start(run, plan, attempt, until)
        finish([child], until, tick, leave_by)
        remote.whole = child.poll() == 0
        remote.why = "" if remote.whole else _why(run, attempt, child)


def finish(
    children: Sequence[Child], until: Path, tick: Callable[[], None], leave_by: Callable[[], float | None]
) -> None:
    """Tell children by the file `until` to end with what is left, and wait for them as long as that is allowed."""
    until.touch()
    while any(child.poll() is None for child in children):
        tick()
        limit = leave_by()
        if limit is not None and time.monotonic() > limit:
            for child in children:
                child.signal(signal.SIGKILL)
        time.sleep(_TICK_S)
    for child in children:
        child.sweep()


def _start(run: RunDir, plan: Plan, attempt: int, until: Path) -> Child:
    logs = run.logs(attempt)
    return Child(
        render.publish_argv(run, attempt, until), settings_of(plan.env), logs / "publish.log", logs / "publish.err"
    )


def _why(run: RunDir, attempt: int, child: Child) -> str:
    if child.signalled:
        return "there was no time left to bring it"
    said = [e for e in events.read(run.event_file(attempt, "publish")) if isinstance(e, events.PublishEnded)]
    if said and said[-1].why:
        return said[-1].why
    return "\n".join(last_lines(child.err)[-1:]) or f"the publisher ended with code {child.poll()}"

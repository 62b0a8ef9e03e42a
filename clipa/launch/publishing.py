"""The child of the supervisor that publishes checkpoints and results while an attempt trains."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from clipa.launch import render
from clipa.launch.children import Child
from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan

_TICK_S = 0.1


@contextlib.contextmanager
def alongside(
    run: RunDir, plan: Plan, attempt: int, scratch: Path, tick: Callable[[], None], leave_s: Callable[[], float | None]
) -> Iterator[None]:
    """Publish for as long as the block lasts, and then what is left.

    Args:
        run: whose checkpoints.
        plan: where to; nothing happens where it names no URL.
        attempt: the attempt's number.
        scratch: a private folder.
        tick: called while the last upload is waited for.
        leave_s: seconds that may be waited once the block is over; None: as long as it takes.
    """
    if plan.publish is None:
        yield
        return
    until = scratch / "published"
    logs = run.logs(attempt)
    child = Child(render.publish_argv(run, attempt, until), plan.env, logs / "publish.log", logs / "publish.err")
    try:
        yield
    finally:
        finish([child], until, tick, leave_s)


def finish(
    children: Sequence[Child], until: Path, tick: Callable[[], None], leave_s: Callable[[], float | None]
) -> None:
    """Tell children by the file `until` to end with what is left, and wait for them as long as that is allowed."""
    until.touch()
    began = time.monotonic()
    while any(child.poll() is None for child in children):
        tick()
        allowed = leave_s()
        if allowed is not None and time.monotonic() - began > allowed:
            for child in children:
                child.signal(signal.SIGKILL)
        time.sleep(_TICK_S)
    for child in children:
        child.sweep()

"""The child of the supervisor that stages what an attempt reads while it trains, one on each node."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from clipa.host import render
from clipa.host.children import Child
from clipa.host.publishing import finish
from clipa.registry.run_dir import RunDir
from clipa.spec.child_environment import settings_of
from clipa.spec.plan import Plan
from clipa.staging.meeting import FOLDER, make, meeting_place

_LEAVE_S = 3.0
"""Seconds that it gets to leave. However it ends, at most the parts in flight are read again, and not all of each."""


@contextlib.contextmanager
def alongside(run: RunDir, plan: Plan, attempt: int, node: int, scratch: Path) -> Iterator[dict[str, str]]:
    """Stage for as long as the block lasts, where the plan has anything staged while it trains.

    Args:
        run: whose data.
        plan: what it reads.
        attempt: the attempt's number.
        node: this node's number in it; the first one writes the events.
        scratch: a private folder.

    Yields:
        What the ranks of this node must find in their environment.
    """
    if not plan.early:
        yield {}
        return
    folder = meeting_place(Path(plan.cache), run.path, f"node-{node}", attempt)
    make(folder, run.path)
    until, logs = scratch / "arrived", run.logs(attempt)
    name = f"arrive-{node}" if node else "arrive"
    child = Child(
        render.arrive_argv(run, attempt, node, folder, until),
        settings_of(plan.env),
        logs / f"{name}.log",
        logs / f"{name}.err",
    )
    try:
        yield {FOLDER: os.fspath(folder)}
    finally:
        limit = time.monotonic() + _LEAVE_S
        finish([child], until, lambda: None, lambda: limit)
        shutil.rmtree(folder, ignore_errors=True)

"""The data that a plan pins, opened where they were staged, or streamed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from clipa.data.shards import ShardSet, open_coming, open_shards
from clipa.errors import StorageError
from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Plan
from clipa.storage import manifest as manifests
from clipa.storage.manifest import Manifest

_PREPARED = 3
"""Steps that a loader worker may be ahead: those that it prepares, and the one that it hands over."""


def pinned_manifest(run: RunDir, digest: str) -> Manifest:
    """A manifest that a run's plan pins."""
    return manifests.decode(run.manifest(digest).read_bytes())


def open_pinned(run: RunDir, plan: Plan, digest: str, seen: Callable[[], None] | None = None) -> ShardSet:
    """The staged shards of a manifest that a plan pins; `seen` is called after each."""
    return open_shards(pinned_manifest(run, digest), manifests.staged_folder(plan.cache, digest), seen)


class Streamed(NamedTuple):
    """The shards of a streamed dataset, and the way to say how many steps are done (None: another rank says it)."""

    shards: ShardSet
    told: IO[bytes] | None

    def tell(self, step: int) -> None:
        """So many steps are done: what they read may go, and the next may come."""
        if self.told is not None:
            with contextlib.suppress(BrokenPipeError):  # the reader of the next shard will hear why
                self.told.write(f"{step}\n".encode())


@contextlib.contextmanager
def streamed(run: RunDir, plan: Plan, attempt: int, step: int, meet: Callable[[], None]) -> Iterator[Streamed]:
    """A run's training data, brought to the cache by a process of the node's first rank as they are needed.

    Args:
        run: the run.
        plan: its plan.
        attempt: which execution of the run it is.
        step: the first step.
        meet: waits for all ranks.

    Raises:
        StorageError: the store cannot be opened.
    """
    assert plan.data is not None
    here = f"{run.id}.{socket.gethostname()}"
    folder = Path(plan.cache) / "streamed" / here / str(attempt)
    ahead = _PREPARED * max(1, plan.world.loader_workers)
    node = int(os.environ.get("RANK", "0")) // plan.world.local
    argv = [sys.executable, "-m", "clipa.data.streamer", str(run.path), str(folder), "--start", str(step)]
    argv += ["--node", str(node)]
    with contextlib.ExitStack() as stack:
        told: IO[bytes] | None = None
        if os.environ.get("LOCAL_RANK", "0") == "0":
            process = stack.enter_context(
                subprocess.Popen(
                    [*argv, "--ahead", str(ahead)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
                )
            )  # its end waits for the process, which leaves when its standard input is closed
            told, said = process.stdin, process.stdout
            assert said is not None
            if said.readline() != b"ready\n":
                raise StorageError("the process that streams shards could not start", hint="see the log above")
        meet()
        yield Streamed(open_coming(pinned_manifest(run, plan.data.manifest), folder), told)

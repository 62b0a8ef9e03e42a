"""The data that a plan pins, opened where they were staged, where they are about to be, or streamed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from clipa.attempt.launcher import launched
from clipa.data.shards import Coming, ShardSet, open_coming, open_shards
from clipa.errors import StorageError
from clipa.interpreter import module_argv
from clipa.registry.run_dir import WAITING, RunDir
from clipa.spec.plan import Plan
from clipa.staging.meeting import FOLDER, make, meeting_place
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


class Opened(NamedTuple):
    """The datasets of a phase, and the way to say how many steps are done (None: another rank says it)."""

    sets: tuple[ShardSet, ...]
    told: IO[bytes] | None

    def tell(self, step: int) -> None:
        """So many steps are done: what they read may go, and the next may come."""
        if self.told is not None:
            with contextlib.suppress(BrokenPipeError):  # the reader of the next shard will hear why
                self.told.write(f"{step}\n".encode())


@contextlib.contextmanager
def opened(
    run: RunDir, plan: Plan, attempt: int, step: int, meet: Callable[[], None], indexes: Callable[[], None] | None
) -> Iterator[Opened]:
    """What a phase trains on. Shards that are streamed, or staged meanwhile, are seen to by a process of the node's
    first rank.

    Args:
        run: the run.
        plan: its plan.
        attempt: which execution of the run it is.
        step: the first step.
        meet: waits for all ranks.
        indexes: given to the rank that makes the indexes of what is there; called after each shard.

    Raises:
        StorageError: a store cannot be opened, or nobody stages what is not there.
        DataError: a shard is missing or no whole tar file.
    """
    coming = {data.manifest for data in (*plan.early, *(d for d in plan.trained_on if d.access == "stream"))}
    there = [data.manifest for data in plan.trained_on if data.manifest not in coming]
    if indexes is not None:
        for digest in there:
            open_pinned(run, plan, digest, indexes)
    with contextlib.ExitStack() as held:
        told: IO[bytes] | None = None
        place = _place(run, plan, attempt)
        if coming and _local_rank() == 0:
            if FOLDER not in os.environ:
                _require_there(run, plan, attempt)
                make(place, run.path)
            told = held.enter_context(_seen_to(run, plan, place, step))
        meet()  # the first rank has written the indexes
        yield Opened(tuple(_open(run, plan, n, place, attempt) for n in range(len(plan.trained_on))), told)


def _open(run: RunDir, plan: Plan, number: int, place: Path, attempt: int) -> ShardSet:
    data = plan.trained_on[number]
    if data.access == "stage" and data not in plan.early:
        return open_pinned(run, plan, data.manifest)
    folder = place / str(number) if data.access == "stream" else manifests.staged_folder(plan.cache, data.manifest)
    sign = run.heartbeat(attempt, f"{WAITING}{socket.gethostname()}")
    return open_coming(pinned_manifest(run, data.manifest), folder, Coming(place, sign))


@contextlib.contextmanager
def _seen_to(run: RunDir, plan: Plan, place: Path, step: int) -> Iterator[IO[bytes]]:
    """With a process that sees to the shards that are not simply there, and reads how many steps are done."""
    ahead = _PREPARED * max(1, plan.world.loader_workers)
    argv = module_argv("clipa.data.streamer", str(run.path), str(place))
    argv += ["--start", str(step), "--ahead", str(ahead), "--node", str(_node(plan))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        # The end of the block waits for the process, which leaves when its standard input is closed.
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise StorageError("the process that sees to the shards could not start", hint="see the log above")
        yield process.stdin


def _require_there(run: RunDir, plan: Plan, attempt: int) -> None:
    """A run that is replayed by hand has no supervisor beside it that stages."""
    for data in plan.early:
        folder = manifests.staged_folder(plan.cache, data.manifest)
        shards = pinned_manifest(run, data.manifest).shards
        if missing := sum(not (folder / shard.name).exists() for shard in shards):
            raise StorageError(
                f"{missing} of {len(shards)} shards of {data.name} are not staged",
                where=str(folder),
                hint=f"python -m clipa.staging.stage {run.path} --attempt {attempt}",
            )


def _place(run: RunDir, plan: Plan, attempt: int) -> Path:
    made = os.environ.get(FOLDER)
    return Path(made) if made else meeting_place(Path(plan.cache), run.path, f"ranks-{_node(plan)}", attempt)


def _node(plan: Plan) -> int:
    return launched().rank // plan.world.local


def _local_rank() -> int:
    return launched().local_rank

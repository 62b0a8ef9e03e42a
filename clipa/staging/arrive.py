"""`python -m clipa.staging.arrive RUN_DIR ...`: stages what a run reads while it trains, in the order in which it does.

One process a node, a child of the supervisor, and dead with it. The trainer of the node says by a file in which order
it reads (`Wanted`), and waits for the names of the shards. The folder is that of `clipa.staging.stage`, with its
claims, receipts and part files, so several nodes and jobs share the work, and whatever comes later finds it done. What
the first windows need comes first, and the rest after it: nothing is removed, and at an epoch's end all is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from clipa.errors import ClipaError
from clipa.registry import events
from clipa.registry.log_streams import survive_full_logs
from clipa.registry.ownership import restore_umask
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.plan import Plan
from clipa.staging.fill import Filling, Stopped, Tick, filling, in_threads
from clipa.staging.meeting import STUCK, WORKING, Wanted, beat, wanted_in
from clipa.staging.stage import RESUMABLE, Reporter, read_record, say_used
from clipa.storage import fast
from clipa.storage import manifest as manifests
from clipa.storage.leave import ends_at_once
from clipa.storage.manifest import Shard
from clipa.terminal import say

_TELL_S = 10.0
"""Seconds from one event to the next; fewer as long as it has only begun."""
_LOOK_S = 0.1


class _Row(NamedTuple):
    """A shard, and the work on the folder that it belongs in."""

    work: Filling
    shard: Shard


class _Arrival:
    """What is there of all that the attempt reads, and what is said of that: lines for a log, and events."""

    def __init__(self, until: Path, log: events.EventWriter | None) -> None:
        self.lines = Reporter(until)
        self.leave = threading.Event()
        self.rows: dict[tuple[str, int], _Row] = {}
        self.lacking: set[tuple[str, int]] = set()
        self._log = log
        self._began = self._said = time.monotonic()

    def look_into(self, digest: str, shards: Sequence[Shard], work: Filling) -> None:
        """Find out what a folder lacks."""
        work.leave = self.leave
        self.rows |= {(digest, number): _Row(work, shard) for number, shard in enumerate(shards)}
        names = {shard.name for shard in work.lacking(shards, verify=False)}
        self.lacking |= {(digest, number) for number, shard in enumerate(shards) if shard.name in names}

    def bring(self, order: Wanted) -> None:
        """Bring what is lacking of the shards in an order, in that order."""
        wanted = [key for digest, n in order.shards if (key := (order.digests[digest], n)) in self.lacking]
        works = {id(row.work): row.work for row in self.rows.values()}.values()
        total = sum(self.rows[key].shard.size for key in wanted)

        def one(key: tuple[str, int]) -> bool:
            if not self.rows[key].work.one(self.rows[key].shard):
                return False
            self.lacking.discard(key)
            return True

        def look() -> None:
            self.lines(sum(work.done for work in works), total)
            now = time.monotonic()
            if now - self._said > min(_TELL_S, 1.0 + (now - self._began) / 10):
                self.tell()

        in_threads(one, wanted, self.leave, look)

    def tell(self) -> None:
        """Say how far it is."""
        self._said = time.monotonic()
        if self._log is None:
            return
        lacking = [self.rows[key].shard.size for key in self.lacking.copy()]
        total = sum(row.shard.size for row in self.rows.values())
        self._log.write(
            events.Arriving,
            shards=len(self.rows) - len(lacking),
            of_shards=len(self.rows),
            bytes=total - sum(lacking),
            of_bytes=total,
        )


def arrive(run: RunDir, plan: Plan, folder: Path, until: Path, log: events.EventWriter | None) -> None:
    """Bring what the plan has staged while it trains.

    Args:
        run: which run.
        plan: its plan.
        folder: where the ranks of this node are met.
        until: leave when this file is there.
        log: where events go, if anywhere.

    Raises:
        Stopped: it was asked to leave.
        ClipaError: a shard cannot be had.
    """
    arrival = _Arrival(until, log)
    with contextlib.ExitStack() as held:
        for data in plan.early:
            manifest = read_record(run.manifest(data.manifest), manifests.decode)
            place = manifests.staged_folder(plan.cache, data.manifest)
            # Safe from removal from here on, and pinned for as long as the run lives.
            present = partial(say_used, place, manifest, run.path)
            store = fast.open_store(data.source)
            work = held.enter_context(filling(store, place, arrival.lines, present=present))
            arrival.look_into(data.manifest, manifest.shards, work)
        arrival.tell()
        if arrival.lacking:
            arrival.bring(_told(folder, arrival.lines))
            arrival.tell()


def _told(folder: Path, tick: Tick) -> Wanted:
    """What the trainer wants. It is there a little after the weights are."""
    while (order := wanted_in(folder)) is None:
        tick(0, 0)
        time.sleep(_LOOK_S)
    return order


def main() -> int:
    """Entry of the module: the exit code."""
    survive_full_logs()
    parser = argparse.ArgumentParser(prog="clipa.staging.arrive", description="stage what a run reads while it trains")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--until", type=Path, required=True)
    parser.add_argument("--tells", action="store_true", help="write events: one node of an attempt does")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    beat(folder / WORKING)
    run = RunDir(arguments.run_dir)
    log = events.EventWriter(run, arguments.attempt, "arrive") if arguments.tells else None
    restore_umask()
    try:
        arrive(run, read_record(run.plan, plans.decode), folder, arguments.until, log)
    except Stopped:
        return RESUMABLE
    except ClipaError as error:
        say(error, err=True)
        with contextlib.suppress(OSError):
            write_whole(folder / STUCK, str(error).encode())
        return error.exit_code
    return 0


if __name__ == "__main__":
    ends_at_once(main)

"""`python -m clipa.data.streamer RUN_DIR ...`: sees to it that the shards of a node's next windows are there.

Those of a dataset that is streamed it brings, and removes when they are past. For those that are staged while the run
trains it says in which order they are read (to `clipa.staging.arrive`), and makes their indexes as they arrive.

One process a node, started by its first rank, and dead with it: it reads on its standard input how many steps are
done, and leaves at its end. Storage clients live here alone, in a process that never forks (see `clipa.storage.fast`).
A shard can be read when its bytes are verified and its index lies beside it, so a reader only waits for these names.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import NamedTuple

from clipa.data.arrivals import Arrival, Arrivals, first_needs, require_counted
from clipa.data.index import load_index, sidecar
from clipa.data.order import Mixture, Reading, mixture_of
from clipa.data.pinned import pinned_manifest
from clipa.errors import ClipaError
from clipa.registry.log_streams import survive_full_logs
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.job import TrainPhase
from clipa.spec.plan import Plan
from clipa.staging.fetch import fetch
from clipa.staging.fill import Stopped
from clipa.staging.meeting import ALIVE, FAILED, Wanted, beat
from clipa.storage import fast
from clipa.storage import manifest as manifests
from clipa.storage.leave import ends_at_once
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Store
from clipa.terminal import say

_PATIENCE_S = 3.0
_THREADS = 4
"""Shards that are brought at once: what lies in the next windows is wanted in any order, the first windows first."""
_WINDOWS = 3
"""Windows of a lane that are held where nobody says how many bytes: the one that is read, and two more."""
_LAG = 16
"""Steps by which another rank of the node may be behind the one that tells: their devices meet in every step, and a
device's queue holds few steps.
"""


class Source(NamedTuple):
    """A dataset that is streamed: its shards, where they lie, and the folder that they are brought to."""

    manifest: Manifest
    store: Store
    folder: Path


_Key = tuple[int, int]
"""A shard: its dataset's place in the mixture, and its number in the manifest."""


class Streamer:
    """Keeps the windows around the trainer's step in folders.

    Args:
        sources: the datasets that are streamed, by their places in the mixture.
        mixture: the order of samples.
        lanes: those of the mixture that are read here.
    """

    def __init__(self, sources: Mapping[int, Source], mixture: Mixture, lanes: range) -> None:
        self._sources, self._mixture, self._lanes = dict(sources), mixture, lanes
        self._told = threading.Condition()
        self._coming: set[_Key] = set()
        self._failure: Exception | None = None
        self._step = 0
        self._went_back = self._leave = False

    def tell(self, step: int) -> None:
        """So many steps are done. Fewer than before: the training went back, to samples that may be gone again."""
        with self._told:
            self._went_back = self._went_back or step < self._step
            self._step = step
            self._told.notify_all()

    def leave(self) -> None:
        """Stop at the next piece that arrives."""
        with self._told:
            self._leave = True
            self._told.notify_all()

    def run(self, start: int, stop: int, ahead: int, limit: int) -> None:
        """Bring what the steps start..stop-1 read.

        Args:
            start: the first step.
            stop: the step after the last one: beyond it only what is needed at the moment is brought.
            ahead: steps that the loader's workers make before they are asked for.
            limit: bytes to hold at most (0: two windows more than are needed now). What is needed now is always held.

        Returns never.

        Raises:
            Stopped: it was asked to leave.
            ClipaError: a shard cannot be had, or is not what the manifest says.
        """
        self.tell(start)
        held: list[Reading] = []
        pool = ThreadPoolExecutor(_THREADS)
        try:
            while True:
                # Without an end: a run that went past some samples reads as many more (clipa.registry.skips).
                for window in self._mixture.readings(self._step, self._lanes, self._sources):
                    if not self._has_room(held, window, ahead, limit if window.first < stop else None):
                        break
                    held.append(window)
                    for key in _keys(window):
                        if self._takes(key):
                            pool.submit(self._work, key)
        finally:
            self.leave()
            # What failed is said at once. When all leave, nobody may write into a folder that is removed.
            pool.shutdown(wait=self._failure is None, cancel_futures=True)

    def _has_room(self, held: list[Reading], window: Reading, ahead: int, limit: int | None) -> bool:
        """Wait until a window is needed now, or, unless `limit` is None, has room; False: it went back."""
        with self._told:
            while not (self._leave or self._failure):
                if self._went_back:
                    self._went_back = False
                    return False
                past = [one for one in held if one.end <= self._step - _LAG]
                if past:
                    held[:] = [one for one in held if one.end > self._step - _LAG]
                    self._remove(past, [*held, window])
                if window.first <= self._step + ahead:
                    return True
                size = sum(self._shard(key).size for key in {key for one in (*held, window) for key in _keys(one)})
                fits = size <= limit if limit else len(held) < _WINDOWS * len(self._lanes) * len(self._sources)
                if fits and limit is not None:
                    return True
                self._told.wait()
        raise self._failure or Stopped

    def _takes(self, key: _Key) -> bool:
        """Wait until another shard may be brought; False for one that is on its way."""
        with self._told:
            while len(self._coming) >= _THREADS and not (self._leave or self._failure):
                self._told.wait()
            if self._leave or self._failure:
                raise self._failure or Stopped
            if key in self._coming:
                return False
            self._coming.add(key)
            return True

    def _work(self, key: _Key) -> None:
        failure: Exception | None = None
        try:
            self._bring(self._sources[key[0]], self._shard(key))
        except Stopped:
            pass
        except Exception as error:  # whatever it is, it is raised where `run` waits
            failure = error
        with self._told:
            self._coming.discard(key)
            self._failure = self._failure or failure
            self._told.notify_all()

    def _shard(self, key: _Key) -> Shard:
        return self._sources[key[0]].manifest.shards[key[1]]

    def _remove(self, windows: Iterable[Reading], kept: Iterable[Reading]) -> None:
        for key in {k for one in windows for k in _keys(one)} - {k for one in kept for k in _keys(one)}:
            path = self._sources[key[0]].folder / self._shard(key).name
            path.unlink(missing_ok=True)
            sidecar(path).unlink(missing_ok=True)

    def _bring(self, source: Source, shard: Shard) -> None:
        final = source.folder / shard.name
        if final.exists():
            return
        private = source.folder / ".coming" / shard.name
        fetch(source.store, private, shard, (), self._arrived)
        require_counted(load_index(private).counts.captioned, shard, source.store.url)
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(sidecar(private), sidecar(final))
        os.replace(private, final)

    def _arrived(self, _bytes: int) -> None:
        if self._leave:
            raise Stopped


def _keys(window: Reading) -> Iterable[_Key]:
    return ((window.dataset, number) for number in window.shards)


class _Job(NamedTuple):
    """Something that is told of steps, and its work."""

    who: Streamer | Arrivals
    work: Callable[[], None]


class _Node:
    """What one node reads of all that a phase trains on, and that is not simply there."""

    def __init__(self, run: RunDir, plan: Plan, place: Path, node: int) -> None:
        assert isinstance(plan.settings, TrainPhase)
        self._plan, self._place = plan, place
        self._manifests = [pinned_manifest(run, data.manifest) for data in plan.trained_on]
        # What is simply there is in nobody's way here, and its shards need not be counted.
        coming = [data in plan.early or data.access == "stream" for data in plan.trained_on]
        sizes = [
            [shard.samples or 0 for shard in manifest.shards] if comes else [1]
            for manifest, comes in zip(self._manifests, coming, strict=True)
        ]
        self._mixture = mixture_of(plan.settings, sizes, plan.seed)
        each = plan.settings.batch // plan.world.nodes
        self._lanes = self._mixture.lanes_of(node * each, (node + 1) * each)

    def jobs(self, start: int, ahead: int) -> list[_Job]:
        """What is to be done from step `start` on, each in a thread of its own."""
        found = []
        sources = {
            number: Source(self._manifests[number], fast.open_store(data.source), self._place / str(number))
            for number, data in enumerate(self._plan.trained_on)
            if data.access == "stream"
        }
        if sources:
            streamer = Streamer(sources, self._mixture, self._lanes)
            found.append(_Job(streamer, partial(streamer.run, start, self._plan.steps, ahead, self._room())))
        if self._plan.early:
            arrivals = self._arrivals(start)
            found.append(_Job(arrivals, arrivals.run))
        return found

    def _room(self) -> int:
        """Bytes of the cache that what is staged leaves to what is streamed; 0: as it comes."""
        staged = {data.manifest: data.bytes for data in self._plan.datasets if data.access == "stage"}
        return max(1, self._plan.cache_limit - sum(staged.values())) if self._plan.cache_limit else 0

    def _arrivals(self, start: int) -> Arrivals:
        """Those that are staged meanwhile. Says in which order they are wanted."""
        early = {number: data.shards for number, data in enumerate(self._plan.trained_on) if data in self._plan.early}
        needs = first_needs(self._mixture, self._lanes, start, early)
        digests = tuple(data.manifest for data in self._plan.trained_on)
        Wanted(digests=digests, shards=tuple(needs)).leave_in(self._place)
        folders = [manifests.staged_folder(self._plan.cache, digest) for digest in digests]
        rows = [(self._manifests[number], self._manifests[number].shards[at], folders[number]) for number, at in needs]
        return Arrivals(self._place, [Arrival(shard, made.url, folder / shard.name) for made, shard, folder in rows])


def _follow(jobs: Sequence[_Job], left: threading.Event) -> None:
    for line in sys.stdin:
        for job in jobs:
            job.who.tell(int(line))
    left.set()
    for job in jobs:
        job.who.leave()
    time.sleep(_PATIENCE_S)
    os._exit(0)  # a store that hangs must not hold the node


def _work(jobs: Sequence[_Job]) -> None:
    """Until the trainer leaves.

    Raises:
        Stopped: it did.
        ClipaError: a shard cannot be had.
    """
    left = threading.Event()
    threading.Thread(target=_follow, args=(jobs, left), daemon=True).start()
    say("ready")
    pool = ThreadPoolExecutor(len(jobs))
    for future in wait([pool.submit(job.work) for job in jobs], return_when=FIRST_EXCEPTION).done:
        future.result()
    left.wait()  # all has arrived, and stays
    raise Stopped


def main() -> int:
    """Entry of the module: the exit code."""
    survive_full_logs()
    parser = argparse.ArgumentParser(prog="clipa.data.streamer", description="have a run's shards there when needed")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("place", type=Path, help="the folder in which the node's ranks are met")
    for name in ("--start", "--ahead", "--node"):
        parser.add_argument(name, type=int, required=True)
    arguments = parser.parse_args()
    place: Path = arguments.place
    try:
        beat(place / ALIVE)
        run = RunDir(arguments.run_dir)
        plan: Plan = plans.decode(run.plan.read_bytes())
        _work(_Node(run, plan, place, arguments.node).jobs(arguments.start, arguments.ahead))
    except Stopped:
        shutil.rmtree(place, ignore_errors=True)
    except ClipaError as error:
        say(error, err=True)
        write_whole(place / FAILED, str(error).encode())
        return error.exit_code
    except OSError as error:
        say(f"{error.filename or place}: cannot be used: {error.strerror or error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    ends_at_once(main)

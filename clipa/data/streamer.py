"""`python -m clipa.data.streamer RUN_DIR ...`: brings the shards of a node's next windows, and removes those behind it.

One process a node, started by its first rank, and dead with it: it reads on its standard input how many steps are
done, and leaves at its end. Storage clients live here alone, in a process that never forks (see `clipa.storage.fast`).
A shard gets its name when its bytes are verified and its index lies beside it, so a reader only waits for the name.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipa.data.index import load_index, sidecar
from clipa.data.order import Reading, mixture_of
from clipa.data.pinned import pinned_manifest
from clipa.data.shards import ALIVE, FAILED
from clipa.errors import ClipaError, DataError
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import plan as plans
from clipa.spec.job import TrainPhase
from clipa.spec.plan import Plan
from clipa.staging.fetch import fetch
from clipa.staging.fill import Stopped
from clipa.storage import fast
from clipa.storage.leave import ends_at_once
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Store

_BEAT_S = 1.0
_PATIENCE_S = 3.0
_THREADS = 4
"""Shards that are brought at once: what lies in the next windows is wanted in any order, the first windows first."""
_WINDOWS = 3
"""Windows of a lane that are held where nobody says how many bytes: the one that is read, and two more."""
_LAG = 16
"""Steps by which another rank of the node may be behind the one that tells: their devices meet in every step, and a
device's queue holds few steps.
"""


class Streamer:
    """Keeps the windows around the trainer's step in a folder.

    Args:
        manifest: the dataset.
        store: where it lies.
        folder: where its shards are brought to.
        phase: what reads it.
        seed: of the order of samples.
        slots: those of every step that are read from this folder; empty: all of them.
    """

    def __init__(
        self, manifest: Manifest, store: Store, folder: Path, phase: TrainPhase, seed: int, slots: range = range(0)
    ) -> None:
        self._shards = manifest.shards
        self._store, self._folder = store, folder
        self._mixture = mixture_of(phase, [[shard.samples or 0 for shard in manifest.shards]], seed)
        slots = slots or range(phase.batch)
        self._lanes = self._mixture.lanes_of(slots.start, slots.stop)
        self._told = threading.Condition()
        self._coming: set[int] = set()
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
                for window in self._mixture.readings(self._step, self._lanes):
                    if not self._has_room(held, window, ahead, limit if window.first < stop else None):
                        break
                    held.append(window)
                    for number in window.shards:
                        if self._takes(number):
                            pool.submit(self._work, number)
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
                numbers = {number for one in (*held, window) for number in one.shards}
                size = sum(self._shards[number].size for number in numbers)
                fits = size <= limit if limit else len(held) < _WINDOWS * len(self._lanes)
                if fits and limit is not None:
                    return True
                self._told.wait()
        raise self._failure or Stopped

    def _takes(self, number: int) -> bool:
        """Wait until another shard may be brought; False for one that is on its way."""
        with self._told:
            while len(self._coming) >= _THREADS and not (self._leave or self._failure):
                self._told.wait()
            if self._leave or self._failure:
                raise self._failure or Stopped
            if number in self._coming:
                return False
            self._coming.add(number)
            return True

    def _work(self, number: int) -> None:
        failure: Exception | None = None
        try:
            self._bring(self._shards[number])
        except Stopped:
            pass
        except Exception as error:  # whatever it is, it is raised where `run` waits
            failure = error
        with self._told:
            self._coming.discard(number)
            self._failure = self._failure or failure
            self._told.notify_all()

    def _remove(self, windows: Iterable[Reading], kept: Iterable[Reading]) -> None:
        for number in {n for one in windows for n in one.shards} - {n for one in kept for n in one.shards}:
            path = self._folder / self._shards[number].name
            path.unlink(missing_ok=True)
            sidecar(path).unlink(missing_ok=True)

    def _bring(self, shard: Shard) -> None:
        final = self._folder / shard.name
        if final.exists():
            return
        private = self._folder / ".coming" / shard.name
        fetch(self._store, private, shard, (), self._arrived)
        found = load_index(private).counts.captioned
        if found != shard.samples:
            raise DataError(
                f"{found} samples have an image and a caption, the manifest says {shard.samples}",
                where=f"{self._store.url}/{shard.name}",
                hint="clipa data index URL --scan counts them; then submit a new run",
            )
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(sidecar(private), sidecar(final))
        os.replace(private, final)

    def _arrived(self, _bytes: int) -> None:
        if self._leave:
            raise Stopped


def _follow(streamer: Streamer) -> None:
    for line in sys.stdin:
        streamer.tell(int(line))
    streamer.leave()
    time.sleep(_PATIENCE_S)
    os._exit(0)  # a store that hangs must not hold the node


def _beat(path: Path) -> None:
    with contextlib.suppress(OSError):  # the folder is removed at the end
        while True:
            path.touch()
            time.sleep(_BEAT_S)


def _in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def main() -> int:
    """Entry of the module: the exit code."""
    parser = argparse.ArgumentParser(prog="clipa.data.streamer", description="bring a run's shards as they are needed")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("folder", type=Path)
    for name in ("--start", "--ahead", "--node"):
        parser.add_argument(name, type=int, required=True)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    try:
        run = RunDir(arguments.run_dir)
        plan: Plan = plans.decode(run.plan.read_bytes())
        assert plan.data is not None
        assert isinstance(plan.settings, TrainPhase)
        shutil.rmtree(folder.parent, ignore_errors=True)  # what a killed attempt of this run left here
        folder.mkdir(parents=True)
        _in_thread(lambda: _beat(folder / ALIVE))
        manifest = pinned_manifest(run, plan.data.manifest)
        store = fast.open_store(plan.data.source)
        each = plan.settings.batch // plan.world.nodes
        slots = range(arguments.node * each, (arguments.node + 1) * each)
        streamer = Streamer(manifest, store, folder, plan.settings, plan.seed, slots)
        _in_thread(lambda: _follow(streamer))
        print("ready", flush=True)
        streamer.run(arguments.start, plan.steps, arguments.ahead, plan.cache_limit)
    except Stopped:
        shutil.rmtree(folder, ignore_errors=True)
    except ClipaError as error:
        print(error, file=sys.stderr, flush=True)
        write_whole(folder / FAILED, str(error).encode())
        return error.exit_code
    return 0


if __name__ == "__main__":
    ends_at_once(main)

"""Publishing: the checkpoints and results of a run to a URL, marker last. Never from the trainer.

`python -m clipa.staging.publish RUN_DIR --attempt N --until FILE` is a child of the supervisor. It watches the run
directory until FILE is there, then brings what is left and says by its exit code and its last event whether all of it
is remote. Nothing waits for it meanwhile: where it is slower than the checkpoints come, those in the middle may be
passed over, the last one never is. `python -m clipa.staging.publish RUN_DIR` brings what is left of a run that is over.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path

import msgspec

from clipa.errors import ClipaError, InputError, StorageError
from clipa.registry import events
from clipa.registry.log_streams import survive_full_logs
from clipa.registry.run_dir import RunDir
from clipa.spec import card
from clipa.spec import plan as plans
from clipa.spec.cluster import Dataset
from clipa.staging.stage import RESUMABLE
from clipa.storage import fast, published
from clipa.storage.leave import ends_at_once
from clipa.storage.store import Store
from clipa.storage.upload import upload
from clipa.terminal import say

_POLL_S = 1.0


class Published(msgspec.Struct, frozen=True):
    """A checkpoint that is remote now."""

    step: int
    url: str
    bytes: int
    seconds: float


class Publisher:
    """Brings one run to a URL. `store` lies at `<url>/<run>`."""

    def __init__(self, run: RunDir, store: Store) -> None:
        self.run, self.store = run, store
        self._remote: set[str] = set()
        self._results: dict[str, int] = {}

    def checkpoint(self) -> Published | None:
        """Bring the newest whole checkpoint that is not remote; None when there is none.

        Raises:
            InputError, StorageError: it could not be written.
        """
        for step, folder in reversed(self.run.complete_checkpoints()):
            if folder.name in self._remote:
                continue
            began = time.monotonic()
            try:
                size = self._bring(folder)
            except FileNotFoundError:
                # Pruned while it was on its way: a newer one has taken its place.
                self._remote.add(folder.name)
                continue
            self._remote.add(folder.name)
            if size is not None:
                url = f"{self.store.url}/{published.checkpoint_name(folder.name)}"
                return Published(step, url, size, time.monotonic() - began)
        return None

    def results(self) -> None:
        """Bring the plan and every evaluation that is not remote."""
        for path in [self.run.plan, *sorted(self.run.evals.glob("[!.]*.json"))]:
            name = path.relative_to(self.run.path).as_posix()
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            if self._results.get(name) != len(data):
                self.store.write(name, data)
                self._results[name] = len(data)

    def _bring(self, folder: Path) -> int | None:
        """Bytes of a checkpoint that was brought; None when it was there."""
        name = published.checkpoint_name(folder.name)
        marker = (folder / card.COMPLETE_NAME).read_bytes()
        complete = f"{name}/{card.COMPLETE_NAME}"
        if self.store.exists(complete):
            return None
        total = len(marker)
        for file in sorted(msgspec.json.decode(marker, type=dict[str, object])):
            if "/" in file or file.startswith("."):
                raise StorageError(f"its COMPLETE names {file!r}", where=str(folder))
            total += upload(self.store, folder / file, f"{name}/{file}").size
        if not self.store.write_new(complete, marker) and self.store.read(complete) != marker:
            raise StorageError(
                "another attempt has published other files under this step",
                where=f"{self.store.url}/{name}",
                hint="stop the attempt that still runs elsewhere, or publish to another URL",
            )
        return total


def _line(error: ClipaError | None) -> str:
    if error is None:
        return ""
    return f"{error.where}: {error.what}" if error.where else error.what


def follow(run: RunDir, attempt: int, until: Path | None, target: Dataset) -> int:
    """Publish what there is and what comes, until the file `until` is there (none: what there is); the exit code.

    Trouble in between is said, and tried again with the next checkpoint; only what holds at the end counts.
    """
    base = target.url.rstrip("/")
    publisher = Publisher(run, fast.open_store(msgspec.structs.replace(target, url=f"{base}/{run.id}")))
    log = events.EventWriter(run, attempt, "publish")
    while True:
        last = until is None or until.exists()
        why: ClipaError | None = None
        try:
            while done := publisher.checkpoint():
                log.write(events.Published, step=done.step, url=done.url, bytes=done.bytes, seconds=done.seconds)
                say(f"step {done.step}: {done.bytes:,} bytes in {done.seconds:.1f} s to {done.url}")
            publisher.results()
        except ClipaError as error:
            why = error
            say(error, err=True)
        if last:
            newest = max((step for step, _ in run.complete_checkpoints()), default=0)
            log.write(events.PublishEnded, whole=not why, step=newest, why=_line(why))
            log.close()
            return why.exit_code if why else 0
        if why:
            time.sleep(10 * _POLL_S)
        time.sleep(_POLL_S)


def main() -> int:
    """Entry of `python -m clipa.staging.publish`: the exit code."""
    survive_full_logs()
    parser = argparse.ArgumentParser(
        prog="clipa.staging.publish", description="publish a run's checkpoints and results"
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, help="whose event file it writes (default: the newest)")
    parser.add_argument("--until", type=Path, help="goes on until this file is there (default: brings what is there)")
    arguments = parser.parse_args()
    # An upload that is cut counts for nothing: the marker was not written.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(RESUMABLE))
    run = RunDir(arguments.run_dir)
    try:
        target = plans.decode(run.plan.read_bytes()).publish
        if target is None:
            raise InputError("the plan names no URL to publish to", where=str(run.plan))
        attempt = arguments.attempt or max(run.claimed(), default=1)
        return follow(run, attempt, arguments.until, target)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        say(f"{run.plan}: cannot be read: {error}", err=True)
        return 2
    except ClipaError as error:
        say(error, err=True)
        return error.exit_code


if __name__ == "__main__":
    ends_at_once(main)

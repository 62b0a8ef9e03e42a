"""The run directory: the one owner of every file name in it, and of the way files are written.

Everything is written whole or not at all (temporary file, fsync, rename), except event files, which have one writer
each and are appended to line by line.

    runs/<id>/
      plan.json                            the frozen plan
      manifests/<digest>.json              the shards of each dataset, as pinned by the plan
      provenance/{git,environment}.json    code, packages and machine; diff.patch where the tree was dirty
      intents/<attempt>.json               written before anything is submitted
      attempts/<attempt>                   claimed by exclusive create: the fence between attempts
      events/<attempt>-<writer>.jsonl      what happened, one writer a file
      heartbeat/<attempt>-<node|train>     modification time is the sign of life; -waiting-<host>: for a shard
      control/stop-<attempt>               "please leave"
      skips.json                           steps whose samples are passed over, where there are any
      logs/<attempt>/                      output of every process
      checkpoints/step-<n>/{...,COMPLETE}  COMPLETE is written last
      evals/<attempt>-<step>-<set>-<size>.json
      tensorboard/                         event files, made of events/
      trackers/<name>/                     how far a tracker has been told, and what it keeps here itself
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_STEP = re.compile(r"^step-(\d{1,18})$")
WAITING = "waiting-"
"""How the writers of heartbeats are called that wait for shards on their way (`clipa.data.shards`)."""
_BEAT_BYTES = 64
_NUMBER = re.compile(r"^(\d{1,9})(?:\.json)?$")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary name in the same folder, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.part")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def copy_whole(source: Path, path: Path) -> None:
    """Copy a file whole or not at all, as `write_whole` does, without holding it in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.part")
    try:
        with open(source, "rb") as old, open(part, "xb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunDir:
    """The files of one run. Holds no state: every property looks at the disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @property
    def id(self) -> str:
        """The run's id is its folder's name."""
        return self.path.name

    @property
    def plan(self) -> Path:
        """The frozen plan."""
        return self.path / "plan.json"

    @property
    def provenance(self) -> Path:
        """Folder of code, packages and machine."""
        return self.path / "provenance"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def evals(self) -> Path:
        """Folder of evaluation results."""
        return self.path / "evals"

    @property
    def events(self) -> Path:
        """Folder of event files."""
        return self.path / "events"

    @property
    def skips(self) -> Path:
        """The record of steps whose samples are passed over."""
        return self.path / "skips.json"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    def tracker(self, name: str) -> Path:
        """Folder of what a tracker of experiments keeps with the run."""
        return self.path / "trackers" / name

    def manifest(self, digest: str) -> Path:
        """The pinned list of shards of one dataset."""
        return self.path / "manifests" / f"{digest}.json"

    def intent(self, attempt: int) -> Path:
        """The record written before an attempt is submitted."""
        return self.path / "intents" / f"{attempt}.json"

    def claim_file(self, attempt: int) -> Path:
        """The file whose exclusive creation claims an attempt."""
        return self.path / "attempts" / str(attempt)

    def event_file(self, attempt: int, writer: str) -> Path:
        """The event file of one writer of one attempt."""
        return self.events / f"{attempt}-{writer}.jsonl"

    def heartbeat(self, attempt: int, writer: str) -> Path:
        """The file whose modification time says that a writer lives."""
        return self.path / "heartbeat" / f"{attempt}-{writer}"

    def stop_file(self, attempt: int) -> Path:
        """The file that asks an attempt to leave."""
        return self.path / "control" / f"stop-{attempt}"

    def logs(self, attempt: int) -> Path:
        """Folder of an attempt's process output."""
        return self.path / "logs" / str(attempt)

    def step_dir(self, step: int) -> Path:
        """The folder of the checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:09d}"

    def eval_file(self, attempt: int, step: int, set_name: str, size: int) -> Path:
        """The result of scoring one set at one image size."""
        return self.evals / f"{attempt}-{step:09d}-{set_name}-{size}.json"

    def claim(self, attempt: int) -> bool:
        """Claim an attempt's number; False when another process has it."""
        path = self.claim_file(attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        with contextlib.suppress(OSError):  # the claim holds: a failure said now would have another try find it taken
            sync_folder(path.parent)
        return True

    def claimed(self) -> list[int]:
        """All attempts that were claimed, in order."""
        return _numbers(self.path / "attempts")

    def intents(self) -> list[int]:
        """All attempts with an intent, in order."""
        return _numbers(self.path / "intents")

    def beat(self, attempt: int, writer: str, text: str = "") -> None:
        """Show a sign of life. The text (a trainer's step, then a few words) is informal: age is what counts.

        The file is written over in place and its time is set, which a full disk allows. A disk that does not allow it
        raises nothing: a missing sign of life is what the reader is to see.
        """
        path = self.heartbeat(attempt, writer)
        raw = text.encode().ljust(_BEAT_BYTES) if text else b""  # one write of one size: no reader sees half of each
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.utime(descriptor)
                os.ftruncate(descriptor, os.pwrite(descriptor, raw, 0))
            finally:
                os.close(descriptor)

    def beaten_step(self, attempt: int) -> int | None:
        """The step of a trainer's last sign of life; None without one that can be read."""
        try:
            return int(self.heartbeat(attempt, "train").read_text().partition(" ")[0])
        except (OSError, ValueError):
            return None

    def complete_checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every checkpoint with its COMPLETE marker, oldest first."""
        found = []
        for name in _names(self.checkpoints):
            match = _STEP.match(name)
            if match and (self.checkpoints / name / "COMPLETE").is_file():
                found.append((int(match.group(1)), self.checkpoints / name))
        return sorted(found)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _numbers(folder: Path) -> list[int]:
    return sorted(int(match.group(1)) for name in _names(folder) if (match := _NUMBER.match(name)))


def run_dirs(root: Path) -> Iterator[RunDir]:
    """Every folder under a run root that may be a run: it has a plan. Foreign files are passed over here."""
    for name in _names(root):
        if not name.startswith(".") and (root / name / "plan.json").is_file():
            yield RunDir(root / name)

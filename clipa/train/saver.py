"""Checkpoints are written beside the training: the loop goes on as soon as the state is copied to the host.

Every rank has a thread of its own for its share, and the threads agree over a CPU group of their own. One checkpoint is
in flight at most. Where a rank's disk fails, all write their shares again, from the same copy, and in the end leave the
last whole checkpoint as it is and say so; the training goes on, and saves when it is next due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from clipa.attempt.devices import Ranks
from clipa.attempt.process import Session
from clipa.attempt.weights import File
from clipa.errors import TrainError
from clipa.registry import events
from clipa.spec import card as cards
from clipa.spec.job import TrainPhase
from clipa.terminal import say
from clipa.train import checkpoint
from clipa.train.checkpoint import NO_HISTORY, OPTIMIZER, History, Snapshot

PAUSES_S = (1.0, 5.0, 20.0)
"""Before each further try."""
_WAIT_S = 1.0
_INTERVAL_S = 30.0
"""Time between two checkpoints from which on one that is not written yet is a slow one."""
PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others to have written: a slow disk is no dead rank."""
_DIGEST = 32
T = TypeVar("T")


class _Word(IntEnum):
    """How a rank fared, by weight: the heaviest one decides for all."""

    GOOD = 0
    AGAIN = 1
    FATAL = 2


class Saver:
    """Writes the checkpoints of one attempt; used as a context, whose end waits for what is in flight.

    Args:
        session: the attempt; the first rank's has the event log.
        ranks: the processes that write together.
    """

    def __init__(self, session: Session, ranks: Ranks) -> None:
        assert isinstance(session.plan.settings, TrainPhase)
        self.session = session
        self.ranks = ranks
        self.rule = session.plan.settings.checkpoint
        self.stored = (-1, "")
        """Step of the newest checkpoint that is known to be whole, and on the first rank the digest of its weights."""
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if ranks.world > 1 else None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._fatal = False
        self._size = 0
        self._took = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.join()

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, history: History = NO_HISTORY
    ) -> None:
        """Begin to write the checkpoint after `step` steps, unless it is there. Every rank must call it.

        Raises:
            TrainError: another attempt has taken over, seen while the last one was written.
        """
        began = time.monotonic()
        self.wait()
        self._note_slow_disk(step, time.monotonic() - began, began - self._began)
        if self.stored[0] == step:
            return
        self._began = time.monotonic()
        snapped = checkpoint.snapshot(model, optimizer, step, self.ranks.rank, self.ranks.world, history)
        self._thread = threading.Thread(target=self._run, args=(snapped,), name="checkpoint", daemon=True)
        self._thread.start()

    def _note_slow_disk(self, step: int, waited: float, since_last: float) -> None:
        """Say that a checkpoint took longer than the time between two, with its rate.

        The last checkpoint of a phase comes when the phase ends, and those of a short run follow each other at once:
        that they wait says nothing of the disk.
        """
        if waited <= _WAIT_S or since_last < _INTERVAL_S or step >= self.session.plan.steps:
            return
        rate = f" ({self._size / 2**20:,.0f} MiB, {self._size / 2**20 / self._took:,.0f} MiB/s)" if self._took else ""
        self._say(
            f"the checkpoint of step {step} waited {waited:.0f} s for the one before it, which took "
            f"{self._took:.0f} s{rate}: save less often, or to a faster disk"
        )

    def wait(self) -> None:
        """Wait for what is in flight.

        Raises:
            TrainError: another attempt has taken over.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fatal and self._error is not None:
            raise self._error

    def finish(self, step: int) -> None:
        """Wait until the checkpoint after `step` steps is whole.

        Raises:
            TrainError: it could not be written, or another attempt has taken over.
        """
        self.wait()
        if self.stored[0] != step:
            where = str(self.session.run.step_dir(step))
            raise TrainError(f"the checkpoint cannot be written: {self._error or 'see the other ranks'}", where=where)

    def _run(self, snapped: Snapshot) -> None:
        try:
            self._error, self._fatal = None, False
            self._write(snapped)
        except Exception as error:
            self._error, self._fatal = error, True

    def _write(self, snapped: Snapshot) -> None:
        began, step = time.monotonic(), snapped.step
        part = checkpoint.part_folder(self.session.run, step, self.session.attempt)
        for pause in (*PAUSES_S, 0.0):
            word = self._try(snapped, part)
            if word is _Word.GOOD:
                self._wrote(step, time.monotonic() - began)
                return
            if word is _Word.FATAL:
                raise self._error or TrainError("another rank gave the checkpoint up", where=str(part))
            then = f"trying again in {pause:.0f} s" if pause else "given up, the last whole one stays"
            self._say(f"the checkpoint of step {step} cannot be written ({self._error or 'another rank'}): {then}")
            time.sleep(pause)
        if self.ranks.is_first:
            checkpoint.drop_leftovers(self.session.run)

    def _try(self, snapped: Snapshot, part: Path) -> _Word:
        """Write every rank's share, then make the whole a checkpoint."""
        run, plan, attempt = self.session.run, self.session.plan, self.session.attempt
        word, mine = self._agreed(lambda: checkpoint.write(part, snapped))
        if word is not _Word.GOOD or mine is None:
            return word
        files = self._gathered(mine)
        first = self.ranks.is_first
        act = (lambda: checkpoint.commit(run, plan, attempt, snapped, part, files)) if first else (lambda: 0)
        word, size = self._agreed(act)
        if word is _Word.GOOD:
            self.stored = (snapped.step, files[cards.WEIGHTS_NAME].sha256 if first else "")
            self._size = size or 0
        return word

    def _agreed(self, act: Callable[[], T]) -> tuple[_Word, T | None]:
        """Act, and hear how all ranks fared; an own error is remembered."""
        word, result = _Word.GOOD, None
        try:
            self._error = None
            result = act()
        except OSError as error:
            word, self._error = _Word.AGAIN, error
        except Exception as error:
            word, self._error = _Word.FATAL, error
        if self._group is None:
            return word, result
        said = torch.tensor([int(word)])
        dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group)
        return _Word(int(said)), result

    def _gathered(self, mine: Mapping[str, File]) -> dict[str, File]:
        """The files of all ranks, with the sizes and digests that those who wrote them found."""
        if self._group is None:
            return dict(mine)
        own = next((file for name, file in mine.items() if name.startswith(OPTIMIZER)), File(size=0, sha256="00" * 32))
        said = torch.frombuffer(bytearray(own.size.to_bytes(8, "big") + bytes.fromhex(own.sha256)), dtype=torch.uint8)
        heard = [torch.empty_like(said) for _ in range(self.ranks.world)]
        dist.all_gather(heard, said, group=self._group)
        found = dict(mine)
        for rank, raw in enumerate(bytes(words.tolist()) for words in heard):
            found[checkpoint.moments_name(rank, self.ranks.world)] = File(
                size=int.from_bytes(raw[:8], "big"), sha256=raw[8 : 8 + _DIGEST].hex()
            )
        return found

    def _wrote(self, step: int, seconds: float) -> None:
        self._took = seconds
        if self.session.log is None:
            return
        self.session.log.write(events.Saved, step=step, bytes=self._size, seconds=seconds)
        checkpoint.prune(self.session.run, self.session.plan, self.rule, self._scores())

    def _scores(self) -> dict[int, float]:
        """What `keep_best` goes by: the value of its evaluation set by step, over all attempts."""
        found: dict[int, float] = {}
        run = self.session.run
        for attempt in run.claimed() if self.rule.keep_best else ():
            for event in events.read(run.event_file(attempt, "train")):
                if isinstance(event, events.Scored) and event.set == self.rule.keep_best:
                    found[event.step] = max(event.value, found.get(event.step, event.value))
        return found

    def _say(self, text: str) -> None:
        say(text, err=True)
        if self.session.log is not None:
            self.session.log.write(events.Noted, text=text)

"""What all ranks must do at the same step although one knows of it: leave, save by the clock, stop at a bad loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from clipa.attempt.devices import Ranks

EVERY_S = 1.0
"""Seconds between two questions: much less than any time to leave, and dear to no step."""


class Word(NamedTuple):
    """What the ranks agreed on: whether to leave, whether to save, and the first step that was not finite (0: none)."""

    leave: bool = False
    save: bool = False
    bad: int = 0


class Poll:
    """Asks every second or so, at steps that all ranks agree on: one all-reduce on the CPU, which no GPU waits for.

    Args:
        ranks: who agrees.
        look: what this rank has seen by itself. Each field that one rank has seen holds for all.
    """

    def __init__(self, ranks: Ranks, look: Callable[[], Word]) -> None:
        self.ranks = ranks
        self.look = look
        self._next = 0
        self._asked_at, self._asked_step = time.monotonic(), 0

    def ask(self, step: int) -> Word:
        """Called by every rank after every step. Says nothing at most of them."""
        if step < self._next:
            return Word()
        seen = self.look()
        # Only the first rank says when to ask again, so that every rank waits for the same step.
        pause = self._pause(step) if self.ranks.is_first else 0
        leave, save, bad, pause = self.ranks.greatest((int(seen.leave), int(seen.save), seen.bad, pause))
        self._next = step + pause
        return Word(bool(leave), bool(save), bad)

    def _pause(self, step: int) -> int:
        """Steps until about EVERY_S have passed, by the time of the last ones; the first step tells nothing."""
        now = time.monotonic()
        steps, seconds = step - self._asked_step, now - self._asked_at
        is_first = self._next == 0
        self._asked_at, self._asked_step = now, step
        return 1 if is_first else max(1, min(2 * steps, int(EVERY_S * steps / max(1e-6, seconds))))

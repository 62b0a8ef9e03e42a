"""Signs of life of an attempt's processes. The supervisor takes a long time without one for a hang.

They come from where the work is done, never from a thread of their own, which would go on beating beside a loop that
stands still.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
import time

from clipa.registry.run_dir import RunDir
from clipa.spec.plan import Limits

STACKS = signal.SIGUSR1
"""What makes a process write the stacks of all its threads to its error output. The supervisor sends it."""
_EVERY_S = 1.0


def show_stacks_on_request() -> None:
    """Answer STACKS with all stacks. The handler is C: it works while the interpreter waits in a library or a lock.

    The supervisor asks every process of a rank's group that has it: loader workers too.
    """
    faulthandler.register(STACKS, file=sys.stderr, all_threads=True, chain=False)


def patience_of(limits: Limits) -> float:
    """Minutes that a rank waits for another in a collective: longer than a hang takes to be seen, so that the
    supervisor comes first and has the stacks of all ranks, where a time-out would end one of them without.
    """
    return limits.hang_minutes + 5 if limits.hang_minutes else 0.0


class Pulse:
    """The sign of life of the first rank: its step, and what it is at where that is not the training itself.

    Args:
        run: whose.
        attempt: the attempt's number.
        writes: whether this process is the one that writes.
    """

    def __init__(self, run: RunDir, attempt: int, writes: bool) -> None:
        self.step = 0
        self._run = run
        self._attempt = attempt
        self._writes = writes
        self._doing = ""
        self._written = 0.0

    def at(self, doing: str, step: int | None = None) -> None:
        """Something new begins; an empty word is the training."""
        self.step = self.step if step is None else step
        self._doing = doing
        self._written = 0.0
        self.beat()

    def beat(self) -> None:
        """It goes on. Cheap: written once a second at most."""
        now = time.monotonic()
        if self._writes and now - self._written >= _EVERY_S:
            self._run.beat(self._attempt, "train", f"{self.step} {self._doing}".strip())
            self._written = now

"""Whether the loss rises as it should not: every step's loss is looked at, at steps on which all ranks look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import torch

WINDOW = 64
"""Steps whose losses say what is usual."""
_LEAST = 16
"""Steps before anything is called unusual."""
_SIGMAS = 10.0
_RISE = 0.5
"""A spike is above the usual loss by so many robust standard deviations (1.4826 x the median distance from the median,
which is one standard deviation of normal noise), and by this share of it: small losses of small batches are noisy.
"""
LOOK_STEPS = 256
"""At least every so many steps the losses are copied from the device."""


class Spike(NamedTuple):
    """The loss of a step (counted from 1), and what was usual before it."""

    step: int
    loss: float
    usual: float


def first_spike(history: Sequence[float], first: int, losses: Sequence[float]) -> Spike | None:
    """The first spike among losses.

    Args:
        history: the losses before them.
        first: the step of the first loss.
        losses: of steps in a row.
    """
    seen = list(history)
    for step, loss in enumerate(losses, first):
        if not math.isfinite(loss):
            return None  # that has a name of its own
        recent = seen[-WINDOW:]
        if len(recent) >= _LEAST:
            usual = median(recent)
            spread = 1.4826 * median(abs(value - usual) for value in recent)
            if loss - usual > max(_SIGMAS * spread, _RISE * abs(usual)):
                return Spike(step, loss, usual)
        seen.append(loss)
    return None


class Guard:
    """Remembers the losses of the steps since the last look, on the device, and before it, as numbers.

    Args:
        history: losses before the first step, as a checkpoint has them: so a resumed attempt judges as one that was
            never interrupted would.
    """

    def __init__(self, history: Sequence[float] = ()) -> None:
        self.history = tuple(history)
        self._first = 0
        self._losses: list[torch.Tensor] = []

    def add(self, step: int, loss: torch.Tensor) -> None:
        """The loss of the global batch at a step, the same on every rank."""
        self._first = self._first if self._losses else step
        self._losses.append(loss.detach().reshape(()))

    def look(self) -> Spike | None:
        """The first spike since the last look. Waits for the device."""
        if not self._losses:
            return None
        losses = torch.stack(self._losses).tolist()
        spike = first_spike(self.history, self._first, losses)
        self._losses = []
        self.history = tuple([*self.history, *filter(math.isfinite, losses)][-WINDOW:])
        return spike

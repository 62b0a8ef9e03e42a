"""What the loop tells: events for programs, lines for a log, a sign of life. Rates are since the last telling."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch

from clipa.attempt.pulse import Pulse
from clipa.registry import events

LINES = 60
"""Lines that a phase's log has when the recipe does not say."""
SILENCE_S = 10.0
"""Longest time without a line."""


class StepOutcome(NamedTuple):
    """What one optimizer step gave: the loss of the global batch; tensors stay on the device until they are told."""

    loss: torch.Tensor
    grad_norm: torch.Tensor
    lr: float
    logit_scale: torch.Tensor


class Meter:
    """Counts steps, samples and waiting, and tells every so often."""

    def __init__(
        self, pulse: Pulse, log: events.EventWriter | None, steps: int, batch: int, every_samples: int
    ) -> None:
        self.pulse = pulse
        self.log = log
        self.steps = steps
        self.batch = batch
        self.every = max(1, every_samples // batch) if every_samples else max(1, steps // LINES)
        self.waited = 0.0
        self._since = time.monotonic()
        self._steps_since = 0

    def data_waited(self, seconds: float) -> None:
        """Add time that the loop stood still for data."""
        self.waited += seconds

    def restart_clock(self) -> None:
        """Do not count what happened just now (an evaluation, a checkpoint) as training time."""
        self._since, self.waited, self._steps_since = time.monotonic(), 0.0, 0

    def after_step(self, step: int, outcome: StepOutcome) -> None:
        """Called after every step; `step` counts from 1."""
        self._steps_since += 1
        now = time.monotonic()
        self.pulse.step = step
        self.pulse.beat()
        if step % self.every and step != self.steps and now - self._since < SILENCE_S:
            return
        if self.log:
            self._tell(step, outcome, now)
        self.restart_clock()

    def _tell(self, step: int, outcome: StepOutcome, now: float) -> None:
        assert self.log is not None
        seconds = max(1e-9, now - self._since)
        speed = self._steps_since * self.batch / seconds
        wait = min(1.0, self.waited / seconds)
        loss, scale = float(outcome.loss), float(outcome.logit_scale)
        if not math.isfinite(loss):
            return  # the trainer names the step; JSON has no word for such a loss
        self.log.write(
            events.Step,
            step=step,
            samples=step * self.batch,
            loss=loss,
            lr=outcome.lr,
            logit_scale=scale,
            grad_norm=float(outcome.grad_norm),
            samples_per_s=speed,
            data_wait=wait,
        )
        self.pulse.at("", step)
        left = (self.steps - step) * self.batch / speed
        print(
            f"step {step}/{self.steps}  loss {loss:.4f}  lr {outcome.lr:.3g}  scale {scale:.2f}  "
            f"{speed:,.0f} samples/s  waiting for data {wait:.0%}  {left:,.0f} s left",
            flush=True,
        )

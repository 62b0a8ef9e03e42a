"""What the loop tells: events for programs, lines for a log, a sign of life. Rates are since the last telling."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from clipa.attempt.pulse import Pulse
from clipa.registry import events
from clipa.spec.job import TrainPhase
from clipa.spec.plan import Plan, Record
from clipa.terminal import say
from clipa.train.gradients import Norms
from clipa.train.supply import Supply
from clipa.train.yardstick import Yardstick, peak_memory_gib

LINES = 60
"""Lines that a phase's log has when the recipe does not say."""
SILENCE_S = 10.0
"""Longest time without a line."""


class StepOutcome(NamedTuple):
    """What one optimizer step gave: the loss of the global batch; tensors stay on the device until they are told."""

    loss: torch.Tensor
    grad_norms: Norms
    lr: float
    logit_scale: torch.Tensor


class Counters(Record, frozen=True, kw_only=True):
    """Seconds that the steps so far have taken, over all attempts, and those of them that were spent waiting for data.

    Evaluations, checkpoints and steps that were lost do not count.
    """

    trained_s: float = 0.0
    waited_s: float = 0.0


class Meter:
    """Counts steps, samples and waiting, and tells every so often.

    Its clock runs from `begin` on, except `apart` from the training.

    Args:
        plan: of a training phase.
        pulse: the sign of life.
        log: where events go; None on every rank but the first.
        yardstick: what rates are measured against.
        device: what computes.
    """

    def __init__(
        self, plan: Plan, pulse: Pulse, log: events.EventWriter | None, yardstick: Yardstick, device: torch.device
    ) -> None:
        assert isinstance(plan.settings, TrainPhase)
        self.pulse = pulse
        self.log = log
        self.steps = plan.steps
        self.batch = plan.settings.batch
        self.yardstick = yardstick
        self.every = every_steps(plan)
        self.device = device
        self._supply = Supply(plan.world.loader_workers, plan.world.local)
        self.begin(Counters())

    def begin(self, counters: Counters) -> None:
        """The training begins, or begins anew where it went back to: all that counts so far is in `counters`."""
        self._told = counters
        self._seconds = self._waited = 0.0
        self._steps = 0
        self.go_on()

    @property
    def counters(self) -> Counters:
        """What counts so far; up to now only where it is asked `apart` from the training."""
        told = self._told
        return Counters(trained_s=told.trained_s + self._seconds, waited_s=told.waited_s + self._waited)

    def data_waited(self, seconds: float) -> None:
        """Add time that the loop stood still for data."""
        self._waited += seconds

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Something else than training, an evaluation or a checkpoint: its time does not count, what came before does.

        It begins when the device has done what it was given, which counts as training.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds += time.monotonic() - self._since
        if self.log:
            self._supply.add(0.0, 0.0)
        try:
            yield
        finally:
            self.go_on()

    def go_on(self) -> None:
        """What happened since the last that was counted is no training."""
        self._since = time.monotonic()
        if self.log:
            self._supply.begin()

    def after_step(self, step: int, outcome: StepOutcome) -> None:
        """Called after every step; `step` counts from 1."""
        self._steps += 1
        self.pulse.step = step
        self.pulse.beat()
        if step % self.every and step != self.steps and self._seconds + time.monotonic() - self._since < SILENCE_S:
            return
        if self.log:
            self._tell(self.log, step, outcome)

    def _tell(self, log: events.EventWriter, step: int, outcome: StepOutcome) -> None:
        # One copy from the device for all of them; it waits for the step, so the clock is read after it.
        told = [outcome.loss, *outcome.grad_norms, outcome.logit_scale]
        loss, *norms, scale = torch.stack([value.detach().float().reshape(()) for value in told]).tolist()
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        seconds, waited = max(1e-9, self._seconds), self._waited
        speed = self._steps * self.batch / seconds
        self._told, self._seconds, self._waited, self._steps = self.counters, 0.0, 0.0, 0
        wait = min(1.0, waited / seconds)
        left = (self.steps - step) * self.batch / speed
        image, text, whole = (norm if math.isfinite(norm) else None for norm in norms)
        mfu = self.yardstick.mfu(speed)
        if not math.isfinite(loss):
            return  # the trainer names the step; JSON has no word for such a loss
        log.write(
            events.Step,
            step=step,
            samples=step * self.batch,
            loss=loss,
            lr=outcome.lr,
            logit_scale=scale,
            grad_norm=whole,
            grad_norm_image=image,
            grad_norm_text=text,
            samples_per_s=speed,
            samples_per_s_device=speed / self.yardstick.devices,
            mfu=mfu,
            data_wait=wait,
            memory_gib=peak_memory_gib(outcome.logit_scale.device),
            eta_s=left,
            trained_s=self._told.trained_s,
            waited_s=self._told.waited_s,
        )
        self.pulse.at("", step)
        say(
            f"step {step}/{self.steps}  loss {loss:.4f}  lr {outcome.lr:.3g}  scale {scale:.2f}  "
            f"{speed:,.0f} samples/s  {f'MFU {mfu:.1%}  ' if mfu is not None else ''}"
            f"waiting for data {wait:.0%}  {left:,.0f} s left",
        )
        if stalled := self._supply.add(seconds, waited):
            log.write(events.Noted, text=stalled)
            say(stalled)


def every_steps(plan: Plan) -> int:
    """Steps from one telling to the next, where they are quick."""
    assert isinstance(plan.settings, TrainPhase)
    every, batch = plan.settings.log_every_samples, plan.settings.batch
    return max(1, every // batch) if every else max(1, plan.steps // LINES)

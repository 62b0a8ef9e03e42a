"""What the loop tells: rates and totals are those of the training, however often it is interrupted."""

import pytest
import torch

from clipa.attempt.pulse import Pulse
from clipa.registry import events
from clipa.spec import plan as plans
from clipa.train import metrics
from clipa.train.gradients import Norms
from clipa.train.metrics import Counters, Meter, StepOutcome
from clipa.train.yardstick import Yardstick
from tests.services.train_runs import BATCH, make_run

ZERO = torch.zeros(())
OUTCOME = StepOutcome(ZERO, Norms(ZERO, ZERO, ZERO), 1e-3, ZERO)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes only when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.fixture
def meter(tmp_path, clock):
    run = make_run(tmp_path, "x", steps=40, log_steps=10)
    log = events.EventWriter(run, 1, "train")
    plan = plans.decode(run.plan.read_bytes())
    meter = Meter(plan, Pulse(run, 1, writes=False), log, Yardstick(1, 1, None), torch.device("cpu"))
    meter.lines = lambda: [e for e in events.read(run.event_file(1, "train")) if isinstance(e, events.Step)]
    return meter


def _step(meter, clock, number, saves):
    clock(0.25)
    meter.data_waited(0.25)
    clock(0.5)
    meter.after_step(number, OUTCOME)
    if saves:
        with meter.apart():
            clock(7.0)


@pytest.mark.parametrize("every", [1, 3, 1000], ids=["each step", "every third", "never"])
def test_checkpoints_change_neither_rates_nor_totals(meter, clock, every):
    clock(50.0)
    meter.begin(Counters(trained_s=100.0, waited_s=20.0))
    clock(30.0)  # the loader starts
    meter.go_on()
    for number in range(1, 21):
        _step(meter, clock, number, saves=number % every == 0)
    first, second = meter.lines()
    for line in (first, second):
        assert line.samples_per_s == pytest.approx(BATCH / 0.75)
        assert line.data_wait == pytest.approx(1 / 3)
    assert (first.trained_s, first.waited_s) == pytest.approx((107.5, 22.5))
    assert (second.trained_s, second.waited_s) == pytest.approx((115.0, 25.0))
    assert second.eta_s == pytest.approx(20 * 0.75)


def test_a_checkpoint_between_two_lines_holds_what_counts_up_to_it(meter, clock):
    meter.begin(Counters())
    for number in range(1, 14):
        _step(meter, clock, number, saves=False)
    with meter.apart():
        held = meter.counters
    assert (held.trained_s, held.waited_s) == pytest.approx((13 * 0.75, 13 * 0.25))
    _step(meter, clock, 14, saves=False)
    meter.begin(held)  # what came after it was lost
    for number in range(14, 21):
        _step(meter, clock, number, saves=False)
    assert (meter.lines()[-1].trained_s, meter.lines()[-1].waited_s) == pytest.approx((15.0, 5.0))


def test_a_long_silence_is_broken_although_checkpoints_come_between(meter, clock):
    meter.begin(Counters())
    for number in range(1, 4):
        clock(4.0)
        meter.after_step(number, OUTCOME)
        with meter.apart():
            clock(60.0)
    assert [line.step for line in meter.lines()] == [3]

"""A step that is not finite changes no weight, no moment and no counter, and is named; ranks agree when to look."""

import itertools

import pytest
import torch
from torch import nn

from clipa.attempt.devices import Ranks
from clipa.spec.job import Optim
from clipa.train.finite import Finite
from clipa.train.optim import make_optimizer
from clipa.train.poll import Poll, Word

CPU = torch.device("cpu")


def _step(model, optimizer, finite, number, loss=1.0, grad=1.0):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, grad)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    optimizer.found_inf = finite.judge(torch.tensor(loss), norm, number)
    optimizer.step()


def _state(model, optimizer):
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    return [p.detach().clone() for p in model.parameters()] + moments


@pytest.mark.parametrize("bad", [{"loss": float("nan")}, {"loss": float("inf")}, {"grad": float("nan")}])
def test_a_bad_step_and_all_after_it_change_nothing(bad):
    model, finite = nn.Linear(3, 2), Finite(CPU)
    optimizer = make_optimizer(model, Optim(lr=0.1), CPU)
    _step(model, optimizer, finite, 0)
    before = _state(model, optimizer)
    assert finite.seen() == 0
    _step(model, optimizer, finite, 1, **bad)
    _step(model, optimizer, finite, 2)
    _step(model, optimizer, finite, 3, **bad)
    assert finite.seen() == finite.read() == 2
    assert all(torch.equal(a, b) for a, b in zip(before, _state(model, optimizer), strict=True))
    finite.reset()
    _step(model, optimizer, finite, 1)
    assert finite.read() == 0
    assert not torch.equal(before[0], next(model.parameters()))


def test_ranks_look_about_once_a_second_whatever_a_step_takes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("clipa.train.poll.time.monotonic", lambda: now[0])
    asked = []
    poll = Poll(Ranks(0, 1, CPU), lambda: Word(leave=bool(asked.append(now[0]))))
    for step in range(1, 2000):
        now[0] += 30.0 if step == 1 else 0.01  # the first one compiles
        poll.ask(step)
    gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert max(gaps) <= 1.01
    assert len(asked) < 40

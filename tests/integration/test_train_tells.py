"""What a real training tells of itself: rates, norms of both towers, and that its loader is too slow."""

import subprocess
import sys

import pytest
import torch

from clipa.attempt.devices import Ranks
from clipa.registry import events
from clipa.registry.scan import scan
from clipa.spec import plan as plans
from clipa.spec.budget import train_budget
from clipa.spec.plan import World
from clipa.train.yardstick import yardstick
from tests.services.train_runs import BATCH, make_run

SOON = """
import sys
from clipa.train import supply
from clipa.train.__main__ import main
supply.JUDGE_S = 0.3  # all of it takes 1.5 s on a quiet machine
sys.exit(main())
"""


def _events(run, kind):
    return [e for e in events.read(run.event_file(1, "train")) if isinstance(e, kind)]


def test_a_training_with_a_slow_loader(tmp_path):
    run = make_run(tmp_path, "slow", 120, log_steps=5, side=2400)  # much to decode for a model of nothing
    done = subprocess.run([sys.executable, "-c", SOON, str(run.path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    steps = _events(run, events.Step)
    for step in steps:
        parts = (step.grad_norm_image, step.grad_norm_text)
        assert all(part > 0 for part in parts)
        assert step.grad_norm**2 >= sum(part**2 for part in parts) * (1 - 1e-5)
        assert step.samples_per_s_device == step.samples_per_s
        assert step.mfu is None
        assert 0.01 < step.memory_gib < 50
        assert step.eta_s == pytest.approx((120 - step.step) * BATCH / step.samples_per_s)
    (note,) = _events(run, events.Noted)
    assert note.text.startswith("waiting for data ")
    assert "cores for its loader workers, has 1" in note.text
    assert note.text in done.stdout
    (status,) = scan([run.path.parent]).statuses
    assert status.last_step == steps[-1]


def test_the_yardstick_of_known_and_unknown_devices(tmp_path, monkeypatch):
    plan = plans.decode(
        make_run(tmp_path, "rates", world=World(processes=2, gpus=2, gpu_tflops=100.0)).plan.read_bytes()
    )
    flops = train_budget(plan.model, plan.settings).flops_per_sample
    assert yardstick(plan, Ranks(0, 2, torch.device("cpu"))).mfu(1e6) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    overridden = yardstick(plan, Ranks(0, 2, torch.device("cuda")))
    assert overridden.mfu(1e6) == pytest.approx(flops * 1e6 / 200e12)
    plan = plans.decode(make_run(tmp_path, "named", world=World(processes=2, gpus=2)).plan.read_bytes())
    assert yardstick(plan, Ranks(0, 2, torch.device("cuda"))).mfu(1e6) == pytest.approx(flops * 1e6 / (2 * 989e12))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Something else")
    assert yardstick(plan, Ranks(0, 2, torch.device("cuda"))).mfu(1e6) is None

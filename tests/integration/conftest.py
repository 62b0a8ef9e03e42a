"""Fixtures that several files here share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipa.registry.run_dir import RunDir
from clipa.spec.plan import World
from tests.services import train_runs
from tests.services.attempts import STEPS


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    """Makes runs of 40 steps, without a supervisor."""

    def make(name: str, processes: int = 1, log_every: int = 1, steps: int = STEPS, **settings: Any) -> RunDir:
        world = World(processes=processes)
        return train_runs.make_run(tmp_path, name, steps, world=world, log_steps=log_every, **settings)

    return make

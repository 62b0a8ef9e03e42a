"""The cluster of these tests, and a project on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.services.slurm import Slurm, slurm
from tests.slurm.field import Field, make

__all__ = ["slurm"]


@pytest.fixture
def field(tmp_path: Path, slurm: Slurm) -> Field:
    return make(tmp_path, slurm)

"""Loader workers and the shared memory that they hand their batches over in."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipa.data import loader

MIB = 1 << 20


@pytest.mark.parametrize(
    ("room", "batch", "workers", "fit"),
    [
        (64 * MIB, 128 * 3 * 16 * 16, 2, 2),  # the demo in a container as Docker makes it
        (64 * MIB, 512 * 3 * 112 * 112, 4, 0),
        (64 * MIB, 16 * MIB, 4, 1),
        (0, 1, 1, 0),
        (64 * MIB, 0, 3, 3),
    ],
)
def test_workers_that_fit(room: int, batch: int, workers: int, fit: int) -> None:
    assert loader.workers_that_fit(room, batch, workers) == fit


@given(st.integers(0, 1 << 36), st.integers(0, 1 << 32), st.integers(0, 64))
def test_what_is_prepared_always_fits(room: int, batch: int, workers: int) -> None:
    fit = loader.workers_that_fit(room, batch, workers)
    assert 0 <= fit <= workers
    assert fit == 0 or (fit * loader._PREFETCH + 2) * max(1, batch) <= room


def make(index: int) -> tuple[torch.Tensor, int]:
    return torch.full((MIB,), index, dtype=torch.uint8), index


@pytest.mark.parametrize("room", [0, 10 * MIB, 1 << 40])
def test_the_items_are_the_same_whatever_the_room(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], room: int
) -> None:
    free = SimpleNamespace(f_bavail=room, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _path: free)

    found = [(int(item[0][5]), item[1]) for item in loader.load(make, range(3, 9), 2, pin=False)]
    assert found == [(index, index) for index in range(3, 9)]
    assert ("--shm-size" in capfd.readouterr().err) == (room == 0)

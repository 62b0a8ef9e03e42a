"""Faults of faults.py side by side on one cluster; all of them with `make test-long`, many with `make chaos`."""

from __future__ import annotations

import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.slurm.chaos import started
from tests.slurm.faults import BY_NAME, TABLE, Fault

SHORT = (
    "a rank of two nodes is killed", "the batch script is killed", "the time limit", "scontrol and sbatch fail",
    "the node crashes",
)  # fmt: skip


def _all_end_as_they_must(faults: list[Fault], seed: int) -> None:
    wrong = []
    with started() as chaos:
        chaos.reference(1)

        def one(pair: tuple[int, Fault]) -> None:
            number, fault = pair
            try:
                chaos.strike(fault, seed + number)
            except Exception:
                wrong.append(f"{fault.name} (seed {seed + number}): {traceback.format_exc()}")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, enumerate(faults)))
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.timeout(900)
def test_faults_end_as_the_table_says() -> None:
    _all_end_as_they_must([BY_NAME[name] for name in SHORT], 1)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_fault_ends_as_the_table_says() -> None:
    _all_end_as_they_must(list(TABLE), 50)

"""Filling a folder with a few threads: in which order."""

from __future__ import annotations

import threading
import time

import pytest

from clipa.staging.fill import THREADS, in_threads


def test_what_another_process_was_bringing_is_looked_at_again_long_before_the_end() -> None:
    """It is the first that is needed, and the other process may have died."""
    seen: list[int] = []

    def job(item: int) -> bool:
        seen.append(item)
        if item == 0:
            return seen.count(0) > 1
        time.sleep(0.01)
        return True

    in_threads(job, range(1000), threading.Event(), lambda: None)
    assert sorted(seen) == [0, *range(1000)]
    again = len(seen) - 1 - seen[::-1].index(0)
    assert again < 500


def test_items_are_begun_in_their_order_and_none_is_begun_after_one_has_failed() -> None:
    seen: list[int] = []
    leave = threading.Event()

    def job(item: int) -> bool:
        seen.append(item)
        if item == 20:
            raise ValueError("broken")
        leave.wait(0.01)
        return True

    with pytest.raises(ValueError, match="broken"):
        in_threads(job, range(1000), leave, lambda: None)
    assert leave.is_set()
    assert all(abs(item - place) <= THREADS for place, item in enumerate(seen))
    assert len(seen) < 1000

"""What a stalled loader is said to lack."""

import pytest

from clipa.train.supply import Work, diagnosis


def _work(share, busy, queued=0.0, seconds=100.0):
    return Work(seconds, share * seconds, busy * seconds, queued * seconds)


def test_a_loader_that_keeps_up_is_not_spoken_of():
    assert diagnosis(_work(0.2, 4.0), workers=4, local=1, cores=4) == ""


@pytest.mark.parametrize(("local", "workers", "cores", "needs", "has"), [(1, 16, 16, 44, 16), (8, 2, 16, 44, 16)])
def test_busy_workers_lack_cores(local, workers, cores, needs, has):
    """63 % waiting means that the training could go 1 / 0.37 times as fast, with so many times the cores."""
    said = diagnosis(_work(0.63, float(workers)), workers, local, cores)
    assert said == (
        f"waiting for data 63% of the time: needs about {needs} cores for its loader workers, has {has}; "
        f"this node has {cores}"
    )


def test_idle_cores_are_named_with_the_setting_that_uses_them():
    said = diagnosis(_work(0.5, 2.0), workers=2, local=1, cores=16)
    assert said.endswith("needs about 4 cores for its loader workers, has 2; loader_workers = 2, "
                         "and this node has 16 cores: raise it to 4")  # fmt: skip


def test_workers_that_wait_themselves_point_at_the_disk():
    assert "busy 10%: the disk or the network is slow" in diagnosis(_work(0.8, 0.4), workers=4, local=1, cores=8)


def test_workers_that_are_ready_but_get_no_core_do_not():
    """Two workers share one core with others: each is ready all the time, and runs half of it."""
    said = diagnosis(_work(0.5, 1.0, queued=1.0), workers=2, local=1, cores=2)
    assert "needs about 2 cores for its loader workers, has 1" in said


def test_no_workers_at_all():
    assert "loader_workers" in diagnosis(_work(0.9, 0.0), workers=0, local=1, cores=2)

"""What counts as standing still."""

import os

import pytest

from clipa.host.blame import blame
from clipa.host.hang import Watch
from clipa.registry.run_dir import RunDir

LIMIT = 60.0


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "r")


def _first(watch, start, stop, each=lambda _: None):
    """The second at which the watch speaks, and what it says."""
    for second in range(start, stop):
        each(second)
        if said := watch.stuck(float(second)):
            return second, said
    return None, ""


def test_no_sign_at_all_counts_from_the_start(run):
    second, said = _first(Watch(run, 1, LIMIT, 0.0), 0, 200)
    assert 60 <= second <= 64
    assert "there was none at all" in said
    assert blame(said, []).cause == "hang"


@pytest.mark.parametrize("text", ["7", "7 evaluating imagenet"])
def test_any_sign_counts_even_of_the_same_step(run, text):
    def beat(second):
        if second < 150 and second % 50 == 0:
            run.beat(1, "train", text)
            os.utime(run.heartbeat(1, "train"), (second, second))

    second, said = _first(Watch(run, 1, LIMIT, 0.0), 0, 400, beat)
    assert 160 <= second <= 166
    assert f"its last was at step 7 ({'evaluating imagenet' if ' ' in text else 'training'})" in said
    assert "1 minutes" in said


def test_time_in_which_the_watch_itself_stood_still_does_not_count(run):
    watch = Watch(run, 1, LIMIT, 0.0)
    assert _first(watch, 0, 30) == (None, "")
    second, _ = _first(watch, 5000, 5100)
    assert 5020 <= second <= 5026


def test_no_limit_never_speaks(run):
    assert _first(Watch(run, 1, 0.0, 0.0), 0, 10_000, lambda _: None) == (None, "")


def test_a_loader_that_waits_for_a_shard_on_its_way_is_no_hang(run):
    """Whichever node's it is; what it said in another attempt does not count."""

    def beat(second):
        for attempt, until in ((1, 150), (11, 300)):
            if second < until and second % 50 == 0:
                run.beat(attempt, "waiting-node7")
                os.utime(run.heartbeat(attempt, "waiting-node7"), (second, second))

    second, _ = _first(Watch(run, 1, LIMIT, 0.0), 0, 400, beat)
    assert 160 <= second <= 166

"""The [slurm] table: times, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.errors import ConfigError
from clipa.spec.leave import leave
from clipa.spec.load import load_cluster
from clipa.spec.slurm import Slurm, minutes_of


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(60, 60), ("90", 90), ("1:30", 2), ("01:00:00", 60), ("0:00:01", 1), ("1-0", 1440), ("1-02:30", 1590),
     ("2-00:00:00", 2880), ("0-00:10:00", 10)],
)  # fmt: skip
def test_times_are_those_of_sbatch(time: int | str, minutes: int) -> None:
    assert minutes_of(time) == minutes


@pytest.mark.parametrize(
    "time", [0, "0", "00:00:00", "0-0", "UNLIMITED", "INFINITE", "", "-5", "1:2:3:4", "1 day", "366-0"]
)
def test_no_time_and_no_end_are_refused(time: int | str) -> None:
    with pytest.raises(ValueError, match="time"):
        minutes_of(time)


@given(st.integers(0, 300), st.integers(0, 23), st.integers(0, 59))
def test_days_hours_minutes_add_up(days: int, hours: int, minutes: int) -> None:
    total = days * 1440 + hours * 60 + minutes
    if total:
        assert minutes_of(f"{days}-{hours:02}:{minutes:02}:00") == total


BASE = 'backend = "slurm"\ngpus = 0\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BASE, "needs a [slurm] table"),
        (BASE + "[slurm]\npartition = 'x'\n", "'time' is missing"),
        (BASE + "[slurm]\ntime = 0\n", "longer than 0"),
        (BASE + "[slurm]\ntime = 9\npartiton = 'x'\n", 'did you mean "partition"'),
        (BASE + "[slurm]\ntime = 9\npartition = \"a\\n#SBATCH --x\"\n", "line break"),
        (BASE + "[slurm]\ntime = 9\nsetup = [\"a\\nrm -rf x\"]\n", "line break"),
        (BASE + "[slurm]\ntime = 9\ndirectives = { 'job-name' = 'x' }\n", "belongs to clipa"),
        (BASE + "[slurm]\ntime = 9\ndirectives = { 'x y' = 'x' }\n", "not a long option"),
        (BASE + "[slurm]\ntime = 9\npass_env = ['A B']\n", "not the name of a variable"),
        (BASE + "[slurm]\ntime = 9\ngres = 'gpu:1'\ngpu_type = 'h100'\n", "the same thing"),
        ('backend = "slurm"\n[slurm]\ntime = 9\n', "gpus must be a number"),
        (f"time_limit_minutes = 1440\n{BASE}[slurm]\ntime = 9\n", "give time in [slurm]"),
        (BASE + "[slurm]\ntime = 9\n[slurm.stage]\ntime = 0\n", "longer than 0"),
        (BASE + "[slurm]\ntime = 9\n[slurm.stage]\npartition = \"a\\nb\"\n", "line break"),
        (BASE + "[slurm]\ntime = 9\n[slurm.stage]\ndirectives = { array = '1-9' }\n", "belongs to clipa"),
        ('[slurm]\ntime = 9\n', 'needs backend = "slurm"'),
        ("nodes = 2\n", "nodes cannot be 2\nallowed: 1 on the local machine"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_the_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_cluster(tmp_path / "c.toml")
    assert said in str(caught.value)
    assert "c.toml" in str(caught.value)


def test_setup_may_hold_anything_but_a_line_break() -> None:
    assert Slurm(time=1, setup=("module load cuda && source 'a b'",)).minutes == 1


def test_a_large_model_leaves_earlier_and_a_short_grace_saves_more_often() -> None:
    small, large = leave(1_000_000, 200, 1440, 0), leave(1_000_000_000, 200, 1440, 0)
    assert small.lead_s == 90
    assert large.leave_s == pytest.approx(30 + 2 * 60, abs=1), "12 GB at 200 MB/s, written and read"
    assert large.lead_s == 210
    assert large.every_minutes is None
    assert leave(1_000_000_000, 200, 2, 0).lead_s == 60, "never more than half of the time"
    short = leave(1_000_000_000, 200, 1440, 60)
    assert short.every_minutes == 10
    assert "60 s" in short.note

"""Staging as a job of its own: before the first phase, on its own partition, and nothing runs where it fails."""

from __future__ import annotations

import re

import pytest

from clipa.registry import events
from tests.slurm.field import Field, states, until

TABLE = '[slurm.stage]\npartition = "low"\ncpus = 1\nmem = "50M"'


def test_the_first_phase_waits_for_the_data(field: Field) -> None:
    field.profile(nodes=2, table=f"allreduce_s = 0\n{TABLE}")
    runs = field.submit("pretrain", "--set", "phases.pretrain.samples=320")
    assert [run.rpartition("-")[2] for run in runs] == ["stage", "pretrain"]
    jobs = [field.job(run) for run in runs]
    said = field.slurm.ask("scontrol", "show", "job", jobs[0])
    assert "Partition=low" in said
    assert re.search(r"NumNodes=1(-1)? ", said)
    field.run("wait", *runs)
    assert states(field, *runs) == ["DONE"] * 2
    staged = [event.fetched_bytes for run in runs for event in field.said(run, events.Staged)]  # type: ignore[union-attr]
    assert staged[0] > 0
    assert set(staged[1:]) == {0}, "the phases have found everything there"
    assert not field.said(runs[0], events.Spawned), "no process that trains"


@pytest.mark.long
def test_where_the_data_are_not_to_be_had_nothing_waits_for_ever(field: Field) -> None:
    field.profile(table=f"{TABLE}\ndirectives = {{ hold = true }}")
    runs = field.submit("pipeline")
    shard = next((field.folder / "bucket" / "train").iterdir())
    shard.write_bytes(shard.read_bytes()[:5000])
    field.slurm.ask("scontrol", "release", field.job(runs[0]))
    field.run("wait", *runs, code=1)
    assert states(field, *runs) == ["FAILED", "BLOCKED", "BLOCKED", "BLOCKED"]
    assert shard.name in str(field.status(runs[0])["why"])
    until(lambda: not any(field.queue(run) for run in runs), "an empty queue")

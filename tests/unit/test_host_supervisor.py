from __future__ import annotations

from pathlib import Path

import pytest

from clipa.host import scratch
from clipa.host.attempt import Leaving
from clipa.host.decide import words
from clipa.host.supervisor import Supervisor, Task
from clipa.registry import events, records
from clipa.spec.cluster import Dataset
from clipa.storage.store import Store
from tests.services.stage_runs import make_run, write_shards


def test_an_error_of_the_supervisor_itself_is_the_verdict_on_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Dataset(url=str(tmp_path / "source"))
    run = make_run(tmp_path, source, write_shards(Store(source.url), 1, 1000))
    records.write_intent(run, 1, 1, "submit")

    def fail(*_: object) -> Path:
        raise FileNotFoundError("no folder for temporary files")

    monkeypatch.setattr(scratch, "make", fail)
    assert Supervisor([Task(str(run.path), 1)], Leaving()).execute() == 1
    (ended,) = (event for event in words(run, 1) if isinstance(event, events.Ended))
    assert (ended.outcome, ended.final) == ("failed", True)
    assert "its supervisor failed: FileNotFoundError" in ended.error
    assert "attempt 1 of 1" in ended.error

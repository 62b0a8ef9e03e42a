"""The state of a run: each row of the cascade, and that nothing crashes it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.errors import UnknownRun
from clipa.registry import records
from clipa.registry.cascade import reduce
from clipa.registry.events import EventWriter, Queued
from clipa.registry.find import find
from clipa.registry.liveness import identity_of, is_alive, own_identity
from clipa.registry.run_dir import RunDir
from clipa.registry.scan import read, scan
from clipa.registry.state import Facts, State

PLAN = {
    "run": "r1",
    "group": "g",
    "created": 1.0,
    "recipe": "x",
    "recipe_digest": "d",
    "phase": "pretrain",
    "cluster": "local",
    "backend": "local",
    "model": {
        "embed_dim": 8,
        "image": {"patch": 4, "width": 8, "layers": 1, "heads": 1},
        "text": {"width": 8, "layers": 1, "heads": 1},
    },
    "settings": {
        "kind": "pretrain",
        "data": "d",
        "samples": 100,
        "batch": 10,
        "image": {"size": 8},
        "text": {"tokens": 4},
        "optim": {"lr": 0.1},
    },
    "world": {"processes": 1},
    "limits": {"max_attempts": 3, "time_limit_minutes": 9},
    "code": {"version": "0"},
    "cache": "/c",
    "steps": 10,
}
ME = own_identity()
HOLDER = {"host": ME.host, "pid": ME.pid, "start_ticks": ME.start_ticks, "boot_id": ME.boot_id,
          "pid_namespace": ME.pid_namespace}  # fmt: skip
STARTED = {"event": "started", **HOLDER}
SPAWNED = {"event": "spawned", "pids": [1], "start_ticks": [1]}


def ended(outcome: str, final: bool = True) -> dict[str, Any]:
    return {"event": "ended", "outcome": outcome, "final": final, "error": "why"}


def make(root: Path, found: list[dict[str, Any]], name: str = "r1") -> RunDir:
    run = RunDir(root / name)
    run.path.mkdir(parents=True)
    run.plan.write_text(json.dumps({**PLAN, "run": name, "run_root": str(root)}))
    records.write_intent(run, 1, 1, "submit")
    run.events.mkdir()
    lines = [json.dumps({"t": float(i), "attempt": 1, **event}) for i, event in enumerate(found)]
    run.event_file(1, "supervisor").write_text("\n".join(lines) + "\n")
    return run


def facts_of(run: RunDir) -> Facts:
    facts = read(run).facts
    assert facts is not None
    return facts


REMOTE = {"event": "publish-ended", "whole": True, "step": 10}
NOT_REMOTE = {"event": "publish-ended", "whole": False, "why": "no answer"}


@pytest.mark.parametrize(
    ("found", "remote", "why", "hint"),
    [
        ([ended("done")], None, "why", ""),
        ([REMOTE, {**ended("done"), "remote": True}], True, "why", ""),
        (
            [{**ended("done"), "error": "", "remote": False, "not_remote": "no time"}],
            False,
            "not all of it is at the URL to publish to: no time",
            "python -m clipa.staging.publish {path}",
        ),
        (
            [NOT_REMOTE, {**ended("failed"), "remote": False, "not_remote": "no answer"}],
            False,
            "why; not all of it is at the URL to publish to: no answer",
            "clipa resume r1",
        ),
        # Brought by hand later.
        ([NOT_REMOTE, {**ended("done"), "remote": False}, REMOTE], True, "why", ""),
        # As long as it runs nothing is missing yet.
        ([STARTED, SPAWNED], None, "", ""),
    ],
)
def test_what_is_not_remote_is_said(
    tmp_path: Path, found: list[dict[str, Any]], remote: bool | None, why: str, hint: str
) -> None:
    run = make(tmp_path, found)
    status = reduce(facts_of(run), lambda _: True, 1.0, time.time())
    assert (status.remote, status.why, status.hint) == (remote, why, hint.format(path=run.path))


@pytest.mark.parametrize(
    ("found", "alive", "beat", "state"),
    [
        ([], True, None, State.QUEUED),
        ([{"event": "queued", "behind": "r0", **HOLDER}], True, None, State.QUEUED),
        ([{"event": "queued", "behind": "r0", **HOLDER}], False, None, State.INTERRUPTED),
        ([STARTED], True, 1.0, State.STAGING),
        ([STARTED, {"event": "waiting", "reason": "GPU 0"}], True, 1.0, State.WAITING),
        ([STARTED, SPAWNED], True, 1.0, State.RUNNING),
        ([STARTED, SPAWNED], False, 1.0, State.INTERRUPTED),
        ([STARTED, SPAWNED], None, 1.0, State.RUNNING),
        ([STARTED, SPAWNED], None, 999.0, State.INTERRUPTED),
        ([STARTED, SPAWNED], None, None, State.UNKNOWN),
        ([STARTED, SPAWNED, ended("killed", final=False)], True, 1.0, State.RUNNING),
        ([STARTED, SPAWNED, ended("killed", final=False)], False, 1.0, State.INTERRUPTED),
        ([STARTED, SPAWNED, ended("done")], False, 1.0, State.DONE),
        ([STARTED, SPAWNED, ended("failed")], True, 1.0, State.FAILED),
        ([STARTED, SPAWNED, ended("cancelled")], True, 1.0, State.CANCELLED),
        ([STARTED, SPAWNED, ended("stopped")], True, 1.0, State.INTERRUPTED),
        ([ended("blocked")], True, None, State.BLOCKED),
    ],
)
def test_cascade(
    tmp_path: Path, found: list[dict[str, Any]], alive: bool | None, beat: float | None, state: State
) -> None:
    status = reduce(facts_of(make(tmp_path, found)), lambda _: alive, beat, time.time())
    assert status.state is state


WORK_ENDED = {"event": "trainer-ended", "outcome": "done", "step": 10}


@pytest.mark.parametrize(
    ("alive", "stopped", "age", "state", "said"),
    [
        (True, True, 1.0, State.RUNNING, f"stopped by a signal (SIGSTOP): kill -CONT {ME.pid}"),
        (True, False, 3600.0, State.RUNNING, "runs, but gave no sign of life for 3,600 s"),
        (True, False, -3.2e7, State.RUNNING, "32,000,000 s ahead of this machine's clock"),
        (None, False, -3.2e7, State.UNKNOWN, "32,000,000 s ahead of this machine's clock"),
        (None, False, 3600.0, State.INTERRUPTED, "gave no sign of life for 3,600 s"),
        (True, False, -20.0, State.RUNNING, ""),  # a file server's clock that is ahead a little
        (None, False, -20.0, State.RUNNING, ""),
    ],
)
def test_a_supervisor_that_does_not_act_is_not_shown_without_a_word(tmp_path, alive, stopped, age, state, said):
    facts = facts_of(make(tmp_path, [STARTED, SPAWNED]))
    status = reduce(facts, lambda _: alive, age, 1e9, stopped=lambda _: stopped)
    assert (status.state, said in status.why, bool(status.why)) == (state, True, bool(said))
    ended = facts_of(make(tmp_path, [STARTED, SPAWNED, WORK_ENDED], "r2"))
    status = reduce(ended, lambda _: alive, age, 1e9, stopped=lambda _: stopped)
    assert ("the work itself has ended" in status.why) == (alive is True and bool(said))


def test_a_run_that_waits_after_a_failed_attempt_says_for_what(tmp_path):
    waits = {"event": "waiting", "reason": "no space left on the disk of /r"}
    found = [STARTED, SPAWNED, ended("failed", final=False), waits]
    status = reduce(facts_of(make(tmp_path, found)), lambda _: True, 1.0, 1e9)
    assert (status.state, status.why) == (State.WAITING, "no space left on the disk of /r")
    over = [*found, {**waits, "reason": ""}]
    status = reduce(facts_of(make(tmp_path, over, "r2")), lambda _: True, 1.0, 1e9)
    assert (status.state, status.why) == (State.RUNNING, "restarting after: why")


def test_a_newer_intent_makes_it_queued_again(tmp_path: Path) -> None:
    run = make(tmp_path, [STARTED, ended("cancelled")])
    records.write_intent(run, 2, 2, "resume")
    assert reduce(facts_of(run), lambda _: True, None, time.time()).state is State.QUEUED


KINDS = ["submitted", "queued", "waiting", "started", "spawned", "begun", "step", "saved", "ended", "new-kind"]
VALUES = st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5), st.booleans(), st.lists(st.integers()))


@given(
    st.lists(st.fixed_dictionaries({"event": st.sampled_from(KINDS), "pid": VALUES, "reason": VALUES, "step": VALUES})),
    st.sampled_from([True, False, None]),
)
def test_no_history_crashes_and_done_needs_a_word(
    tmp_path_factory: pytest.TempPathFactory, found: list[dict[str, Any]], alive: bool | None
) -> None:
    run = make(tmp_path_factory.mktemp("r"), found)
    assert reduce(facts_of(run), lambda _: alive, None, time.time()).state is not State.DONE


JUNK = st.sampled_from(["plan.json", "events/1-train.jsonl", "intents/1.json", "events/x", "attempts/9"])


@given(st.dictionaries(JUNK, st.binary(max_size=300)))
def test_junk_files_never_crash_a_scan(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    root = tmp_path_factory.mktemp("junk")
    make(root, [STARTED])
    for name, data in files.items():
        path = root / "j" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    found = scan([root])
    assert [s.run for s in found.statuses] == ["r1"]
    if files:
        assert any(str(root / "j") in d.path for d in found.diagnostics)


def test_the_cache_gives_the_same_answers(tmp_path: Path, home: Path) -> None:
    for number in range(5):
        make(tmp_path, [STARTED, SPAWNED, ended("done")], name=f"r{number}")
    cold = scan([tmp_path], now=100.0)
    assert (home / ".cache" / "clipa" / "index.sqlite").is_file()
    assert scan([tmp_path], now=100.0) == cold
    (home / ".cache" / "clipa" / "index.sqlite").write_bytes(b"not a database" * 100)
    assert scan([tmp_path], now=100.0) == cold
    writer = EventWriter(RunDir(tmp_path / "r1"), 2, "queue")
    records.write_intent(RunDir(tmp_path / "r1"), 2, 2, "resume")
    writer.write(Queued, behind="", **HOLDER)
    writer.close()
    assert next(s for s in scan([tmp_path]).statuses if s.run == "r1").state is State.QUEUED


def test_liveness_of_real_processes() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    identity = identity_of(child.pid)
    assert identity is not None
    assert is_alive(identity) is True
    os.kill(child.pid, 9)
    deadline = time.monotonic() + 10
    while is_alive(identity):  # it is a zombie until it is waited for, and a zombie is dead
        assert time.monotonic() < deadline
    child.wait()
    assert is_alive(identity) is False


def test_find(tmp_path: Path) -> None:
    make(tmp_path, [], name="20260101-000000-aaaa-pretrain")
    make(tmp_path, [], name="20260102-000000-bbbb-pretrain")
    statuses = scan([tmp_path]).statuses
    assert [s.run for s in find(statuses, "20260102")] == ["20260102-000000-bbbb-pretrain"]
    assert len(find(statuses, str(tmp_path / "20260101-000000-aaaa-pretrain"))) == 1
    with pytest.raises(UnknownRun, match="hint"):
        find(statuses, "nosuch")


def test_a_stop_file_on_a_failing_disk_is_no_request_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path, [])

    def fail(error: int) -> None:
        def read_bytes(path: Path) -> bytes:
            raise OSError(error, "made up", str(path))

        monkeypatch.setattr(Path, "read_bytes", read_bytes)

    fail(errno.EIO)
    assert records.read_stop(run, 1) is None
    fail(errno.EACCES)
    assert records.read_stop(run, 1) is not None

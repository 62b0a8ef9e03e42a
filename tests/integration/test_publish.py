"""Checkpoints and results at a URL: marker last, whatever is killed; and back again as the start of another run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clipa.errors import InputError, StorageError
from clipa.host import publishing
from clipa.host.attempt import Leaving
from clipa.host.children import Child
from clipa.host.supervisor import Supervisor, Task
from clipa.launch import weights
from clipa.registry import events, records
from clipa.registry.run_dir import RunDir, write_whole
from clipa.registry.scan import scan
from clipa.registry.state import State
from clipa.spec import card
from clipa.spec import plan as plans
from clipa.spec.cluster import Dataset
from clipa.staging import publish
from clipa.staging.publish import Publisher
from clipa.staging.stage import stage_weights
from clipa.storage.manifest import staged_weights
from clipa.storage.published import whole_checkpoint
from clipa.storage.store import Store
from tests.services.bucket_runs import said, until
from tests.services.faults import FaultProxy
from tests.services.s3 import client, new_bucket
from tests.services.stage_runs import MIB, content, make_run, write_shards
from tests.services.train_runs import make_run as train_run

pytest_plugins = ["tests.services.wire"]


@pytest.fixture
def proxy(streamed: FaultProxy) -> FaultProxy:
    return streamed


@pytest.fixture
def target(server: str, proxy: FaultProxy) -> Dataset:
    return Dataset(url=f"s3://{new_bucket(server)}/runs", endpoint=proxy.url)


@pytest.fixture
def run(tmp_path: Path, target: Dataset) -> RunDir:
    """A run that publishes, without a checkpoint yet."""
    store = Store(str(tmp_path / "bucket"))
    made = make_run(tmp_path, store.source, write_shards(store, 1, 100))
    plan = plans.decode(made.plan.read_bytes())
    made.plan.unlink()
    write_whole(made.plan, plans.encode(msgspec.structs.replace(plan, publish=target)))
    return made


def checkpoint(run: RunDir, step: int, size: int = 20 * MIB, seed: int = 0) -> None:
    """A checkpoint as the trainer leaves it: a private folder, COMPLETE in it, then the rename."""
    files = {card.WEIGHTS_NAME: content(step + seed, size), card.CARD_NAME: b"{}", "state.json": b"{}"}
    part = run.checkpoints / f".step-{step}.part"
    for name, data in files.items():
        write_whole(part / name, data)
    marker = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    write_whole(part / card.COMPLETE_NAME, msgspec.json.encode(marker))
    os.rename(part, run.step_dir(step))


def start(run: RunDir, until: Path, attempt: int = 1) -> subprocess.Popen[str]:
    argv = [
        sys.executable,
        "-m",
        "clipa.staging.publish",
        str(run.path),
        "--attempt",
        str(attempt),
        "--until",
        str(until),
    ]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names(run: RunDir, target: Dataset) -> list[str]:
    return [entry.name for entry in Store(msgspec.structs.replace(target, url=f"{target.url}/{run.id}")).list()]


def markers(run: RunDir, target: Dataset) -> list[str]:
    return [name.split("/")[1] for name in names(run, target) if name.endswith(card.COMPLETE_NAME)]


@pytest.mark.parametrize("transport", ["obstore", "fsspec"])
def test_what_comes_is_published_and_can_be_started_from(
    tmp_path: Path, run: RunDir, target: Dataset, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPA_TRANSPORT", transport)
    until = tmp_path / "until"
    checkpoint(run, 1)
    process = start(run, until)
    deadline = time.monotonic() + 60
    while not list(events.read(run.event_file(1, "publish"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    checkpoint(run, 2)
    write_whole(run.eval_file(1, 2, "set", 16), b"{}")
    until.touch()
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    *brought, last = events.read(run.event_file(1, "publish"))
    assert [event.step for event in brought] == [1, 2]  # type: ignore[union-attr]
    assert isinstance(last, events.PublishEnded)
    assert (last.whole, last.step) == (True, 2)
    assert markers(run, target) == ["step-000000001", "step-000000002"]
    assert {"plan.json", f"evals/{run.eval_file(1, 2, 'set', 16).name}"} <= set(names(run, target))

    bound = {"there": target}
    found = weights.from_word(f"{target.url}/{run.id}", [], tmp_path, bound)
    assert found.ref.endswith("/checkpoints/step-000000002")
    assert found.source
    assert found.source.endpoint == target.endpoint, "its endpoint is that of the dataset in the same bucket"
    stage_weights(found.source, str(tmp_path / "cache"))
    staged = staged_weights(str(tmp_path / "cache"), found.ref) / card.WEIGHTS_NAME
    assert staged.read_bytes() == content(2, 20 * MIB)


def test_killed_in_an_upload_nothing_looks_whole_and_the_next_attempt_finishes(
    tmp_path: Path, run: RunDir, target: Dataset, proxy: FaultProxy
) -> None:
    checkpoint(run, 1)
    process = start(run, tmp_path / "until")
    deadline = time.monotonic() + 60
    while proxy.puts < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert markers(run, target) == []
    with pytest.raises(InputError, match="neither a checkpoint nor a published run"):
        whole_checkpoint(msgspec.structs.replace(target, url=f"{target.url}/{run.id}"))
    (tmp_path / "until").touch()
    again = start(run, tmp_path / "until", 2)
    assert again.communicate(timeout=60)[1] == ""
    assert again.returncode == 0
    assert markers(run, target) == ["step-000000001"]


def test_the_marker_is_the_last_word_of_a_checkpoint(run: RunDir, target: Dataset, proxy: FaultProxy) -> None:
    checkpoint(run, 7, 1000)
    publisher = Publisher(run, Store(msgspec.structs.replace(target, url=f"{target.url}/{run.id}")))
    proxy.paths.clear()
    assert publisher.checkpoint()
    wrote = [path.rpartition("/")[2].partition("?")[0] for command, path in proxy.paths if command == "PUT"]
    assert sorted(wrote[:-1]) == ["card.json", "model.safetensors", "state.json"]
    assert wrote[-1] == "COMPLETE"
    assert publisher.checkpoint() is None


def test_the_newest_goes_first_and_those_that_were_pruned_are_passed_over(run: RunDir, target: Dataset) -> None:
    for step in (1, 2, 3):
        checkpoint(run, step, 1000)
    publisher = Publisher(run, Store(msgspec.structs.replace(target, url=f"{target.url}/{run.id}")))
    first = publisher.checkpoint()
    assert first
    assert first.step == 3
    (run.step_dir(2) / card.WEIGHTS_NAME).unlink()
    second = publisher.checkpoint()
    assert second
    assert second.step == 1
    assert publisher.checkpoint() is None
    assert markers(run, target) == ["step-000000001", "step-000000003"]


def test_two_attempts_with_other_bytes_for_one_step_do_not_both_count(
    tmp_path: Path, run: RunDir, target: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(run, 1, 1000)
    store = Store(msgspec.structs.replace(target, url=f"{target.url}/{run.id}"))
    late = Publisher(run, store)
    real = Store.write_new

    def meanwhile(self: Store, name: str, data: bytes) -> bool:
        real(self, name, b"other")
        return real(self, name, data)

    monkeypatch.setattr(Store, "write_new", meanwhile)
    with pytest.raises(StorageError, match="another attempt"):
        late.checkpoint()


def test_bytes_that_change_on_the_way_up_are_sent_again(
    run: RunDir, target: Dataset, server: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(run, 1, 1000)
    store = Store(msgspec.structs.replace(target, url=f"{target.url}/{run.id}"))
    real, sent = Store.write, []

    def flips(self: Store, name: str, data: bytes | Path) -> None:
        sent.append(name)
        real(self, name, b"x" * 1000 if name.endswith(card.WEIGHTS_NAME) and sent.count(name) < 3 else data)

    monkeypatch.setattr(Store, "write", flips)
    assert Publisher(run, store).checkpoint()
    key = f"runs/{run.id}/checkpoints/step-000000001/{card.WEIGHTS_NAME}"
    assert sum(name.endswith(card.WEIGHTS_NAME) for name in sent) == 3
    stored = client(server).get_object(Bucket=target.url.split("/")[2], Key=key)["Body"].read()
    assert stored == content(1, 1000)


def test_a_store_that_refuses_is_said_and_costs_no_training(
    tmp_path: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans.decode(run.plan.read_bytes())
    shut = msgspec.structs.replace(plan, publish=Dataset(url=str(tmp_path / "file" / "x")))
    (tmp_path / "file").write_bytes(b"not a folder")
    run.plan.unlink()
    write_whole(run.plan, plans.encode(shut))
    checkpoint(run, 1, 1000)
    ticks: list[int] = []
    with publishing.alongside(run, shut, 1, tmp_path, lambda: ticks.append(1), lambda: None) as remote:
        pass
    assert ticks
    assert remote.whole is False
    assert "cannot write" in remote.why or "failed" in remote.why
    said = (run.logs(1) / "publish.err").read_text()
    assert "Traceback" not in said
    assert "cannot write" in said or "failed" in said


def test_the_supervisors_child_brings_the_last_one_before_the_attempt_ends(tmp_path: Path, run: RunDir) -> None:
    plan = plans.decode(run.plan.read_bytes())
    here = msgspec.structs.replace(plan, publish=Dataset(url=str(tmp_path / "remote")))
    run.plan.unlink()
    write_whole(run.plan, plans.encode(here))
    with publishing.alongside(run, here, 1, tmp_path, lambda: None, lambda: None) as remote:
        checkpoint(run, 1, 1000)
    assert (remote.whole, remote.why) == (True, "")
    there = tmp_path / "remote" / run.id / "checkpoints" / "step-000000001"
    assert (there / card.COMPLETE_NAME).is_file()
    assert (there / card.WEIGHTS_NAME).read_bytes() == content(1, 1000)


def test_what_hangs_is_given_up_when_the_attempt_must_leave(tmp_path: Path, run: RunDir, proxy: FaultProxy) -> None:
    plan = plans.decode(run.plan.read_bytes())
    proxy.hold_puts = True
    checkpoint(run, 1, 1000)
    began = time.monotonic()
    with publishing.alongside(run, plan, 1, tmp_path, lambda: None, lambda: began + 2.0) as remote:
        pass
    proxy.release.set()
    assert time.monotonic() - began < 20
    assert (remote.whole, remote.why) == (False, "there was no time left to bring it")


def test_a_publisher_that_was_killed_is_started_again_for_the_last_one(
    tmp_path: Path, run: RunDir, target: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans.decode(run.plan.read_bytes())
    started: list[Child] = []
    real = publishing._start

    def remember(*given: Any) -> Child:
        started.append(real(*given))
        return started[-1]

    monkeypatch.setattr(publishing, "_start", remember)
    with publishing.alongside(run, plan, 1, tmp_path, lambda: None, lambda: None) as remote:
        os.kill(started[0].pid, signal.SIGKILL)
        while started[0].poll() is None:
            time.sleep(0.01)
        checkpoint(run, 1, 1000)
    assert len(started) == 2
    assert remote.whole is True
    assert markers(run, target) == ["step-000000001"]


def test_a_supervisor_that_is_killed_while_the_last_one_is_on_its_way_leaves_nothing_that_looks_whole(
    tmp_path: Path, target: Dataset, proxy: FaultProxy
) -> None:
    """`kill -9`, when the training is done and only the upload is waited for; a resume brings it and trains nothing."""
    run = train_run(tmp_path, "r", 8)
    plan = plans.decode(run.plan.read_bytes())
    write_whole(run.plan, plans.encode(msgspec.structs.replace(plan, publish=target)))
    proxy.hold_puts = True
    code = "from clipa.host.supervisor import *; Supervisor([Task({!r}, 1)], Leaving()).execute()"
    supervisor = subprocess.Popen([sys.executable, "-c", code.format(str(run.path))])
    until(lambda: proxy.puts and said(run, "train", events.TrainerEnded))
    supervisor.kill()
    supervisor.wait()
    until(lambda: not running(str(run.path)))
    proxy.release.set()
    proxy.hold_puts = False
    (status,) = scan([run.path.parent]).statuses
    assert status.state is State.INTERRUPTED
    assert status.remote is False
    assert "not all of it is at the URL" in status.why
    assert markers(run, target) == []
    records.write_intent(run, 2, 2, "resume")
    assert Supervisor([Task(str(run.path), 2)], Leaving()).execute() == 0
    assert markers(run, target)[-1] == "step-000000008"
    assert said(run, "train", events.Step, 2) == []
    (status,) = scan([run.path.parent]).statuses
    assert (status.state, status.remote) == (State.DONE, True)


def running(word: str) -> list[int]:
    """Processes with this word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_a_server_that_is_away_at_the_end_is_waited_for(
    tmp_path: Path, run: RunDir, target: Dataset, proxy: FaultProxy
) -> None:
    plan = plans.decode(run.plan.read_bytes())
    with publishing.alongside(run, plan, 1, tmp_path, lambda: None, lambda: None) as remote:
        proxy.away = True
        checkpoint(run, 1, 1000)
        back = threading.Timer(4.0, lambda: setattr(proxy, "away", False))
        back.start()
    assert not back.is_alive(), "it came back before the publisher gave up"
    assert remote.whole is True
    assert markers(run, target) == ["step-000000001"]


def test_what_could_not_be_brought_is_said_and_the_next_attempt_brings_it(
    tmp_path: Path, run: RunDir, target: Dataset, proxy: FaultProxy
) -> None:
    plan = plans.decode(run.plan.read_bytes())
    proxy.away = True
    checkpoint(run, 1, 1000)
    until = time.monotonic() + 3
    with publishing.alongside(run, plan, 1, tmp_path, lambda: None, lambda: until) as remote:
        pass
    assert (remote.whole, remote.why) == (False, "there was no time left to bring it")
    proxy.away = False
    assert markers(run, target) == []
    with publishing.alongside(run, plan, 2, tmp_path, lambda: None, lambda: None) as remote:
        checkpoint(run, 2, 1000)
    assert remote.whole is True
    assert markers(run, target) == ["step-000000001", "step-000000002"]
    said = [e for e in events.read(run.event_file(2, "publish")) if isinstance(e, events.PublishEnded)]
    assert [(e.whole, e.step, e.why) for e in said] == [(True, 2, "")]


def test_what_is_left_of_a_run_that_is_over_is_brought_by_hand(run: RunDir, target: Dataset) -> None:
    checkpoint(run, 1, 1000)
    run.claim(3)
    argv = [sys.executable, "-m", "clipa.staging.publish", str(run.path)]
    assert subprocess.run(argv, check=False, capture_output=True, timeout=60).returncode == 0
    assert markers(run, target) == ["step-000000001"]
    assert [type(e) for e in events.read(run.event_file(3, "publish"))] == [events.Published, events.PublishEnded]


def test_publishing_has_an_entry_for_people(tmp_path: Path) -> None:
    process = start(RunDir(tmp_path / "absent"), tmp_path / "x")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "cannot be read" in err, "Traceback" in err) == (2, True, False)
    assert publish.RESUMABLE == 75

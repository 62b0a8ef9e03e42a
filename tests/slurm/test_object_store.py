"""A run of two nodes whose data come from an object store and whose checkpoints go to one, on a real SLURM."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from clipa.registry import events
from clipa.spec.cluster import Dataset
from clipa.storage.dataset import publish_manifest
from clipa.storage.store import Store
from tests.services.bucket_runs import SHARDS, Bucket
from tests.services.faults import FaultProxy
from tests.services.s3 import client, new_bucket
from tests.slurm.field import Field, processes_with, states, until

pytest_plugins = ["tests.services.wire"]


@pytest.fixture
def bucket(field: Field, server: str, streamed: FaultProxy) -> Bucket:
    """The project's data and checkpoints are in a bucket; its credentials are in a file that the nodes read."""
    bucket = Bucket(field.folder, client(server), new_bucket(server), streamed.url)
    found = bucket.dataset("squares")
    publish_manifest(Store(Dataset(url=found.url, endpoint=streamed.url)), found)
    secrets = field.folder / "secrets"
    secrets.write_text("AWS_ACCESS_KEY_ID=key\nAWS_SECRET_ACCESS_KEY=secret\nAWS_DEFAULT_REGION=us-east-1\n")
    secrets.chmod(0o600)
    toml = field.folder / "clipa.toml"
    bound = f'squares = {{ url = "{found.url}", endpoint = "{streamed.url}" }}'
    lines = [bound if line.startswith("squares") else line for line in toml.read_text().splitlines()]
    toml.write_text("\n".join(lines) + "\n")
    publish = f'publish = {{ url = "{found.url.rpartition("/")[0]}/out", endpoint = "{streamed.url}" }}'
    field.profile(nodes=2, top=publish, table=f'allreduce_s = 0\nsecrets = "{secrets}"')
    return bucket


@pytest.mark.long
def test_training_begins_on_first_shards_and_a_supervisor_killed_while_it_publishes_costs_an_attempt(
    field: Field, bucket: Bucket, server: str, streamed: FaultProxy
) -> None:
    streamed.hold_puts = True
    (run,) = field.submit("pretrain", "--set", "phases.pretrain.shuffle_window=16")
    until(lambda: field.said(run, events.TrainerEnded), "the end of the training")
    arrived = [(e.shards, e.of_shards) for e in field.said(run, events.Arriving)]  # type: ignore[union-attr]
    assert arrived[0] == (0, SHARDS)
    assert arrived[-1] == (SHARDS, SHARDS)
    until(lambda: streamed.puts, "an upload")
    started = field.said(run, events.Started)[-1]
    os.kill(started.pid, signal.SIGKILL)  # type: ignore[union-attr]
    streamed.hold_puts = False
    streamed.release.set()
    field.run("wait", run)
    assert states(field, run) == ["DONE"]
    ended = field.said(run, events.Ended)[-1]
    assert (ended.attempt, ended.remote) == (2, True)  # type: ignore[union-attr]
    assert "remote" in str(field.status(run))
    keys = [row["Key"] for row in client(server).list_objects_v2(Bucket=bucket.name)["Contents"]]
    assert f"out/{run}/checkpoints/step-000000300/COMPLETE" in keys
    assert not list((Path(field.folder) / "cache" / "streamed").iterdir())
    assert not list(processes_with(run))

"""gs:// and az:// against servers that speak their protocols, by obstore's streams and by fsspec's ranges."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pytest

from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec import card
from clipa.spec import plan as plans
from clipa.spec.cluster import Dataset
from clipa.staging.stage import stage_weights
from clipa.storage import published
from clipa.storage.dataset import index
from clipa.storage.manifest import Manifest, staged_folder
from clipa.storage.published import whole_checkpoint
from clipa.storage.store import PART, Store
from tests.services.faults import Fault, FaultProxy, fault_proxy
from tests.services.stage_runs import MIB, call, content, make_run, parts, staged_event, start, until_in_part, whole

if TYPE_CHECKING:
    from tests.services.azurite import Azurite
    from tests.services.gcs import Gcs

pytest_plugins = ["tests.services.gcs", "tests.services.azurite"]

SIZE = 9 * MIB


class Cloud(NamedTuple):
    """A fresh bucket behind a wire that breaks."""

    source: Dataset
    proxy: FaultProxy


@pytest.fixture(params=["gs", "az"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    if request.param == "gs":
        gcs: Gcs = request.getfixturevalue("gcs")
        with fault_proxy(gcs.url) as proxy:
            proxy.keeps_host = False
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
            yield Cloud(Dataset(url=f"gs://{gcs.new_bucket()}/x"), proxy)
        return
    azurite: Azurite = request.getfixturevalue("azurite")
    with fault_proxy(azurite.url) as proxy:
        for name, value in azurite.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield Cloud(Dataset(url=f"az://{azurite.new_container()}/x"), proxy)


@pytest.fixture
def shards(cloud: Cloud) -> Manifest:
    """Two shards of two ranges each, pinned by what the store says of them."""
    store = Store(cloud.source)
    for number in range(2):
        store.write(f"{number}.tar", content(number, SIZE))
    return index(cloud.source)


def with_transport(word: str) -> dict[str, str]:
    return {**os.environ, "CLIPA_TRANSPORT": word}


# gcsfs and Azure's client try again by themselves, with pauses that grow: two of each kind would be 18 s.
FAULTS: dict[str, tuple[str, list[Fault]]] = {
    "obstore, none": ("obstore", []),
    "obstore, all": ("obstore", ["drop", "500", "reset", "refuse", "slow", "drop", "reset", "503"]),
    "obstore, wrong bytes": ("obstore", ["flip", "short"]),
    "fsspec, none": ("fsspec", []),
    "fsspec, all": ("fsspec", ["drop", "flip", "500"]),
}


@pytest.mark.parametrize(("transport", "faults"), FAULTS.values(), ids=FAULTS)
def test_faults_cost_time_and_no_byte(
    tmp_path: Path, cloud: Cloud, shards: Manifest, transport: str, faults: list[Fault]
) -> None:
    assert [shard.digest.partition(":")[0] for shard in shards.shards] == ["md5", "md5"]
    run = make_run(tmp_path, cloud.source, shards)
    cloud.proxy.faults, cloud.proxy.met, cloud.proxy.ranges = list(faults), [], 0
    assert call(run, env=with_transport(transport))[::2] == (0, "")
    assert cloud.proxy.met[: len(faults)] == faults
    folder = staged_folder(str(tmp_path / "cache"), shards.digest)
    assert whole(folder, shards) == 2
    assert parts(folder) == []
    if not faults:
        assert cloud.proxy.ranges == (2 if transport == "obstore" else 4), "a stream an object, or ranges of 8 MiB"


def test_after_kill_9_the_stream_goes_on_where_it_was(tmp_path: Path, cloud: Cloud) -> None:
    size = 40 * MIB
    Store(cloud.source).write("0.tar", content(0, size))
    manifest = index(cloud.source)
    run = make_run(tmp_path, cloud.source, manifest)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    cloud.proxy.faults = ["stall"]
    process = start(run)
    assert cloud.proxy.stalled.wait(60)
    until_in_part(folder, 2 * PART + MIB)
    process.kill()
    process.communicate()
    cloud.proxy.release.set()
    assert call(run, 2)[::2] == (0, "")
    assert whole(folder, manifest) == 1
    assert staged_event(run, 2).fetched_bytes <= size - 2 * PART


@pytest.mark.parametrize("transport", ["obstore", "fsspec"])
def test_what_is_gone_or_has_changed_is_named(tmp_path: Path, cloud: Cloud, shards: Manifest, transport: str) -> None:
    store = Store(cloud.source)
    run = make_run(tmp_path, cloud.source, shards)
    store.write("1.tar", content(7, SIZE))
    code, _, err = call(run, env=with_transport(transport))
    assert code == 1
    assert f"{store.url}/1.tar" in err
    assert "changed" in err
    store._fs.rm_file(f"{store._root}/1.tar")
    code, _, err = call(run, env=with_transport(transport))
    assert code == 2, err
    assert f"{store.url}/1.tar: there is nothing at this URL" in err
    assert "Traceback" not in err
    assert not (staged_folder(str(tmp_path / "cache"), shards.digest) / "1.tar").exists()


def test_the_command_line_indexes_and_stages_by_a_pattern(tmp_path: Path, cloud: Cloud, shards: Manifest) -> None:
    Store(cloud.source).write("ü b/2.tar", content(2, MIB))
    clipa = [sys.executable, "-m", "clipa.cli.main", "data"]
    done = subprocess.run(
        [*clipa, "index", cloud.source.url, "--json"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["shards"] == 3
    argv = [*clipa, "stage", cloud.source.url, "--shards", "[01].tar", "--to", str(tmp_path / "to"), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["verified"] == {"md5": 2}
    assert whole(tmp_path / "to", shards) == 2


def test_a_checkpoint_is_published_and_fetched(tmp_path: Path, cloud: Cloud) -> None:
    run = _run_with_a_checkpoint(tmp_path, cloud.source)
    argv = [sys.executable, "-m", "clipa.staging.publish", str(run.path), "--attempt", "1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    there = msgspec.structs.replace(cloud.source, url=f"{cloud.source.url}/{run.id}")
    complete = f"{published.checkpoint_name(run.step_dir(5).name)}/{card.COMPLETE_NAME}"
    assert not Store(there).write_new(complete, b"another attempt's"), "the marker is written once"
    brought = stage_weights(whole_checkpoint(there), str(tmp_path / "cache"))
    assert (brought / card.WEIGHTS_NAME).read_bytes() == content(5, 20 * MIB)


def _run_with_a_checkpoint(folder: Path, target: Dataset) -> RunDir:
    run = make_run(folder, Dataset(url=str(folder)), Manifest(url="file:///x", shards=()))
    plan = plans.decode(run.plan.read_bytes())
    run.plan.unlink()
    write_whole(run.plan, plans.encode(msgspec.structs.replace(plan, publish=target)))
    files = {card.WEIGHTS_NAME: content(5, 20 * MIB), card.CARD_NAME: b"{}"}
    for name, data in files.items():
        write_whole(run.step_dir(5) / name, data)
    marker = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    write_whole(run.step_dir(5) / card.COMPLETE_NAME, msgspec.json.encode(marker))
    return run


def test_a_wrong_key_of_azure_is_refused_and_not_shown(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"az://{azurite.new_container()}/x"
    for name, value in azurite.environment(key="aGVsbG8=").items():
        monkeypatch.setenv(name, value)
    argv = [sys.executable, "-m", "clipa.cli.main", "data", "stage", url]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "refuses access" in done.stderr
    assert "AZURE_STORAGE_CONNECTION_STRING" in done.stderr
    assert "aGVsbG8=" not in done.stderr
    assert len(done.stderr.splitlines()) < 6, "Azure's error is a page"

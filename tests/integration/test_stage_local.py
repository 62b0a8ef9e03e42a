"""Staging from a folder: killed, doubled, lied to, out of space."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clipa.errors import InputError, StorageError
from clipa.spec import card
from clipa.spec.cluster import Dataset
from clipa.staging.stage import stage, stage_weights
from clipa.storage.dataset import index
from clipa.storage.manifest import Manifest, Shard, staged_folder, staged_weights
from clipa.storage.store import Store
from tests.services.stage_runs import MIB, call, make_run, parts, staged_event, start, whole, write_shards


@pytest.fixture
def bucket(tmp_path: Path) -> Dataset:
    return Dataset(url=f"file://{tmp_path}/bucket")


def test_a_run_is_staged_and_said_so(tmp_path: Path, bucket: Dataset) -> None:
    manifest = write_shards(Store(bucket), 3, MIB)
    run = make_run(tmp_path, bucket, manifest)
    code, out, err = call(run)
    assert (code, err) == (0, "")
    assert "3.0 of 3.0 MiB" in out
    assert whole(staged_folder(str(tmp_path / "cache"), manifest.digest), manifest) == 3
    assert (staged_event(run).shards, staged_event(run).fetched_bytes) == (3, 3 * MIB)
    assert call(run, attempt=2)[0] == 0
    assert staged_event(run, 2).fetched_bytes == 0


def test_kill_9_at_any_moment_leaves_nothing_wrong(tmp_path: Path, bucket: Dataset) -> None:
    manifest = write_shards(Store(bucket), 24, 8 * MIB)
    run = make_run(tmp_path, bucket, manifest)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    kills = left = 0
    for already in (0, 4, 8):
        process = start(run)
        deadline = time.monotonic() + 60
        while process.poll() is None and not (parts(folder) and len(list(folder.glob("*.tar"))) >= already):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        left += bool(parts(folder))
        whole(folder, manifest)
    assert kills == 3
    assert left, "no kill met a file in the middle: the test proves nothing"
    before = whole(folder, manifest)
    assert call(run)[0] == 0
    assert whole(folder, manifest) == 24
    assert parts(folder) == []
    # Less where a part was complete when its writer was killed: its range is not read again.
    assert staged_event(run).fetched_bytes <= (24 - before) * 8 * MIB


def test_two_stagers_share_the_work(tmp_path: Path, bucket: Dataset) -> None:
    manifest = write_shards(Store(bucket), 8, 4 * MIB)
    run = make_run(tmp_path, bucket, manifest)
    both = [start(run, attempt) for attempt in (1, 2)]
    for process in both:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    assert whole(folder, manifest) == 8
    assert staged_event(run, 1).fetched_bytes + staged_event(run, 2).fetched_bytes == manifest.bytes
    assert parts(folder) == []


NO_LOCKS = """
import sys
from clipa.staging import part
part._lock = lambda descriptor: True
from clipa.staging import stage
sys.exit(stage.main())
"""


def test_nothing_rests_on_the_lock(tmp_path: Path, bucket: Dataset) -> None:
    """Some shared file systems grant every lock to everybody (huggingface_hub PR 4306)."""
    manifest = write_shards(Store(bucket), 8, 4 * MIB)
    run = make_run(tmp_path, bucket, manifest)
    argv = [sys.executable, "-c", NO_LOCKS, str(run.path), "--attempt"]
    three = [subprocess.Popen([*argv, str(n)], stderr=subprocess.PIPE, text=True) for n in (1, 2, 3)]
    for process in three:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    assert whole(staged_folder(str(tmp_path / "cache"), manifest.digest), manifest) == 8


def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path: Path, bucket: Dataset) -> None:
    manifest = write_shards(Store(bucket), 1, 10)
    with pytest.raises(StorageError, match="cannot write"):
        stage(manifest, bucket, "/proc/nothing-can-be-made-here")


def test_the_part_of_a_living_writer_stays(tmp_path: Path, bucket: Dataset) -> None:
    manifest = write_shards(Store(bucket), 1, 10)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    folder.mkdir(parents=True)
    from clipa.staging.part import _HOST

    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        alive, dead, elsewhere = (
            folder / f".0.tar.{host}.{pid}.1.part"
            for host, pid in ((_HOST, child.pid), (_HOST, 2**22 + 1), ("other", 1))
        )
        old = folder / ".1.tar.other.1.1.part"
        for part in (alive, dead, elsewhere, old):
            part.write_bytes(b"x")
        os.utime(old, (0, 0))
        stage(manifest, bucket, str(tmp_path / "cache"))
    finally:
        child.communicate()
    assert sorted(parts(folder)) == sorted([alive.name, elsewhere.name])


def _changed(manifest: Manifest, **fields: Any) -> Manifest:
    first, *rest = manifest.shards
    return msgspec.structs.replace(manifest, shards=(msgspec.structs.replace(first, **fields), *rest))


@pytest.mark.parametrize("fields", [{"sha256": "0" * 64}, {"size": 99}, {"size": 101}], ids=str)
def test_bytes_that_are_not_the_manifests_never_get_a_name(
    tmp_path: Path, bucket: Dataset, fields: dict[str, Any]
) -> None:
    manifest = _changed(write_shards(Store(bucket), 2, 100), **fields)
    run = make_run(tmp_path, bucket, manifest)
    code, _, err = call(run)
    assert code == 1
    assert "0.tar" in err
    assert "Traceback" not in err
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    assert not (folder / "0.tar").exists()
    assert not run.event_file(1, "stage").exists()


def test_a_shard_that_was_rewritten_since_the_plan_is_refused(tmp_path: Path, bucket: Dataset) -> None:
    write_shards(Store(bucket), 1, 100)
    pinned = index(bucket)
    Store(bucket).write("0.tar", b"y" * 100)
    with pytest.raises(StorageError, match="not what was pinned"):
        stage(pinned, bucket, str(tmp_path / "cache"))
    assert not (staged_folder(str(tmp_path / "cache"), pinned.digest) / "0.tar").exists()


@pytest.mark.parametrize("name", ["../evil.tar", "/evil.tar", "a/../../../evil.tar", "a\\..\\evil.tar"])
def test_hostile_names_write_nothing(tmp_path: Path, bucket: Dataset, name: str) -> None:
    manifest = _changed(write_shards(Store(bucket), 1, 100), name=name)
    code, _, err = call(make_run(tmp_path, bucket, manifest))
    assert code == 2
    assert "refusing" in err
    assert not (tmp_path / "cache").exists()
    assert list(tmp_path.rglob("evil.tar")) == []


def test_a_shard_that_is_gone_is_named(tmp_path: Path, bucket: Dataset) -> None:
    manifest = write_shards(Store(bucket), 3, 100)
    (tmp_path / "bucket" / "1.tar").unlink()
    code, _, err = call(make_run(tmp_path, bucket, manifest))
    assert code == 2
    assert "1.tar" in err


def test_disk_full(tmp_path: Path, bucket: Dataset) -> None:
    manifest = write_shards(Store(bucket), 2, 2 * MIB)
    run = make_run(tmp_path, bucket, manifest)
    code, _, err = call(run, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB)))
    assert code == 1
    assert "cannot write" in err
    assert "Traceback" not in err
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    assert whole(folder, manifest) == 0
    assert call(run)[0] == 0
    assert whole(folder, manifest) == 2


def test_too_little_space_is_said_before_a_byte_moves(
    tmp_path: Path, bucket: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_shards(Store(bucket), 2, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 500})())
    with pytest.raises(InputError, match=f"2,000 bytes to fetch, 500 bytes free: {2000 + (64 << 20) - 500:,} short"):
        stage(manifest, bucket, str(tmp_path / "cache"))
    assert parts(tmp_path / "cache") == []


def test_the_same_name_in_two_prefixes(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    for prefix in ("laion", "cc12m"):
        path = tmp_path / prefix / "00000.tar"
        path.parent.mkdir()
        path.write_bytes(prefix[:5].encode())
        os.utime(path, (9, 9))
        source = Dataset(url=str(path.parent))
        manifest = index(source)
        stage(manifest, source, cache)
        assert (staged_folder(cache, manifest.digest) / "00000.tar").read_bytes() == prefix[:5].encode()


def test_a_name_below_another_shards_name_is_an_error_of_ours(tmp_path: Path) -> None:
    """Object stores allow `a.tar` beside `a.tar/b.tar`, folders do not."""
    store = Store("memory://clash")
    store.write("a.tar", b"1")
    manifest = Manifest(url="x", shards=(Shard(name="a.tar", size=1), Shard(name="a.tar/b.tar", size=1)))
    with pytest.raises((StorageError, InputError)):
        stage(manifest, Dataset(url="memory://clash"), str(tmp_path))


def test_the_stop_file_ends_a_wait_for_another_stager(tmp_path: Path, bucket: Dataset) -> None:
    manifest = write_shards(Store(bucket), 1, 100)
    run = make_run(tmp_path, bucket, manifest)
    folder = staged_folder(str(tmp_path / "cache"), manifest.digest)
    folder.mkdir(parents=True)
    import fcntl

    with open(folder / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(run)
        run.stop_file(1).parent.mkdir(parents=True, exist_ok=True)
        run.stop_file(1).touch()
        process.communicate(timeout=20)
    assert process.returncode == 75


def test_no_run_there_is_the_users_mistake(tmp_path: Path) -> None:
    from clipa.registry.run_dir import RunDir

    code, _, err = call(RunDir(tmp_path / "absent"))
    assert code == 2
    assert "Traceback" not in err


def _checkpoint(store: Store, weights: bytes, **more: bytes) -> None:
    files = {card.WEIGHTS_NAME: weights, card.CARD_NAME: b"{}", **more}
    for name in (card.WEIGHTS_NAME, card.CARD_NAME):
        store.write(name, files[name])
    marker = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    store.write(card.COMPLETE_NAME, msgspec.json.encode(marker))


def test_weights_come_whole_and_follow_their_url(tmp_path: Path) -> None:
    url, cache = "memory://weights/step", str(tmp_path)
    _checkpoint(Store(url), b"first", **{"../../evil": b"x"})
    target = stage_weights(url, cache)
    assert target == staged_weights(cache, url)
    assert (target / card.WEIGHTS_NAME).read_bytes() == b"first"
    assert sorted(path.name for path in target.iterdir() if path.name[0] != ".") == sorted(
        [card.WEIGHTS_NAME, card.CARD_NAME, card.COMPLETE_NAME]
    )
    assert list(tmp_path.parent.rglob("evil")) == []
    _checkpoint(Store(url), b"other")
    assert (stage_weights(url, cache) / card.WEIGHTS_NAME).read_bytes() == b"other"


def test_weights_that_are_not_what_complete_says_are_never_complete(tmp_path: Path) -> None:
    url, cache = "memory://weights/bad", str(tmp_path)
    _checkpoint(Store(url), b"first")
    stage_weights(url, cache)
    _checkpoint(Store(url), b"other")
    Store(url).write(card.WEIGHTS_NAME, b"wrong")
    with pytest.raises(StorageError, match="SHA-256"):
        stage_weights(url, cache)
    assert not (staged_weights(cache, url) / card.COMPLETE_NAME).exists()

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from clipa.errors import ClipaError, InputError, StorageError
from clipa.spec.cluster import Dataset
from clipa.storage import local_digest, patience
from clipa.storage import manifest as manifests
from clipa.storage.dataset import index, publish_manifest, require_safe, side_file
from clipa.storage.local_digest import LocalDigests
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Store


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/data"


def test_what_is_written_is_listed_and_read(url: str) -> None:
    store = Store(url)
    store.write("b.tar", b"0123456789")
    store.write("sub/a.tar", b"x")
    assert [(e.name, e.size) for e in store.list()] == [("b.tar", 10), ("sub/a.tar", 1)]
    assert store.read("b.tar") == b"0123456789"
    assert store.read_range("b.tar", 2, 5) == b"234"
    assert store.exists("b.tar")
    assert not store.exists("c.tar")
    assert store.entry("b.tar") == store.list()[0]


def test_a_file_is_written_like_bytes(url: str, tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"0123")
    Store(url).write("sub/a.tar", tmp_path / "made")
    assert Store(url).read("sub/a.tar") == b"0123"


def test_a_range_behind_the_end_is_an_error_at_once_and_not_fewer_bytes(url: str) -> None:
    store = Store(url)
    store.write("a", b"0123")
    began = time.monotonic()
    with pytest.raises(StorageError, match="4 bytes, 6 were expected"):
        store.read_range("a", 0, 6)
    assert time.monotonic() - began < 5


def test_a_pattern_names_what_is_missing(url: str) -> None:
    for name in ("0.tar", "1.tar", "9.tar"):
        Store(url).write(name, b"x")
    assert [e.name for e in Store(f"{url}/{{0..1}}.tar").list()] == ["0.tar", "1.tar"]
    with pytest.raises(InputError, match=r"2 of .* first 2\.tar"):
        Store(f"{url}/{{0..3}}.tar").list()


def test_one_shard_is_a_dataset(url: str) -> None:
    Store(url).write("0.tar", b"x")
    Store(url).write("1.tar", b"x")
    assert [s.name for s in index(Dataset(url=f"{url}/1.tar")).shards] == ["1.tar"]


def test_relative_and_home_paths(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store("here").write("a", b"1")
    Store("~/there").write("a", b"2")
    assert (tmp_path / "here/a").read_bytes() == b"1"
    assert (home / "there/a").read_bytes() == b"2"


@pytest.mark.parametrize(("scheme", "package"), [("oci", "ocifs"), ("nope", "nope")])
def test_a_missing_driver_is_named(scheme: str, package: str) -> None:
    with pytest.raises(InputError, match=package):
        Store(f"{scheme}://b/x")


def test_nothing_there_is_the_users_mistake(url: str) -> None:
    with pytest.raises(InputError, match="nothing at this URL"):
        Store(url).read("absent")
    with pytest.raises(InputError, match="no shards"):
        index(Dataset(url=url))


def test_no_shards_says_what_is_there(url: str) -> None:
    Store(url).write("photo.jpg", b"x")
    with pytest.raises(InputError, match=r"photo\.jpg"):
        index(Dataset(url=url))


def test_an_unreachable_store_fails_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "GIVE_UP_S", 0.2)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    source = Dataset(url="s3://me:hush@b/x", endpoint="http://me:hush@127.0.0.1:9/")
    with pytest.raises(ClipaError) as caught:
        Store(source).list()
    assert "hush" not in str(caught.value)


def test_a_profile_that_does_not_exist_fails_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="credentials"):
        Store(Dataset(url="s3://b/x", profile="absent")).list()
    assert time.monotonic() - began < 10


def test_the_front_door_is_cheap() -> None:
    code = (
        "import sys, clipa.storage.store, clipa.storage.dataset;"
        "sys.exit(any(m in sys.modules for m in ('fsspec', 's3fs')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _manifest(store: Store, *shards: Shard) -> Manifest:
    manifest = Manifest(url=store.url, shards=shards)
    publish_manifest(store, manifest)
    return manifest


def test_the_manifest_is_the_dataset(url: str) -> None:
    store = Store(url)
    store.write("0.tar", b"abc")
    store.write("left-over.tar", b"of an older writing")
    wrote = _manifest(store, Shard(name="0.tar", size=3, sha256="5", samples=7))
    assert index(Dataset(url=url)).digest == wrote.digest
    assert index(Dataset(url=url)).samples == 7


@pytest.mark.parametrize(
    "shard", [Shard(name="1.tar", size=3), Shard(name="0.tar", size=4)], ids=["missing", "other size"]
)
def test_a_manifest_that_does_not_fit_names_the_shard(url: str, shard: Shard) -> None:
    store = Store(url)
    store.write("0.tar", b"abc")
    _manifest(store, shard)
    with pytest.raises(InputError, match=shard.name):
        index(Dataset(url=url))


def test_a_torn_manifest_is_an_error_and_a_foreign_one_is_not_ours(url: str) -> None:
    store = Store(url)
    store.write("0.tar", b"abc")
    whole = manifests.encode(Manifest(url="x", shards=()))
    store.write(manifests.MANIFEST_NAME, whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="manifest"):
        index(Dataset(url=url))
    store.write(manifests.MANIFEST_NAME, b'{"files": ["0.tar"]}')
    assert [s.name for s in index(Dataset(url=url)).shards] == ["0.tar"]


def test_a_shard_that_changes_changes_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(b"abc")
    before = index(Dataset(url=str(tmp_path))).digest
    path.write_bytes(b"abd")
    assert index(Dataset(url=str(tmp_path))).digest != before


def test_same_name_size_and_time_in_two_folders_are_two_datasets(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(folder.encode())
        os.utime(tmp_path / folder / "0.tar", (9, 9))
    assert index(Dataset(url=f"{tmp_path}/a")).digest != index(Dataset(url=f"{tmp_path}/b")).digest


def test_the_same_bytes_in_two_folders_are_one_dataset(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(b"abc")
        os.utime(tmp_path / folder / "0.tar", (len(folder), ord(folder)))
    first, second = index(Dataset(url=f"{tmp_path}/a")), index(Dataset(url=f"{tmp_path}/b"))
    assert first.digest == second.digest
    assert first.shards[0].pin.startswith("xxh3:")


@pytest.mark.parametrize("version", ["1700000000.5 /old/place/0.tar", "d41d8cd98f00b204e9800998ecf8427e-3"])
def test_a_copied_local_manifest_that_pins_no_bytes_is_pinned_by_the_bytes(tmp_path: Path, version: str) -> None:
    (tmp_path / "0.tar").write_bytes(b"abc")
    _manifest(Store(str(tmp_path)), Shard(name="0.tar", size=3, version=version, samples=2))
    found = index(Dataset(url=str(tmp_path)))
    assert (found.shards[0].version, found.shards[0].pin[:5], found.samples) == ("", "xxh3:", 2)


def test_a_version_that_cannot_be_held_against_a_store_is_refused_with_the_cure() -> None:
    store = Store("memory://copied")
    store.write("0.tar", b"abc")
    _manifest(store, Shard(name="0.tar", size=3, version="of another store"))
    with pytest.raises(InputError, match="data index"):
        index(Dataset(url="memory://copied"))


def test_a_remembered_digest_is_of_the_file_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_digest, "_YOUNG_NS", -1)
    (tmp_path / "0.tar").write_bytes(b"abc")
    first = index(Dataset(url=str(tmp_path)))
    assert LocalDigests(tmp_path).known("0.tar") == first.shards[0].digest.removeprefix("xxh3:")
    (tmp_path / "0.tar").write_bytes(b"abd")
    assert LocalDigests(tmp_path).known("0.tar") == ""
    assert index(Dataset(url=str(tmp_path))).digest != first.digest


def test_side_files(url: str) -> None:
    Store(url).write("classnames.txt", "Häuser\n".encode())
    assert side_file(Dataset(url=f"{url}/*.tar"), "classnames.txt") == "Häuser\n"
    assert side_file(Dataset(url=url), "other.txt") is None


@pytest.mark.parametrize(
    "name", ["/a.tar", "../a.tar", "x/../../a.tar", "x\\a.tar", "", ".", ".lock", "x/.y", "a//b", "a\n.tar"]
)
def test_hostile_names_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        require_safe(name)


def test_ordinary_names_are_not() -> None:
    for name in ("0.tar", "train/000 1.tar", "a..b.tar", "é.tar"):
        require_safe(name)

import dataclasses
import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipa.data import index
from clipa.data.index import Part, load_counts, load_index, sidecar
from clipa.data.shards import Coming, Reader, Sample, caption_of, label_of, open_shards
from clipa.data.wds import shard_bytes, split_name
from clipa.errors import DataError, StorageError
from clipa.storage.manifest import Manifest, Shard

Members = list[tuple[str, bytes]]


def tar(members: Members, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def dataset(folder: Path, *shards: bytes) -> Manifest:
    entries = []
    for number, data in enumerate(shards):
        (folder / f"{number}.tar").write_bytes(data)
        entries.append(Shard(name=f"{number}.tar", size=len(data)))
    return Manifest(url="memory://x", shards=tuple(entries))


def pairs(*keys: str) -> Members:
    return [(f"{key}.{ext}", f"{key} {ext}".encode()) for key in keys for ext in ("jpg", "txt")]


def read_all(manifest: Manifest, folder: Path, part: Part = Part.CAPTION) -> list[Sample]:
    reader = Reader(open_shards(manifest, folder), part)
    try:
        return [reader.read(number) for number in range(reader.samples)]
    finally:
        reader.close()


def test_samples_come_by_number_in_manifest_order(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, tar(pairs("a", "b")), tar(pairs("c")), tar(pairs("d/e", "d/f.g".replace(".g", ""))))
    found = read_all(manifest, tmp_path)
    assert [s.key for s in found] == ["a", "b", "c", "d/e", "d/f"]
    assert all(s.image == f"{s.key} jpg".encode() and s.other == f"{s.key} txt".encode() for s in found)
    assert open_shards(manifest, tmp_path).sizes(Part.CAPTION) == [2, 1, 2]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_directories_and_scattered_members(tmp_path: Path, form: int) -> None:
    long = "deep/" * 40 + "n" * 150
    members = [
        ("./", b""),
        ("folder.with.dot/", b""),
        ("folder.with.dot/x.JPG", b"1"),
        (f"{long}.png", b"2"),
        ("README", b"no extension"),
        ("./._x.jpg", b"what macOS leaves"),
        ("ünï 東京.webp", b"3"),
        ("folder.with.dot/x.txt", b"one"),
        (f"{long}.json", b'{"caption": "two"}'),
        ("ünï 東京.txt", b"three"),
    ]
    found = read_all(dataset(tmp_path, tar(members, form)), tmp_path)
    assert {s.key: (s.image, caption_of(s)) for s in found} == {
        "folder.with.dot/x": (b"1", "one"),
        long: (b"2", "two"),
        "ünï 東京": (b"3", "three"),
    }


def test_incomplete_samples_are_counted_and_skipped(tmp_path: Path) -> None:
    members = [*pairs("a"), ("b.jpg", b""), ("c.txt", b""), ("d.jpg", b""), ("d.cls", b"4"), ("e.mask.png", b"")]
    shards = open_shards(dataset(tmp_path, tar(members)), tmp_path)
    assert (shards.samples, shards.skipped) == (1, 3)
    assert (shards.sizes(Part.CAPTION), shards.sizes(Part.LABEL)) == ([1], [1])
    assert [s.key for s in read_all(dataset(tmp_path, tar(members)), tmp_path, Part.LABEL)] == ["d"]


def test_preferred_extensions_win_wherever_they_stand(tmp_path: Path) -> None:
    members = [("a.json", b"{}"), ("a.webp", b"w"), ("a.txt", b"t"), ("a.jpg", b"j")]
    found = read_all(dataset(tmp_path, tar(members)), tmp_path)[0]
    assert (found.image, found.other) == (b"j", b"t")


def test_links_are_no_samples(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        info = tarfile.TarInfo("a.txt")
        file.addfile(info, io.BytesIO())
    with pytest.raises(DataError, match="no sample has both"):
        open_shards(dataset(tmp_path, buffer.getvalue()), tmp_path)


WHOLE = tar(pairs("first", "second", "third"))
HEADERS = [512 * n for n in range(0, 12, 2)]  # six members of one block each

BROKEN = {
    "not a tar file": b"<html>" * 500,
    "empty": b"",
    "compressed": b"\x1f\x8b\x08\x00" + b"\x00" * 2000,
    "cut in a header": WHOLE[: HEADERS[3] + 100],
    "cut in a body": WHOLE[: HEADERS[5] + 515],
    "broken header": WHOLE[: HEADERS[2]] + b"\xff" * 512 + WHOLE[HEADERS[3] :],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_tars_are_named(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="not a whole, uncompressed tar file") as caught:
        open_shards(dataset(tmp_path, tar(pairs("good")), BROKEN[kind]), tmp_path)
    assert caught.value.where == str(tmp_path / "1.tar")
    assert not sidecar(tmp_path / "1.tar").exists()


@given(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=40))
def test_any_damage_gives_samples_or_our_error(tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes) -> None:
    folder = tmp_path_factory.mktemp("damage")
    data = (WHOLE[:at] + noise + WHOLE[at + len(noise) :])[: len(WHOLE)]
    try:
        read_all(dataset(folder, data), folder)
    except DataError:
        pass


def test_duplicate_keys_name_shard_and_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sample 'b' has two members with the extension \.jpg") as caught:
        open_shards(dataset(tmp_path, tar([*pairs("a", "b", "c"), ("b.jpg", b"again")])), tmp_path)
    assert caught.value.where.endswith("0.tar")


def test_no_usable_sample_says_what_was_found_and_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_shards(dataset(tmp_path, tar([("a.tiff", b""), ("a.txt", b""), ("b.tiff", b"")])), tmp_path)
    message = str(caught.value)
    assert ".tiff (2)" in message
    assert ".txt (1)" in message
    assert "jpg, jpeg, png, webp" in message
    with pytest.raises(DataError, match="no shards"):
        open_shards(Manifest(url="memory://x", shards=()), tmp_path)


def test_labels_are_required_only_where_they_are_used(tmp_path: Path) -> None:
    shards = open_shards(dataset(tmp_path, tar(pairs("a"))), tmp_path)
    with pytest.raises(DataError, match="an image and a label"):
        Reader(shards, Part.LABEL)


def test_missing_and_cut_shards_are_named(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, WHOLE)
    os.truncate(tmp_path / "0.tar", 1000)
    with pytest.raises(DataError, match="has 1000 bytes, its manifest says"):
        open_shards(manifest, tmp_path)
    (tmp_path / "0.tar").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_shards(manifest, tmp_path)


class Walks:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = index.build_index

        def counted(*args: object, **options: object) -> index.ShardIndex:
            self.count += 1
            return real(*args, **options)  # type: ignore[call-overload, no-any-return]

        monkeypatch.setattr(index, "build_index", counted)


def test_the_index_is_kept_and_rebuilt_when_torn_or_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(WHOLE)
    walks = Walks(monkeypatch)
    expected = load_index(shard)
    load_index(shard)
    assert walks.count == 1
    whole = sidecar(shard).read_bytes()
    flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
    for number, torn in enumerate((b"", whole[:40], whole[:-1], flipped, b"{}\n", os.urandom(300), whole + b"x")):
        sidecar(shard).write_bytes(torn)
        found = load_index(shard)
        assert walks.count == number + 2
        assert [found.key(row) for row in range(3)] == [expected.key(row) for row in range(3)]
        assert sidecar(shard).read_bytes() == whole
    os.utime(shard, ns=(1, 1))
    load_index(shard)
    assert walks.count == 9
    shard.write_bytes(tar(pairs("other")))
    assert load_index(shard).key(0) == "other"


def test_counts_need_no_walk_and_no_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(WHOLE)
    walks = Walks(monkeypatch)
    counts = load_counts(shard)
    assert (counts.captioned, walks.count) == (3, 1)
    assert load_counts(shard) == counts
    assert walks.count == 1
    whole = sidecar(shard).read_bytes()
    for number, torn in enumerate((b"", whole[:40], whole[:-1], b"{}\n", whole + b"x")):
        sidecar(shard).write_bytes(torn)
        assert load_counts(shard) == counts
        assert walks.count == number + 2
    shard.write_bytes(tar(pairs("other")))
    assert load_counts(shard).captioned == 1


def test_a_shard_that_shrinks_under_the_reader_is_no_fault_of_the_sample(tmp_path: Path) -> None:
    reader = Reader(open_shards(dataset(tmp_path, WHOLE), tmp_path), Part.CAPTION)
    reader.read(2)
    os.truncate(tmp_path / "0.tar", 600)
    with pytest.raises(StorageError, match="ends inside"):
        reader.read(2)
    reader.close()


def test_open_files_are_bounded(tmp_path: Path) -> None:
    count = 80
    manifest = dataset(tmp_path, *(tar(pairs(f"k{n}")) for n in range(count)))
    reader = Reader(open_shards(manifest, tmp_path), Part.CAPTION)
    before = len(os.listdir("/proc/self/fd"))
    assert [reader.read(n).key for n in (*range(count), 3)] == [f"k{n}" for n in (*range(count), 3)]
    assert len(os.listdir("/proc/self/fd")) - before <= 32
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_more_lanes_have_more_files_open_and_none_that_was_removed(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, *(tar(pairs(f"k{n}")) for n in range(80)))
    there = open_shards(manifest, tmp_path)
    coming = dataclasses.replace(there, coming=Coming(tmp_path, tmp_path / "sign"))
    reader = pickle.loads(pickle.dumps(Reader(coming, Part.CAPTION, lanes=20)))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(80):
        reader.read(number)
    assert len(os.listdir("/proc/self/fd")) - before == 32 + 2 * 20
    for number in range(30, 80):
        os.unlink(tmp_path / f"{number}.tar")
    reader.read(0)  # another one is opened: those without a name give back their bytes
    held = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert not any("deleted" in name and str(tmp_path) in name for name in held)
    assert reader.read(10).key == "k10"
    reader.close()


@pytest.mark.parametrize(
    ("data", "extension", "expected"),
    [
        (b"a dog", "txt", "a dog"),
        (b"\xff\xfe", "txt", "\ufffd\ufffd"),
        (b"", "txt", ""),
        (b'{"caption": "x", "url": [1]}', "json", "x"),
    ],
)
def test_captions(data: bytes, extension: str, expected: str) -> None:
    assert caption_of(Sample("k", b"", data, extension)) == expected


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"caption": 3}', b'{"caption": null}', b"\xff", b'{"caption": "']
)
def test_json_without_a_caption_is_a_bad_sample(data: bytes) -> None:
    with pytest.raises(DataError):
        caption_of(Sample("k", b"", data, "json"))


def test_labels() -> None:
    assert [label_of(Sample("k", b"", d, "cls")) for d in (b"0", b"999\n", b" 7 ")] == [0, 999, 7]
    for data in (b"", b"-1", b"cat", b"1.0", b"\xff", b"9" * 40, "٣".encode()):
        with pytest.raises(DataError, match="cls holds"):
            label_of(Sample("k", b"", data, "cls"))


def test_written_shards_are_the_same_bytes_and_follow_the_key_rule(tmp_path: Path) -> None:
    samples = [("a/b", {"jpg": b"i", "txt": b"t", "cls": b"1"})]
    data = shard_bytes(samples)
    assert data == shard_bytes(samples)
    assert read_all(dataset(tmp_path, data), tmp_path)[0] == Sample("a/b", b"i", b"t", "txt")
    assert split_name("a.b/c.seg.PNG") == ("a.b/c", "seg.png")
    assert split_name("a.b/c") is None
    assert split_name(".hidden") is None

"""`clipa data shrink` as a user meets it: keys and captions stay, images get smaller, a kill loses one shard's work."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipa.data.decode import shrink_image
from clipa.data.index import Part
from clipa.data.rewrite import receipt_name
from clipa.data.shards import Reader, open_shards
from clipa.data.shrink import shrink as make
from clipa.errors import DataError, InputError
from clipa.spec.cluster import Dataset
from clipa.storage import manifest as manifests
from clipa.storage.evaluation import open_set
from clipa.storage.members import members
from clipa.storage.store import Store
from tests.services.faults import FaultProxy
from tests.services.laid_out import img2dataset, picture, sample, tar
from tests.services.s3 import client, new_bucket
from tests.services.wire import proxy, server, streamed  # noqa: F401 - fixtures

SHRINK = [sys.executable, "-m", "clipa.cli.main", "data", "shrink"]


def shrink(*words: str | Path, code: int = 0) -> str:
    done = subprocess.run([*SHRINK, *map(str, words)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def contents(path: Path) -> dict[str, bytes]:
    return {m.name: m.data or b"" for m in members([path.read_bytes()], 1 << 30)}


def sides(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


def a_mixed_shard() -> tuple[bytes, dict[str, bytes]]:
    """Large and small images of every format, a broken one, foreign members; and what must not change."""
    small = picture(1, 96, 64)
    kept = {
        "000000000.txt": "großes Bild".encode(), "small.jpg": small, "small.txt": b"small", "half.txt": b"half",
        "half.jpg": picture(2, 512, 384)[:5000], "x" * 130 + ".txt": b"long", "small.emb": bytes(range(256)),
        "../up.txt": b"up", "png.txt": b"p", "webp.txt": b"w", "strip.txt": b"s", "strip.jpg": picture(4, 900, 8),
        "odd\udcff.txt": b"no utf-8",
    }  # fmt: skip
    large = {
        "000000000.jpg": picture(0, 512, 384), "png.png": picture(3, 300, 400, "PNG"),
        "x" * 130 + ".jpg": picture(5, 200, 200), "webp.webp": picture(6, 640, 480, "WEBP"),
        "../up.jpg": picture(7, 300, 300), "odd\udcff.jpg": picture(8, 301, 307),
    }  # fmt: skip
    return tar([*kept.items(), *large.items()]), kept


def test_what_stays_and_what_gets_smaller(tmp_path: Path) -> None:
    whole, kept = a_mixed_shard()
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "00000.tar").write_bytes(whole)
    out = tmp_path / "out"
    done = json.loads(shrink(tmp_path / "in", out, "--short-side", "64", "--json"))
    assert (done["images"], done["shrunk"], done["kept"], done["broken"]) == (9, 6, 2, 1)
    assert done["samples"] == 9
    before, after = contents(tmp_path / "in" / "sub" / "00000.tar"), contents(out / "sub" / "00000.tar")
    assert [*after] == [*before], "the order of members has changed"
    assert {name: after[name] for name in kept} == kept
    for name in before.keys() - kept.keys():
        width, height = sides(before[name])
        assert sides(after[name]) == (round(64 * width / min(width, height)), round(64 * height / min(width, height)))
        assert Image.open(io.BytesIO(after[name])).format == Image.open(io.BytesIO(before[name])).format
    assert not (tmp_path / "up.jpg").exists()

    manifest = manifests.decode((out / manifests.MANIFEST_NAME).read_bytes())
    assert manifest.samples == 9
    assert all(shard.digest.startswith("xxh3:") for shard in manifest.shards)
    reader = Reader(open_shards(manifest, out), Part.CAPTION)
    assert reader.samples == 9
    # The same again is nothing to do and the same manifest; from the same bytes elsewhere come the same bytes.
    again = json.loads(shrink(tmp_path / "in", out, "--short-side", "64", "--json"))
    assert (again["written"], again["digest"]) == (0, done["digest"])


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2)))


@pytest.mark.parametrize(("width", "height"), [(512, 384), (1024, 768), (700, 513), (2100, 600)])
def test_pixels_are_those_of_the_whole_image_made_smaller(width: int, height: int) -> None:
    data = picture(11, width, height)
    small = Image.open(io.BytesIO(shrink_image(data, 256, 95, "x")))
    whole = Image.open(io.BytesIO(data)).resize(small.size, Image.Resampling.BICUBIC)
    # 38 (an odd height, of which DCT scaling drops the last row) to 44 dB; shifted by one pixel 28 to 35.
    assert psnr(np.asarray(small), np.asarray(whole)) > 37
    assert min(small.size) == 256


def test_nothing_is_gained() -> None:
    coarse = picture(12, 300, 300, quality=5)
    assert shrink_image(coarse, 290, 95, "x") is coarse, "more bytes than before"
    with pytest.raises(DataError):
        shrink_image(b"\xff\xd8 no", 64, 95, "x")


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = picture(0, 512, 384)
    for shard in range(6):
        whole = [member for number in range(60) for member in sample(shard, number, image, "words")]
        (tmp_path / "in" / f"{shard:05d}.tar").write_bytes(tar(whole))
    out, straight = tmp_path / "out", tmp_path / "straight"
    words = [str(tmp_path / "in"), str(out), "--short-side", "48", "--workers", "2"]
    process = subprocess.Popen([*SHRINK, *words], stdout=subprocess.DEVNULL, start_new_session=True)
    _wait_for(out / receipt_name("00000.tar"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / manifests.MANIFEST_NAME).exists(), "killed too late to show anything"
    for path in out.glob("*.tar"):
        assert len(contents(path)) == 180, "a shard that is not whole has its final name"
    there = {path.name for path in (out / "shrunk").glob("*.tar.json")}
    stamps = {name: (out / name.removesuffix(".json")).stat().st_mtime_ns for name in there}
    (out / ".00005.tar.1.1.part").write_bytes(b"left by a kill")

    done = json.loads(shrink(*words, "--json"))
    assert done["written"] == 6 - len(there) < 6
    assert {n: (out / n.removesuffix(".json")).stat().st_mtime_ns for n in there} == stamps
    assert not [*out.glob(".*.part")]
    assert json.loads(shrink(tmp_path / "in", straight, "--short-side", "48", "--json"))["digest"] == done["digest"]


def test_from_a_bucket_to_a_bucket_over_a_wire_that_breaks(tmp_path: Path, server: str, proxy: FaultProxy) -> None:  # noqa: F811
    img2dataset(tmp_path, 3, 6, width=256, height=192)
    name, s3 = new_bucket(server), client(server)
    for path in sorted(tmp_path.iterdir()):
        s3.put_object(Bucket=name, Key=f"laion/{path.name}", Body=path.read_bytes())
    proxy.faults = ["drop", "503", "reset", "flip"]
    said = shrink(
        f"s3://{name}/laion", f"s3://{name}/laion-64", "--short-side", "64", "--workers", "1", "--endpoint", proxy.url
    )
    assert "18 images: 18 made smaller" in said
    small = Store(Dataset(url=f"s3://{name}/laion-64", endpoint=proxy.url))
    assert manifests.decode(small.read(manifests.MANIFEST_NAME)).samples == 18
    found = {m.name: m.data for m in members([small.read("00001.tar")], 1 << 30)}
    assert found["000010003.txt"] == b"picture 3 of 1"
    assert sides(found["000010003.jpg"] or b"") == (85, 64)


def refused(source: Path, target: Path | str, short_side: int = 64, quality: int = 95) -> str:
    """What is said; nothing may have been written by then."""
    with pytest.raises(InputError) as caught:
        make(Dataset(url=str(source)), Dataset(url=str(target)), short_side, quality, 1, lambda done, total: None)
    return str(caught.value)


def test_what_is_refused(tmp_path: Path) -> None:
    img2dataset(tmp_path / "in", 2, 2, width=128, height=96)
    source, out = tmp_path / "in", tmp_path / "out"
    assert "lie in each other" in refused(source, source)
    assert "lie in each other" in refused(source, source / "small")
    assert "a shorter side of 7" in refused(source, out, 7)
    assert "a quality of 101" in refused(source, out, 64, 101)
    assert "no shards" in refused(tmp_path / "nothing", out)
    assert "only read from" in refused(source, "http://127.0.0.1:1/x")
    assert not out.exists()
    shrink(source, out, "--short-side", "64")
    assert "another shorter side: 64, now 32" in refused(source, out, 32)
    assert "another quality: 95, now 90" in refused(source, out, 64, 90)
    (source / "00001.tar").write_bytes(tar(sample(1, 0, picture(0), "new")))
    assert "another version of the source" in shrink(source, out, "--short-side", "64", code=2)
    img2dataset(tmp_path / "other", 1, 1)
    before = (tmp_path / "other" / "00000.tar").read_bytes()
    assert "something else" in refused(source, tmp_path / "other")
    assert (tmp_path / "other" / "00000.tar").read_bytes() == before


@pytest.mark.parametrize("part", ["", "/test/{0..0}.tar"])
def test_an_evaluation_set_stays_one(tmp_path: Path, part: str) -> None:
    source, out = tmp_path / "wds_x", tmp_path / "out"
    (source / "test").mkdir(parents=True)
    for shard in range(2):
        members = [
            (f"s{n}.{end}", data) for n in range(2) for end, data in (("jpg", picture(n, 96, 128)), ("cls", b"1"))
        ]
        (source / "test" / f"{shard}.tar").write_bytes(tar(members))
    beside = {
        "classnames.txt": "cat\ndog", "zeroshot_classification_templates.txt": "a {c}", "dataset_type.txt": "probe",
        "test/nshards.txt": "2", "notes.txt": "mine", "val/nshards.txt": "1",
    }  # fmt: skip
    (source / "val").mkdir()
    for name, text in beside.items():
        (source / name).write_text(text)
    shrink(f"{source}{part}", out, "--short-side", "64")
    found = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.txt")}
    if part:
        assert found == {}, "what lies above the shards' folder is no part of them"
        return
    carried = {name: beside[name] for name in beside if name not in ("notes.txt", "val/nshards.txt")}
    assert found == carried
    small, whole = (open_set(Dataset(url=str(folder)), "test") for folder in (out, source))
    assert [shard.name for shard in small.manifest.shards] == [shard.name for shard in whole.manifest.shards]
    assert small._replace(source=whole.source, manifest=whole.manifest) == whole


def test_a_broken_shard_is_named_and_no_manifest_claims_it(tmp_path: Path) -> None:
    img2dataset(tmp_path / "in", 2, 2, width=128, height=96)
    path = tmp_path / "in" / "00001.tar"
    path.write_bytes(path.read_bytes()[:3000])
    said = shrink(tmp_path / "in", tmp_path / "out", "--short-side", "64", code=1)
    assert "1 shards cannot be rewritten: 00001.tar: cut at byte 3000" in said
    assert (tmp_path / "out" / "00000.tar").exists()
    assert not (tmp_path / "out" / "00001.tar").exists()
    assert not (tmp_path / "out" / manifests.MANIFEST_NAME).exists()

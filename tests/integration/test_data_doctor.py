"""`clipa data doctor` as a user meets it: every kind of trouble is found, counted and named, and nothing is written."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from clipa.data.decode import MAX_PIXELS
from clipa.data.examine import KINDS
from tests.services.faults import FaultProxy
from tests.services.laid_out import img2dataset, picture, sample, tar
from tests.services.s3 import client, new_bucket

pytest_plugins = ["tests.services.wire"]


@pytest.fixture
def proxy(streamed: FaultProxy) -> FaultProxy:
    return streamed


GOOD = picture(0)


def doctor(*words: str, code: int) -> str:
    argv = [sys.executable, "-m", "clipa.cli.main", "data", "doctor", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code != 2 else done.stderr


def bomb() -> bytes:
    """A PNG of 20,000 x 20,000 pixels in 500 bytes."""
    side = 20_000
    assert side * side > MAX_PIXELS

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def npy(value: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(value))
    return buffer.getvalue()


def a_sick_dataset(folder: Path) -> dict[str, int]:
    """One folder with everything that is looked for; how often each is in it."""
    img2dataset(folder, 2, 4)
    (folder / "00002.tar").write_bytes(b"")
    whole = tar([*sample(3, 0, GOOD, "a"), *sample(3, 1, GOOD, "b")])
    (folder / "00003.tar").write_bytes(whole[:2000])
    (folder / "00004.tar").write_bytes(zlib.compress(whole))
    (folder / "00005.tar").write_bytes(tar(sample(5, 0, GOOD, "a")) + tar(sample(5, 1, GOOD, "b")))
    members = [
        *sample(6, 0, GOOD[: len(GOOD) // 2], "half an image"),
        *sample(6, 1, b"<html>404</html>", "no image at all"),
        *sample(6, 2, bomb(), "a bomb"),
        ("000060003.txt", b"no image"),
        ("000060004.jpg", GOOD),
        ("000060005.jpg", GOOD), ("000060005.txt", b" \n "),
        ("000060006.jpg", GOOD), ("000060006.json", b'{"text": "?"}'),
        ("000060007.jpg", GOOD), ("000060007.cls", b"cat"),
        ("000060008.jpg", GOOD), ("000060008.npy", npy([[1, 2], [3, 4]])),
        ("000060009.jpg", GOOD), ("000060009.txt", b"twice"), ("000060009.jpg", GOOD),
        *sample(0, 1, GOOD, "of shard 0"),
        ("../../etc/\x1b[2Jpasswd.jpg", GOOD), ("../../etc/\x1b[2Jpasswd.txt", b"hostile"),
        ("/etc/cron.jpg", GOOD), ("/etc/cron.txt", b"hostile"),
        # These are all right: labels, several captions, png and webp, foreign members.
        ("ok1.jpg", GOOD), ("ok1.cls", b"7"),
        ("ok2.png", picture(1, form="PNG")), ("ok2.json", b'{"caption": ["a", "b"]}'),
        ("ok3.webp", picture(1, form="WEBP")), ("ok3.txt", b"a"), ("ok3.json", b"{}"), ("ok3.emb", b"?"),
        ("README", b"no sample"),
    ]  # fmt: skip
    (folder / "00006.tar").write_bytes(tar(members))
    return {
        "empty shard": 1, "cut tar": 1, "broken tar": 1, "tar with a tail": 1, "bad image": 2, "huge image": 1,
        "no image": 1, "no caption": 1, "empty caption": 1, "bad caption": 1, "bad label": 1, "bad target": 1,
        "duplicate member": 1, "duplicate key": 1, "odd name": 4,
    }  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_trouble_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "down" / "data"
    expected = a_sick_dataset(folder)
    before = tree(tmp_path)
    report = json.loads(doctor(str(folder), "--json", code=1))
    assert {found["kind"]: found["count"] for found in report["findings"]} == expected
    examples = {found["kind"]: " ".join(found["examples"]) for found in report["findings"]}
    assert "00003.tar: cut at byte 2000" in examples["cut tar"]
    assert "000060000.jpg" in examples["bad image"]
    assert "000060001.jpg" in examples["bad image"]
    assert "the image is too large" in examples["huge image"]
    assert "00006.tar: 000000001, also in 00000.tar" in examples["duplicate key"]
    assert report["shards"] == 7
    assert tree(tmp_path) == before

    said = doctor(str(folder), "--workers", "1", code=1)
    assert "\x1b" not in said
    assert "etc/\\x1b[2Jpasswd" in said
    assert "4  odd name in 1 shard:" in said
    assert set(expected) | {"missing shard", "changed shard", "unreadable shard", "large member"} == set(KINDS)


def test_a_healthy_bucket_by_two_processes_and_what_its_manifest_pins(
    tmp_path: Path, server: str, proxy: FaultProxy
) -> None:
    img2dataset(tmp_path, 3, 5)
    name, s3 = new_bucket(server), client(server)
    for path in sorted(tmp_path.iterdir()):
        s3.put_object(Bucket=name, Key=f"laion/{path.name}", Body=path.read_bytes())
    url, at = f"s3://{name}/laion", ["--endpoint", proxy.url]
    said = doctor(url, *at, "--workers", "2", "--shards", "{00001..00002}", code=0)
    assert "2 shards" in said
    assert "10 samples, 10 images" in said

    argv = [sys.executable, "-m", "clipa.cli.main", "data", "index", url, "--scan", "--endpoint", proxy.url]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    data = bytearray((tmp_path / "00001.tar").read_bytes())
    data[data.index(b"picture 2")] ^= 1  # in a caption: still a whole tar file of whole samples
    s3.put_object(Bucket=name, Key="laion/00001.tar", Body=bytes(data))
    s3.put_object(Bucket=name, Key="laion/00002.tar", Body=bytes(data) + bytes(512))
    s3.delete_object(Bucket=name, Key="laion/00000.tar")
    found = {f["kind"]: f for f in json.loads(doctor(url, *at, "--workers", "1", "--json", code=1))["findings"]}
    assert found["missing shard"]["examples"] == ["00000.tar"]
    assert found["changed shard"]["count"] == 2
    assert "its XXH3 is not" in " ".join(found["changed shard"]["examples"])


@pytest.mark.parametrize(
    ("words", "said"),
    [(("/tmp/no/such/folder",), "no shards"), (("nope",), "neither a URL"), (("nope://x/y",), "cannot open nope://")],
    ids=["no folder", "no name", "no scheme"],
)
def test_bad_input(words: tuple[str, ...], said: str) -> None:
    assert said in doctor(*words, code=2)

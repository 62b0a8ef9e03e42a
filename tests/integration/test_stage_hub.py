"""hf://datasets/... from a hub that answers the documented API: listed, staged, held against the SHA-256 of LFS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.hub import Hub, hub
from tests.services.stage_runs import MIB, content

URL = "hf://datasets/lab/tiny/data"


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub("lab/tiny") as running:
        running.files = {f"data/{number}.tar": content(number, 9 * MIB) for number in range(3)}
        running.files["data/more/3.tar"] = content(3, MIB)
        running.files["README.md"] = b"# tiny"
        yield running


def clipa(server: Hub, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", **environment}
    argv = [sys.executable, "-m", "clipa.cli.main", "data", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=env)


def test_a_dataset_of_the_hub_is_staged_and_verified(tmp_path: Path, server: Hub) -> None:
    server.flips = 1
    done = clipa(server, "stage", f"{URL}", "--to", str(tmp_path / "to"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    last = json.loads(done.stdout)
    assert last["verified"] == {"sha256": 4}
    assert last["fetched_bytes"] > last["bytes"], "the shard with the wrong bit came twice"
    for name, data in server.files.items():
        if name.endswith(".tar"):
            assert (tmp_path / "to" / name.removeprefix("data/")).read_bytes() == data
    assert server.redirects


def test_a_file_that_is_written_over_is_not_taken(tmp_path: Path, server: Hub) -> None:
    done = clipa(server, "stage", f"{URL}/{{0..1}}.tar", "--to", str(tmp_path / "to"), "--json")
    assert done.returncode == 0
    manifest = json.loads((tmp_path / "to/manifest.json").read_text())
    assert [shard["name"] for shard in manifest["shards"]] == ["0.tar", "1.tar"]
    server.files["data/manifest.json"] = (tmp_path / "to/manifest.json").read_bytes()
    server.files["data/1.tar"] = content(8, 9 * MIB)
    done = clipa(server, "stage", URL, "--to", str(tmp_path / "again"))
    assert done.returncode == 1
    assert "data/1.tar" in done.stderr
    assert not (tmp_path / "again/1.tar").exists()


@pytest.mark.parametrize(
    ("url", "token", "said"),
    [
        ("hf://datasets/lab/absent", "", "there is nothing at this URL"),
        (URL, "hush", "refuses access"),
        ("hf://lab", "", "allowed: hf://datasets/OWNER/NAME/FOLDER"),
    ],
)
def test_what_is_absent_or_closed_is_said(server: Hub, url: str, token: str, said: str) -> None:
    server.token = token
    done = clipa(server, "index", url, HF_TOKEN="wrong")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "wrong" not in done.stderr

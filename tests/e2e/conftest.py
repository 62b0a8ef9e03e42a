"""A stranger's project: own images, own captions, own recipe, typed from the README's words."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}
CLIPA = [str(Path(sys.executable).parent / "clipa")]


def _shard(path: Path, first: int, count: int, seed: int) -> None:
    """Squares of four colours as PNG, with captions (txt, or json for every third) and labels."""
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            name, colour = list(COLOURS.items())[number % 4]
            shade = tuple(max(0, min(255, part + (number * 7 + seed) % 25 - 12)) for part in colour)
            image = io.BytesIO()
            Image.new("RGB", (40, 30), shade).save(image, "PNG")
            caption = f"a {name} square, number {number}"
            words = ("json", json.dumps({"caption": caption})) if number % 3 == 0 else ("txt", caption)
            for extension, data in (
                ("png", image.getvalue()),
                (words[0], words[1].encode()),
                ("cls", b"%d" % (number % 4)),
            ):
                member = tarfile.TarInfo(f"{number:06d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


RECIPE = """
name = "squares"
[model]
embed_dim = 16
[model.image]
patch = 8
width = 32
layers = 1
heads = 2
[model.text]
width = 16
layers = 1
heads = 2
[evals.colours]
data = "held-out"
classes = ["red", "green", "blue", "yellow"]
templates = ["a {} square", "something {c}"]
[phases.pretrain]
data = "squares"
samples = 1600
batch = 32
positions = "sincos2d"
image = { size = 16 }
text = { tokens = 6 }
optim = { lr = 5e-3, warmup_samples = 160 }
checkpoint = { every_samples = 160 }
[phases.finetune]
data = "squares"
samples = 800
batch = 32
image = { size = 24 }
text = { tokens = 10 }
optim = { lr = 2e-3, warmup_samples = 96 }
evaluate = { sets = ["colours"], sizes = [16, 24] }
[phases.eval]
sets = ["colours"]
"""


class Road:
    """Runs the real command line in a project folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: str, code: int | None = 0, cwd: Path | None = None, timeout: float = 200) -> str:
        done = subprocess.run(
            [*CLIPA, *words],
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            umask=0o002,
        )
        assert code is None or done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback (most recent call last)" not in done.stderr, done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    def submit(self, *words: str) -> list[str]:
        return list(json.loads(self.run("submit", *words, "--json"))["runs"])

    def status(self, run: str) -> dict[str, object]:
        found = json.loads(self.run("status", run, "--json"))
        return dict(found["runs"][0])

    def until(self, run: str, reached: Callable[[dict[str, object]], bool], seconds: float = 120) -> dict[str, object]:
        deadline = time.monotonic() + seconds
        while not reached(status := self.status(run)):
            assert time.monotonic() < deadline, f"not reached in {seconds} s: {status}"
            time.sleep(0.1)
        return status

    def processes(self) -> list[str]:
        """Command lines of everything that works for runs of this project, the detached ones too."""
        mark = str(self.folder).encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes()
                    zombie = b") Z " in (entry / "stat").read_bytes()
                except OSError:
                    continue
                if mark in line and not zombie:
                    found.append(line.replace(b"\0", b" ").decode())
        return found


@pytest.fixture
def road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Road:
    for split, count, seed in (("train", 2, 1), ("test", 1, 9)):
        folder = tmp_path / "bucket" / split
        folder.mkdir(parents=True)
        for shard in range(count):
            _shard(folder / f"{shard:05d}.tar", shard * 64, 64, seed)
    (tmp_path / "squares.toml").write_text(RECIPE)
    (tmp_path / "clipa.toml").write_text(
        'recipe = "squares.toml"\ncluster = "here.toml"\nrun_root = "runs"\n'
        f'[datasets]\nsquares = "{tmp_path}/bucket/train"\n'
        f'held-out = {{ url = "{tmp_path}/bucket/test/{{00000..00000}}.tar" }}\n'
    )
    (tmp_path / "here.toml").write_text(f'gpus = 0\nthreads = 1\nmax_attempts = 3\ncache = "{tmp_path}/cache"\n')
    return Road(tmp_path)

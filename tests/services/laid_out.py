"""Shards for tests of what reads them: images of one's own, in img2dataset's layout."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Samples = Sequence[tuple[str, bytes]]
"""Members of a tar file: name and content."""


def picture(number: int, width: int = 64, height: int = 48, form: str = "JPEG", quality: int = 90) -> bytes:
    """A smooth picture with some noise; another one for each number."""
    random = np.random.default_rng(number)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(columns * random.uniform(0.01, 0.1) + rows * random.uniform(0.01, 0.1) + c) for c in range(3)]
    pixels = 128 + 90 * np.stack(waves, axis=-1) + random.normal(0, 4, (height, width, 3))
    buffer = io.BytesIO()
    options = {"quality": quality} if form in ("JPEG", "WEBP") else {}
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, form, **options)
    return buffer.getvalue()


def tar(members: Samples, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def sample(shard: int, number: int, image: bytes, caption: str) -> Samples:
    """The three members that img2dataset writes of an image: its key is shard and number, five and four digits."""
    key = f"{shard:05d}{number:04d}"
    facts = {
        "url": f"https://example.org/{key}.jpg", "caption": caption, "key": key, "status": "success",
        "error_message": None, "width": 256, "height": 192, "original_width": 1024, "original_height": 768,
        "exif": "{}", "sha256": "0" * 64,
    }  # fmt: skip
    return [(f"{key}.jpg", image), (f"{key}.txt", caption.encode()), (f"{key}.json", json.dumps(facts).encode())]


def img2dataset(folder: Path, shards: int, samples: int, **how: int) -> None:
    """What img2dataset 1.x leaves in a folder with output_format webdataset: tar, parquet and statistics a shard."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = [
            member
            for number in range(samples)
            for member in sample(shard, number, picture(100 * shard + number, **how), f"picture {number} of {shard}")
        ]
        (folder / f"{shard:05d}.tar").write_bytes(tar(members))
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        stats = {
            "count": samples + 3, "successes": samples, "failed_to_download": 2, "failed_to_resize": 1,
            "duration": 1.5, "start_time": 1.0, "end_time": 2.5,
            "status_dict": {"success": samples, "HTTP Error 404": 2},
        }  # fmt: skip
        (folder / f"{shard:05d}_stats.json").write_text(json.dumps(stats, indent=4))

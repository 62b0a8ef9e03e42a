"""How far training's pixels are from a full decode, cropped and resized by Pillow."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipa.bench.pipelines import Job
from clipa.data.crop import random_box
from clipa.data.decode import decode_train
from clipa.data.index import Part
from clipa.data.shards import Reader, open_shards
from clipa.reduction.draws import Draws, Purpose
from clipa.storage.dataset import index
from clipa.storage.store import Store

IMAGES = 64
_HOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Fidelity(NamedTuple):
    """PSNR in dB: of the mean squared error of all images, and of the worst one."""

    mean: float
    lowest: float


def fidelity(job: Job) -> Fidelity:
    """Compare the same crops of the first images."""
    store = Store(job.folder)
    reader = Reader(open_shards(index(store.source, store), Path(job.folder)), Part.CAPTION)
    size = job.image.size
    errors = []
    for number in range(min(IMAGES, reader.samples)):
        data = reader.read(number).image
        pixels = np.empty((size, size, 3), dtype=np.uint8)
        decode_train(data, job.image, Draws(0, number, Purpose.CROP), pixels, "")
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        box = random_box(picture.height, picture.width, job.image, Draws(0, number, Purpose.CROP))
        part = picture.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        plain = np.asarray(part.resize((size, size), _HOW[job.image.interpolation])).astype(float)
        errors.append(float(np.mean((pixels - plain) ** 2)))
    return Fidelity(_psnr(sum(errors) / len(errors)), _psnr(max(errors)))


def _psnr(error: float) -> float:
    return 10 * math.log10(255**2 / error) if error else math.inf

"""What benchmarks of the loader read where no shards are given: pictures with a photograph's spectrum, and captions.

Photographs have amplitudes that fall with frequency, about as 1/f; with the exponent taken here a picture of 512 x 384
has 42 kB at quality 90, as img2dataset's have. Captions are WordNet's glosses and examples where they are installed.
"""

from __future__ import annotations

import io
import random
import re
from pathlib import Path

import numpy as np
from PIL import Image

from clipa.data.wds import shard_bytes
from clipa.reduction.wordclass import word_classes

_WORDNET = Path("/usr/share/wordnet")
_EXPONENT = 1.65
_CONTRAST = 50.0
_QUALITY = 90
_LONG_SIDE, _SHORT_SIDE = 512, 384


def picture(number: int) -> bytes:
    """A JPEG of 512 x 384; another one for each number."""
    chance = np.random.default_rng(number)
    height, width = _SHORT_SIDE, _LONG_SIDE
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.maximum(frequency, 1 / width) ** -_EXPONENT

    def field() -> np.ndarray:
        return np.fft.irfft2(amplitude * np.exp(2j * np.pi * chance.random(amplitude.shape)), (height, width))

    grey = field()
    pixels = np.stack([grey + 0.35 * field() for _ in range(3)], axis=-1)  # channels differ less than places do
    pixels = (pixels - pixels.mean()) / pixels.std() * _CONTRAST + 128
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def captions() -> tuple[str, list[str]]:
    """What they are, and captions in an order that is the same every time."""
    found = [text for path in sorted(_WORDNET.glob("data.*")) for text in _glosses(path)]
    chance = random.Random(0)  # noqa: S311
    if found:
        chance.shuffle(found)
        return "WordNet's glosses and examples", found
    words = sorted(word_classes())
    return "random words (WordNet is not installed)", [" ".join(chance.choices(words, k=9)) for _ in range(20_000)]


def _glosses(path: Path) -> list[str]:
    lines = path.read_text("utf-8", "replace").splitlines()
    parts = [re.split(r'[;"]', line.partition("| ")[2]) for line in lines if not line.startswith("  ")]
    return [text.strip() for row in parts for text in row if len(text.split()) >= 4]


def write(folder: Path, images: int) -> None:
    """Two shards of made samples."""
    _, texts = captions()
    half = -(-images // 2)
    for shard in range(2):
        numbers = range(shard * half, min(images, (shard + 1) * half))
        samples = ((f"{n:09d}", {"jpg": picture(n), "txt": texts[n % len(texts)].encode()}) for n in numbers)
        (folder / f"{shard:05d}.tar").write_bytes(shard_bytes(samples))

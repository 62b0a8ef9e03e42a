"""The demo's data: scikit-learn's 1,797 scans of handwritten digits as image-text shards in a bucket.

`python -m clipa.data.demo URL` writes URL/train, URL/val and URL/test. The scans are split before anything else is
done with them, so that no scan of the test set is ever seen in training. Each training scan comes with several
captions of a small grammar; nothing in a caption is false. The same version writes the same bytes.

Source of the scans: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (UCI), as bundled with
scikit-learn (sklearn.datasets.load_digits).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from clipa.data.tars import write_tar
from clipa.errors import ClipaError, MissingPart
from clipa.storage import manifest as manifests
from clipa.storage.dataset import publish_manifest
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Store

TEST, VAL = 360, 200
CAPTIONS_EACH = 4
SHARD_SAMPLES = 1_024
PIXELS = 64
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a scan of the handwritten digit {}.",
    "a photo of the number {}.",
    "the digit {} written by hand.",
    "someone wrote the number {}.",
    "a handwritten {}.",
)
_OPENINGS = (
    "a scan of",
    "a photo of",
    "a picture of",
    "an image of",
    "a small scan of",
    "this is",
    "we see",
    "here is",
)
_THINGS = (
    "the handwritten digit {}",
    "the number {}",
    "a handwritten {}",
    "the digit {} written by hand",
    "a {} that someone wrote",
    "the figure {} in white on black",
)
_SENTENCES = ("someone wrote the number {}", "the number written here is {}", "a person drew the digit {} by hand")


class Split(NamedTuple):
    """Scans of one split: uint8 [n, 8, 8] with values 0..16, and their digits."""

    name: str
    scans: np.ndarray
    digits: np.ndarray


def splits() -> tuple[Split, ...]:
    """train, val and test, by scan, each with its share of every digit. The split never changes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPart("scikit-learn is not installed here", hint="pip install 'clipa[train]'") from error
    scans, digits = load_digits(return_X_y=True)
    scans = scans.reshape(-1, 8, 8).astype(np.uint8)
    order = np.random.Generator(np.random.Philox(2305_07017)).permutation(len(scans))
    # Stratified: walk through the shuffled scans digit by digit, so that every tenth of a split is one digit.
    order = order[np.argsort(digits[order], kind="stable")]
    ranks = np.argsort(np.argsort(np.arange(len(order)) * 7 % len(order), kind="stable"), kind="stable")
    shuffled = order[np.argsort(ranks, kind="stable")]
    test, val, train = shuffled[:TEST], shuffled[TEST : TEST + VAL], shuffled[TEST + VAL :]
    return tuple(
        Split(name, scans[part], digits[part]) for name, part in (("train", train), ("val", val), ("test", test))
    )


def captions(scan: int, digit: int) -> list[str]:
    """The captions of one training scan: true, varied, and always the same."""
    chance = np.random.Generator(np.random.Philox(key=[scan, 17]))
    made = []
    for _ in range(CAPTIONS_EACH):
        word = NAMES[digit] if chance.random() < 0.75 else str(digit)
        if chance.random() < 0.2:
            made.append(_pick(_SENTENCES, chance).format(word))
        else:
            made.append(f"{_pick(_OPENINGS, chance)} {_pick(_THINGS, chance).format(word)}")
    return made


def _pick(options: tuple[str, ...], chance: np.random.Generator) -> str:
    return options[int(chance.integers(len(options)))]


def draw(scan: np.ndarray) -> bytes:
    """A scan as a JPEG of 64 x 64 pixels: smooth strokes, a margin of 4 pixels."""
    grey = Image.fromarray((scan.astype(np.float32) * (255.0 / 16.0)).round().astype(np.uint8))
    inner = grey.resize((PIXELS - 8, PIXELS - 8), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    ImageOps.expand(inner, border=4).convert("RGB").save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write(url: str) -> dict[str, int]:
    """Write the bucket; splits that are there already are left alone. Returns the samples of each split."""
    counts = {}
    for split in splits():
        store = Store(f"{url.rstrip('/')}/{split.name}")
        samples = _samples(split)
        counts[split.name] = len(samples)
        if not store.exists(manifests.MANIFEST_NAME):
            _write_split(store, samples)
    return counts


def _samples(split: Split) -> list[tuple[str, dict[str, bytes]]]:
    samples = []
    for number, (scan, digit) in enumerate(zip(split.scans, split.digits, strict=True)):
        image, label = draw(scan), str(digit).encode()
        words = captions(number, int(digit)) if split.name == "train" else [f"the handwritten digit {NAMES[digit]}"]
        for turn, caption in enumerate(words):
            samples.append((f"{number:05d}-{turn}", {"jpg": image, "txt": caption.encode(), "cls": label}))
    return samples


def _write_split(store: Store, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    shards = []
    for number, start in enumerate(range(0, len(samples), SHARD_SAMPLES)):
        part = samples[start : start + SHARD_SAMPLES]
        data, name = write_tar(part), f"{number:05d}.tar"
        store.write(name, data)
        shards.append(Shard(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), samples=len(part)))
    store.write(manifests.CLASSNAMES, ("\n".join(NAMES) + "\n").encode())
    store.write(manifests.TEMPLATES, ("\n".join(TEMPLATES).replace("{}", "{c}") + "\n").encode())
    publish_manifest(store, Manifest(url=store.url, shards=tuple(shards)))


def main() -> int:
    """Entry of `python -m clipa.data.demo`."""
    parser = argparse.ArgumentParser(prog="clipa data demo", description="write the demo's shards to a URL")
    parser.add_argument("url")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    arguments = parser.parse_args()
    try:
        counts = write(arguments.url)
    except ClipaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps({"url": arguments.url, "samples": counts}))
    else:
        for name, count in counts.items():
            print(f"{arguments.url.rstrip('/')}/{name}: {count} samples")
    return 0


if __name__ == "__main__":
    sys.exit(main())

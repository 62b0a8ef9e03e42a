"""The demo's data: `python -m clipa.data.demo URL [--json]`.

scikit-learn's 1,797 handwritten digits (UCI Optical Recognition of Handwritten Digits, 8x8 pixels of 16 levels),
split by scan, then written as webdataset shards under URL/train, URL/val and URL/test.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from io import BytesIO

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipa.data.captions import TEMPLATES, WORDS, caption
from clipa.data.order import permutation
from clipa.data.wds import shard_bytes
from clipa.errors import ClipaError, MissingPart
from clipa.reduction.draws import Draws, Purpose
from clipa.spec.plan import Record
from clipa.storage import manifest as manifests
from clipa.storage.dataset import publish_manifest
from clipa.storage.manifest import CLASSNAMES, MANIFEST_NAME, Manifest, Shard
from clipa.storage.manifest import TEMPLATES as TEMPLATES_NAME
from clipa.storage.store import Store

VERSION = 1
"""Raise it when a byte of the output changes: then older buckets are written again."""

_STAMP = "demo.json"
_SEED = 20_230_511
_SIZE = 64
_QUALITY = 90
_HELD_OUT = {"test": 360, "val": 200}
_CAPTIONS = {"train": 4, "val": 1, "test": 1}
_PER_SHARD = 1_250


class _Stamp(Record, frozen=True, kw_only=True):
    version: int


class Split(Record, frozen=True, kw_only=True):
    """One written split: scans (distinct images) and samples (image and caption), size in bytes."""

    url: str
    digest: str
    scans: int
    samples: int
    shards: int
    bytes: int


class Written(Record, frozen=True, kw_only=True):
    """What `write` did. `written` is False where this version was there already."""

    url: str
    version: int
    written: bool
    splits: dict[str, Split]


def split_scans(digits: NDArray[np.int64]) -> dict[str, list[int]]:
    """Numbers of the scans of train, val and test: disjoint, each with every class in proportion, always the same."""
    shares: dict[str, list[int]] = {name: [] for name in _HELD_OUT}
    rest: list[int] = []
    by_class = [np.flatnonzero(digits == digit) for digit in range(10)]
    order = [scans[permutation(len(scans), _SEED, Purpose.SPLIT, epoch=d)].tolist() for d, scans in enumerate(by_class)]
    for name, count in _HELD_OUT.items():
        for scans, share in zip(order, _proportional([len(s) for s in by_class], count), strict=True):
            shares[name] += scans[:share]
            del scans[:share]
    for scans in order:
        rest += scans
    return {"train": sorted(rest), **{name: sorted(scans) for name, scans in shares.items()}}


def _proportional(sizes: list[int], total: int) -> list[int]:
    """`total` divided in proportion to sizes, by largest remainder."""
    exact = [size * total / sum(sizes) for size in sizes]
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (shares[i] - exact[i], i))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


def render(scan: NDArray[np.float64]) -> Image.Image:
    """An 8x8 scan of levels 0..16, with a dark margin of one pixel, enlarged smoothly to 64x64 pixels, RGB.

    Strokes reach the scan's edge: without the margin half of the random crops would cut them.
    """
    levels = np.pad(scan * (255 / 16), 1).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(levels).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC).convert("RGB")


def _jpeg(scan: NDArray[np.float64]) -> bytes:
    buffer = BytesIO()
    render(scan).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingPart("scikit-learn is not installed here", hint="pip install 'clipa[train]'") from error
    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int64)


def write(url: str) -> Written:
    """Write the demo's three datasets under a URL; where this version is complete, only look.

    Raises:
        InputError: the URL can't be used.
        StorageError: bytes could not be written.
    """
    root = Store(url)
    known = _known(root)
    if known is not None:
        return Written(url=url, version=VERSION, written=False, splits=known)
    scans, digits = _digits()
    splits = {}
    for name, numbers in split_scans(digits).items():
        splits[name] = _publish(Store(f"{url.rstrip('/')}/{name}"), name, _shards(name, numbers, scans, digits))
    root.write(_STAMP, msgspec.json.encode(_Stamp(version=VERSION)))
    return Written(url=url, version=VERSION, written=True, splits=splits)


def _known(root: Store) -> dict[str, Split] | None:
    """The splits of this version; None where one is missing. The stamp is written after the last manifest."""
    try:
        if not root.exists(_STAMP) or msgspec.json.decode(root.read(_STAMP), type=_Stamp).version != VERSION:
            return None
        names = {name: f"{name}/{MANIFEST_NAME}" for name in _CAPTIONS}
        if not all(root.exists(name) for name in names.values()):
            return None
        return {split: _described(split, manifests.decode(root.read(name))) for split, name in names.items()}
    except msgspec.MsgspecError:
        return None


def _described(name: str, manifest: Manifest) -> Split:
    samples = manifest.samples or 0
    return Split(
        url=manifest.url,
        digest=manifest.digest,
        scans=samples // _CAPTIONS[name],
        samples=samples,
        shards=len(manifest.shards),
        bytes=manifest.bytes,
    )


def _shards(
    split: str, numbers: list[int], scans: NDArray[np.float64], digits: NDArray[np.int64]
) -> list[tuple[str, bytes, int]]:
    """(name, bytes, samples) of every shard of a split."""
    samples = []
    for number in numbers:
        image, digit = _jpeg(scans[number]), int(digits[number])
        for turn in range(_CAPTIONS[split]):
            text = caption(digit, Draws(_SEED, number * 100 + turn, Purpose.CAPTION))
            members = {"jpg": image, "txt": text.encode(), "cls": str(digit).encode()}
            samples.append((f"{number:04d}_{turn}", members))
    parts = [samples[first : first + _PER_SHARD] for first in range(0, len(samples), _PER_SHARD)]
    return [(f"{split}-{place:05d}.tar", shard_bytes(part), len(part)) for place, part in enumerate(parts)]


def _publish(store: Store, name: str, shards: list[tuple[str, bytes, int]]) -> Split:
    """Write one split, its manifest last."""
    for file, data, _ in shards:
        store.write(file, data)
    if name in _HELD_OUT:
        store.write(CLASSNAMES, "".join(f"{word}\n" for word in WORDS).encode())
        store.write(TEMPLATES_NAME, "".join(f"{template}\n" for template in TEMPLATES).encode())
    rows = (
        Shard(name=file, size=len(data), sha256=hashlib.sha256(data).hexdigest(), samples=samples)
        for file, data, samples in shards
    )
    manifest = Manifest(url=store.url, shards=tuple(rows))
    publish_manifest(store, manifest)
    return _described(name, manifest)


def main(arguments: list[str] | None = None) -> int:
    """Entry of `python -m clipa.data.demo`: 0 done, 1 the work failed, 2 the URL is wrong."""
    parser = argparse.ArgumentParser(prog="clipa data demo", description="Write the demo's digits as shards.")
    parser.add_argument("url", help="where to: a folder, file:// or s3:// URL")
    parser.add_argument("--json", action="store_true", help="print what is there as JSON")
    options = parser.parse_args(arguments)
    try:
        done = write(options.url)
    except ClipaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        print(msgspec.json.encode(done).decode())
        return 0
    print(f"{done.url}: version {done.version}, {'written' if done.written else 'was there already'}")
    for name, split in done.splits.items():
        print(f"  {name:5}  {split.scans:5} scans  {split.samples:6} samples  {split.shards} shards  {split.url}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The manifest of LAION-400M: 41,408 shards."""

from __future__ import annotations

import gc
import hashlib
import time
from pathlib import Path

import msgspec
import pytest

from clipa.errors import StorageError
from clipa.spec.cluster import Dataset
from clipa.storage import manifest as manifests
from clipa.storage.dataset import beside, require_safe
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Store

SHARDS = 41_408


def _laion() -> Manifest:
    """Rows as `clipa data index --scan` writes them for a bucket: ETag of a multipart upload, XXH3, samples."""
    rows = []
    for number in range(SHARDS):
        word = hashlib.sha256(b"%d" % number).hexdigest()
        etag, digest = f"{word[:32]}-34", f"xxh3:{word[32:]}"
        rows.append(
            Shard(name=f"{number:05d}.tar", size=283_115_520 + number, version=etag, digest=digest, samples=9_900)
        )
    return Manifest(url="s3://bucket/laion400m", shards=tuple(rows))


def test_it_is_small_and_read_and_pinned_in_a_second() -> None:
    raw = manifests.encode(_laion())
    assert len(raw) < 10_000_000
    gc.disable()  # a full collection of what all tests before have left took 1 s: it is not the manifest's
    try:
        began = time.process_time()
        manifest = manifests.decode(raw)
        for shard in manifest.shards:
            require_safe(shard.name)
        assert len(manifest.digest) == 64
        assert manifest.samples == SHARDS * 9_900
        manifests.encode(manifest)
        assert time.process_time() - began < 1.0  # CPU seconds: 0.3 were measured on a busy EPYC core
    finally:
        gc.enable()


def test_rows_of_older_versions_keep_their_digest() -> None:
    """A plan of 0.1.0 pins this digest: what was added since must not change it."""
    old = b'{"url":"x","shards":[{"name":"0.tar","size":3,"sha256":"ab","version":"","samples":null},'
    old += b'{"name":"1.tar","size":4,"sha256":"","version":"e","samples":7}],"schema":1}'
    rows = b'[["0.tar",3,"ab"],["1.tar",4,"e"]]'
    assert manifests.decode(old).digest == hashlib.sha256(rows).hexdigest()


@pytest.mark.parametrize(
    "row", ['"size":-1', '"size":3,"samples":-1', '"size":3,"samples":1e30', '"size":1125899906842625']
)
def test_numbers_that_no_shard_has_are_refused(row: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="shards"):
        manifests.decode(b'{"url":"x","shards":[{"name":"0.tar",%s}],"schema":1}' % row.encode())


@pytest.mark.parametrize(
    "count", ["1e999", "-1e999", "9" * 5000, "NaN", '"x"', "[" * 20_000 + "]" * 20_000], ids=lambda text: text[:8]
)
@pytest.mark.parametrize("place", ["known", "unknown"])
def test_a_bomb_in_a_manifest_is_one_sentence(tmp_path: Path, count: str, place: str) -> None:
    where = f'"samples": {count}' if place == "known" else f'"samples": 3, "later": {count}'
    raw = f'{{"url": "file:///x", "schema": 1, "shards": [{{"name": "a.tar", "size": 1, "version": "1", {where}}}]}}'
    (tmp_path / "manifest.json").write_text(raw)
    store = Store(Dataset(url=str(tmp_path)))
    if place == "unknown" and count not in ("NaN", "[" * 20_000 + "]" * 20_000):
        assert beside(store)["a.tar"].samples == 3, "a newer clipa may have written it"
        return
    with pytest.raises(StorageError, match="the manifest cannot be read"):
        beside(store)

"""A dataset in a store: its manifest, and the small files beside its shards."""

from __future__ import annotations

from pathlib import PurePosixPath

import msgspec

from clipa.errors import InputError, StorageError
from clipa.spec.cluster import Dataset
from clipa.storage import manifest as manifests
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Entry, Store


def index(source: Dataset) -> Manifest:
    """The shards of a dataset: from the `manifest.json` beside them, checked against the listing, or listed.

    Raises:
        InputError: no shards there, or a manifest that does not fit the shards.
        StorageError: the store does not answer.
    """
    store = Store(source)
    entries = {entry.name: entry for entry in store.list()}
    known = _beside(store) if not store.pattern or store.exists(manifests.MANIFEST_NAME) else {}
    shards = [_shard(entry, known) for name, entry in sorted(entries.items()) if name.endswith(".tar")]
    if not store.pattern and (gone := sorted(set(known) - set(entries))):
        raise InputError(
            f"the manifest names {gone[0]}, which is not there", where=store.url, hint="write the dataset again"
        )
    if not shards:
        seen = ", ".join(sorted(entries)[:5]) or "nothing"
        raise InputError(
            "no shards here",
            where=f"{store.url}/{store.pattern}",
            allowed="webdataset shards, *.tar",
            hint=f"found: {seen}",
        )
    return Manifest(url=store.url, shards=tuple(shards))


def _shard(entry: Entry, known: dict[str, Shard]) -> Shard:
    require_safe(entry.name)
    listed = known.get(entry.name)
    if listed is None:
        return Shard(name=entry.name, size=entry.size, version=entry.version)
    if listed.size != entry.size:
        raise InputError(
            f"{entry.name} has {entry.size} bytes, the manifest beside it says {listed.size}",
            where=manifests.MANIFEST_NAME,
            hint="the shard was changed or cut: write the dataset again, or delete the manifest",
        )
    return listed


def _beside(store: Store) -> dict[str, Shard]:
    if not store.exists(manifests.MANIFEST_NAME):
        return {}
    try:
        found = manifests.decode(store.read(manifests.MANIFEST_NAME))
    except msgspec.MsgspecError as error:
        raise StorageError(
            f"the manifest cannot be read: {error}", where=f"{store.url}/{manifests.MANIFEST_NAME}", hint="delete it"
        ) from error
    return {shard.name: shard for shard in found.shards}


def side_file(source: Dataset, name: str) -> str | None:
    """A small text file beside the shards; None when there is none."""
    store = Store(source)
    return store.read(name).decode("utf-8", errors="replace") if store.exists(name) else None


def publish_manifest(store: Store, manifest: Manifest) -> None:
    """Write the manifest: the last act of whoever writes a dataset."""
    store.write(manifests.MANIFEST_NAME, manifests.encode(manifest))


def require_safe(name: str) -> None:
    """Refuse names that would leave the staging folder: they come from outside.

    Raises:
        InputError: an absolute name, `..`, or a character that no shard needs.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name.startswith("."):
        raise InputError("refusing the name of an object", where=repr(name), allowed="relative names without ..")

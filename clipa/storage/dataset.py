"""A dataset in a store: its manifest, and the small files beside its shards."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import msgspec

from clipa.errors import InputError, StorageError
from clipa.spec.cluster import Dataset
from clipa.storage import local_digest
from clipa.storage import manifest as manifests
from clipa.storage.digest import pinned
from clipa.storage.manifest import Manifest, Shard
from clipa.storage.store import Entry, Store


def index(source: Dataset, opened: Store | None = None) -> Manifest:
    """The shards of a dataset: from the `manifest.json` beside them, checked against the listing, or listed.

    Every shard has a digest, or the store's own word for its version. Local shards without a digest are read for one,
    once.

    Raises:
        InputError: no shards there, or a manifest that does not fit the shards, or cannot be held against them.
        StorageError: the store does not answer.
    """
    store = opened or Store(source)
    entries = {entry.name: entry for entry in store.list()}
    known = beside(store)
    if known and not store.pattern:
        # The manifest is written last: what it does not name is of an older or an unfinished writing.
        names = sorted(known)
    else:
        names = sorted(name for name in entries if name.endswith(".tar"))
    shards = [_shard(store, name, entries.get(name), known.get(name)) for name in names]
    if not shards:
        seen = ", ".join(sorted(entries)[:5]) or "nothing"
        raise InputError(
            "no shards here",
            where=f"{store.url}/{store.pattern}",
            allowed="webdataset shards, *.tar",
            hint=f"found: {seen}",
        )
    return by_content(store, Manifest(url=store.url, shards=tuple(shards)))


def by_content(store: Store, manifest: Manifest, tick: local_digest.Tick | None = None) -> Manifest:
    """Return a manifest that is the same wherever its bytes are: no path and no modification time of local files.

    Raises:
        StorageError: a local shard cannot be read.
    """
    if store.local_folder is None:
        return manifest
    return msgspec.structs.replace(
        manifest, shards=local_digest.with_digests(store.local_folder, manifest.shards, tick)
    )


def listed(store: Store, doubt: bool = False) -> tuple[Manifest, list[str]]:
    """The shards that lie in a folder now, and the names of all that lies there.

    What the manifest beside them knows of a shard is kept where the shard is the same version still. A row without a
    version cannot be told from an older one: it is kept too, unless `doubt`.

    Raises:
        InputError: no shards there, or a pattern: a manifest is of a whole folder.
    """
    if store.pattern:
        raise InputError("a manifest is of a whole folder", where=f"{store.url}/{store.pattern}", allowed=store.url)
    entries = store.list()
    known = beside(store)
    shards = []
    for entry in entries:
        if not entry.name.endswith(".tar"):
            continue
        require_safe(entry.name)
        row = Shard(name=entry.name, size=entry.size, version=entry.version, digest=entry.digest)
        before = known.get(entry.name)
        if before and before.size == entry.size and _is_same(store, entry, before, doubt):
            row = before
        shards.append(row)
    if not shards:
        seen = ", ".join(entry.name for entry in entries[:5]) or "nothing"
        raise InputError("no shards here", where=store.url, allowed="webdataset shards, *.tar", hint=f"found: {seen}")
    return Manifest(url=store.url, shards=tuple(shards)), [entry.name for entry in entries]


def _is_same(store: Store, entry: Entry, before: Shard, doubt: bool) -> bool:
    """Whether a row of an earlier manifest is still about the bytes that are there now."""
    if store.local_folder is not None and local_digest.has_content_digest(before):
        return local_digest.is_current(store.local_folder, before)
    return before.version == (entry.version if before.version or doubt else "")


def _shard(store: Store, name: str, entry: Entry | None, listed: Shard | None) -> Shard:
    require_safe(name)
    where = f"{store.url}/{manifests.MANIFEST_NAME}"
    if entry is None:
        raise InputError(f"the manifest names {name}, which is not there", where=where, hint="write the dataset again")
    if listed is None:
        return Shard(name=name, size=entry.size, version=entry.version, digest=entry.digest)
    if listed.size != entry.size:
        raise InputError(
            f"{name} has {entry.size} bytes, the manifest says {listed.size}",
            where=where,
            hint="the shard was changed or cut: write the dataset again, or delete the manifest",
        )
    if store.local_folder is None and listed.version != entry.version and not _is_verifiable(listed):
        raise InputError(
            f"{name} has version {entry.version}, the manifest says {listed.version}, and it has no digest to tell "
            "whether the bytes are the same",
            where=where,
            hint=f"clipa data index {store.url} --scan, here or where the shards were copied from",
        )
    return listed if listed.pin else msgspec.structs.replace(listed, version=entry.version, digest=entry.digest)


def _is_verifiable(row: Shard) -> bool:
    return not row.version or bool(row.sha256 or row.digest or pinned(row).kind)


def beside(store: Store) -> dict[str, Shard]:
    """The shards of the manifest beside them; empty where there is none, or a JSON file that is another program's."""
    if not store.exists(manifests.MANIFEST_NAME):
        return {}
    raw = store.read(manifests.MANIFEST_NAME)
    try:
        found = manifests.decode(raw)
    except msgspec.ValidationError as error:
        if not _is_ours(raw):
            return {}
        raise _unreadable(store, error) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _unreadable(store, error) from error
    return {shard.name: shard for shard in found.shards}


def _is_ours(raw: bytes) -> bool:
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return True  # not even JSON that can be read: said, rather than passed over
    return isinstance(document, dict) and {"shards", "schema"} <= set(document)


def _unreadable(store: Store, error: Exception) -> StorageError:
    return StorageError(
        f"the manifest cannot be read: {error}", where=f"{store.url}/{manifests.MANIFEST_NAME}", hint="delete it"
    )


def side_file(source: Dataset, name: str) -> str | None:
    """A small text file beside the shards; None when there is none."""
    store = Store(source)
    return store.read(name).decode("utf-8", errors="replace") if store.exists(name) else None


def publish_manifest(store: Store, manifest: Manifest) -> None:
    """Write the manifest: the last act of whoever writes a dataset."""
    store.write(manifests.MANIFEST_NAME, manifests.encode(manifest))


_PLAIN = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""What nearly all names look like: 41,408 of them are passed in a few ms."""


def require_safe(name: str) -> None:
    """Refuse names that would leave the staging folder: they come from outside.

    Raises:
        InputError: an absolute name, `..`, or a character that no shard needs.
    """
    if _PLAIN.fullmatch(name):
        return
    parts = PurePosixPath(name).parts
    odd = "\\" in name or not name.isprintable() or any(part == "/" or part.startswith(".") for part in parts)
    if odd or "/".join(parts) != name or not name:
        raise InputError(
            "refusing the name of an object", where=repr(name), allowed="relative names; no part begins with a dot"
        )

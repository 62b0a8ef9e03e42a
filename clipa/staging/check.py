"""Are a folder's files still what was staged? Hashes them all."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec

from clipa.errors import InputError, StorageError
from clipa.staging import errand
from clipa.staging.fill import Tick
from clipa.staging.receipt import Receipts
from clipa.storage import manifest as manifests
from clipa.storage.dataset import require_safe
from clipa.storage.digest import Running, pinned
from clipa.storage.manifest import Shard

_THREADS = 4
_Verdict = Literal["right", "wrong", "missing", "unknown"]


def verify(folder: Path, tick: Tick) -> errand.Verified:
    """Hash every shard that the folder's manifest names, against it and against what was verified when it came.

    Raises:
        InputError: no manifest here.
        StorageError: a file cannot be read.
    """
    began = time.monotonic()
    shards = _shards(folder)
    receipts = Receipts(folder)
    total = sum(shard.size for shard in shards)
    done = 0

    def look(shard: Shard) -> _Verdict:
        path = folder / shard.name
        if not path.is_file():
            return "missing"
        if path.stat().st_size != shard.size:
            return "wrong"
        wanted = pinned(receipts.shard(shard))
        if not wanted.kind:
            return "unknown"
        running = Running(wanted)
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                running.update(chunk)
        return "right" if running.fits else "wrong"

    found: dict[_Verdict, list[str]] = {"right": [], "wrong": [], "missing": [], "unknown": []}
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            for shard, verdict in zip(shards, pool.map(look, shards), strict=True):
                found[verdict].append(shard.name)
                done += shard.size
                tick(done, total)
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror}", where=str(error.filename or folder)) from error
    return errand.Verified(
        folder=str(folder),
        right=len(found["right"]),
        wrong=tuple(found["wrong"]),
        missing=tuple(found["missing"]),
        unknown=tuple(found["unknown"]),
        seconds=time.monotonic() - began,
    )


def _shards(folder: Path) -> list[Shard]:
    for name in (manifests.MANIFEST_NAME, f".{manifests.MANIFEST_NAME}"):
        try:
            shards = manifests.decode((folder / name).read_bytes()).shards
        except FileNotFoundError:
            continue
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"cannot be read: {error}", where=str(folder / name)) from error
        for shard in shards:
            require_safe(shard.name)
        return list(shards)
    raise InputError(
        f"no {manifests.MANIFEST_NAME} here",
        where=str(folder),
        allowed="a folder that clipa data stage has filled, or one of clipa data ls",
        hint=f"clipa data index {folder} --scan",
    )

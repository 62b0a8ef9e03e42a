"""`python -m clipa.staging.bring`: the errands of the command line, in a process of their own (see `errand`)."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

from clipa import terminal
from clipa.errors import ClipaError, InputError
from clipa.registry.run_dir import write_whole
from clipa.staging import cache, census, errand
from clipa.staging.check import verify
from clipa.staging.fill import Stopped, fill
from clipa.staging.receipt import Receipts
from clipa.staging.stage import RESUMABLE, make_room_in_cache
from clipa.storage import fast
from clipa.storage import manifest as manifests
from clipa.storage.dataset import by_content, index, listed, publish_manifest, require_safe
from clipa.storage.leave import ends_at_once
from clipa.storage.manifest import Manifest
from clipa.storage.store import Store

_EVERY_S = 0.2


class _Teller:
    """Says how far it is a few times a second, and leaves when it is asked to or when nobody listens any more."""

    def __init__(self) -> None:
        self._asked = False
        self._parent = os.getppid()
        self._began = time.monotonic()
        self._said = 0.0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self._asked = True

    def tick(self, done: int, total: int) -> None:
        """A `Tick`."""
        if self._asked or os.getppid() != self._parent:
            raise Stopped
        now = time.monotonic()
        if total and (now - self._said >= _EVERY_S or done == total):
            self._said = now
            say(errand.Progress(done=done, total=total, seconds=now - self._began))


def say(event: errand.Event) -> None:
    """Write an event."""
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


def _stage(request: errand.Stage, teller: _Teller) -> None:
    began = time.monotonic()
    store = fast.open_store(request.source)
    manifest = index(request.source, store)
    for shard in manifest.shards:
        require_safe(shard.name)
    digest = manifest.digest
    folder = Path(request.to) if request.to else manifests.staged_folder(request.cache, digest)
    if file := next((at for at in (folder, *folder.parents) if at.exists() and not at.is_dir()), None):
        raise InputError("a file is where the folder would be", where=str(file), hint="give another --to")
    say(errand.Found(url=manifest.url, shards=len(manifest.shards), bytes=manifest.bytes, digest=digest))
    about = cache.About(url=manifest.url, bytes=manifest.bytes, shards=len(manifest.shards))
    if not request.to and request.limit:
        make_room_in_cache(Path(request.cache), request.limit, folder, manifest)
    before = Receipts(folder)
    filled = fill(
        store,
        folder,
        manifest.shards,
        teller.tick,
        request.verify,
        request.check,
        lambda: None if request.to else cache.use(folder, about),
    )
    receipts = Receipts(folder)
    how = Counter(_how(receipts, shard.name) for shard in manifest.shards if before.of(shard.name) is None)
    _leave_manifest(folder, manifest, receipts, beside=bool(request.to))
    say(
        errand.Staged(
            folder=str(folder),
            shards=len(manifest.shards),
            bytes=manifest.bytes,
            fetched_bytes=filled.fetched_bytes,
            seconds=time.monotonic() - began,
            digest=digest,
            verified=dict(how),
        )
    )


def _how(receipts: Receipts, name: str) -> str:
    known = receipts.of(name)
    return known.how if known else "size"


def _leave_manifest(folder: Path, manifest: Manifest, receipts: Receipts, beside: bool) -> None:
    """What lies here: hidden in the cache; beside the shards in a folder of the user's, with the digests that are known
    now, so that the copy is a dataset of its own.
    """
    if not beside:
        hidden = folder / f".{manifests.MANIFEST_NAME}"
        if not hidden.exists():  # the folder's name is its digest
            write_whole(hidden, manifests.encode(manifest))
        return
    rows = tuple(receipts.shard(shard) for shard in manifest.shards)
    copy = msgspec.structs.replace(manifest, shards=rows)
    beside_it = folder / manifests.MANIFEST_NAME
    if not beside_it.is_file() or beside_it.read_bytes() != manifests.encode(copy):
        publish_manifest(Store(str(folder)), copy)


def _index(request: errand.Index, teller: _Teller) -> None:
    store = fast.open_store(request.source)
    manifest, names = listed(store, doubt=request.scan)
    say(errand.Found(url=manifest.url, shards=len(manifest.shards), bytes=manifest.bytes))
    manifest = census.with_stats(store, manifest, names, teller.tick)
    read = 0
    word = hashlib.sha256(store.url.encode()).hexdigest()[:24]
    journal = Path(request.journal) / f"{word}.jsonl"
    if request.scan:
        manifest, read = census.scanned(store, manifest, journal, teller.tick)
    manifest = by_content(store, manifest, teller.tick)
    publish_manifest(store, manifest)
    census.forget(journal)
    say(
        errand.Indexed(
            manifest=f"{store.url}/{manifests.MANIFEST_NAME}",
            shards=len(manifest.shards),
            bytes=manifest.bytes,
            samples=manifest.samples,
            digest=manifest.digest,
            scanned=read,
        )
    )


def _verify(request: errand.Verify, teller: _Teller) -> None:
    say(verify(Path(request.folder), teller.tick))


def main() -> int:
    """The exit code."""
    try:
        request = errand.read_request(sys.stdin.buffer.read())
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        terminal.say(f"not a request: {error}", err=True)
        return 2
    teller = _Teller()
    try:
        match request:
            case errand.Stage():
                _stage(request, teller)
            case errand.Index():
                _index(request, teller)
            case errand.Verify():
                _verify(request, teller)
    except Stopped:
        return _failed(errand.Failed(what="stopped", hint="the same command goes on from here", code=RESUMABLE))
    except BrokenPipeError:
        return RESUMABLE
    except ClipaError as error:
        code = InputError.exit_code if isinstance(error, InputError) else 1
        return _failed(
            errand.Failed(what=error.what, where=error.where, allowed=error.allowed, hint=error.hint, code=code)
        )
    except OSError as error:
        return _failed(errand.Failed(what=f"cannot write: {error.strerror or error}", where=str(error.filename or "")))
    return 0


def _failed(event: errand.Failed) -> int:
    try:
        say(event)
    except BrokenPipeError:
        pass
    return event.code


if __name__ == "__main__":
    ends_at_once(main)

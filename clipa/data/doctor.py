"""`python -m clipa.data.doctor < request`: what is wrong with a dataset, counted by kind, with examples.

Exit code 0 when nothing is, 1 when something is. Nothing is written.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import msgspec
import numpy as np

from clipa.data.examine import EXAMPLES, KINDS, Examine, Seen, key_of
from clipa.data.spread import spread
from clipa.errors import ClipaError, InputError, told
from clipa.spec.cluster import Dataset
from clipa.spec.counted import counted
from clipa.spec.plan import Record
from clipa.staging import errand
from clipa.storage.dataset import beside
from clipa.storage.manifest import Shard
from clipa.storage.store import Store
from clipa.terminal import say, say_document, send


class Finding(Record, frozen=True, kw_only=True):
    """One kind of trouble: how often, in how many shards, and some places."""

    kind: str
    count: int
    shards: int
    examples: tuple[str, ...]


class Report(Record, frozen=True, kw_only=True):
    """What a dataset holds (`samples` with an image and something to it) and what is wrong with it."""

    url: str
    shards: int
    bytes: int
    samples: int
    images: int
    seconds: float
    findings: tuple[Finding, ...]


def examined(source: Dataset, workers: int, told: Callable[[int, int], None]) -> Report:
    """Read every shard of a dataset and report what is wrong.

    Args:
        source: where it lies.
        workers: processes.
        told: called with (shards done, shards in all).

    Raises:
        InputError: there is nothing at the URL.
    """
    began = time.monotonic()
    store = Store(source)
    shards, total = _shards(store)
    told(0, len(shards))
    by_shard: dict[str, Seen] = {}
    for shard, seen in spread(Examine(source), shards, workers):
        by_shard[shard.name] = seen
        told(len(by_shard), len(shards))
    _twice(source, shards, by_shard)
    total.update({shard.name: by_shard[shard.name] for shard in shards})
    return Report(
        url=store.url,
        shards=len(shards),
        bytes=sum(shard.size for shard in shards),
        samples=sum(seen.samples for seen in total.values()),
        images=sum(seen.images for seen in total.values()),
        seconds=time.monotonic() - began,
        findings=_findings(total),
    )


def _shards(store: Store) -> tuple[list[Shard], dict[str, Seen]]:
    """The shards that can be read, and those that already the listing shows to be wrong."""
    entries = {entry.name: entry for entry in store.list()}
    known = {} if store.pattern else beside(store)
    names = sorted(known or (name for name in entries if name.endswith(".tar")))
    if not names:
        seen = ", ".join(sorted(entries)[:5]) or "nothing"
        raise InputError("no shards here", where=store.url, allowed="webdataset shards, *.tar", hint=f"found: {seen}")
    shards, wrong = [], {}
    for name in names:
        entry, row = entries.get(name), known.get(name)
        if entry is None:
            wrong[name] = _noted("missing shard", name)
            continue
        shard = Shard(name=name, size=entry.size, version=entry.version)
        if row and row.size != entry.size:
            said = f"{name}: {entry.size:,} bytes, the manifest says {row.size:,}"
            wrong[f"{name} as pinned"] = _noted("changed shard", said)
        elif row and row.digest:
            shard = msgspec.structs.replace(shard, digest=row.digest)
        elif row and row.sha256:
            shard = msgspec.structs.replace(shard, sha256=row.sha256)
        elif row and row.version not in ("", entry.version):
            wrong[f"{name} as pinned"] = _noted("changed shard", f"{name}: another version than the manifest pins")
        shards.append(shard)
    return shards, wrong


def _noted(kind: str, example: str) -> Seen:
    seen = Seen()
    seen.note(kind, example)
    return seen


def _twice(source: Dataset, shards: list[Shard], by_shard: dict[str, Seen]) -> None:
    """Note the keys that stood in an earlier shard already. Their hashes were kept; for names shards are read again."""
    kept = [by_shard[shard.name].keys for shard in shards]
    hashes = np.concatenate(kept)
    shard_of = np.repeat(np.arange(len(kept), dtype=np.uint32), [len(keys) for keys in kept])
    order = np.argsort(hashes, kind="stable")  # of the same hashes the first shard first
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    for number, count in enumerate(np.bincount(shard_of[order[again + 1]], minlength=len(shards))):
        if count:
            by_shard[shards[number].name].counts["duplicate key"] = int(count)
    for at in again[:EXAMPLES]:
        first, second = (shards[int(shard_of[order[place]])] for place in (at, at + 1))
        key = key_of(source, first, hashes[order[at]].tobytes())
        examples = by_shard[second.name].examples.setdefault("duplicate key", [])
        examples.append(f"{second.name}: {key}, also in {first.name}")


def _findings(total: dict[str, Seen]) -> tuple[Finding, ...]:
    found = []
    for kind in KINDS:
        places = [seen for seen in total.values() if seen.counts[kind]]
        if places:
            examples = [example for seen in places for example in seen.examples.get(kind, ())]
            count = sum(seen.counts[kind] for seen in places)
            found.append(Finding(kind=kind, count=count, shards=len(places), examples=tuple(examples[:EXAMPLES])))
    return tuple(found)


def text_of(report: Report) -> str:
    """The report for people."""
    lines = [
        f"{report.url}: {report.shards:,} shards, {report.bytes / 2**20:,.1f} MiB, {report.samples:,} samples, "
        f"{report.images:,} images, read in {report.seconds:.1f} s"
    ]
    for found in report.findings:
        lines.append(f"{found.count:9,}  {found.kind} in {counted(found.shards, 'shard')}: {KINDS[found.kind]}")
        lines += [f"           {example}" for example in found.examples]
        if found.count > len(found.examples):
            lines.append("           ...")
    if not report.findings:
        lines.append("nothing is wrong")
    return "\n".join(lines)


class Progress:
    """How far it is, on a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        """So many shards of so many."""
        if self._shown:
            send(f"\r{done:,} of {total:,} shards" + ("" if done < total else "\r\033[K"), err=True)


def main() -> int:
    """The exit code."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=errand.Doctor)
    try:
        report = examined(request.source, request.workers or len(os.sched_getaffinity(0)), Progress())
    except ClipaError as error:
        return told(error)
    except KeyboardInterrupt:
        return 130
    say_document("clipa.data-doctor/1", **msgspec.structs.asdict(report)) if request.json else say(text_of(report))
    return int(bool(report.findings))


if __name__ == "__main__":
    sys.exit(main())

"""What `clipa data` says while bytes move, and what its words mean."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import typer

from clipa.cli import show
from clipa.errors import InputError, did_you_mean
from clipa.spec.cluster import Dataset
from clipa.spec.limits import shortened
from clipa.spec.user_paths import expand_user
from clipa.staging import errand
from clipa.staging.cache import Cached, Swept
from clipa.terminal import say, say_document, say_json

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kMGT]?)(i?)B?", re.IGNORECASE)


class Place(NamedTuple):
    """Where staged data go, how many bytes may lie there (0: any number), and what datasets' names mean."""

    cache: Path
    limit: int
    bound: dict[str, Dataset]


def place(cluster_word: str | None) -> Place:
    """What is in force in this folder."""
    from clipa.launch.folders import folders
    from clipa.spec import catalog
    from clipa.spec.load import load_cluster

    settled = catalog.defaults()
    cluster = load_cluster(catalog.find_cluster(cluster_word or settled.cluster))
    _, cache = folders(cluster, settled.run_root)
    return Place(cache, int(cluster.cache_limit_gib * 2**30), catalog.bound(settled, cluster))


def source(
    here: Place, word: str, shards: str, endpoint: str, region: str, profile: str, anonymous: bool, requester_pays: bool
) -> Dataset:
    """The dataset that is meant, with the options that were given.

    Raises:
        InputError: a name that is bound to nothing.
    """
    from clipa.storage.access import reached

    if word in here.bound:
        found = here.bound[word]
    elif "://" in word:
        found = reached(word, here.bound)
    elif "/" in word or Path(word).exists():
        found = Dataset(url=folder(word))
    else:
        raise InputError(
            "neither a URL nor a folder nor the name of a dataset",
            where=word,
            allowed=", ".join(here.bound) or "no dataset is bound here",
            hint=did_you_mean(word, here.bound),
        )
    if shards:
        pattern = shards if shards.endswith(".tar") else f"{shards}.tar"
        found = msgspec.structs.replace(found, url=f"{found.url.rstrip('/')}/{pattern}")
    return msgspec.structs.replace(
        found,
        endpoint=endpoint or found.endpoint,
        region=region or found.region,
        profile=profile or found.profile,
        anonymous=anonymous or found.anonymous,
        requester_pays=requester_pays or found.requester_pays,
    )


def target(here: Place, word: str, source: Dataset) -> Dataset:
    """Where something made of `source` goes: reached as what is bound there is, else as the source is."""
    from clipa.storage.access import reached
    from clipa.storage.options import scheme_of

    if word in here.bound:
        return here.bound[word]
    if "://" not in word:
        return Dataset(url=folder(word))
    if (near := reached(word, here.bound)) != Dataset(url=word):
        return near
    same = scheme_of(word) == scheme_of(source.url)
    return msgspec.structs.replace(source, url=word, anonymous=False) if same else near


def folder(word: str) -> str:
    """An absolute path; empty for none."""
    return str(expand_user(word).absolute()) if word else ""


def staged(word: str, cluster_word: str | None) -> str:
    """The folder that is meant: itself, that of a dataset bound to one, or the one in the cache where what lies at a
    dataset's URL was staged last.

    Raises:
        InputError: a name that is bound to nothing, or a dataset that is not staged here.
    """
    from clipa.staging.cache import listing
    from clipa.storage.pattern import redacted, split

    if "://" not in word and "/" in word:
        return folder(word)
    here = place(cluster_word)
    if word not in here.bound and expand_user(word).is_dir():
        return folder(word)
    meant = source(here, word, "", "", "", "", False, False)
    if "://" not in meant.url or meant.url.startswith("file://"):
        return folder(meant.url.removeprefix("file://"))
    url = redacted(split(meant.url).folder)
    found = [cached for cached in listing(here.cache) if cached.kind == "staged" and cached.url == url]
    if not found:
        raise InputError(
            "it is not in the cache",
            where=url,
            hint=f"clipa data stage {word}; a folder of its own is verified by its path",
        )
    return found[-1].path


def limit(word: str, here: Place) -> int:
    """Bytes from `500GB`, `1.5TiB`, `0`; the cluster profile's limit where nothing is given.

    Raises:
        InputError: not a size, or no limit anywhere.
    """
    if not word:
        if here.limit:
            return here.limit
        raise InputError(
            "how much may stay?",
            where="--limit",
            allowed="500GB, 1.5TiB, 0",
            hint="give --limit, or set cache_limit_gib in the cluster profile",
        )
    match = _SIZE.fullmatch(word.strip())
    if match is None:
        raise InputError(f"{shortened(word)!r} is no size", where="--limit", allowed="500GB, 1.5TiB, 0")
    power = " KMGT".index(match[2].upper() or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


DOCUMENTS: dict[type, str] = {
    errand.Staged: "clipa.data-staged/1",
    errand.Indexed: "clipa.data-indexed/1",
    errand.Verified: "clipa.data-verified/1",
}
"""The event that ends each request, and the document that `--json` makes of it."""


def follow(request: errand.AnyRequest, json: bool, jsonl: bool) -> None:
    """Run a request in a staging process and show its progress.

    Args:
        request: the work.
        json: print the result as one JSON document.
        jsonl: print each event as a line of JSON, as it happens.
    """
    try:
        if not json and not jsonl:
            _watch(request)
            return
        code = 0
        for event in errand.run(request):
            if jsonl:
                say_json({"schema": "clipa.data-event/1", **msgspec.to_builtins(event)})
            elif type(event) in DOCUMENTS:
                say_document(DOCUMENTS[type(event)], **msgspec.structs.asdict(event))
            code = max(code, _code(event))
        raise typer.Exit(code)
    except KeyboardInterrupt:
        show.note("stopped; the same command goes on from here")
        raise typer.Exit(130) from None


def _watch(request: errand.AnyRequest) -> None:
    code = 0
    with contextlib.closing(errand.run(request)) as events, _bar() as bar:
        for event in events:
            match event:
                case errand.Progress():
                    bar.update(event)
                case errand.Found():
                    bar.title = event.url
                case _:
                    bar.stop()
                    say(_sentence(event))
                    code = max(code, _code(event))
    if code:
        raise typer.Exit(code)


def _code(event: errand.AnyEvent) -> int:
    return int(isinstance(event, errand.Verified) and bool(event.wrong or event.missing))


class _Bar:
    """Bytes, rate and time left on a terminal; nothing elsewhere until the end."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        console = show.console(err=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=None)
        self.title = ""

    def update(self, event: errand.Progress) -> None:
        short = self.title if len(self.title) <= 40 else "…" + self.title[-39:]
        self._progress.update(self._task, completed=event.done, total=event.total, description=short)

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()


@contextlib.contextmanager
def _bar() -> Iterator[_Bar]:
    bar = _Bar()
    bar.start()
    try:
        yield bar
    finally:
        bar.stop()


def _sentence(event: errand.AnyEvent) -> str:
    match event:
        case errand.Staged():
            how = ", ".join(f"{count} by {word}" for word, count in sorted(event.verified.items()))
            rate = f", {size(event.fetched_bytes / event.seconds)}/s" if event.fetched_bytes else ""
            return (
                f"{event.folder}\n{event.shards:,} shards, {size(event.bytes)}; fetched {size(event.fetched_bytes)} "
                f"in {event.seconds:.1f} s{rate}" + (f"; verified: {how}" if how else "") + f"\nmanifest {event.digest}"
            )
        case errand.Indexed():
            samples = (
                "samples not known (--scan counts them)" if event.samples is None else f"{event.samples:,} samples"
            )
            return (
                f"{event.manifest}\n{event.shards:,} shards, {size(event.bytes)}, {samples}; {event.scanned:,} scanned"
                f"\nmanifest {event.digest}"
            )
        case errand.Verified():
            lines = [f"{event.right:,} right in {event.seconds:.1f} s"]
            for word, names in (
                ("wrong", event.wrong),
                ("missing", event.missing),
                ("nothing known of", event.unknown),
            ):
                if names:
                    lines.append(
                        f"{word}: {len(names):,}: {', '.join(names[:10])}" + (" ..." if len(names) > 10 else "")
                    )
            if event.wrong or event.missing:
                lines.append("clipa data stage brings them again")
            return "\n".join(lines)
        case _:
            return ""


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def print_listing(found: Sequence[Cached]) -> None:
    """The cache as a table."""
    import time

    from rich.table import Table

    if not found:
        say("the cache is empty")
        return
    table = Table(header_style="bold")
    for title in ("what", "from", "shards", "on disk", "used", "needed by"):
        table.add_column(title, justify="right" if title in ("shards", "on disk", "used") else "left", overflow="fold")
    for cached in found:
        days = (time.time() - cached.used) / 86400
        age = f"{days:.0f} d ago" if days >= 1 else f"{days * 24:.0f} h ago"
        shards = f"{cached.shards:,}" if cached.url or cached.shards else "-"
        table.add_row(
            cached.kind,
            cached.url or "not known",
            shards,
            size(cached.on_disk),
            age,
            ", ".join(cached.pinned_by) or "-",
        )
    show.console().print(table)
    say(f"{size(sum(cached.on_disk for cached in found))} in {Path(found[0].path).parent.parent}")


def print_swept(swept: Swept, dry_run: bool) -> None:
    """What a sweep did, line by line."""
    for cached in swept.removed:
        what = f"streamed by {Path(cached.url).name or 'an older clipa'}" if cached.kind == "streamed" else cached.url
        say(f"{'would remove' if dry_run else 'removed'}  {what}  {size(cached.on_disk)}  {cached.path}")
    for path, why in swept.kept.items():
        say(f"kept  {path}  {why}")
    say(f"{size(swept.left_bytes)} left")

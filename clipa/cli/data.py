"""`clipa data`: datasets."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
import typer

from clipa.cli import words
from clipa.cli.relay import run_module
from clipa.errors import InputError
from clipa.spec.user_paths import expand_user
from clipa.terminal import say_document

app = typer.Typer(
    help="Datasets.", epilog="Example: clipa data stage s3://bucket/shards", no_args_is_help=True, rich_markup_mode=None
)

Url = Annotated[str, typer.Argument(help="A URL, a folder, or a name that clipa.toml or the cluster profile binds.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as a JSON document.")]
JsonLines = Annotated[bool, typer.Option("--jsonl", help="Print each event as a line of JSON.")]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", help="Whose datasets and cache are meant.", autocompletion=words.complete_cluster),
]
Shards = Annotated[str, typer.Option("--shards", metavar="PATTERN", help="Only these: '{00000..00127}', '0001*.tar'.")]
Endpoint = Annotated[str, typer.Option("--endpoint", help="Of an S3 store other than AWS, or of GCS.")]
Region = Annotated[str, typer.Option("--region", help="Of an S3 bucket.")]
Profile = Annotated[str, typer.Option("--profile", help="Whose credentials to use, from ~/.aws.")]
Anonymous = Annotated[bool, typer.Option("--anonymous", help="Without credentials: a public bucket.")]
RequesterPays = Annotated[bool, typer.Option("--requester-pays", help="You pay for the traffic.")]


@app.callback()
def _group() -> None:
    """Datasets."""


@app.command(epilog="Example: clipa data stage s3://bucket/laion --shards '{00000..00127}' --to /scratch/laion")
def stage(
    url: Url,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Where to; clipa's cache if not given.")] = "",
    shards: Shards = "",
    verify: Annotated[bool, typer.Option("--verify", help="Hash again what is there already.")] = False,
    check: Annotated[
        Literal["auto", "size"],
        typer.Option("--check", help="Hold downloads against the cheapest digest there is, or against the size alone."),
    ] = "auto",
    endpoint: Endpoint = "",
    region: Region = "",
    profile: Profile = "",
    anonymous: Anonymous = False,
    requester_pays: RequesterPays = False,
    cluster: Cluster = None,
    json: Json = False,
    jsonl: JsonLines = False,
) -> None:
    """Bring a dataset here, whole or not at all. Interrupted, the same command goes on."""
    from clipa.cli import transfer
    from clipa.staging import errand

    place = transfer.place(cluster)
    source = transfer.source(place, url, shards, endpoint, region, profile, anonymous, requester_pays)
    request = errand.Stage(
        source=source,
        to=transfer.folder(to),
        cache=str(place.cache),
        limit=0 if to else place.limit,
        verify=verify,
        check=check,
    )
    transfer.follow(request, json, jsonl)


@app.command(epilog="Example: clipa data index s3://bucket/laion --scan")
def index(
    url: Url,
    scan: Annotated[
        bool,
        typer.Option("--scan", help="Read the shards whose samples or digests are not known (parallel, resumable)."),
    ] = False,
    endpoint: Endpoint = "",
    region: Region = "",
    profile: Profile = "",
    anonymous: Anonymous = False,
    requester_pays: RequesterPays = False,
    cluster: Cluster = None,
    json: Json = False,
    jsonl: JsonLines = False,
) -> None:
    """Write the manifest beside a dataset: shards, sizes, digests, samples."""
    from clipa.cli import transfer
    from clipa.staging import errand

    place = transfer.place(cluster)
    source = transfer.source(place, url, "", endpoint, region, profile, anonymous, requester_pays)
    transfer.follow(errand.Index(source=source, scan=scan, journal=str(place.cache / "index")), json, jsonl)


@app.command(epilog="Example: clipa data verify /scratch/laion")
def verify(
    what: Annotated[
        str, typer.Argument(help="A folder of shards, or a dataset (its name or URL) that is staged here.")
    ],
    cluster: Cluster = None,
    json: Json = False,
    jsonl: JsonLines = False,
) -> None:
    """Hash every shard in a folder. Exit code 1 when one is wrong or missing."""
    from clipa.cli import transfer
    from clipa.staging import errand

    transfer.follow(errand.Verify(folder=transfer.staged(what, cluster)), json, jsonl)


@app.command(epilog="Example: clipa data ls")
def ls(cluster: Cluster = None, json: Json = False) -> None:
    """What lies in the cache, least recently used first."""
    from clipa.cli import transfer
    from clipa.staging import cache

    found = cache.listing(transfer.place(cluster).cache)
    if json:
        say_document("clipa.cache/1", entries=found)
    else:
        transfer.print_listing(found)


@app.command(epilog="Example: clipa data gc --limit 500GB --dry-run")
def gc(
    limit: Annotated[
        str,
        typer.Option(
            "--limit", metavar="SIZE", help="Keep at most this: 500GB, 1.5TiB, 0. The profile's if not given."
        ),
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    cluster: Cluster = None,
    json: Json = False,
) -> None:
    """Remove the least recently used from the cache, never what a live run needs."""
    from clipa.cli import transfer
    from clipa.staging import cache

    place = transfer.place(cluster)
    swept = cache.sweep(place.cache, transfer.limit(limit, place), dry_run)
    if json:
        say_document("clipa.cache-eviction/1", **msgspec.structs.asdict(swept))
    else:
        transfer.print_swept(swept, dry_run)


Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes; as many as there are cores if not given.")]


@app.command(epilog="Example: clipa data doctor s3://bucket/laion --shards '{00000..00009}'")
def doctor(
    url: Url,
    shards: Shards = "",
    workers: Workers = 0,
    endpoint: Endpoint = "",
    region: Region = "",
    profile: Profile = "",
    anonymous: Anonymous = False,
    requester_pays: RequesterPays = False,
    cluster: Cluster = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Read shards and report bad images, missing captions, twice the same key, broken tars. Exit code 1 when any."""
    from clipa.cli import transfer
    from clipa.staging import errand

    place = transfer.place(cluster)
    source = transfer.source(place, url, shards, endpoint, region, profile, anonymous, requester_pays)
    run_module(
        "clipa.data.doctor", request=errand.Doctor(source=source, workers=workers, json=json), what="reading images"
    )


@app.command(epilog="Example: clipa data shrink s3://bucket/laion s3://bucket/laion-256 --short-side 256")
def shrink(
    url: Url,
    target: Annotated[str, typer.Argument(help="Where to: an empty folder, on a disk or in an object store.")],
    short_side: Annotated[int, typer.Option("--short-side", help="Pixels of an image's shorter side at most.")] = 256,
    quality: Annotated[int, typer.Option("--quality", help="Of the JPEGs and WebPs that are written, 1..100.")] = 95,
    shards: Shards = "",
    workers: Workers = 0,
    endpoint: Endpoint = "",
    region: Region = "",
    profile: Profile = "",
    anonymous: Anonymous = False,
    requester_pays: RequesterPays = False,
    cluster: Cluster = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Write shards anew with smaller images, keys and captions kept. Interrupted, the same command goes on."""
    from clipa.cli import transfer
    from clipa.staging import errand

    place = transfer.place(cluster)
    source = transfer.source(place, url, shards, endpoint, region, profile, anonymous, requester_pays)
    to = transfer.target(place, target, source)
    request = errand.Shrink(
        source=source, target=to, short_side=short_side, quality=quality, workers=workers, json=json
    )
    run_module("clipa.data.shrink", request=request, what="reading images")


class Made(StrEnum):
    """What `clipa data demo` can make."""

    digits = "digits"
    emoji = "emoji"


@app.command(epilog="Example: clipa data demo s3://bucket/digits")
def demo(
    url: Annotated[str, typer.Argument(help="Where to write; a folder or an object store's URL.")],
    of: Annotated[Made, typer.Option(help="Handwritten digits, or emoji and their names.")] = Made.digits,
    json: Annotated[bool, typer.Option("--json", help="Print facts as JSON.")] = False,
) -> None:
    """Write data that clipa makes by itself, as image-text shards."""
    if not url.strip():
        raise InputError("an empty URL", where="URL", hint="clipa data demo . writes here")
    where = url if "://" in url else str(expand_user(url).absolute())
    run_module("clipa.made.demo", where, "--of", of.value, *(["--json"] if json else []), what="making data")

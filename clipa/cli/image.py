"""`clipa image`: build, look at, ship and clear images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from clipa.cli import words
from clipa.spec.counted import counted
from clipa.spec.user_paths import expand_user
from clipa.terminal import say, say_document

if TYPE_CHECKING:
    from clipa.image.engine import Engine, Image

app = typer.Typer(
    help="Images of clipa, for Docker and for clusters.",
    epilog="Example: clipa image build",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Reference = Annotated[
    str, typer.Argument(metavar="IMAGE", help="A tag, digest or id; `latest` is the newest of clipa's.")
]


@app.command(epilog="Example: clipa image build --variant cpu")
def build(
    variant: Annotated[
        Literal["cuda", "cpu"], typer.Option("--variant", help="Which build of torch goes in.")
    ] = "cuda",
    base: Annotated[
        str, typer.Option("--base", metavar="IMAGE", help="The base image; Ubuntu >= 24.04, Debian >= 12.")
    ] = "",
    build_arg: Annotated[
        list[str] | None, typer.Option("--build-arg", metavar="KEY=VALUE", help="A build argument; may be repeated.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", "-t", metavar="NAME", help="Another name for it; may be repeated.")
    ] = None,
    platform: Annotated[
        str, typer.Option("--platform", help="For example linux/arm64; the daemon's own by default.")
    ] = "",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Make every layer anew.")] = False,
    network: Annotated[str, typer.Option("--network", help="The network of the build's steps: host, none.")] = "",
    source: Annotated[
        Path | None, typer.Option("--source", metavar="DIR", help="A checkout of clipa; the one that runs by default.")
    ] = None,
    json: Json = False,
) -> None:
    """Build the image. Its tag follows from what goes in: the same content is the same tag, and is not built again."""
    from clipa.cli import show
    from clipa.cli.building import Watcher
    from clipa.image import build as building
    from clipa.image import context, engine
    from clipa.image.reference import parse_tag

    args = context.build_args(build_arg or [])
    for name in tag or []:
        parse_tag(name)  # before the build, not after it
    docker = engine.connect()
    with Watcher(quiet=json) as watcher:
        request = building.Request(source, variant, base, args, platform, no_cache, network)
        decided = building.plan(docker, request, watcher)
        found = None if no_cache else docker.find(decided.tag)
        made = found or building.act(docker, decided, watcher)
    for name in tag or []:
        docker.tag(made.id, name)
    if found:
        show.note("there already: the same content has the same tag, and was not built again")
    if json:
        say_document("clipa.image/1", image=docker.find(made.id), layers=docker.layers(made.id))
    else:
        say(decided.tag)


@app.command("list", epilog="Example: clipa image list")
def list_(json: Json = False) -> None:
    """The images of clipa that the daemon has, newest first."""
    from rich.table import Table

    from clipa.cli import show
    from clipa.image import engine

    found = engine.connect().images()
    if json:
        say_document("clipa.images/1", images=found)
        return
    if not found:
        show.note("no image of clipa yet. Make one: clipa image build")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("image", "id", "variant", "revision", "created", "MiB"):
        table.add_column(title, justify="right" if title == "MiB" else "left", no_wrap=True)
    for one in found:
        size = f"{one.bytes / 2**20:,.0f}"
        table.add_row(_name(one), one.id[7:19], one.variant, _short(one.revision), one.created[:19], size)
    show.console().print(table)


@app.command(epilog="Example: clipa image inspect latest")
def inspect(image: Reference = "latest", json: Json = False) -> None:
    """What an image is: id, digests, revision, base, and the size of each layer."""
    from clipa.image import engine

    docker = engine.connect()
    found = chosen(docker, image)
    layers = docker.layers(found.id)
    if json:
        say_document("clipa.image/1", image=found, layers=layers)
        return
    say(f"{_name(found)}\n  id        {found.id}")
    for name in found.tags:
        say(f"  tag       {name}")
    for digest in found.digests or ("none yet: it was not pushed",):
        say(f"  digest    {digest}")
    say(f"  revision  {found.revision or '-'}, clipa {found.version or '-'}\n  base      {found.base or '-'}")
    say(f"  {found.platform}, {found.created[:19]}, {found.bytes / 2**20:,.0f} MiB in {len(layers)} layers:")
    for layer in layers:
        say(f"  {layer.bytes / 2**20:8.1f} MiB  {layer.step[:100]}")


@app.command(epilog="Example: clipa image push latest ghcr.io/me/clipa")
def push(
    image: Reference,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Where to: REGISTRY/NAME[:TAG].")],
    json: Json = False,
) -> None:
    """Send an image to a registry. What is printed is the name that never moves: NAME@sha256:..."""
    from clipa.cli.building import Watcher
    from clipa.image import engine, ship

    docker = engine.connect()
    with Watcher(quiet=json) as watcher:
        pinned = ship.push(docker, chosen(docker, image), name, watcher)
    say_document("clipa.image-reference/1", image=pinned) if json else say(pinned)


@app.command(epilog="Example: clipa image export latest /shared/clipa.sif")
def export(
    image: Reference,
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".tar (docker load), .sif (apptainer), .sqsh (pyxis).")],
    json: Json = False,
) -> None:
    """Write an image to one file, once: a file that holds this image already stays."""
    from clipa.cli import show
    from clipa.image import engine
    from clipa.image.export import export as write

    docker = engine.connect()
    record, made = write(docker, chosen(docker, image), expand_user(file).absolute())
    if json:
        say_document("clipa.image-file/1", **msgspec.structs.asdict(record))
        return
    if not made:
        show.note("there already, and whole")
    say(f"{file}  {record.bytes / 2**20:,.0f} MiB  {record.digest}")


@app.command(epilog="Example: clipa image prune --dry-run")
def prune(
    keep: Annotated[int, typer.Option("--keep", min=0, help="So many of the newest stay.")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and stop.")] = False,
    json: Json = False,
) -> None:
    """Remove images that no container uses and no run that may go on has pinned."""
    from clipa.cli import show
    from clipa.image import engine
    from clipa.image.prune import unneeded
    from clipa.launch.pin import pinned_by

    docker = engine.connect()
    scan = words.everything()
    waiting = [scan.facts[s.run].plan for s in scan.statuses if s.state.value != "DONE"]
    found = unneeded(docker.images(), pinned_by(waiting), docker.in_use(), keep)
    for one in found if not dry_run else ():
        for name in one.tags or (one.id,):
            docker.remove(name)
    if json:
        say_document("clipa.images/1", images=found)
        return
    for one in found:
        say(f"{_name(one)}  {one.id[7:19]}  {one.created[:19]}")
    show.note(f"{counted(len(found), 'image')} {'would go' if dry_run else 'removed'}")


def chosen(docker: Engine, word: str) -> Image:
    """The image of this name, or clipa's newest for `latest`."""
    from clipa.errors import InputError

    found = docker.find(word) if word != "latest" else next(iter(docker.images()), None)
    if found is None:
        raise InputError("the daemon has no such image", where=word, hint="clipa image list, or: clipa image build")
    return found


def _name(image: Image) -> str:
    return image.tags[0] if image.tags else image.id[7:19]


def _short(revision: str) -> str:
    return revision[:12] + ("-dirty" if revision.endswith("-dirty") else "")

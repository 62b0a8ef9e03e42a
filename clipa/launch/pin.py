"""Which image a plan runs in, for ever: resolved and checked before anything is queued."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clipa.errors import ConfigError, InputError
from clipa.image import bring, context, reference
from clipa.launch import snapshot
from clipa.registry import local_disk
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec.cluster import Cluster
from clipa.spec.container import Container, Mount, Pinned, parse_mount
from clipa.spec.plan import Plan
from clipa.spec.user_paths import expand_user

if TYPE_CHECKING:
    from clipa.image.engine import Engine, Image
    from clipa.image.file import Exported

_TOOLS = {"docker": "docker", "apptainer": "apptainer", "pyxis": "srun"}
_PATIENCE_S = 5.0
"""For a question that only a note depends on."""
_IMAGES = ".images"
"""The folder of a run root that holds what was brought from registries."""
_SUFFIX = {runtime: suffix for runtime, (suffix, _) in bring.WAYS.items()}

Say = Callable[[str], None]


def silent(_said: str) -> None:
    """For who does not want to hear of it."""


def pin(cluster: Cluster, run_root: Path, cache: Path, say: Say, may_build: bool = False) -> Pinned | None:
    """The image of the profile as it is now; None without a container. `say` is told of what takes minutes.

    Raises:
        InputError: the image is not there, a mount cannot be used, or the runtime is not installed.
    """
    settings = cluster.container
    if settings is None or settings.runtime == "none":
        return None
    where = f"cluster {cluster.name}: container"
    if shutil.which(_TOOLS[settings.runtime]) is None and cluster.backend == "local":
        raise InputError(f"{_TOOLS[settings.runtime]} is not installed here", where=f"{where}.runtime")
    path = expand_user(os.path.expandvars(settings.image))
    if path.suffix in _SUFFIX.values() or path.is_absolute():
        pinned = _of_file(settings, path, where, run_root)
    elif settings.runtime == "docker":
        pinned = _of_engine(cluster, settings, where, run_root, say if may_build else None)
    else:
        pinned = _of_registry(settings, where, run_root, say)
    if cluster.nodes > 1 and pinned.kind == "file" and (disk := local_disk.kind_of(Path(pinned.identity))):
        say(f"{pinned.identity} is on a disk of this machine ({disk}); every node must find it under this path")
    return msgspec.structs.replace(pinned, mounts=_mounts(settings, run_root, cache, where))


def with_data(pinned: Pinned | None, plan: Plan) -> Pinned | None:
    """The pin of one plan: data and weights that lie in folders are mounted too."""
    if pinned is None:
        return None
    urls = [data.source.url for data in (plan.data, *plan.mixed, *(e.data for e in plan.evals.values())) if data]
    urls += [plan.init.ref] if plan.init and not plan.init.is_run else []
    folders = [Path(url.removeprefix("file://")) for url in urls if "://" not in url or url.startswith("file://")]
    have = [mount.source for mount in pinned.mounts]
    extra = [Mount(pinned.code, pinned.code)] if pinned.code else []
    for folder in folders:
        there = next((p for p in (folder, *folder.parents) if p.is_dir()), None)  # a pattern's folder
        if there and not any(str(there) == have_one or str(there).startswith(f"{have_one}/") for have_one in have):
            extra.append(Mount(str(there), str(there)))
            have.append(str(there))
    return msgspec.structs.replace(pinned, mounts=(*pinned.mounts, *extra))


def record(run: RunDir, plan: Plan) -> None:
    """Write provenance/image.json, and the code that goes before the image's own.

    Raises:
        InputError: that code has changed since the plan was made.
    """
    if plan.container is None:
        return
    write_whole(run.provenance / "image.json", msgspec.json.format(msgspec.json.encode(plan.container), indent=2))
    if plan.container.code and str(snapshot.take(Path(plan.run_root))) != plan.container.code:
        raise InputError("clipa's own code has changed while this was submitted", where=plan.container.code,
                         hint="the same command again")  # fmt: skip


def pinned_by(plans: Iterable[Plan]) -> set[str]:
    """The identities of the images that plans pin."""
    return {plan.container.identity for plan in plans if plan.container}


def check(pins: Iterable[Pinned | None]) -> None:
    """Before a later attempt: whether the pinned images can be started.

    Raises:
        InputError: an image is gone, or a file is another one now.
    """
    for pinned in _different(pins):
        _check_file(pinned) if pinned.kind == "file" else _check_engine(pinned)


def moved(pins: Iterable[Pinned | None]) -> list[str]:
    """A note for each tag that means another image now than the one that is pinned."""
    notes = []
    for pinned in _different(pins):
        have = (pinned.source if pinned.kind == "file" else pinned.identity).rpartition("sha256:")[2]
        now = _in_registry_now(pinned) if pinned.kind == "file" else _on_engine_now(pinned)
        if now and have and have not in now:
            notes.append(
                f"{pinned.reference} is {now[0][:12]} now; the run goes on with {have[:12]}, which it has pinned"
            )
    return notes


def _different(pins: Iterable[Pinned | None]) -> list[Pinned]:
    return list({pinned.identity: pinned for pinned in pins if pinned}.values())


def _in_registry_now(pinned: Pinned) -> list[str]:
    """What a registry's tag is now, in hex; nothing where it was no tag, or the registry does not say."""
    if "@" not in pinned.source or "@" in pinned.reference or Path(pinned.reference).suffix in _SUFFIX.values():
        return []
    from clipa.image import registry

    try:
        return [registry.digest_of(reference.parse(pinned.reference), _PATIENCE_S).removeprefix("sha256:")]
    except InputError:
        return []


def _on_engine_now(pinned: Pinned) -> list[str]:
    """What a daemon's name is now, in hex: the image's id, and what registries call it."""
    if pinned.reference == "latest":
        return []
    from clipa.image import engine

    found = engine.connect().find(pinned.reference)
    return [word.rpartition("sha256:")[2] for word in (found.id, *found.digests)] if found else []


def _check_file(pinned: Pinned) -> None:
    if not Path(pinned.identity).is_file():
        raise InputError("the image of the plan is gone", where=pinned.identity)
    from clipa.image.file import file_digest

    if (now := file_digest(Path(pinned.identity))) != pinned.digest:
        raise InputError(f"the image's file is another one now ({now[:19]}, planned {pinned.digest[:19]})",
                         where=pinned.identity, hint="put the old file back, or submit anew")  # fmt: skip


def _check_engine(pinned: Pinned) -> None:
    from clipa.image import engine  # the SDK costs 0.2 s, and most submissions need none

    if engine.connect().find(pinned.identity) is None:
        hint = f"docker pull {pinned.identity}" if pinned.kind == "registry" else "submit anew: it was never pushed"
        raise InputError("the image of the plan is gone from this machine", where=pinned.identity, hint=hint)


def _of_file(settings: Container, path: Path, where: str, run_root: Path) -> Pinned:
    from clipa.image import file

    path = path.absolute()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ConfigError("the image cannot be read", where=f"{where}.image: {path}",
                          hint=f"clipa image export latest {path}")  # fmt: skip
    digest = file.file_digest(path)
    known = file.read(path)
    if known is None or known.digest != digest:
        known = file.Exported(image="", digest=digest, bytes=0)
    return _pinned_file(settings, path, known, run_root)


def _of_registry(settings: Container, where: str, run_root: Path, say: Say) -> Pinned:
    """The registry's image as a file that every node reaches; without a daemon."""
    asked = reference.parse(settings.image)
    if not asked.host:
        # A tag of a daemon, `clipa:mine`, must not become whatever a stranger has put on Docker Hub by that name.
        raise ConfigError(
            f"{settings.runtime} starts a file, and {settings.image} names neither one nor a registry",
            where=f"{where}.image",
            allowed=f"the path of a {_SUFFIX[settings.runtime]}, or REGISTRY/NAME[:TAG][@sha256:...]",
            hint=f"clipa image export {settings.image} FOLDER/image{_SUFFIX[settings.runtime]}, "
            f"or: clipa image push {settings.image} REGISTRY/NAME",
        )
    from clipa.image import registry

    if not asked.digest:
        asked = asked._replace(digest=registry.digest_of(asked))
    file, known = bring.bring(asked, settings.runtime, run_root / _IMAGES, say)
    return _pinned_file(settings, file, known, run_root)


def _pinned_file(settings: Container, path: Path, known: Exported, run_root: Path) -> Pinned:
    return Pinned(
        runtime=settings.runtime,
        reference=settings.image,
        identity=str(path),
        digest=known.digest,
        kind="file",
        source=known.image,
        revision=known.revision,
        code=_code(known.code, run_root),
        settings=settings,
    )


def _code(inside: str, run_root: Path) -> str:
    """The folder of the code that goes before the image's own; empty where that is the very code that runs here."""
    return "" if inside == context.own_code() else str(snapshot.place(run_root))


def _of_engine(cluster: Cluster, settings: Container, where: str, run_root: Path, builds: Say | None) -> Pinned:
    from clipa.image import engine

    # They would stay in the image's history, and in every plan.
    context.build_args([f"{key}={value}" for key, value in settings.build.args.items()], f"{where}.build.args")
    docker = engine.connect()
    found = docker.find(settings.image) if settings.image != "latest" else next(iter(docker.images()), None)
    is_local = cluster.backend == "local"
    if found is None and builds and is_local:
        found = _build(docker, settings, builds)
    if found is None:
        or_build = "   or: clipa submit ... --build" if is_local else ", then: clipa image push"
        raise ConfigError(f"there is no image {settings.image} here", where=f"{where}.image",
                          hint=f"{_command(settings)}{or_build}")  # fmt: skip
    digest = next(iter(found.digests), "")
    if not digest and not is_local:
        raise ConfigError(
            f"the image {settings.image} is on this machine alone, and other nodes cannot start it",
            where=f"{where}.image",
            hint=f"clipa image push {settings.image} REGISTRY/NAME, and name that; or, with apptainer or pyxis: "
            f"clipa image export {settings.image} /shared/clipa.sif (.sqsh)",
        )
    return Pinned(
        runtime="docker",
        reference=settings.image,
        identity=digest or found.id,
        digest=digest.partition("@")[2] or found.id,
        kind="registry" if digest else "id",
        revision=found.revision,
        settings=settings,
        code=_code(found.code, run_root),
    )


def _build(docker: Engine, settings: Container, say: Say) -> Image:
    from clipa.image import build
    from clipa.image.progress import Event, Step

    def watch(event: Event) -> None:
        if isinstance(event, Step):
            say(f"{event.number}/{event.total} {event.text[:120]}")

    if settings.image != "latest":
        reference.parse_tag(settings.image)  # before the build, not after it
    asked = settings.build
    request = build.Request(variant=asked.variant, base=asked.base, args=asked.args, network=asked.network)
    decided = build.plan(docker, request, watch)
    made = docker.find(decided.tag) or build.act(docker, decided, watch)
    if settings.image != "latest":
        docker.tag(made.id, settings.image)
    return made


def _command(settings: Container) -> str:
    if "/" in settings.image or "@" in settings.image:
        return f"docker pull {settings.image}"
    asked = settings.build
    words = ["clipa", "image", "build", "--variant", asked.variant]
    words += ["--base", asked.base] if asked.base else []
    words += ["--network", asked.network] if asked.network else []
    words += [word for key, value in asked.args.items() for word in ("--build-arg", f"{key}={value}")]
    words += ["--tag", settings.image] if settings.image != "latest" else []
    return shlex.join(words)


def _mounts(settings: Container, run_root: Path, cache: Path, where: str) -> tuple[Mount, ...]:
    for folder in (run_root, cache):
        folder.mkdir(parents=True, exist_ok=True)
    found = [Mount(str(run_root), str(run_root), True), Mount(str(cache), str(cache), True)]
    for word in settings.mounts:
        asked = parse_mount(word)
        source, target = (os.path.expanduser(os.path.expandvars(p)) for p in (asked.source, asked.target))
        if not os.access(source, os.R_OK) or (asked.writable and not os.access(source, os.W_OK)):
            how = "written" if os.access(source, os.R_OK) else "read" if os.path.exists(source) else "found"
            raise ConfigError(f"the mount cannot be {how} here: {source}", where=f"{where}.mounts: {word}")
        found.append(Mount(source, target, asked.writable))
    return tuple(found)

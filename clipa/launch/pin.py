"""Which image a plan runs in, for ever: resolved and checked before anything is queued."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from clipa.errors import ConfigError, InputError
from clipa.image import context
from clipa.launch import snapshot
from clipa.registry.run_dir import RunDir, write_whole
from clipa.spec.cluster import Cluster
from clipa.spec.container import Container, Mount, Pinned, parse_mount
from clipa.spec.plan import Plan

if TYPE_CHECKING:
    from clipa.image.engine import Engine, Image
    from clipa.image.progress import Event

_TOOLS = {"docker": "docker", "apptainer": "apptainer", "pyxis": "srun"}
_PUSHED = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")
_IMAGES = ".images"
"""The folder of a run root that holds what was brought from registries."""
_SUFFIX = {"apptainer": ".sif", "pyxis": ".sqsh"}


def pin(cluster: Cluster, run_root: Path, cache: Path, may_build: bool = False) -> Pinned | None:
    """The image of the profile as it is now; None without a container.

    Raises:
        InputError: the image is not there, a mount cannot be used, or the runtime is not installed.
    """
    settings = cluster.container
    if settings is None or settings.runtime == "none":
        return None
    where = f"cluster {cluster.name}: container"
    if shutil.which(_TOOLS[settings.runtime]) is None and cluster.backend == "local":
        raise InputError(f"{_TOOLS[settings.runtime]} is not installed here", where=f"{where}.runtime")
    path = Path(os.path.expandvars(settings.image)).expanduser()
    if path.suffix in _SUFFIX.values() or path.is_absolute():
        pinned = _of_file(settings, path, where, run_root)
    elif settings.runtime == "docker":
        pinned = _of_engine(cluster, settings, where, run_root, may_build)
    elif settings.runtime == "apptainer" and _PUSHED.fullmatch(settings.image):
        pinned = _of_registry(settings, run_root)
    else:
        raise ConfigError(
            f"{settings.runtime} starts a file, and {settings.image} is a name that can move",
            where=f"{where}.image",
            allowed="the path of a .sif (apptainer) or .sqsh (pyxis); for apptainer HOST/NAME@sha256:... too, which "
            "`clipa image push` prints",
            hint=f"clipa image export {settings.image} FOLDER/image{_SUFFIX[settings.runtime]}",
        )
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
    """Write provenance/image.json, and the code that goes before the image's own."""
    if plan.container is None:
        return
    write_whole(run.provenance / "image.json", msgspec.json.format(msgspec.json.encode(plan.container), indent=2))
    if plan.container.code:
        snapshot.take(Path(plan.run_root))


def pinned_by(plans: Iterable[Plan]) -> set[str]:
    """The identities of the images that plans pin."""
    return {plan.container.identity for plan in plans if plan.container}


def check(plans: Sequence[Plan]) -> list[str]:
    """Before an attempt: whether the pinned images can be started, and a note for each tag that has moved since.

    Raises:
        InputError: an image is gone, or a file is another one now.
    """
    notes = {}
    for plan in plans:
        pinned = plan.container
        if pinned is None or pinned.identity in notes:
            continue
        notes[pinned.identity] = _check_file(pinned) if pinned.kind == "file" else _check_engine(pinned)
    return [note for note in notes.values() if note]


def _check_file(pinned: Pinned) -> str:
    if not Path(pinned.identity).is_file():
        raise InputError("the image of the plan is gone", where=pinned.identity)
    from clipa.image import export

    if (now := export.file_digest(Path(pinned.identity))) != pinned.digest:
        raise InputError(f"the image's file is another one now ({now[:19]}, planned {pinned.digest[:19]})",
                         where=pinned.identity, hint="put the old file back, or submit anew")  # fmt: skip
    return ""


def _check_engine(pinned: Pinned) -> str:
    from clipa.image import engine  # the SDK costs 0.2 s, and most submissions need none

    docker = engine.connect()
    if docker.find(pinned.identity) is None:
        hint = f"docker pull {pinned.identity}" if pinned.kind == "registry" else "submit anew: it was never pushed"
        raise InputError("the image of the plan is gone from this machine", where=pinned.identity, hint=hint)
    now = docker.find(pinned.reference) if pinned.reference != "latest" else None
    if now and pinned.kind == "id" and now.id != pinned.identity:
        have, moved = pinned.identity[7:19], now.id[7:19]
        return f"{pinned.reference} is {moved} now; the run goes on with {have}, which it has pinned"
    return ""


def _of_file(settings: Container, path: Path, where: str, run_root: Path) -> Pinned:
    from clipa.image import export

    path = path.absolute()
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ConfigError("the image cannot be read", where=f"{where}.image: {path}",
                          hint=f"clipa image export latest {path}")  # fmt: skip
    digest = export.file_digest(path)
    known = export.read(path)
    if known is None or known.digest != digest:
        known = export.Exported(image="", digest=digest, bytes=0)
    return Pinned(
        runtime=settings.runtime,
        reference=settings.image,
        identity=str(path),
        digest=digest,
        kind="file",
        revision=known.revision,
        code=_code(known.code, run_root),
        settings=settings,
    )


def _of_registry(settings: Container, run_root: Path) -> Pinned:
    """The registry's image as a file that every node reaches; without a daemon."""
    from clipa.image import export

    file, known = export.bring(settings.image, run_root / _IMAGES)
    return Pinned(
        runtime=settings.runtime,
        reference=settings.image,
        identity=str(file),
        digest=known.digest,
        kind="file",
        revision=known.revision,
        code=_code(known.code, run_root),
        settings=settings,
    )


def _code(inside: str, run_root: Path) -> str:
    """The folder of the code that goes before the image's own; empty where that is the very code that runs here."""
    return "" if inside == context.own_code() else str(snapshot.place(run_root))


def _of_engine(cluster: Cluster, settings: Container, where: str, run_root: Path, may_build: bool) -> Pinned:
    from clipa.image import engine

    docker = engine.connect()
    found = docker.find(settings.image) if settings.image != "latest" else next(iter(docker.images()), None)
    if found is None and may_build:
        found = _build(docker, settings)
    if found is None:
        raise ConfigError(f"there is no image {settings.image} here", where=f"{where}.image",
                          hint=f"{_command(settings)}   or: clipa submit ... --build")  # fmt: skip
    digest = next(iter(found.digests), "")
    if not digest and cluster.backend != "local":
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


def _build(docker: Engine, settings: Container) -> Image:
    from clipa.image import build

    asked = settings.build
    request = build.Request(variant=asked.variant, base=asked.base, args=asked.args, network=asked.network)
    decided = build.plan(docker, request, _silent)
    made = docker.find(decided.tag) or build.act(docker, decided, _silent)
    if settings.image != "latest":
        docker.tag(made.id, settings.image)
    return made


def _silent(_event: Event) -> None:
    pass


def _command(settings: Container) -> str:
    if "/" in settings.image or "@" in settings.image:
        return f"docker pull {settings.image}"
    asked = settings.build
    words = ["clipa image build", f"--variant {asked.variant}"]
    words += [f"--base {asked.base}"] if asked.base else []
    words += [f"--network {asked.network}"] if asked.network else []
    words += [f"--build-arg {key}={value}" for key, value in asked.args.items()]
    words += [f"--tag {settings.image}"] if settings.image != "latest" else []
    return " ".join(words)


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

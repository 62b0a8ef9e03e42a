"""In which container the processes of a run work: the `[container]` table of a profile, and what a plan pins."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from clipa.spec.base import Struct, require

Runtime = Literal["none", "docker", "apptainer", "pyxis"]
_SIZE = re.compile(r"[1-9][0-9]*[bkmg]?")
_LIMIT = re.compile(r"-1|[0-9]+(:(-1|[0-9]+))?")
_USER = re.compile(r"[0-9]+(:[0-9]+)?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ImageBuild(Struct, frozen=True, kw_only=True):
    """What `--build` builds: see `clipa image build --help`."""

    variant: Literal["cuda", "cpu"] = "cuda"
    base: str = ""
    network: str = ""
    args: dict[str, str] = {}


class Container(Struct, frozen=True, kw_only=True):
    """The container of every training process. The supervisor, and staging, stay on the host.

    `image`: a tag, `NAME@sha256:...`, `latest` (the newest that `clipa image build` made here), or the path of a .sif
    or .sqsh; with apptainer and pyxis `REGISTRY/NAME[:TAG][@sha256:...]` is brought once, without a daemon. `mounts`:
    `SOURCE[:TARGET][:ro|rw]`, read-only by default; the run root, the cache, and data and weights that lie in folders
    are mounted by themselves, at the same path. `env`: names of variables that are passed through. `shm`: `host`, or a
    size (`8g`). `user`: `me`, `image` (what the image says), or `UID[:GID]`.
    """

    runtime: Runtime = "docker"
    image: str
    mounts: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    workdir: str = "/"
    shm: str = "host"
    ulimits: dict[str, str] = msgspec.field(default_factory=lambda: {"memlock": "-1", "stack": "67108864"})
    user: str = "me"
    python: str = "/opt/clipa/bin/python"
    build: ImageBuild = ImageBuild()

    def __post_init__(self) -> None:
        require(bool(self.image) and not self.image.startswith("-"), "image: a tag, NAME@sha256:..., latest, or a path")
        require(self.shm == "host" or bool(_SIZE.fullmatch(self.shm)), f'shm must be "host" or a size, got {self.shm}')
        require(self.user in ("me", "image") or bool(_USER.fullmatch(self.user)), f"user: {self.user} is no UID[:GID]")
        require(self.workdir.startswith("/"), f"workdir must be an absolute path, got {self.workdir}")
        require(self.python.startswith("/"), f"python must be an absolute path, got {self.python}")
        for name in self.env:
            require(bool(_NAME.fullmatch(name)), f"env: {name!r} is not the name of an environment variable")
        for name, value in self.ulimits.items():
            require(name.isalpha() and bool(_LIMIT.fullmatch(value)), f"ulimits: {name}={value} is no SOFT[:HARD]")
        for word in self.mounts:
            parse_mount(word)


class Mount(msgspec.Struct, frozen=True):
    """A folder or file of the host in the container."""

    source: str
    target: str
    writable: bool = False


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """The image of a plan. Written once, at submission; every attempt starts exactly this.

    Attributes:
        runtime: what starts the container.
        reference: what the profile says; a tag may move.
        identity: what the runtime is given: `NAME@sha256:...`, an image's id, or a path.
        digest: `sha256:...` of the registry's manifest, of the image's configuration, or of the file.
        kind: which of the three the digest is.
        source: what a file was made from, where that is known: `NAME@sha256:...` of a registry, or an image's id.
        revision: git revision that the image was built from, where it says so.
        code: folder of the host that is mounted and goes first on PYTHONPATH; empty: the image's own clipa runs.
        mounts: everything that is mounted.
        settings: the profile's table.
    """

    runtime: Runtime
    reference: str
    identity: str
    digest: str
    kind: Literal["registry", "id", "file"]
    source: str = ""
    revision: str = ""
    code: str = ""
    mounts: tuple[Mount, ...] = ()
    settings: Container


def parse_mount(word: str) -> Mount:
    """`SOURCE[:TARGET][:ro|rw]`.

    Raises:
        ValueError: not that, or a path that a runtime's own syntax cannot say.
    """
    head, _, mode = word.rpartition(":")
    if not head or mode not in ("ro", "rw"):
        head, mode = word, "ro"
    source, _, target = head.partition(":")
    target = target or source
    require(source.startswith(("/", "~", "$")), f"mounts: {word}: the source must be an absolute path")
    require(target.startswith(("/", "~", "$")), f"mounts: {word}: the target must be an absolute path")
    require(not set(':,"\n') & set(source + target), f"mounts: {word}: no colon, comma or quote in a path")
    return Mount(source, target, mode == "rw")

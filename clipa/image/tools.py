"""The tools that write images as files: apptainer (.sif) and enroot (.sqsh, which pyxis starts)."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec

from clipa.errors import LaunchError, MissingPart
from clipa.image.file import Inside
from clipa.image.reference import Reference

_TOOL_S = 2 * 3600
# Level 1 of zstd: 3 to 5 times quicker than gzip for an image of 2 GB, at about the same size.
_QUICK = ("--mksquashfs-args", "-comp zstd -Xcompression-level 1")
_SUPERBLOCK = struct.Struct("<4s36xQ")  # squashfs 4.0: the magic, and at byte 40 how many bytes it uses
_SQUASHFS = b"hsqs"


class _Attributes(msgspec.Struct, frozen=True):
    labels: dict[str, str] = {}


class _Data(msgspec.Struct, frozen=True):
    attributes: _Attributes


class _Inspected(msgspec.Struct, frozen=True):
    """What `apptainer inspect --json` prints."""

    data: _Data


def sif_from_archive(archive: Path, part: Path) -> Inside:
    """Have apptainer write a .sif from what `docker save` writes."""
    return _sif(f"docker-archive:{archive}", part, {})


def sif_from_registry(reference: Reference, part: Path) -> Inside:
    """Have apptainer bring an image from a registry, with its own logins or Docker's."""
    plain = {"APPTAINER_NOHTTPS": "true"} if reference.is_on_this_machine else {}
    return _sif(f"docker://{reference.at(reference.digest)}", part, plain)


def sqsh_from_engine(ident: str, part: Path) -> Inside:
    """Have enroot write an image of the Docker daemon; by its id, which does not move."""
    return _sqsh(f"dockerd://{ident.removeprefix('sha256:')}", part, {})


def sqsh_from_registry(reference: Reference, part: Path) -> Inside:
    """Have enroot bring an image from a registry, with its own logins."""
    plain = {"ENROOT_ALLOW_HTTP": "yes"} if reference.is_on_this_machine else {}
    return _sqsh(enroot_uri(reference), part, plain)


def enroot_uri(reference: Reference) -> str:
    """A pinned image as `enroot import` takes it: `docker://HOST#NAME:sha256:...`.

    The digest stands where a tag does. Enroot 3 knows no `@` there, and hands a tag to the registry as it is; enroot 4
    takes both (src/docker.sh of either).
    """
    host, repository = reference.api
    return f"docker://{host}#{repository}:{reference.digest}"


def require(tool: str) -> None:
    """Whether a tool is here.

    Raises:
        MissingPart: it is not.
    """
    if shutil.which(tool) is None:
        raise MissingPart(f"{tool} is not installed here, and it alone can write this file",
                          hint=f"write the file where {tool} is, often on the nodes, and name its path")  # fmt: skip


def _sif(source: str, part: Path, env: Mapping[str, str]) -> Inside:
    """Apptainer works beside the file: an image may be larger than /tmp."""
    require("apptainer")
    work = part.with_name(f"{part.name}.work")
    work.mkdir(exist_ok=True)
    env = {**env, "APPTAINER_TMPDIR": str(work), "APPTAINER_CACHEDIR": str(work)}
    try:
        quick = _QUICK if "--mksquashfs-args" in _run(["apptainer", "build", "--help"], env) else ()
        _run(["apptainer", "build", "--force", *quick, str(part), source], env)
        said = _run(["apptainer", "inspect", "--json", "--labels", str(part)], env)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _inside(msgspec.json.decode(said, type=_Inspected).data.attributes.labels)


def _sqsh(uri: str, part: Path, env: Mapping[str, str]) -> Inside:
    """Where enroot works and what it keeps is the site's to say (ENROOT_TEMP_PATH, ENROOT_CACHE_PATH)."""
    require("enroot")
    _run(["enroot", "import", "--output", str(part), uri], env)
    with open(part, "rb") as file:
        head = file.read(_SUPERBLOCK.size)
    magic, used = _SUPERBLOCK.unpack(head) if len(head) == _SUPERBLOCK.size else (b"", 0)
    if magic != _SQUASHFS or part.stat().st_size < used:
        raise LaunchError("enroot wrote no whole squashfs", where=uri)
    return _inside(_labels_of_sqsh(part))


def _labels_of_sqsh(part: Path) -> dict[str, str]:
    """Enroot writes an image's labels as comments into its /etc/rc; unsquashfs is there where mksquashfs is, and can
    read one file since 4.5. Nothing where it cannot: then the code of the host goes first.
    """
    if shutil.which("unsquashfs") is None:
        return {}
    done = subprocess.run(
        ["unsquashfs", "-cat", str(part), "etc/rc"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    lines = [line[2:] for line in done.stdout.splitlines() if line.startswith("# ")] if not done.returncode else []
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def _inside(labels: Mapping[str, str]) -> Inside:
    return Inside(
        revision=labels.get("org.opencontainers.image.revision", ""),
        code=labels.get("org.clipa.code", ""),
        content=labels.get("org.clipa.content", ""),
    )


def _run(argv: list[str], env: Mapping[str, str]) -> str:
    """Run a tool; what the user has set in its environment goes before ours."""
    try:
        done = subprocess.run(argv, env={**env, **os.environ}, stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, errors="replace", timeout=_TOOL_S, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{argv[0]} has not ended within {_TOOL_S // 3600} hours", where=" ".join(argv)) from error
    if done.returncode:
        last = "\n  | ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-10:])
        raise LaunchError(f"{argv[0]} failed with code {done.returncode}\n  | {last}", where=" ".join(argv))
    return done.stdout

"""An image as one file, for places without a daemon: once per image under a lock, whole or not at all, verified."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from clipa.errors import ConfigError, LaunchError, MissingPart
from clipa.image.engine import Engine, Image
from clipa.registry.run_dir import write_whole
from clipa.spec.plan import Record

_TOOL_S = 2 * 3600
_SQUASHFS = b"hsqs"
# Level 1 of zstd: 3 to 5 times quicker than gzip for an image of 2 GB, at about the same size.
_QUICK = ("--mksquashfs-args", "-comp zstd -Xcompression-level 1")


class Exported(Record, frozen=True, kw_only=True):
    """What a file was made from, beside it as FILE.json: the image's id, the file's own digest, and the code in it."""

    image: str
    digest: str
    bytes: int
    revision: str = ""
    code: str = ""
    content: str = ""


class _Attributes(msgspec.Struct, frozen=True):
    labels: dict[str, str] = {}


class _Data(msgspec.Struct, frozen=True):
    attributes: _Attributes


class _Inspected(msgspec.Struct, frozen=True):
    """What `apptainer inspect --json` prints."""

    data: _Data


def sidecar(file: Path) -> Path:
    """The record beside an exported file."""
    return file.with_name(f"{file.name}.json")


def read(file: Path) -> Exported | None:
    """The record of an exported file; None where there is none that can be read."""
    try:
        return msgspec.json.decode(sidecar(file).read_bytes(), type=Exported)
    except (OSError, msgspec.MsgspecError):
        return None


def file_digest(path: Path) -> str:
    """`sha256:...` of a file."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def export(engine: Engine, image: Image, target: Path) -> tuple[Exported, bool]:
    """Write an image to a .tar (docker load), .sif (apptainer) or .sqsh (enroot, pyxis).

    Returns:
        Its record, and whether it had to be made: a file that holds this image already stays.

    Raises:
        InputError: another suffix, or the tool is not installed.
        LaunchError: the tool failed, or what it made is not the image.
    """
    way = _WAYS.get(target.suffix)
    if way is None:
        raise ConfigError("no such kind of file", where=str(target), allowed=", ".join(_WAYS))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        known = read(target)
        if known and known.image == image.id and target.is_file() and file_digest(target) == known.digest:
            return known, False
        part = target.with_name(f".{os.getpid()}.part{target.suffix}")
        try:
            way(engine, image, part)
            record = Exported(
                image=image.id,
                digest=file_digest(part),
                bytes=part.stat().st_size,
                revision=image.revision,
                code=image.code,
                content=image.content,
            )
            sidecar(target).unlink(missing_ok=True)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        write_whole(sidecar(target), msgspec.json.format(msgspec.json.encode(record), indent=2))
    return record, True


def bring(reference: str, folder: Path) -> tuple[Path, Exported]:
    """An image of a registry as a .sif in a folder, without a daemon: written once, by whoever comes first.

    Args:
        reference: `HOST/NAME@sha256:...`: a name that never moves.
        folder: where files of this kind lie; every node must reach it.

    Returns:
        The file and its record.

    Raises:
        MissingPart: apptainer is not installed.
        LaunchError: it failed.
    """
    _require("apptainer")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{reference.rpartition('@sha256:')[2]}.sif"
    with _alone(target):
        known = read(target)
        if known and target.is_file() and file_digest(target) == known.digest:
            return target, known
        part = target.with_name(f".{os.getpid()}.part{target.suffix}")
        try:
            labels = _build_sif(f"docker://{reference}", part)
            record = Exported(
                image=reference,
                digest=file_digest(part),
                bytes=part.stat().st_size,
                revision=labels.get("org.opencontainers.image.revision", ""),
                code=labels.get("org.clipa.code", ""),
                content=labels.get("org.clipa.content", ""),
            )
            sidecar(target).unlink(missing_ok=True)
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
        write_whole(sidecar(target), msgspec.json.format(msgspec.json.encode(record), indent=2))
    return target, record


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    with open(target.with_name(f".{target.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tar(engine: Engine, image: Image, part: Path) -> None:
    with open(part, "wb") as file:
        for chunk in engine.save(image):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    with tarfile.open(part) as tar:
        manifest = tar.extractfile("manifest.json")
        (inside,) = msgspec.json.decode(manifest.read() if manifest else b"", type=list[dict[str, object]])
        config = tar.extractfile(str(inside["Config"]))
        found = f"sha256:{hashlib.sha256(config.read() if config else b'').hexdigest()}"
    if found != image.id:
        raise LaunchError(f"the archive holds {found}, not the image", where=str(part))


def _sif(engine: Engine, image: Image, part: Path) -> None:
    _require("apptainer")
    archive = part.with_suffix(".docker.tar")
    try:
        _tar(engine, image, archive)
        labels = _build_sif(f"docker-archive:{archive}", part)
    finally:
        archive.unlink(missing_ok=True)
    if image.content not in labels.values():
        raise LaunchError("the file does not have the image's labels", where=str(part))


def _build_sif(source: str, part: Path) -> dict[str, str]:
    """Have apptainer write a .sif, beside which it works; the labels in it."""
    work = part.with_suffix(".work")
    work.mkdir(exist_ok=True)
    env = {**os.environ, "APPTAINER_TMPDIR": str(work), "APPTAINER_CACHEDIR": str(work)}
    try:
        quick = _QUICK if "--mksquashfs-args" in _run(["apptainer", "build", "--help"], env) else ()
        _run(["apptainer", "build", "--force", *quick, str(part), source], env)
        said = _run(["apptainer", "inspect", "--json", "--labels", str(part)], env)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return msgspec.json.decode(said, type=_Inspected).data.attributes.labels


def _sqsh(_engine: Engine, image: Image, part: Path) -> None:
    _require("enroot")
    _run(
        ["enroot", "import", "--output", str(part), f"dockerd://{image.tags[0] if image.tags else image.id}"],
        os.environ,
    )
    with open(part, "rb") as file:
        if file.read(4) != _SQUASHFS:
            raise LaunchError("enroot wrote no squashfs", where=str(part))


_WAYS: Mapping[str, Callable[[Engine, Image, Path], None]] = {".tar": _tar, ".sif": _sif, ".sqsh": _sqsh}


def _require(tool: str) -> None:
    if shutil.which(tool) is None:
        raise MissingPart(f"{tool} is not installed here, and it alone can write this file",
                          hint="export a .tar here, and convert it where the tool is")  # fmt: skip


def _run(argv: list[str], env: Mapping[str, str]) -> str:
    done = subprocess.run(
        argv, env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TOOL_S, check=False
    )
    if done.returncode:
        last = "\n  | ".join(done.stderr.strip().splitlines()[-10:])
        raise LaunchError(f"{argv[0]} failed with code {done.returncode}\n  | {last}", where=" ".join(argv))
    return done.stdout

"""An image of the daemon as one file, for places without one."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from clipa.errors import ConfigError, LaunchError
from clipa.image import tools
from clipa.image.engine import Engine, Image
from clipa.image.file import Exported, Inside, once


def export(engine: Engine, image: Image, target: Path) -> tuple[Exported, bool]:
    """Write an image to a .tar (docker load), .sif (apptainer) or .sqsh (enroot, pyxis).

    Returns:
        Its record, and whether it had to be made: a file that holds this image already stays.

    Raises:
        InputError: another suffix, the tool is not installed, or the folder cannot be written.
        WorkError: the tool failed, the disk is full, or what was made is not the image.
    """
    way = _WAYS.get(target.suffix)
    if way is None:
        raise ConfigError("no such kind of file", where=str(target), allowed=", ".join(_WAYS))

    def make(part: Path) -> Inside:
        way(engine, image, part)
        return Inside(image.revision, image.code, image.content)

    return once(target, image.id, lambda known: known == image.id, make)


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
    tools.require("apptainer")
    archive = part.with_name(f"{part.name}.docker.tar")
    try:
        _tar(engine, image, archive)
        inside = tools.sif_from_archive(archive, part)
    finally:
        archive.unlink(missing_ok=True)
    if image.content != inside.content:
        raise LaunchError("the file does not have the image's labels", where=str(part))


def _sqsh(_engine: Engine, image: Image, part: Path) -> None:
    inside = tools.sqsh_from_engine(image.id, part)
    if inside.content and image.content != inside.content:
        raise LaunchError("the file does not have the image's labels", where=str(part))


_WAYS: Mapping[str, Callable[[Engine, Image, Path], None]] = {".tar": _tar, ".sif": _sif, ".sqsh": _sqsh}

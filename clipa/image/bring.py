"""An image of a registry as one file, without a daemon: by its digest, written once by whoever comes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from clipa.image import tools
from clipa.image.file import Exported, Inside, once
from clipa.image.reference import Reference

WAYS: Mapping[str, tuple[str, Callable[[Reference, Path], Inside]]] = {
    "apptainer": (".sif", tools.sif_from_registry),
    "pyxis": (".sqsh", tools.sqsh_from_registry),
}
"""Runtime -> the suffix of what it starts, and how that is made."""


def bring(
    reference: Reference, runtime: str, folder: Path, say: Callable[[str], None]
) -> tuple[Path, Exported]:  # fmt: skip
    """The file of an image for a runtime of `WAYS`.

    Args:
        reference: an image with its digest.
        runtime: which kind of file.
        folder: where files of this kind lie; every node must reach it.
        say: is told before the tool starts, which takes minutes.

    Returns:
        The file and its record.

    Raises:
        MissingPart: the tool is not installed.
        ConfigError: the folder cannot be written.
        WorkError: the tool failed, or the disk is full.
    """
    suffix, way = WAYS[runtime]
    target = folder / f"{reference.digest.removeprefix('sha256:')}{suffix}"
    image = reference.at(reference.digest)

    def make(part: Path) -> Inside:
        say(f"bringing {image} into {target}, once; this takes minutes")
        return way(reference, part)

    # The digest says it all: what came by another name, from a mirror, is the same, and runs may have pinned that file.
    record, _ = once(target, image, lambda known: known.endswith(f"@{reference.digest}"), make)
    return target, record

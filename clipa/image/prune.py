"""Pure: which images nobody needs any more."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from clipa.image.engine import Image


def unneeded(images: Sequence[Image], pinned: Collection[str], in_use: Collection[str], keep: int) -> list[Image]:
    """The images to remove, oldest first.

    Args:
        images: those that `clipa image build` made, newest first.
        pinned: identities in the plans of runs that may go on: ids or `NAME@sha256:...`.
        in_use: ids of images that a container was made from.
        keep: so many of the newest stay in any case.
    """

    def is_needed(image: Image) -> bool:
        return image.id in in_use or bool({image.id, *image.digests} & set(pinned))

    return [image for image in reversed(images[keep:]) if not is_needed(image)]

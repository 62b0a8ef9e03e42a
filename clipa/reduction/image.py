"""Image reductions: with how many pixels an image enters. `resize` makes it smaller and keeps every patch of it."""

from __future__ import annotations

from clipa.spec.inputs import ImageInput


def decoded_size(image: ImageInput) -> int:
    """Side in pixels at which the decoder must deliver an image, so that the reduction can do its work.

    `resize` delivers the reduced image itself: the tokens that follow are `clipa.spec.tokens.kept_tokens`.
    """
    return image.size

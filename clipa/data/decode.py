"""Bytes to pixels: uint8, sRGB as stored. The one door to simplejpeg and to Pillow's decoders.

JPEG is decoded at the smallest DCT scale (1, 1/2, 1/4, 1/8) that still has a source pixel for every pixel wanted, and
down to the crop's last row: less work in the decoder and in the resize. Resizing is antialiased, like Pillow's.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import TypeAlias

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from clipa.data.crop import Box, Cut, random_box, scaled_cut
from clipa.data.jpeg import ending_at
from clipa.errors import DataError
from clipa.reduction.draws import Draws
from clipa.spec.family import Interpolation
from clipa.spec.inputs import ImageInput
from clipa.spec.job import Resize

Pixels: TypeAlias = NDArray[np.uint8]

MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is decoded (300 MB); beyond are maps, scans and decompression bombs."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What Pillow may try: a member called .jpg is often something else, and rare formats are attack surface."""

_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode_train(data: bytes, image: ImageInput, draws: Draws, out: Pixels, where: str) -> None:
    """A random resized crop into `out`, uint8 [size, size, 3].

    Raises:
        DataError: broken, truncated, too large or unknown image; `where` names the sample.
    """
    fit(crop_train(data, image, len(out), draws, where), image, out)


def crop_train(data: bytes, image: ImageInput, size: int, draws: Draws, where: str) -> Pixels:
    """A random crop, uint8 [h, w, 3]; a JPEG's at the smallest DCT scale that leaves `size` pixels a side.

    It is a view of memory that this thread's next call writes over.

    Raises:
        DataError: as `decode_train`.
    """

    def cut_of(height: int, width: int) -> Cut:
        box = random_box(height, width, image, draws)
        return Cut(box, 1) if image.decode == "exact" else scaled_cut(box, height, width, size)

    pixels, box = _decode(data, cut_of, where, reuse=True)
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def fit(pixels: Pixels, image: ImageInput, out: Pixels) -> None:
    """Antialiased resize of [h, w, 3] into `out` [size, size, 3]: by torch, or for `exact` by Pillow."""
    if pixels.shape == out.shape:
        out[...] = pixels
    elif image.decode == "exact":
        out[...] = _resized_by_pillow(pixels, len(out), len(out), image.interpolation)
    else:
        _resize_into(pixels, image.interpolation, out)


class HugeImage(DataError):
    """An image of more than MAX_PIXELS, or of none."""


def check_image(data: bytes, where: str) -> tuple[int, int]:
    """(height, width) of an image that training could decode; every bit of it is read, at the smallest DCT scale.

    Raises:
        HugeImage: too large.
        DataError: broken, truncated or unknown.
    """
    size = (0, 0)

    def cut_of(height: int, width: int) -> Cut:
        nonlocal size
        size = height, width
        return Cut(Box(0, 0, height, width), 8)

    _decode(data, cut_of, where)
    return size


def shrink_image(data: bytes, short_side: int, quality: int, where: str) -> bytes:
    """An image whose shorter side has `short_side` pixels; the very bytes where that is no gain.

    That is where it is as small already, or would not have fewer bytes. JPEG and WebP stay what they are, at that
    quality (JPEG with halved colours, 4:2:0); all else becomes PNG. As everywhere here, EXIF and profiles are not
    looked at, and go.

    Raises:
        DataError: broken, truncated, too large or unknown image.
    """
    height, width = 0, 0

    def cut_of(found_height: int, found_width: int) -> Cut:
        nonlocal height, width
        height, width = found_height, found_width
        return scaled_cut(Box(0, 0, height, width), height, width, short_side)

    pixels, box = _decode(data, cut_of, where)
    short = min(height, width)
    if short <= short_side:
        return data
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    smaller = resized(part, round(short_side * height / short), round(short_side * width / short))
    encoded = _encoded(smaller, data, quality)
    return encoded if len(encoded) < len(data) else data


def _encoded(pixels: Pixels, like: bytes, quality: int) -> bytes:
    if like[:2] == b"\xff\xd8":
        return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420"))
    buffer = BytesIO()
    webp = like[:4] == b"RIFF" and like[8:12] == b"WEBP"
    Image.fromarray(pixels).save(buffer, "WEBP" if webp else "PNG", **({"quality": quality} if webp else {}))
    return buffer.getvalue()


def decode_eval(
    data: bytes, size: int, where: str, resize: Resize = "shorter", interpolation: Interpolation = "bicubic"
) -> Pixels:
    """A whole image as a square, uint8 [size, size, 3]: the very pixels of open_clip's and CLIP_benchmark's transforms.

    `shorter`: the shorter side resized to `size`, then the centre; `squash`: both sides resized. Decoded in full and
    resized by Pillow: torch's quicker resize differs by one level in some pixels, and a score must be anybody's score.

    Raises:
        DataError: broken, truncated, too large or unknown image; `where` names the sample.
    """
    pixels, _ = _decode(data, lambda height, width: Cut(Box(0, 0, height, width), 1), where)
    height, width = pixels.shape[:2]
    short = min(height, width)
    new_height, new_width = size * height // short, size * width // short
    if resize == "squash":
        return _resized_by_pillow(pixels, size, size, interpolation)
    if max(new_height, new_width) > 16 * size:
        # A strip: cut the middle out first, or the resized whole would be huge.
        top, left = (height - short) // 2, (width - short) // 2
        return _resized_by_pillow(pixels[top : top + short, left : left + short], size, size, interpolation)
    resized = _resized_by_pillow(pixels, new_height, new_width, interpolation)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


def _resized_by_pillow(pixels: Pixels, height: int, width: int, interpolation: Interpolation) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(picture.resize((width, height), _PILLOW[interpolation]))


def _decode(data: bytes, cut_of: Callable[[int, int], Cut], where: str, reuse: bool = False) -> tuple[Pixels, Box]:
    """Decode at the scale that the cut asks for; the box comes back in pixels of what was decoded."""
    if data[:2] == b"\xff\xd8":
        scaled = _decode_jpeg(data, cut_of, where, reuse)
        if scaled is not None:
            return scaled
    pixels = _decode_any(data, where)
    height, width = pixels.shape[:2]
    return pixels, cut_of(height, width).box


class _Memory(threading.local):
    """Where a thread decodes to: a fresh array of 512 x 384 pixels costs 10 % more, in page faults."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def of(self, size: int) -> bytearray | None:
        """Room for so many bytes; None where it is not worth keeping so much."""
        if size > _KEPT:
            return None
        if len(self._bytes) < size:
            self._bytes = bytearray(size)
        return self._bytes


_KEPT = 8 << 20
_MEMORY = _Memory()


def _decode_jpeg(data: bytes, cut_of: Callable[[int, int], Cut], where: str, reuse: bool) -> tuple[Pixels, Box] | None:
    """None where simplejpeg can't (CMYK, recoverable faults): Pillow then decides."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        _require_size(height, width, where)
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        cut = cut_of(height, width)
        box, d = cut.box, cut.denominator
        short = ending_at(data, box.top + box.height + d)
        if short is not None:
            data, height = short
        rows, columns = -(-height // d), -(-width // d)
        memory = _MEMORY.of(3 * rows * columns) if reuse else None
        scaled: Pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=rows, min_width=columns, buffer=memory, strict=short is None
        )
    except ValueError:
        return None
    if scaled.shape[:2] != (rows, columns):
        return None
    return scaled, Box(box.top // d, box.left // d, box.height // d, box.width // d)


def _decode_any(data: bytes, where: str) -> Pixels:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(BytesIO(data), formats=_FORMATS)
        with picture:
            _require_size(picture.height, picture.width, where)
            return _rgb(picture)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise HugeImage("the image is too large", where=where, allowed=f"{MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        raise DataError(f"the image cannot be decoded ({type(error).__name__}: {error})", where=where) from error


def _rgb(picture: Image.Image) -> Pixels:
    if picture.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        grey = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))


def _require_size(height: int, width: int, where: str) -> None:
    if height * width > MAX_PIXELS or height < 1 or width < 1:
        raise HugeImage(f"the image is {width}x{height} pixels", where=where, allowed=f"1 to {MAX_PIXELS} pixels")


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Antialiased bicubic resize of [h, w, 3] to [height, width, 3]. torch's uint8 path: twice as fast as Pillow's."""
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    out = np.empty((height, width, 3), dtype=np.uint8)
    _resize_into(pixels, "bicubic", out)
    return out


_RESIZE = {
    "bicubic": torch._C._nn._upsample_bicubic2d_aa,
    "bilinear": torch._C._nn._upsample_bilinear2d_aa,
}
"""What `torch.nn.functional.interpolate(antialias=True)` calls. That one has no `out`, and gives planes whatever it
gets: at 224 px 260 us instead of 185."""


def _resize_into(pixels: Pixels, interpolation: Interpolation, out: Pixels) -> None:
    _RESIZE[interpolation](_planes(np.ascontiguousarray(pixels)), out.shape[:2], False, out=_planes(out))  # type: ignore[call-arg]


def _planes(pixels: Pixels) -> torch.Tensor:
    """[h, w, 3] as [1, 3, h, w], over the same memory."""
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None])

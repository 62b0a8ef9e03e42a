"""Bytes to pixels: uint8, sRGB as stored. The one door to simplejpeg and to Pillow's decoders.

JPEG is decoded at the smallest DCT scale (1, 1/2, 1/4, 1/8) that still has a source pixel for every pixel wanted:
less work in the decoder and in the resize. A crop's edges are snapped to multiples of the denominator, or the scaled
image would be shifted against the unscaled one (31 dB instead of 42). Resizing is antialiased bicubic, like Pillow's.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

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

_TRIES = 10
_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Cut:
    """How an image becomes a square: decode at 1/`denominator`, cut `box` (in pixels of the full image), resize."""

    box: Box
    denominator: int


def random_box(height: int, width: int, image: ImageInput, draws: Draws) -> Box:
    """The random resized crop of torchvision (`RandomResizedCrop.get_params`), for an image of height x width."""
    low, high = math.log(image.crop_ratio[0]), math.log(image.crop_ratio[1])
    for _ in range(_TRIES):
        area = height * width * draws.uniform(*image.crop_area)
        ratio = math.exp(draws.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(draws.integer(height - h + 1), draws.integer(width - w + 1), h, w)
    return _central(height, width, image.crop_ratio)


def _central(height: int, width: int, ratio: tuple[float, float]) -> Box:
    found = width / height
    if found < ratio[0]:
        w, h = width, min(height, max(1, round(width / ratio[0])))
    elif found > ratio[1]:
        w, h = min(width, max(1, round(height * ratio[1]))), height
    else:
        w, h = width, height
    return Box((height - h) // 2, (width - w) // 2, h, w)


def scaled_cut(box: Box, height: int, width: int, size: int) -> Cut:
    """The largest denominator that leaves the box >= `size` pixels a side, and the box snapped to it.

    Edges move by at most half a denominator (at the image's last, incomplete block by less than one): half a pixel
    of the result. `height` and `width` are the image's.
    """
    for d in (8, 4, 2):
        top, left = round(box.top / d), round(box.left / d)
        rows = min(round((box.top + box.height) / d), height // d) - top
        columns = min(round((box.left + box.width) / d), width // d) - left
        if rows >= size and columns >= size:
            return Cut(Box(top * d, left * d, rows * d, columns * d), d)
    return Cut(box, 1)


def _edges(box: Box) -> tuple[int, int, int, int]:
    return box.top, box.left, box.height, box.width


def decode_train(data: bytes, image: ImageInput, size: int, draws: Draws, where: str) -> Pixels:
    """A random resized crop, uint8 [3, size, size].

    Raises:
        DataError: broken, truncated, too large or unknown image; `where` names the sample.
    """
    return planes(crop_train(data, image, size, draws, where), size)


def crop_train(data: bytes, image: ImageInput, size: int, draws: Draws, where: str) -> Pixels:
    """A random crop at the smallest DCT scale that leaves `size` pixels a side: uint8 [h, w, 3].

    It is a view of memory that this thread's next call writes over.

    Raises:
        DataError: as `decode_train`.
    """

    def cut_of(height: int, width: int) -> Cut:
        return scaled_cut(random_box(height, width, image, draws), height, width, size)

    pixels, box = _decode(data, cut_of, where, reuse=True)
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def planes(pixels: Pixels, size: int) -> Pixels:
    """Antialiased bicubic resize of [h, w, 3] to [3, size, size].

    torch gives planes whatever it gets; to have them as pixels again takes as long as half of the resize.
    """
    if pixels.shape[:2] == (size, size):
        return np.array(pixels.transpose(2, 0, 1), order="C")  # a copy: see crop_train
    return _interpolated(pixels, size, size)[0].numpy()


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
        rows, columns = -(-height // cut.denominator), -(-width // cut.denominator)
        memory = _MEMORY.of(3 * rows * columns) if reuse else None
        scaled: Pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns, buffer=memory)
    except ValueError:
        return None
    if scaled.shape[:2] != (rows, columns):
        return None
    box = Box(*(edge // cut.denominator for edge in _edges(cut.box)))
    return scaled, box


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
    return np.ascontiguousarray(_interpolated(pixels, height, width)[0].permute(1, 2, 0).numpy())


def _interpolated(pixels: Pixels, height: int, width: int) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(tensor, size=(height, width), mode="bicubic", antialias=True)

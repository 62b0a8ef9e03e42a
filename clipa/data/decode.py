"""Encoded images to uint8 squares, on the CPU. JPEGs are decoded at the smallest DCT scale that the output needs."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from clipa.errors import DataError
from clipa.spec.job import ImageInput

MOST_PIXELS = 100_000_000
_TRIES = 10  # as torchvision.transforms.RandomResizedCrop
Box = tuple[float, float, float, float]


def random_crop(width: int, height: int, image: ImageInput, chance: np.random.Generator) -> Box:
    """A random resized crop as (left, top, right, bottom): torchvision's rule, with its centre crop as the last resort."""
    area = width * height
    low, high = np.log(image.crop_ratio[0]), np.log(image.crop_ratio[1])
    for _ in range(_TRIES):
        target = area * chance.uniform(*image.crop_area)
        ratio = math.exp(chance.uniform(low, high))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(chance.integers(0, height - h + 1)), int(chance.integers(0, width - w + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, image.crop_ratio[0]), image.crop_ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + max(1, w), top + max(1, h)


def centre_crop(width: int, height: int) -> Box:
    """The largest centred square: resizing it equals resizing the shorter side and cutting the centre."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def train_image(data: bytes, image: ImageInput, chance: np.random.Generator, where: str) -> np.ndarray:
    """A training image: random resized crop to `image.size`, uint8 [size, size, 3].

    Raises:
        DataError: the bytes are no image that can be used.
    """
    width, height = _dimensions(data, where)
    return _cut(data, (width, height), random_crop(width, height, image, chance), image.size, where)


def eval_image(data: bytes, size: int, where: str) -> np.ndarray:
    """An evaluation image: shorter side to `size`, centre crop, uint8 [size, size, 3].

    Raises:
        DataError: the bytes are no image that can be used.
    """
    width, height = _dimensions(data, where)
    return _cut(data, (width, height), centre_crop(width, height), size, where)


def _open(data: bytes, where: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"not an image: {error}", where=where) from error


def _dimensions(data: bytes, where: str) -> tuple[int, int]:
    width, height = _open(data, where).size
    if width * height > MOST_PIXELS or min(width, height) < 1:
        raise DataError(f"an image of {width} x {height} pixels", where=where, allowed=f"1..{MOST_PIXELS:,} pixels")
    return width, height


def _cut(data: bytes, whole: tuple[int, int], box: Box, size: int, where: str) -> np.ndarray:
    try:
        image = _pixels(data, whole, box, size)
        scale = (image.width / whole[0], image.height / whole[1])
        scaled = (
            max(0.0, box[0] * scale[0]),
            max(0.0, box[1] * scale[1]),
            min(float(image.width), box[2] * scale[0]),
            min(float(image.height), box[3] * scale[1]),
        )
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=scaled))
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be decoded: {error}", where=where) from error


def _pixels(data: bytes, whole: tuple[int, int], box: Box, size: int) -> Image.Image:
    if data[:2] == b"\xff\xd8":
        # libjpeg may scale down while decoding as long as the crop keeps at least the pixels of the output.
        need = size / min(box[2] - box[0], box[3] - box[1])
        factor = min(1.0, need)
        try:
            array = simplejpeg.decode_jpeg(
                data, colorspace="RGB", min_width=max(1, round(whole[0] * factor)), min_height=max(1, round(whole[1] * factor)),
                min_factor=1,
            )  # fmt: skip
            return Image.fromarray(array)
        except ValueError:
            pass  # CMYK and the like: Pillow knows them
    image = Image.open(io.BytesIO(data))
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values.clip(0, top) * (255.0 / top)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")

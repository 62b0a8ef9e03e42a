import io
import math
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipa.data.crop import Box, random_box, scaled_cut
from clipa.data.decode import Pixels, decode_eval, decode_train
from clipa.data.jpeg import ending_at
from clipa.errors import DataError
from clipa.reduction.draws import Draws, Purpose
from clipa.spec.inputs import ImageInput

SETTINGS = ImageInput(size=32)
FLOOR = 40.0
"""dB; 42.6 was the lowest measured with DCT scaling, a crop that is not snapped falls to about 30."""


def scene(width: int, height: int) -> Image.Image:
    """Smooth shapes and some texture, as a photo has."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [
        128 + 60 * np.sin(x / 23 + c) + 40 * np.cos(y / 17 - c) + 15 * np.sin((x + y) / 5 + c) for c in range(3)
    ]
    channels[0][height // 4 : height // 2, width // 4 : width // 2] += 60
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


def draws(position: int) -> Draws:
    return Draws(3, position, Purpose.CROP)


def trained(data: bytes, size: int, position: int = 0, image: ImageInput = SETTINGS, where: str = "key") -> Pixels:
    pixels = np.full((size, size, 3), 77, dtype=np.uint8)
    decode_train(data, image, draws(position), pixels, where)
    return pixels


def by_pillow(data: bytes, position: int, size: int, snapped: bool = True, how: str = "bicubic") -> np.ndarray:
    """The same crop, decoded in full and resized by Pillow."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    box = random_box(picture.height, picture.width, SETTINGS, draws(position))
    box = scaled_cut(box, picture.height, picture.width, size).box if snapped else box
    crop = picture.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.asarray(crop.resize((size, size), Image.Resampling[how.upper()]))


@pytest.mark.parametrize("size", [16, 32, 64, 112, 224])
@pytest.mark.parametrize("shape", [(512, 384), (375, 500), (501, 333)])
@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
def test_train_pixels_are_nearly_those_of_pillow(size: int, shape: tuple[int, int], how: str) -> None:
    data, image = encoded(scene(*shape), quality=95), msgspec.structs.replace(SETTINGS, interpolation=how)
    for position in range(8):
        assert psnr(trained(data, size, position, image), by_pillow(data, position, size, how=how)) > FLOOR


@pytest.mark.parametrize("how", ["bicubic", "bilinear"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exact_train_pixels_are_the_very_ones_of_pillow(how: str, kind: str) -> None:
    data, image = encoded(scene(375, 500), kind), msgspec.structs.replace(SETTINGS, interpolation=how, decode="exact")
    for position in range(8):
        for size in (16, 112, 400):
            expected = by_pillow(data, position, size, snapped=False, how=how)
            assert np.array_equal(trained(data, size, position, image), expected)


JPEGS = {
    "plain": {}, "whole colours": {"subsampling": 0}, "4:2:2": {"subsampling": 1}, "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1}, "tables after data": {"optimize": True}, "comment": {"comment": b"x" * 900},
}  # fmt: skip


@pytest.mark.parametrize("kind", [*JPEGS, "grey"])
def test_rows_down_to_the_crop_are_those_of_the_whole_jpeg(kind: str) -> None:
    picture = scene(203, 147)
    whole = encoded(picture.convert("L") if kind == "grey" else picture, quality=90, **JPEGS.get(kind, {}))
    for d in (1, 2, 4, 8):
        least = {"min_height": -(-147 // d), "min_width": -(-203 // d)} if d > 1 else {}
        expected = simplejpeg.decode_jpeg(whole, "RGB", **least)
        for bottom in range(1, 148):
            short = ending_at(whole, bottom + d)
            if short is None:
                assert bottom + d > 147 - 16
                continue
            data, rows = short
            least = {"min_height": -(-rows // d), "min_width": -(-203 // d)} if d > 1 else {}
            found = simplejpeg.decode_jpeg(data, "RGB", strict=False, **least)
            assert found.shape[0] == -(-rows // d) < expected.shape[0]
            assert np.array_equal(found[: -(-bottom // d)], expected[: -(-bottom // d)])


def test_a_jpeg_is_read_no_further_than_its_crop() -> None:
    data = encoded(scene(400, 400), quality=90)
    top = msgspec.structs.replace(SETTINGS, crop_area=(0.2, 0.3))
    at, box = next((n, box) for n in range(99) if (box := random_box(400, 400, top, draws(n))).top + box.height < 220)
    place = int(0.8 * len(data))
    spoilt = data[:place] + bytes(byte ^ 1 for byte in data[place:-300]) + data[-300:]
    assert np.array_equal(trained(spoilt, 32, at, top), trained(data, 32, at, top)), box
    with pytest.raises(DataError):  # nothing says what a file without an end has lost
        trained(data[:place], 32, at, top)


@given(st.binary(max_size=60), st.integers(0, 700), st.integers(1, 300))
def test_a_header_that_is_none_is_left_alone(noise: bytes, place: int, rows: int) -> None:
    short = ending_at(WHOLE[:place] + noise + WHOLE[place + len(noise) :], rows)
    if short is not None:
        assert len(short[0]) == len(WHOLE) or len(noise) + place > len(WHOLE)
        assert short[1] >= rows


@pytest.mark.parametrize("size", [16, 64, 224])
@pytest.mark.parametrize("shape", [(512, 384), (375, 500), (64, 64), (30, 200)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_eval_pixels_are_those_of_pillow(size: int, shape: tuple[int, int], interpolation: str, kind: str) -> None:
    data = encoded(scene(*shape), kind, quality=95)
    how = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(picture.size)
    width, height = size * picture.width // short, size * picture.height // short
    left, top = round((width - size) / 2), round((height - size) / 2)
    expected = picture.resize((width, height), how).crop((left, top, left + size, top + size))
    assert np.array_equal(decode_eval(data, size, "key", interpolation=interpolation), np.asarray(expected))  # type: ignore[arg-type]
    squashed = decode_eval(data, size, "key", "squash", interpolation)  # type: ignore[arg-type]
    assert np.array_equal(squashed, np.asarray(picture.resize((size, size), how)))


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.floats(0.01, 1.0),
    st.tuples(st.floats(0.05, 1.0), st.floats(1.0, 20.0)),
    st.integers(0, 10**9),
    st.sampled_from([16, 32, 64, 112, 224]),
)
def test_crop_lies_inside_and_scaling_leaves_enough(
    height: int, width: int, low: float, ratio: tuple[float, float], position: int, size: int
) -> None:
    settings = ImageInput(size=size, crop_area=(low, 1.0), crop_ratio=ratio)
    box = random_box(height, width, settings, draws(position))
    cut = scaled_cut(box, height, width, size)
    for b in (box, cut.box):
        assert b.height >= 1
        assert b.width >= 1
        assert 0 <= b.top <= b.top + b.height <= height
        assert 0 <= b.left <= b.left + b.width <= width
    d = cut.denominator
    if d > 1:
        assert min(cut.box.height, cut.box.width) // d >= size
        assert all(edge % d == 0 for edge in (cut.box.top, cut.box.left, cut.box.height, cut.box.width))
    assert abs(cut.box.top - box.top) <= d / 2
    assert abs(cut.box.left - box.left) <= d / 2
    assert abs(cut.box.top + cut.box.height - box.top - box.height) < max(d, 1)
    assert abs(cut.box.left + cut.box.width - box.left - box.width) < max(d, 1)


def test_crop_has_the_wanted_area_and_ratio() -> None:
    boxes = [random_box(600, 800, ImageInput(size=32), draws(p)) for p in range(500)]
    areas = np.array([b.height * b.width / 480_000 for b in boxes])
    ratios = np.array([b.width / b.height for b in boxes])
    assert areas.min() > 0.39
    assert areas.max() <= 1.0
    assert areas.mean() == pytest.approx(0.60, abs=0.03)  # torchvision: 0.605, standard error for 500: 0.006
    assert 0.74 < ratios.min() < 0.80
    assert 1.25 < ratios.max() < 1.35


TENSORFLOW = ImageInput(size=32, augment="tensorflow", crop_ratio=(0.75, 1.33))


@given(st.integers(8, 700), st.integers(8, 700), st.integers(0, 2**40))
def test_a_crop_by_tensorflows_rule_has_an_allowed_area_and_ratio(height: int, width: int, position: int) -> None:
    box = random_box(height, width, TENSORFLOW, draws(position))
    assert 0 <= box.top <= height - box.height
    assert 0 <= box.left <= width - box.width
    if (box.height, box.width) != (height, width):
        assert 0.4 * height * width <= box.height * box.width <= height * width
        assert (box.width - 0.5) / box.height <= 1.33 + 1e-6
        assert (box.width + 0.5) / box.height >= 0.75 - 1e-6


def test_crops_by_tensorflows_rule_are_drawn_as_sample_distorted_bounding_box_does() -> None:
    """The ratio is uniform, not its logarithm; the height, not the area; and the last offset is never drawn."""
    height, width = 6_000, 8_000  # so large that rounding does not show
    boxes = [random_box(height, width, TENSORFLOW, draws(position)) for position in range(4_000)]
    ratios = np.array([box.width / box.height for box in boxes])
    assert np.abs(np.histogram(ratios, 10, (0.75, 1.33))[0] / 4_000 - 0.1).max() < 0.02
    lowest = np.sqrt(0.4 * height * width / ratios)
    highest = np.minimum(np.minimum(np.sqrt(height * width / ratios), width / ratios), height)
    heights = (np.array([box.height for box in boxes]) - lowest) / (highest - lowest)
    assert np.abs(np.histogram(heights, 10, (-0.01, 1.01))[0] / 4_000 - 0.1).max() < 0.02
    small = [random_box(10, 10, TENSORFLOW, draws(position)) for position in range(2_000)]
    assert max(box.top + box.height for box in small if box.height < 10) == 9
    torchvision = [random_box(height, width, ImageInput(size=32), draws(position)) for position in range(4_000)]
    share = np.mean([box.height * box.width for box in torchvision]) / (height * width)
    ours = np.mean([box.height * box.width for box in boxes]) / (height * width)
    assert share - ours > 0.02


def test_whole_image_when_no_crop_fits() -> None:
    wide = random_box(10, 1000, ImageInput(size=8), draws(0))
    assert wide == Box(0, (1000 - 13) // 2, 10, 13)
    tall = random_box(1000, 10, ImageInput(size=8), draws(0))
    assert tall == Box((1000 - 13) // 2, 0, 13, 10)


def sixteen_bit() -> bytes:
    levels = (np.arange(64 * 64, dtype=np.uint32).reshape(64, 64) * 16).astype(np.uint16)
    return encoded(Image.fromarray(levels), "PNG")


RGB = scene(64, 48)
KINDS = {
    "grey jpeg": encoded(RGB.convert("L")),
    "cmyk jpeg": encoded(RGB.convert("CMYK")),
    "progressive jpeg": encoded(RGB, progressive=True),
    "palette png": encoded(RGB.convert("P"), "PNG"),
    "palette png with transparency": encoded(RGB.convert("P"), "PNG", transparency=b"\x00\x80"),
    "rgba png": encoded(RGB.convert("RGBA"), "PNG"),
    "grey-alpha png": encoded(RGB.convert("LA"), "PNG"),
    "one-bit png": encoded(RGB.convert("1"), "PNG"),
    "16-bit png": sixteen_bit(),
    "webp": encoded(RGB, "WEBP"),
    "rgba webp": encoded(RGB.convert("RGBA"), "WEBP"),
    "one pixel": encoded(RGB.resize((1, 1)), "PNG"),
    "strip": encoded(RGB.resize((2000, 1)), "PNG"),
    "jpeg strip": encoded(RGB.resize((3, 3000))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_every_kind_gives_rgb(kind: str) -> None:
    for size in (8, 40):
        assert not np.all(trained(KINDS[kind], size) == 77)
        assert decode_eval(KINDS[kind], size, kind).shape == (size, size, 3)


@pytest.mark.parametrize("kind", ["grey jpeg", "cmyk jpeg", "progressive jpeg", "palette png", "rgba png", "webp"])
def test_colours_survive(kind: str) -> None:
    expected = decode_eval(encoded(RGB.convert("L") if "grey" in kind else RGB, "PNG"), 48, "png")
    assert psnr(decode_eval(KINDS[kind], 48, kind), expected) > 20  # a palette has 22; swapped channels give 12


def test_16_bit_grey_keeps_its_range() -> None:
    found = decode_eval(KINDS["16-bit png"], 64, "png")
    assert found[0, 0, 0] == 0
    assert found[-1, -1, 0] == 255
    assert 120 < found[32, 0, 0] < 136


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def huge_jpeg() -> bytes:
    data = bytearray(KINDS["grey jpeg"])
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


WHOLE = encoded(scene(200, 200), quality=95)
BROKEN = {
    "empty": b"",
    "text": b"<html>404</html>",
    "cut jpeg": WHOLE[: len(WHOLE) // 2],
    "jpeg header only": WHOLE[:300],
    "two bytes": b"\xff\xd8",
    "cut png": KINDS["rgba png"][:-200],
    "cut webp": KINDS["webp"][:-50],
    "png bomb": bomb(60_000, 60_000),
    "smaller png bomb": bomb(12_000, 9_000),
    "jpeg bomb": huge_jpeg(),
    "tiff": encoded(RGB, "TIFF"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("error")
def test_broken_images_are_our_error_and_name_the_sample(kind: str) -> None:
    with pytest.raises(DataError) as caught:
        trained(BROKEN[kind], 32, where="shard.tar: 00042")
    assert "shard.tar: 00042" in str(caught.value)
    with pytest.raises(DataError):
        decode_eval(BROKEN[kind], 32, "key")


@given(st.binary(max_size=200), st.integers(0, 10**6))
def test_any_bytes_give_pixels_or_our_error(noise: bytes, at: int) -> None:
    place = at % len(WHOLE)
    try:
        trained(WHOLE[:place] + noise + WHOLE[place + len(noise) :], 16, at)
    except DataError:
        pass


@pytest.mark.parametrize("side", [32, 200])
def test_an_image_is_not_written_over_by_the_next_in_this_thread_or_another(side: int) -> None:
    # At 32 px both are decoded at 1/4; at 200 px the crop of one is the very size that is wanted.
    kinds = [encoded(scene(width, 240), quality=95) for width in (320, 260)]
    whole = msgspec.structs.replace(SETTINGS, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    expected = [trained(data, side, image=whole).copy() for data in kinds]
    kept = [trained(data, side, image=whole) for data in kinds]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: trained(kinds[n % 2], side, image=whole), range(200)))
    for number, pixels in enumerate([*kept, *found]):
        assert np.array_equal(pixels, expected[number % 2])

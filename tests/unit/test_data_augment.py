"""Color jitter and gray, image by image with the same draws, against torchvision's functions and tf.image's rules."""

import colorsys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipa.data import augment
from clipa.data.augment import Colours
from clipa.data.pipeline import normalise
from clipa.model.torchvision_guard import import_torchvision
from clipa.reduction.draws import Draws, Purpose
from clipa.spec.inputs import ImageInput, Jitter

import_torchvision()
from torchvision.transforms import functional as reference  # noqa: E402

SEED = 11
STEPS = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation, reference.adjust_hue)


def _input(jitter, augment="torchvision"):
    return ImageInput(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), jitter=jitter, augment=augment)


def _images(count, size=16):
    """Noise, with black, white, grey and fully saturated images among it."""
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    images[0], images[1], images[2] = 0, 255, images[2, :1]
    images[3] = torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    return images


def _through_hsv(image, change):
    """An image of which every pixel's (hue, saturation, value) is changed, one by one."""
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in image.flatten(1).T.tolist()]
    return torch.tensor(pixels).T.reshape(image.shape)


TENSORFLOW = (
    lambda image, factor: image * factor,  # simclr_aug.py: random_brightness, `simclrv2`
    lambda image, factor: (
        (image - image.mean(dim=(1, 2), keepdim=True)) * factor + image.mean(dim=(1, 2), keepdim=True)
    ),
    lambda image, factor: _through_hsv(image, lambda h, s, v: (h, min(max(s * factor, 0.0), 1.0), v)),
    lambda image, delta: _through_hsv(image, lambda h, s, v: ((h + delta) % 1.0, s, v)),
)
"""tf.image's adjust_contrast, adjust_saturation and adjust_hue by their definitions."""


def _one_by_one(image, position, jitter, steps=STEPS):
    """RandomApply([ColorJitter]), then RandomGrayscale, of torchvision, drawn as the module's text says."""
    draws = Draws(SEED, position, Purpose.JITTER)
    first, *shares, hue = (draws.uniform() for _ in range(5))
    keys = [draws.uniform() for _ in range(4)]
    if first < jitter.probability:
        spread = (jitter.brightness, jitter.contrast, jitter.saturation)
        factors = [1 + s * (2 * share - 1) for s, share in zip(spread, shares, strict=True)]
        factors.append(jitter.hue * (2 * hue - 1))
        for kind in sorted(range(4), key=lambda kind: keys[kind]):
            image = steps[kind](image, factors[kind]).clamp(0, 255 if image.dtype == torch.uint8 else 1)
    if Draws(SEED, position, Purpose.GRAY).uniform() < jitter.gray:
        image = reference.rgb_to_grayscale(image, num_output_channels=3)
    return image


@pytest.mark.parametrize("jitter", [Jitter(), Jitter(brightness=1, contrast=1, saturation=1, hue=0.5, probability=1)])
def test_colours_are_torchvisions(jitter):
    images, positions = _images(64), torch.arange(1000, 1064)
    found = Colours(_input(jitter), SEED, "cpu")(images, positions)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)))
    for image, position, ours in zip(images, positions.tolist(), found * std + mean, strict=True):
        # A hundredth of a level is 4e-5; torchvision's hue passes through 1 + h, and loses some bits there.
        torch.testing.assert_close(ours, _one_by_one(image / 255, position, jitter), rtol=0, atol=5e-6)


@pytest.mark.parametrize("jitter", [Jitter(), Jitter(brightness=1, contrast=1, saturation=1, hue=0.5, probability=1)])
def test_colors_are_tensorflows_where_the_family_says_so(jitter):
    """Contrast by channel, saturation in HSV: CLIPA's simclr_jitter_gray, without its rounding to whole levels."""
    images, positions = _images(24, size=4), torch.arange(1000, 1024)
    found = Colours(_input(jitter, "tensorflow"), SEED, "cpu")(images, positions)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)))
    others = 0
    for image, position, ours in zip(images, positions.tolist(), found * std + mean, strict=True):
        torch.testing.assert_close(ours, _one_by_one(image / 255, position, jitter, TENSORFLOW), rtol=0, atol=1e-5)
        others += not torch.allclose(ours, _one_by_one(image / 255, position, jitter), rtol=0, atol=0.01)
    assert others > 8  # torchvision's differ by more than two levels in most of what is colored


def test_whole_numbers_differ_from_torchvisions_by_its_own_rounding():
    """On uint8 torchvision cuts to whole levels after every step: at most a level a step, more where hue turns."""
    images = _images(32)
    jitter = Jitter(hue=0.0)
    found = Colours(_input(jitter), SEED, "cpu")(images, torch.arange(32))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)))
    for image, position, ours in zip(images, range(32), 255 * (found * std + mean), strict=True):
        assert (ours - _one_by_one(image, position, jitter).float()).abs().max() < 5


def test_shares_are_those_asked_for():
    images = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(20_000, 3, 1, 1)
    found = Colours(_input(Jitter()), SEED, "cpu")(images, torch.arange(20_000))
    plain = normalise(images[:1], (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    red, green = (found[:, c, 0, 0] * s + m for c, s, m in ((0, 0.2, 0.5), (1, 0.3, 0.4)))
    assert ((red - green).abs() < 1e-6).float().mean().item() == pytest.approx(0.2, abs=0.01)
    untouched = ((found - plain).abs() < 1e-5).flatten(1).all(dim=1).float().mean().item()
    assert untouched == pytest.approx(0.2 * 0.8, abs=0.01)


@given(st.integers(0, 2**40), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_how_a_batch_is_split_changes_nothing(first, sizes):
    count = sum(sizes)
    images, positions = _images(40)[:count], torch.arange(first, first + count)
    colours = Colours(_input(Jitter()), SEED, "cpu")
    parts = zip(images.split(sizes), positions.split(sizes), strict=True)
    assert torch.equal(torch.cat([colours(*part) for part in parts]), colours(images, positions))


def test_images_in_blocks_are_the_same(monkeypatch):
    images, positions = _images(20), torch.arange(20)
    colours = Colours(_input(Jitter()), SEED, "cpu")
    whole = colours(images, positions)
    monkeypatch.setitem(augment.PIXELS_AT_ONCE, "cpu", 3 * 256)
    assert torch.equal(colours(images, positions), whole)


def test_without_jitter_images_are_normalised():
    images = _images(5)
    found = Colours(_input(None), SEED, "cpu")(images, torch.arange(5))
    assert torch.equal(found, normalise(images, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)))


def test_it_compiles_without_graph_breaks():
    colours = Colours(_input(Jitter()), SEED, "cpu")
    images, positions = _images(6), torch.arange(6)
    compiled = torch.compile(colours.jitter, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images / 255, positions), colours.jitter(images / 255, positions))


@pytest.mark.parametrize("jitter", [None, Jitter()])
def test_how_pixels_lie_in_memory_changes_no_bit(jitter):
    images, positions = _images(16), torch.arange(16)
    together = images.contiguous(memory_format=torch.channels_last)  # as the loader hands them over
    assert not together.is_contiguous()
    planes, found = (Colours(_input(jitter), SEED, "cpu")(given, positions) for given in (images, together))
    assert torch.equal(found, planes)
    assert found.is_contiguous()
    assert torch.equal(normalise(together, (0.5,) * 3, (0.2,) * 3), normalise(images, (0.5,) * 3, (0.2,) * 3))

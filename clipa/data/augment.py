"""Pixels to what the tower sees: color jitter, gray and normalization, on the device and for a whole batch at once.

Images are tensors in [0, 1]; jitter comes first, then gray. Every random number is a function of the sample's position
in the stream, so an image is colored alike however the batch is split.

Brightness, contrast and saturation are one blend, x -> f * x + (1 - f) * base; the base of brightness is 0. The rest is
as `ImageInput.augment` says. torchvision's `ColorJitter`: the image's mean gray, and the pixel's gray. tf.image, as
CLIPA's JAX code uses it: the mean of each channel, and the pixel's largest channel, which scales the saturation of HSV;
f is limited to what makes that 1. So each of the three places in an image's own order takes the whole batch, with
numbers of its own for every image. Hue stands somewhere among them: the places before it are blended, hues turned, then
those after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from clipa.reduction.draws import Purpose, TensorDraws
from clipa.spec.family import Augment
from clipa.spec.inputs import ImageInput, Jitter

GRAY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey (torchvision's `rgb_to_grayscale`)."""

PIXELS_AT_ONCE = {"cpu": 2**18, "cuda": 2**23}
"""Pixels that are coloured at once. Temporaries (12 bytes a pixel, several at a time) stay in a processor's cache: 945
images of 112 px a second and core, 354 with 2^22 pixels. On a GPU they are 100 MB each, so that launches are few."""


class Colours:
    """uint8 images [b, 3, s, s] and their positions int64 [b] to float32 of the same shape, normalised."""

    def __init__(self, image: ImageInput, seed: int, device: torch.device | str) -> None:
        self.mean, self.std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (image.mean, image.std))
        self.jitter = (lambda images, _: images) if image.jitter is None else _Jitter(image, image.jitter, seed, device)

    def __call__(self, images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The images as the tower sees them."""
        at_once = max(1, PIXELS_AT_ONCE[images.device.type] // images[0, 0].numel())
        out = torch.empty(images.shape, device=images.device)
        for first in range(0, len(images), at_once):
            rows = slice(first, first + at_once)
            planes = images[rows].contiguous()
            coloured = self.jitter(planes.float() / 255.0, positions[rows])
            torch.div(coloured - self.mean, self.std, out=out[rows])
        return out


class _Drawn(NamedTuple):
    """What was drawn for each image; [b, 3] are brightness, contrast, saturation."""

    factors: torch.Tensor
    hue: torch.Tensor
    order: torch.Tensor
    before_hue: torch.Tensor
    is_gray: torch.Tensor


class _Jitter:
    """Color jitter and gray of float images in [0, 1]."""

    def __init__(self, image: ImageInput, jitter: Jitter, seed: int, device: torch.device | str) -> None:
        self.settings = jitter
        self.bases = _BASES[image.augment]
        self.spread = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation], device=device)
        self.colours = TensorDraws(seed, Purpose.JITTER, 9, device)
        self.grays = TensorDraws(seed, Purpose.GRAY, 1, device)

    def __call__(self, images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        drawn = self._drawn(positions)
        for place in range(3):
            images = _blended(images, drawn, place, drawn.before_hue, self.bases)
        images = _hue_turned(images, drawn.hue)
        for place in range(3):
            images = _blended(images, drawn, place, ~drawn.before_hue, self.bases)
        return torch.where(drawn.is_gray.view(-1, 1, 1, 1), _gray(images), images)

    def _drawn(self, positions: torch.Tensor) -> _Drawn:
        # Whether at all, three factors, the hue, and a key for each of the four, whose order is the order of the steps.
        draws = self.colours.uniform(positions).float()
        is_applied = draws[:, :1] < self.settings.probability
        factors = 1 + self.spread * (2 * draws[:, 1:4] - 1)
        hue = self.settings.hue * (2 * draws[:, 4] - 1)
        keys, hue_key = draws[:, 5:8], draws[:, 8:]
        return _Drawn(
            factors=torch.where(is_applied, factors, 1.0),
            hue=torch.where(is_applied[:, 0], hue, 0.0),
            order=keys.argsort(dim=1),
            before_hue=keys < hue_key,
            is_gray=self.grays.uniform(positions)[:, 0] < self.settings.gray,
        )


def _gray(images: torch.Tensor) -> torch.Tensor:
    """[b, 3, h, w] as [b, 1, h, w]."""
    red, green, blue = images.unbind(dim=1)
    return (GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue)[:, None]


class _Bases(NamedTuple):
    """What contrast and saturation blend an image with, and the largest factor of saturation."""

    contrast: torch.Tensor
    saturation: torch.Tensor
    limit: torch.Tensor | float


def _bases_of_torchvision(images: torch.Tensor) -> _Bases:
    gray = _gray(images)
    return _Bases(gray.mean(dim=(2, 3), keepdim=True), gray, torch.inf)


def _bases_of_tensorflow(images: torch.Tensor) -> _Bases:
    value, least = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    limit = torch.where(value > least, value / (value - least), torch.inf)
    return _Bases(images.mean(dim=(2, 3), keepdim=True), value, limit)


_BASES: dict[Augment, Callable[[torch.Tensor], _Bases]] = {
    "torchvision": _bases_of_torchvision,
    "tensorflow": _bases_of_tensorflow,
}


def _blended(
    images: torch.Tensor, drawn: _Drawn, place: int, is_due: torch.Tensor, bases: Callable[[torch.Tensor], _Bases]
) -> torch.Tensor:
    """The images after the step at a place of each one's order, where it is due: a factor of 1 changes nothing."""
    step = drawn.order[:, place : place + 1]
    factor = torch.where(is_due, drawn.factors, 1.0).gather(1, step).view(-1, 1, 1, 1)
    is_contrast, is_saturation = ((step == kind).float().view(-1, 1, 1, 1) for kind in (1, 2))
    found = bases(images)
    factor = torch.where(is_saturation > 0, factor.clamp(max=found.limit), factor)
    base = is_contrast * found.contrast + is_saturation * found.saturation
    return (factor * images + (1 - factor) * base).clamp(0, 1)


def _hue_turned(images: torch.Tensor, hue: torch.Tensor) -> torch.Tensor:
    """The images with their hues moved by `hue` [b], in turns: RGB to HSV and back."""
    red, green, blue = images.unbind(dim=1)
    value, least = images.amax(dim=1), images.amin(dim=1)
    chroma = value - least
    safe = torch.where(chroma == 0, 1.0, chroma)
    # In sixths of a turn, from red.
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    moved = sixths + 6 * hue.view(-1, 1, 1)
    # Channel n of an HSV colour: value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + hue in sixths) mod 6.
    places = [(n + moved).remainder(6) for n in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in places], dim=1)

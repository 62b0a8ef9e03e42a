"""Every random number about a sample: a pure function of (seed, position in the stream, purpose).

So a sample is treated alike whatever the number of processes, workers, devices and interruptions. Numbers come one
by one in Python (`Draws`) or for a batch on its device (`TensorDraws`), bit for bit the same.
"""

from __future__ import annotations

from enum import IntEnum

import torch

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64 (Steele et al., OOPSLA 2014)."""


class Purpose(IntEnum):
    """What a random number is for, so that no two uses share one. Runs depend on these values: never reuse one."""

    SHARDS = 1
    SAMPLES = 2
    CROP = 3
    SPLIT = 5
    CAPTION = 6
    KEPT_PATCHES = 7
    KEPT_WORDS = 8
    JITTER = 9
    GRAY = 10
    MIXTURE = 11
    CAPTION_CHOICE = 12


def _mixed(value: int) -> int:
    # The finaliser of SplitMix64: every input bit reaches every output bit.
    value = ((value ^ (value >> 30)) * _FIRST) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND) & _MASK
    return value ^ (value >> 31)


class Draws:
    """Uniform random numbers about one position: SplitMix64 started from (seed, position, purpose)."""

    def __init__(self, seed: int, position: int, purpose: Purpose) -> None:
        state = 0
        for word in (seed, position, int(purpose)):
            state = _mixed((state + word + _GAMMA) & _MASK)
        self._state = state

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """The next number in [low, high)."""
        self._state = (self._state + _GAMMA) & _MASK
        return low + (high - low) * ((_mixed(self._state) >> 11) * 2.0**-53)

    def integer(self, count: int) -> int:
        """The next number in 0..count-1."""
        return min(int(self.uniform() * count), count - 1)


def _signed(value: int) -> int:
    """The 64 bits of a number as torch's int64 has them."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    # torch's >> keeps the sign, SplitMix64's does not.
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mixed_tensor(value: torch.Tensor) -> torch.Tensor:
    value = (value ^ _shifted(value, 30)) * _signed(_FIRST)
    value = (value ^ _shifted(value, 27)) * _signed(_SECOND)
    return value ^ _shifted(value, 31)


class TensorDraws:
    """The first `count` numbers of `Draws(seed, position, purpose)` for many positions at once, on their device.

    int64 arithmetic wraps in torch, eager and compiled, as it must here. Nothing is read back from the device, and
    it compiles without graph breaks.
    """

    def __init__(self, seed: int, purpose: Purpose, count: int, device: torch.device | str = "cpu") -> None:
        self._seeded = _signed(_mixed((seed + _GAMMA) & _MASK) + _GAMMA)
        self._purpose = _signed(int(purpose) + _GAMMA)
        # A stored tensor, not an arange times gamma: the compiler computes the latter on loop indices, where the
        # overflow is undefined in C++ (torch 2.13 wrote beyond the buffer) and too wide for Triton's 32-bit indices.
        self._steps = torch.tensor([_signed(_GAMMA * n) for n in range(1, count + 1)], device=device)

    def bits(self, positions: torch.Tensor) -> torch.Tensor:
        """64 random bits for each draw about each position int64 [b]: int64 [b, count]."""
        state = _mixed_tensor(_mixed_tensor(positions + self._seeded) + self._purpose)
        return _mixed_tensor(state[:, None] + self._steps)

    def uniform(self, positions: torch.Tensor, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """`Draws.uniform(low, high)` about each position int64 [b], one call a column: float64 [b, count]."""
        return low + (high - low) * (_shifted(self.bits(positions), 11).double() * 2.0**-53)

    def integer(self, positions: torch.Tensor, below: int) -> torch.Tensor:
        """`Draws.integer(below)` about each position int64 [b], one call a column: int64 [b, count]."""
        return (self.uniform(positions) * below).long().clamp(max=below - 1)

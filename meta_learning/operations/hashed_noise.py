"""Noise that is a pure function of a seed per task: computed where it is used, without a generator's state."""

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd, as a signed 64-bit number
_MULTIPLIERS = (-4658895280553007687, -7723592293110705685)  # splitmix64's, signed


def _logical_shift_right(values: Tensor, bits: int) -> Tensor:
    # torch shifts signed numbers, copying the sign; the mask takes the copies away.
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _wrapped(number: int) -> int:
    """Return a Python integer as the signed 64-bit number that the device would hold."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix(values: Tensor) -> Tensor:
    """Apply splitmix64's finaliser; 64-bit products wrap around."""
    values = (values ^ _logical_shift_right(values, 30)) * _MULTIPLIERS[0]
    values = (values ^ _logical_shift_right(values, 27)) * _MULTIPLIERS[1]
    return values ^ _logical_shift_right(values, 31)


def hashed_uniform(seeds: Tensor, stream: int, shape: tuple[int, ...]) -> Tensor:
    """Return uniform numbers in [0, 1), the same for the same seed, stream and position on every device.

        u[b, i] = mix(mix(seeds[b] + stream * golden) + i * golden) >> 40, over 2^24

    Args:
        seeds: int64 (B,).
        stream: distinguishes draws of one seed, e.g. by layer and step.
    Returns:
        float32 (B, *shape).
    Source: Steele et al. 2014, SplitMix.
    """
    size = 1
    for side in shape:
        size *= side
    keys = _mix(seeds + _wrapped(stream * _GOLDEN))
    positions = torch.arange(1, size + 1, device=seeds.device) * _GOLDEN
    # The upper 24 bits: as many as a float32 below 1 holds exactly.
    bits = _logical_shift_right(_mix(keys[:, None] + positions), 40)
    return (bits.to(torch.float32) / (1 << 24)).view(len(seeds), *shape)

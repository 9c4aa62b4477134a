"""From the seed of a run to the seed of a step."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def splitmix64(seed: int, index: int) -> int:
    """Output number `index` (from 0) of SplitMix64 started at `seed`, an integer in [0, 2^64).

    G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)

"""Random numbers of an attack: a function of (seed, prompt, use, index), not of what was drawn before.

So a prompt's attack is the same alone, in a batch of any size, and after a resumed run. Philox4x32-10: the
key is the attack's seed, the stream the prompt's number, the query says what for.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.ops.zo import random_words, zo_sample

__all__ = ["case_stream", "normals", "random_seeds", "random_tokens", "uniforms"]

_NOISE, _SAMPLES, _TOKENS, _SEEDS, _START = range(5)


def case_stream(case_number: str) -> int:
    """The stream of a prompt: its number, or a checksum of a name that is no number below 2^32."""
    if case_number.isascii() and case_number.isdigit() and int(case_number) < 2**32:
        return int(case_number)
    return zlib.crc32(case_number.encode())


def normals(seed: int, stream: int, step: int, steps: int, shape: Sequence[int], device: Any) -> Tensor:
    """Standard normals [steps, *shape] of the steps [step, step + steps)."""
    size = math.prod(shape)
    z = zo_sample(seed, stream, _NOISE, first=step * size, n=steps * size, device=device)
    return z.view(steps, *shape)


def uniforms(seed: int, stream: int, step: int, steps: int, count: int, device: Any) -> Tensor:
    """Uniform in [0, 1), float32 [steps, count], of the steps [step, step + steps)."""
    u = zo_sample(seed, stream, _SAMPLES, first=step * count, n=steps * count, dist="uniform", device=device)
    return 1 - u.view(steps, count)


def random_tokens(
    seed: int, stream: int, tries: int, k: int, allowed: Tensor, *, start: bool = False
) -> Tensor:
    """int64 [tries, k], each of `allowed` [n] with the same probability. `start`: another sequence."""
    query = _START if start else _TOKENS
    u = zo_sample(seed, stream, query, n=tries * k, dist="uniform", dtype=torch.float64)
    index = ((1 - u) * allowed.numel()).long().clamp_(max=allowed.numel() - 1)
    return allowed.cpu()[index].view(tries, k)


def random_seeds(seed: int, stream: int, count: int, but: int) -> list[int]:
    """`count` different integers in [0, 2^32), none of them `but`."""
    found: list[int] = []
    seen = {but}
    block = 0
    while len(found) < count:
        words = random_words(seed, stream=stream, query=_SEEDS, first_block=block, blocks=count)
        for word in words.flatten().tolist():
            if word not in seen and len(found) < count:
                seen.add(word)
                found.append(word)
        block += count
    return found

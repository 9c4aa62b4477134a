"""The digital way with a real code: JPEG, 5G LDPC, 4-QAM, successive cancellation; the code is Sionna's.

A picture gets k = n / 2 bits of the n = 2 L K coded bits of its codeword: code rate 1/2. Users are decoded
in the order of their received power over the codeword, those not yet decoded being noise of known power, and
what was decoded, rightly or wrongly, is encoded again and taken away. A picture whose bits are all right is
the best JPEG that fits in k bits; one that has a wrong bit, or does not fit, counts as its grey mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops.zo import random_words
from tenfold.semcom.channel import superpose

__all__ = ["RATE", "cancelled", "demap", "map_bits", "require_sionna"]

RATE = 0.5
PAYLOAD_STREAM = 3
_ITERATIONS = 20
_LONGEST = 16_000
"""Coded bits of a block; the standard's codes take 8,448 bits at most."""


def require_sionna() -> None:
    """ModuleNotFoundError unless Sionna is installed."""
    if find_spec("sionna") is None:
        hint = "pip install 'tenfold[sionna]'; the method digital needs none"
        raise ModuleNotFoundError(f"No module named 'sionna' ({hint})", name="sionna")


@lru_cache(maxsize=4)
def _code(coded: int, device: str) -> tuple[Any, Any]:
    require_sionna()
    from sionna.phy.fec.ldpc import LDPC5GDecoder, LDPC5GEncoder

    encoder = LDPC5GEncoder(int(coded * RATE), coded, device=device)
    return encoder, LDPC5GDecoder(encoder, num_iter=_ITERATIONS, hard_out=True, return_infobits=True)


def map_bits(bits: Tensor, power_w: Tensor, shape: tuple[int, int]) -> Tensor:
    """Coded bits [..., 2 L K] as 4-QAM of mean power `power_w` [...], complex [..., L, K]; bit 0 is +1."""
    signs = (1 - 2 * bits).view(*bits.shape[:-1], *shape, 2)
    return torch.view_as_complex(signs.contiguous()) * (power_w / 2).sqrt()[..., None, None]


def demap(received: Tensor, gains: Tensor, power_w: Tensor, noise_w: Tensor) -> Tensor:
    """log p(bit = 1) / p(bit = 0), [..., 2 L K], of 4-QAM of power `power_w` [...] over `gains` in noise.

    received, gains: complex [..., L, K]; noise_w: [..., L, K], W per complex sample.
    """
    matched = torch.view_as_real(gains.conj() * received)
    size = -2 * math.sqrt(2) * power_w.sqrt()[..., None, None] / noise_w
    return (size[..., None] * matched).flatten(-3)


def cancelled(
    gains: Tensor, noise: Tensor, power_w: Sequence[float], noise_power_w: Tensor, seed: int, *,
    first: int = 0,
) -> Tensor:  # fmt: skip
    """Whether each user's bits came through without an error, bool [B, N].

    A codeword that is too long for one block of the code is cut into equal ones.

    Args:
        gains: complex64 [B, L, N, K].
        noise: complex64 [B, L, K] of variance 1.
        power_w: P_n, [N]. noise_power_w: sigma^2, [B].
        seed, first: payloads of codeword b are those of number `first` + b.

    Raises:
        ModuleNotFoundError: Sionna is not installed.
    """
    batch, rows, users, carriers = gains.shape
    if len(power_w) != users:
        _checks.fail(ValueError, "power_w", f"one power for each of {users} users", len(power_w))
    coded = 2 * rows * carriers
    blocks = next(n for n in range(-(-coded // _LONGEST), coded + 1) if coded % n == 0)
    encoder, decoder = _code(coded // blocks, str(gains.device))
    size = int(coded // blocks * RATE)
    sent = (
        _payload(batch, users, blocks * size, seed, first).to(gains.device).view(batch, users, blocks, size)
    )
    power = torch.tensor(power_w, dtype=torch.float32, device=gains.device).expand(batch, users)
    x = map_bits(encoder(sent).flatten(2), power, (rows, carriers))  # [B, N, L, K]
    sigma2 = noise_power_w[:, None, None]
    left = superpose(gains, x.transpose(1, 2)) + sigma2.sqrt() * noise

    received = power[:, None, :, None] * gains.abs().square()
    order = torch.argsort(received.sum((1, 3)), dim=1, descending=True, stable=True)
    waiting = received.sum(2)
    right = torch.zeros(batch, users, dtype=torch.bool, device=gains.device)
    every = torch.arange(batch, device=gains.device)
    for turn in range(users):
        user = order[:, turn]
        g, p = gains[every, :, user], power[every, user]
        waiting = (waiting - received[every, :, user]).clamp_min(0)
        found = decoder(demap(left, g, p, waiting + sigma2).view(batch, blocks, -1))
        right[every, user] = (found == sent[every, user]).flatten(1).all(1)
        left = left - g * map_bits(encoder(found).flatten(1), p, (rows, carriers))
    return right


def _payload(batch: int, users: int, bits: int, seed: int, first: int) -> Tensor:
    """float32 [B, N, bits] of zeros and ones: the code is linear, the channel symmetric, any will do."""
    each = -(-bits // 128) * users
    words = random_words(seed, stream=PAYLOAD_STREAM, first_block=first * each, blocks=batch * each)
    places = torch.arange(32)
    return ((words[..., None] >> places) & 1).float().view(batch, users, -1)[..., :bits]

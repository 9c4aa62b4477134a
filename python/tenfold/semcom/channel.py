"""Channels of several users that send on the same subcarriers: fading, noise, and what is known of them.

All randomness is a function of (seed, stream, offset, index of the sample): a row is the same whatever batch
or shard it is drawn in, and a channel is drawn again from its seed instead of being kept.

Counter layout: complex sample i is words 0 and 1 (i even) or 2 and 3 (i odd) of the Philox block i // 2, with
key = seed, stream 0 for fading and 1 for noise (2: errors of the channel's estimate), the offset in the low
24 bits of the last counter word; two standard normals by Box-Muller, scaled by sqrt(variance / 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from tenfold import _checks, ops

__all__ = [
    "FADINGS",
    "FADING_STREAM",
    "NOISE_STREAM",
    "Fading",
    "complex_normal",
    "estimate_gains",
    "noise_power_w",
    "noma_channel",
    "quantise_gains",
    "superpose",
]

FADINGS = ("awgn", "rayleigh", "rician")
FADING_STREAM, NOISE_STREAM, ERROR_STREAM = 0, 1, 2


@dataclass(frozen=True)
class Fading:
    """How subcarriers fade.

    kind: "awgn", gain 1 everywhere; "rayleigh", CN(0, variance); "rician", a constant part and a Rayleigh
        part of together `variance`.
    variance: E|g|^2 (of "awgn" not used).
    k_factor_db: power of the constant part over the Rayleigh part, in dB, in [-300, 300) ("rician").
    block: whether all OFDM symbols of a codeword fade alike; otherwise each sample by itself.
    """

    kind: Literal["awgn", "rayleigh", "rician"] = "rayleigh"
    variance: float = 1.0
    k_factor_db: float = 10.0
    block: bool = False

    def __post_init__(self) -> None:
        _checks.choice("kind", self.kind, FADINGS)
        _checks.real("variance", self.variance, positive=True)
        _checks.real("k_factor_db", self.k_factor_db, at_least=-300.0, below=300.0)

    @property
    def mean(self) -> float:
        """E g."""
        if self.kind == "awgn":
            return 1.0
        ratio = 10 ** (self.k_factor_db / 10)
        return 0.0 if self.kind == "rayleigh" else math.sqrt(self.variance * ratio / (ratio + 1))

    @property
    def scattered(self) -> float:
        """E|g - E g|^2."""
        if self.kind == "awgn":
            return 0.0
        return self.variance / (1 + 10 ** (self.k_factor_db / 10)) if self.kind == "rician" else self.variance

    def gains(
        self, shape: Sequence[int], seed: int, offset: int = 0, *, first: int = 0, device: Any = "cpu"
    ) -> Tensor:
        """complex64 [B, L, N, K]: gain of user n on subcarrier k of OFDM symbol l.

        `first` is the number of the first codeword: gains of codeword b do not depend on how many are drawn.
        """
        if len(shape) != 4:
            _checks.fail(ValueError, "shape", "four numbers (B, L, N, K)", tuple(shape))
        batch, symbols, users, carriers = shape
        if self.kind == "awgn":
            return torch.ones(tuple(shape), dtype=torch.complex64, device=device)
        drawn = (batch, 1 if self.block else symbols, users, carriers)
        start = first * math.prod(drawn[1:])
        g = complex_normal(drawn, self.scattered, seed, FADING_STREAM, offset, first=start, device=device)
        return (g + self.mean if self.mean else g).expand(tuple(shape))


def complex_normal(
    shape: Sequence[int],
    variance: float = 1.0,
    seed: int = 0,
    stream: int = 0,
    offset: int = 0,
    *,
    first: int = 0,
    device: Any = "cpu",
) -> Tensor:
    """complex64 CN(0, variance): `variance` is E|z|^2 of the complex sample, half of it in each part.

    Args:
        seed, stream, offset: integers in [0, 2^64), [0, 2^32), [0, 2^24): three ways to a new sequence.
        first: number of the first sample in the sequence.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    scale = math.sqrt(_checks.real("variance", variance, at_least=0.0) / 2)
    first = _checks.integer("first", first, 0, 2**60)
    n = math.prod(shape)
    z = ops.zo_sample(seed, stream, offset, first=2 * first, n=2 * n, device=device)
    return torch.view_as_complex(z.view(n, 2)).mul_(scale).view(tuple(shape))


def noise_power_w(snr_db: Any, power_w: Sequence[float], rho: float = 1.0) -> Any:
    """sigma^2 in W per complex sample: SNR = 10 log10(P_1 rho_1 / sigma^2), P_1 of the first user."""
    return power_w[0] * rho / 10 ** (snr_db / 10)


def superpose(gains: Tensor, transmitted: Tensor) -> Tensor:
    """What the base station receives without noise: sum over users, [..., N, K] -> [..., K]."""
    return (gains * transmitted).sum(-2)


def estimate_gains(
    gains: Tensor,
    fading: Fading,
    seed: int,
    *,
    csi_err_db: float | None = None,
    csi_bits: int | None = None,
    offset: int = 0,
    first: int = 0,
) -> Tensor:
    """What users and base station know of the channel [B, L, N, K].

    Args:
        csi_err_db: power of the estimate's Gaussian error over the fading variance, in dB; None, no error.
        csi_bits: bits fed back per user and subcarrier, half for each part; None, unquantised.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    if gains.ndim != 4:
        _checks.fail(ValueError, "gains", "shape [B, L, N, K]", tuple(gains.shape))
    known = gains
    if csi_err_db is not None and fading.kind != "awgn":
        size = fading.variance * 10 ** (_checks.real("csi_err_db", csi_err_db, below=300.0) / 10)
        batch, symbols, users, carriers = gains.shape
        drawn = (batch, 1 if fading.block else symbols, users, carriers)
        start = first * math.prod(drawn[1:])
        known = known + complex_normal(
            drawn, size, seed, ERROR_STREAM, offset, first=start, device=gains.device
        )
    if csi_bits is not None and fading.kind != "awgn":
        known = quantise_gains(known, csi_bits, variance=fading.scattered, mean=fading.mean)
    return known


def quantise_gains(gains: Tensor, csi_bits: int, *, variance: float, mean: complex = 0.0) -> Tensor:
    """Each part of a CN(mean, variance) gain to the nearest of 2^(csi_bits/2) levels of least mean error.

    The levels are those of Lloyd and Max for the normal distribution. What is not a number stays so.
    """
    _checks.integer("csi_bits", csi_bits, 2, 16, "an even number of bits in [2, 16]")
    if csi_bits % 2:
        _checks.fail(ValueError, "csi_bits", "an even number of bits in [2, 16]", csi_bits)
    levels = torch.tensor(lloyd_max(2 ** (csi_bits // 2)), dtype=torch.float64)
    edges = ((levels[1:] + levels[:-1]) / 2).float().to(gains.device)
    levels = levels.float().to(gains.device)
    scale = math.sqrt(variance / 2)
    parts = torch.view_as_real((gains - mean).resolve_conj().contiguous())
    found = torch.where(parts.isnan(), parts, levels[torch.bucketize(parts / scale, edges)] * scale)
    return torch.view_as_complex(found) + mean


@lru_cache(maxsize=8)
def lloyd_max(count: int) -> tuple[float, ...]:
    """The `count` levels that represent a standard normal with least mean squared error (Max 1960)."""
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    levels = normal.icdf((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    ends = torch.full((1,), float("inf"), dtype=torch.float64)
    for _ in range(20_000):
        edges = torch.cat([-ends, (levels[1:] + levels[:-1]) / 2, ends])
        density = (-0.5 * edges.square()).exp() / math.sqrt(2 * math.pi)
        new = (density[:-1] - density[1:]) / normal.cdf(edges).diff()
        moved = float((new - levels).abs().max())
        levels = new
        if moved < 1e-12:
            break
    return tuple(levels.tolist())


def noma_channel(
    transmit: Tensor,
    variance: float,
    noise_power: float,
    seed: int,
    offset: int = 0,
    *,
    gains: Tensor | None = None,
    fading: Literal["awgn", "rayleigh", "rician"] = "rayleigh",
    k_factor_db: float = 10.0,
    block: bool = False,
    alpha: Tensor | None = None,
    first: int = 0,
    return_gains: bool = False,
) -> Any:
    """Superposition of the users over their channels, with noise: alpha (sum_n g_n u_n + w).

    `tenfold.ops.noma_channel` with codewords for rows: `first` counts them; "rician" has a default factor.
    The noise power is fixed: it does not follow the received power, so that deep fades hurt. Differentiable
    in `transmit`, `gains` and `alpha`.

    Args:
        transmit: complex [B, L, N, K] (or [..., N, K], taken as [B, 1, N, K]), in square roots of W.
        variance: E|g|^2.
        noise_power: sigma^2 in W per complex sample (half of it in each part).
        seed, offset: of fading (stream 0) and noise (stream 1).
        gains: the channel, where it is known; otherwise it is drawn.
        alpha: [B, L] (or [...]), what the receiver multiplies by.
        first: number of the first codeword.

    Returns:
        [B, L, K] (or [..., K]); with `return_gains` also the gains.
    """
    whole = transmit.ndim == 4
    symbols = transmit.shape[1] if whole else 1
    return ops.noma_channel(
        transmit, variance, noise_power, seed, offset, gains=gains, fading=fading,
        k_factor_db=k_factor_db if fading == "rician" else None, block=block and whole, alpha=alpha,
        first=_checks.integer("first", first, 0, 2**40) * symbols, return_gains=return_gains,
    )  # fmt: skip

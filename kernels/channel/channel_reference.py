"""The superposition channel of several users in plain PyTorch, a bounded piece of rows at a time.

Row i of [R, N, K] is one OFDM symbol: y = alpha (sum_n g_n u_n + w). Gains are drawn where they are needed,
in the backward pass again, and never kept. Products of complex numbers are written in their parts, so that
each rounding stands here: the compiled kernel has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from tenfold.kernels.zo.zo_reference import _sqrt
from torch import Tensor

FADING_STREAM, NOISE_STREAM = 0, 1
NONE, JOINT, SEPARABLE = 0, 1, 2
PIECE = 1 << 18
"""Gains at a time on the CPU; 16 times as many elsewhere, where a piece must outweigh its launches."""
STEPS = 128


class Draw(NamedTuple):
    """Where random numbers come from: `first` is the number of the first row, `block` rows fade alike."""

    seed: int
    offset: int
    first: int
    block: int


class Given(NamedTuple):
    """transmit, gains [R, N, K]; mean, scale, power, rho [R, N]; noise, alpha [R]."""

    transmit: Tensor
    gains: Tensor | None
    mean: Tensor
    scale: Tensor
    noise: Tensor
    alpha: Tensor | None
    power: Tensor | None
    rho: Tensor | None

    def rows(self, part: slice) -> Given:
        return Given(*(None if t is None else t[part] for t in self))  # type: ignore[arg-type]


def normals(
    draw: Draw, stream: int, first: int, shape: tuple[int, ...], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Parts of standard complex normals (variance 2), samples first, first + 1, ... of a stream."""
    z = torch.empty((*shape, 2), dtype=torch.float32, device=like.device)
    if z.numel():
        torch.ops.tenfold.zo_sample_(z.view(-1), draw.seed, stream, draw.offset, 2 * first, "gaussian")
    z = z.to(like.real.dtype)
    return z[..., 0], z[..., 1]


def gains(given: Given, draw: Draw) -> Tensor:
    """Gains [R, N, K] of all rows."""
    return gains_of(given, draw, 0)


def gains_of(given: Given, draw: Draw, at: int) -> Tensor:
    """Gains [r, N, K] of the rows of `given`, the first of which is row `at` of the call."""
    if given.gains is not None:
        return given.gains.resolve_conj()
    rows, users, carriers = given.transmit.shape
    begin = (draw.first + at) // draw.block
    count = (draw.first + at + rows - 1) // draw.block - begin + 1 if rows else 0
    shape = (count, users, carriers)
    re, im = normals(draw, FADING_STREAM, begin * users * carriers, shape, given.transmit)
    if draw.block > 1:
        own = (torch.arange(rows, device=re.device) + draw.first + at) // draw.block - begin
        re, im = re[own], im[own]
    scale, mean = given.scale[..., None], given.mean[..., None]
    return torch.complex(re * scale + mean, im * scale)


def noise_of(given: Given, draw: Draw, at: int) -> Tensor:
    """Noise [r, K]."""
    rows, _, carriers = given.transmit.shape
    first = (draw.first + at) * carriers
    re, im = normals(draw, NOISE_STREAM, first, (rows, carriers), given.transmit)
    size = _sqrt(given.noise * 0.5)[:, None]
    return torch.complex(re * size, im * size)


def superposed(gains: Tensor, transmit: Tensor, noise: Tensor) -> Tensor:
    """sum_n g_n u_n + w, users in order, one rounding per operation."""
    re, im = torch.zeros_like(noise.real), torch.zeros_like(noise.real)
    for n in range(gains.shape[1]):
        g, u = gains[:, n], transmit[:, n]
        re = re + (g.real * u.real - g.imag * u.imag)
        im = im + (g.real * u.imag + g.imag * u.real)
    return torch.complex(re + noise.real, im + noise.imag)


def scaled(value: Tensor, alpha: Tensor | None) -> Tensor:
    if alpha is None:
        return value
    return torch.complex(value.real * alpha[:, None], value.imag * alpha[:, None])


def wanted(given: Given) -> Tensor:
    """s = sum_n sqrt(rho_n) t_n."""
    t = given.transmit.resolve_conj()
    assert given.rho is not None
    re, im = torch.zeros_like(t[:, 0].real), torch.zeros_like(t[:, 0].real)
    for n in range(t.shape[1]):
        c = _sqrt(given.rho[:, n, None])
        re, im = re + c * t[:, n].real, im + c * t[:, n].imag
    return torch.complex(re, im)


def held(v: Tensor, t: Tensor, power: Tensor) -> tuple[Tensor, Tensor]:
    """v t scaled down to its budget where it exceeds it, and the factors [R, N]."""
    u = v * t
    energy, limit = u.abs().square().mean(-1), power
    factor = _sqrt(torch.where(energy > limit, limit / torch.where(energy > limit, energy, 1.0), 1.0))
    return u * factor[..., None], factor


def allocated(
    given: Given, gains: Tensor, allocate: int, wanted: Callable[[Given], Tensor] = wanted
) -> tuple[Tensor, Tensor, Tensor]:
    """What is sent [r, N, K], alpha [r], and the dual variables [r, N]."""
    assert given.power is not None
    assert given.rho is not None
    single = gains.dtype == torch.complex64
    if allocate == JOINT:
        u, alpha, mu, _, _ = torch.ops.tenfold.ssdt_joint(
            gains, wanted(given), given.power, given.noise, None, 2e-6 if single else 1e-10, STEPS
        )
        return u, alpha, mu
    v, alpha, tau, _, _ = torch.ops.tenfold.ssdt_separable(
        gains, given.power, given.noise, _sqrt(given.rho), None, 1e-6 if single else 1e-12, STEPS
    )
    return held(v, given.transmit, given.power)[0], alpha, tau


def pieces(given: Given) -> Iterator[slice]:
    """Rows that are made at a time."""
    rows, users, carriers = given.transmit.shape
    piece = PIECE if given.transmit.device.type == "cpu" else 16 * PIECE
    step = max(1, piece // max(1, users * carriers))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def results(given: Given, allocate: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what `channel` returns."""
    rows, users, carriers = given.transmit.shape
    y = given.transmit.new_empty((rows, carriers))
    found = (rows, users) if allocate else (0, 0)
    alpha = torch.empty(found[0], dtype=y.real.dtype, device=y.device)
    return y, alpha, alpha.new_empty(found)


def channel(given: Given, draw: Draw, allocate: int) -> tuple[Tensor, Tensor, Tensor]:
    """(y [R, K], alpha [R], dual variables [R, N]); the latter two empty without allocation."""
    y, alpha, dual = results(given, allocate)
    if not y.numel():
        return y, alpha.zero_(), dual.zero_()
    for part in pieces(given):
        mine = given.rows(part)
        g = gains_of(mine, draw, part.start)
        u, scale = mine.transmit.resolve_conj(), mine.alpha
        if allocate:
            u, alpha[part], dual[part] = allocated(mine, g, allocate)
            scale = alpha[part]
        y[part] = scaled(superposed(g, u, noise_of(mine, draw, part.start)), scale)
    return y, alpha, dual

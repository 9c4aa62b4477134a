"""The references behind the ops' signatures: solved in double precision, rounded to the inputs' type."""

from __future__ import annotations

import torch
from torch import Tensor

from . import power_reference


def _doubled(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


def _rounded(values: tuple[Tensor, ...], like: Tensor) -> tuple[Tensor, ...]:
    real = like.real.dtype if like.is_complex() else like.dtype
    kinds = {torch.complex128: like.dtype, torch.float64: real, torch.int32: torch.int32}
    return tuple(value.to(kinds[value.dtype]).contiguous() for value in values)


def _known(found: tuple[Tensor, ...], power: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """`found`, not a number in rows whose budgets or noise make no problem, as the compiled kernels do."""
    fine = noise.isfinite() & (noise >= 0) & (power.isfinite() & (power > 0)).all(-1)
    shaped = [fine.view(-1, *(1 for _ in value.shape[1:])) for value in found]
    return tuple(
        value if value.dtype == torch.int32 else torch.where(row, value, torch.nan)
        for value, row in zip(found, shaped, strict=True)
    )


def joint(
    gains: Tensor,
    symbols: Tensor,
    power: Tensor,
    noise: Tensor,
    statistics: Tensor | None,
    tolerance: float,
    most: int,
) -> tuple[Tensor, ...]:
    """See power_reference.joint."""
    g, s, p, n = (_doubled(v) for v in (gains, symbols, power, noise))
    expected = None if statistics is None else _doubled(statistics)
    return _rounded(_known(power_reference.joint(g, s, p, n, tolerance, most, expected), p, n), gains)


def separable(
    gains: Tensor,
    power: Tensor,
    noise: Tensor,
    wanted: Tensor,
    weights: Tensor | None,
    tolerance: float,
    most: int,
) -> tuple[Tensor, ...]:
    """See power_reference.separable."""
    g, p, n, c = (_doubled(v) for v in (gains, power, noise, wanted))
    load = None if weights is None else _doubled(weights)
    return _rounded(_known(power_reference.separable(g, p, n, c, load, tolerance, most), p, n), gains)


def water_filling(x: Tensor, mass: Tensor, inverse: bool) -> tuple[Tensor, ...]:
    """(p, theta): p = (x - theta)_+ with sum `mass`; with `inverse` for -1 / x, x <= 0 left out."""
    values = x.double()
    if inverse:
        values = torch.where(values > 0, -1 / torch.where(values > 0, values, 1.0), -torch.inf)
    p, theta = power_reference.project_simplex(values, mass.double())
    unknown = x.isnan().any(-1)
    p = torch.where(unknown[:, None], torch.nan, p)
    theta = torch.where(unknown, torch.nan, theta)
    return _rounded((p, theta), x)


def mse_water_filling(gains: Tensor, weights: Tensor, power: Tensor) -> tuple[Tensor, ...]:
    """See power_reference.mse_water_filling."""
    if not gains.numel():
        return torch.zeros_like(gains), gains.new_full(gains.shape[:1], torch.inf)
    return _rounded(
        power_reference.mse_water_filling(gains.double(), weights.double(), power.double()), gains
    )


def power_normalize(x: Tensor, power: Tensor, mean: bool) -> Tensor:
    """See power_reference.normalize."""
    return power_reference.normalize(_doubled(x), power.double(), mean).to(x.dtype)

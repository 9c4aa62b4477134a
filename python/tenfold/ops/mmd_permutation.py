"""The kernel two-sample test: are two samples from one distribution? (Gretton et al., JMLR 13, 2012)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks

from .mmd import FLOOR, _alike, _given_base, median_distance, widths_of
from .mmd_dispatch import _batched, _mmd

COLUMNS = 256
"""Resamples that share one walk over the kernel matrix."""

NULL_ESTIMATORS = ("biased", "unbiased")
TEST_BANDWIDTHS = ("median", "mean")


class MMDTest(NamedTuple):
    """statistic: the squared MMD. pvalue in (0, 1]. null_distribution: [n_resamples] float64, on the CPU."""

    statistic: float
    pvalue: float
    null_distribution: Tensor


def mmd_permutation_test(
    x: Any,
    y: Any,
    *,
    kernels: int = 1,
    mul: float = 2.0,
    bandwidth: Any = "median",
    estimator: str = "unbiased",
    factors: Any = None,
    n_resamples: int = 999,
    generator: torch.Generator | None = None,
    floor: float = FLOOR,
) -> MMDTest:
    """Permutation test of the hypothesis that x and y are from one distribution, with the squared MMD.

    The pooled points are dealt out anew n_resamples times. All resamples of a walk over the kernel matrix
    are quadratic forms of the same tiles, so a resample costs two products per pair of points and no
    exponential, and memory is linear in the number of points.

    Args:
        x: [N, d]: float32, float64, bfloat16 or float16. y: [M, d], same dtype and device; N, M >= 2.
        kernels, mul, factors, floor: as `mmd`.
        bandwidth: "median": the exact median of ``|z_i - z_j|^2`` over all pairs of the pooled points, itself
            among them; "mean": their mean over i != j; or a number. It must not tell x from y, or the test
            would not keep its level.
        estimator: "unbiased" or "biased", of the statistic.
        n_resamples: >= 1; the least p-value is 1 / (n_resamples + 1).
        generator: on the CPU; None takes PyTorch's own.

    Returns:
        (statistic, pvalue, null_distribution); pvalue = (1 + number of resamples at least as large, within
        rounding) / (1 + n_resamples), which is valid at any level.

    Raises:
        TypeError, ValueError: as `mmd`; NaN or infinite points; less than two points.
    """
    a, b = _alike(("x", "y"), x, y)
    _checks.choice("estimator", estimator, NULL_ESTIMATORS)
    resamples = _checks.integer("n_resamples", n_resamples, 1, 2**31 - 1)
    floor = _checks.real("floor", floor, positive=True)
    if isinstance(bandwidth, str):
        _checks.choice("bandwidth", bandwidth, TEST_BANDWIDTHS)
    for name, points in (("x", a), ("y", b)):
        if points.ndim != 2 or len(points) < 2:
            _checks.fail(ValueError, name, "shape [N, d] with N >= 2", tuple(points.shape))
        if not bool(torch.isfinite(points).all()):
            _checks.fail(ValueError, name, "finite points", "NaN or infinity")
    if generator is not None and generator.device.type != "cpu":
        _checks.fail(ValueError, "generator", "a generator on the CPU", generator.device)

    pooled, n, m = torch.cat((a.detach(), b.detach())), len(a), len(b)
    widths = widths_of(kernels, mul, factors, bandwidth)
    base = _pooled_base(bandwidth, pooled, floor)
    forms = _Forms(pooled, base, widths, floor)
    total = float(forms(torch.ones(n + m, 1))[0])
    found = []
    for first in range(0, resamples + 1, COLUMNS):
        count = min(COLUMNS, resamples + 1 - first)
        members = torch.zeros(n + m, count, dtype=torch.bool)
        for column in range(count):
            drawn = first + column > 0  # column 0 of all is the sample as it came
            chosen = torch.randperm(n + m, generator=generator)[:n] if drawn else torch.arange(n)
            members[chosen, column] = True
        found.append(_statistics(forms, members, n, m, total, estimator == "unbiased", len(widths)))
    values = torch.cat(found)
    rounding = 4 * torch.finfo(torch.float32).eps * len(widths)
    as_large = int((values[1:] >= values[0] - rounding).sum())
    return MMDTest(float(values[0]), (1 + as_large) / (1 + resamples), values[1:])


def _pooled_base(bandwidth: Any, pooled: Tensor, floor: float) -> Tensor | None:
    if not isinstance(bandwidth, str):
        return _given_base(bandwidth, _batched(pooled))
    if bandwidth == "mean":
        return None
    median = median_distance(pooled)
    assert isinstance(median, Tensor)
    return median.clamp_min(floor)[None]


class _Forms:
    """v^T K v for each column of v [n, C], float64 on the CPU."""

    def __init__(self, pooled: Tensor, base: Tensor | None, widths: list[float], floor: float) -> None:
        self.points, self.base, self.widths, self.floor = pooled[None], base, widths, floor

    def __call__(self, v: Tensor) -> Tensor:
        weights = v.to(
            self.points.device, torch.float64 if self.points.dtype == torch.float64 else torch.float32
        )
        options = (self.widths, self.floor, False, True, False)
        value, _, _ = _mmd(self.points, self.points[:, :0], weights[None], self.base, *options)
        return value[0].double().cpu()


def _statistics(
    forms: _Forms, members: Tensor, n: int, m: int, total: float, unbiased: bool, kernels: int
) -> Tensor:
    """The squared MMD for each column of `members` [n + m, C], which says who belongs to the first sample.

    With aa, bb, ab the sums of k within and between the samples: aa + bb + 2 ab = total, which one extra
    column gives once. The biased form needs no more; the unbiased one also aa, unless n == m.
    """
    inside = members.double()
    biased = forms(inside / n - (1.0 - inside) / m)
    if not unbiased:
        return biased
    if n == m:
        within = (n * n * biased + total) / 2
        return (within - (n + m) * kernels) / (n * (n - 1)) - (total - within) / (n * n)
    aa = forms(inside)
    bb = (biased + total / (n * m) - aa * (1 / n**2 + 1 / (n * m))) / (1 / m**2 + 1 / (n * m))
    between = (total - aa - bb) / (n * m)
    return (aa - n * kernels) / (n * (n - 1)) + (bb - m * kernels) / (m * (m - 1)) - between

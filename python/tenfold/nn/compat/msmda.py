"""MS-MDA's discrepancies (VoiceBeer/MS-MDA, utils.py): names, arguments and values."""

from __future__ import annotations

from torch import Tensor

from tenfold import ops


def mmd(
    source: Tensor,
    target: Tensor,
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
    fix_sigma: float | None = None,
) -> Tensor:
    """Biased MMD of [N, d] and [M, d] with kernel_num widths around the mean distance or fix_sigma."""
    bandwidth = fix_sigma if fix_sigma else "mean"
    value = ops.mmd(source, target, kernels=kernel_num, mul=kernel_mul, bandwidth=bandwidth)
    assert isinstance(value, Tensor)
    return value


def mmd_rbf_accelerate(
    source: Tensor,
    target: Tensor,
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
    fix_sigma: float | None = None,
) -> Tensor:
    """The same over neighbours in a ring, O(N); as many points on both sides."""
    bandwidth = fix_sigma if fix_sigma else "mean"
    value = ops.mmd(
        source, target, kernels=kernel_num, mul=kernel_mul, bandwidth=bandwidth, estimator="linear"
    )
    assert isinstance(value, Tensor)
    return value


def mmd_linear(f_of_X: Tensor, f_of_Y: Tensor) -> Tensor:
    """The mean of (X - Y)(X - Y)^T, which is |mean X - mean Y|^2."""
    value = ops.linear_mmd(f_of_X, f_of_Y)
    assert isinstance(value, Tensor)
    return value


def CORAL(source: Tensor, target: Tensor) -> Tensor:
    """As published there, to repeat its runs; `tenfold.ops.coral` is the formula of the paper.

    Centred over the features of each sample instead of the samples, not divided by their number, scaled by
    1 / (16 d).
    """
    s, t = ((z.mean(1, keepdim=True) - z) for z in (source, target))
    return (s.T @ s - t.T @ t).square().mean() / (16 * source.shape[1])

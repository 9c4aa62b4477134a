"""The discrepancy kernels on a GPU, or their CUDA source on the host, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tenfold.kernels.mmd import mmd_device, mmd_native, mmd_reference
from tenfold.kernels.mmd.mmd_reference import Contrast, Pairs
from torch import Tensor

FACTORS = [0.25, 0.5, 1.0, 2.0, 4.0]


def launches(gpu: Any) -> tuple[Any, Any]:
    if gpu.name == "triton":
        from tenfold.kernels.mmd import mmd_triton

        return mmd_triton._launch_pairs, mmd_triton._launch_contrast
    return mmd_native._launch_pairs, mmd_native._launch_contrast


def off(got: Tensor, expected: Tensor) -> float:
    got, expected = got.double().cpu().nan_to_num(), expected.double().nan_to_num()
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("batch", "n", "m", "d", "unbiased", "columns"),
    [
        (2, 70, 40, 30, False, 0),
        (1, 3, 30, 100, True, 0),
        (2, 30, 20, 65, False, 3),
        (1, 64, 64, 64, True, 0),
    ],
)
@pytest.mark.parametrize("factors", [FACTORS, [0.3, 0.5, 2.0]])
def test_pairs(
    gpu: Any, batch: int, n: int, m: int, d: int, unbiased: bool, columns: int, factors: list[float]
) -> None:
    x, y = torch.randn(batch, n, d), 1.3 * torch.randn(batch, m, d) + 0.2
    v = torch.randn(batch, n + m, columns) / n if columns else None
    options = Pairs(factors, 1e-5, unbiased, False, True)
    wanted = mmd_reference.pairs(x.double(), y.double(), v, None, options)
    moved = (t if t is None else t.to(gpu.device) for t in (x, y, v))
    got = mmd_device.pairs(launches(gpu)[0], *moved, None, options)
    for g, w in zip(got, wanted, strict=True):
        assert off(g, w) < 1e-5


@pytest.mark.parametrize("clamp", [False, True])
def test_contrast(gpu: Any, clamp: bool) -> None:
    s, t = torch.randn(3, 70, 80), torch.randn(3, 32, 80) + 0.2
    ys, yt = torch.randint(-1, 4, (3, 70)), torch.randint(-1, 3, (3, 32))
    options = Contrast(5, FACTORS, 1e-5, clamp, 2, True)
    wanted = mmd_reference.contrast(s.double(), ys, t.double(), yt, options)
    moved = (a.to(gpu.device) for a in (s, ys, t, yt))
    got = mmd_device.contrast(launches(gpu)[1], *moved, options)
    assert torch.equal(got[2].isnan().cpu(), wanted[2].isnan())
    for g, w in zip(got, wanted, strict=True):
        assert off(g, w) < 1e-5

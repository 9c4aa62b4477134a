"""What is particular to Sophia in Triton: tables of tensors, tiles, alignment, and codes of odd numbers.

Values in every format are compared in test_sophia_formats.py. The interpreter shows the kernels' arithmetic,
rounding bits and codes to the bit; it does not show the compiler, of which tests/cuda/test_compile.py reads
the instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tenfold
from tenfold._backend import why_not
from tenfold.ops import sophia8_quantize, sophia_step_

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(
    why_not("triton", DEVICE.type) is not None, reason=str(why_not("triton", DEVICE.type))
)

Lists = list[list[Tensor]]


def _lists(sizes: Sequence[int], dtype: torch.dtype, skip: int = 0) -> Lists:
    """Weights, gradients and states, each `skip` elements behind an aligned address."""
    generator = torch.Generator().manual_seed(4)
    kinds = (dtype, dtype, torch.float32, torch.float32)
    drawn = [[torch.rand(n + skip, generator=generator).to(kind) for n in sizes] for kind in kinds]
    return [[t.to(DEVICE)[skip:] for t in tensors] for tensors in drawn]


def _step(backend: str, lists: Lists, **options: Any) -> list[Tensor]:
    lists = [[t.clone() if backend == "reference" else t for t in tensors] for tensors in lists]
    stats = torch.zeros(6, dtype=torch.float64, device=DEVICE)
    with tenfold.use_backend(backend):
        settings = {"lr": 1e-2, "beta1": 0.9, "hessian_beta2": 0.9, "seed": 2**64 - 1, "step": 2**24 - 1}
        sophia_step_(*lists, stats=stats, **settings | options)
    return [t.cpu() for tensors in lists for t in tensors] + [stats.cpu()]


def _assert_same(lists: Lists, **options: Any) -> None:
    expected = _step("reference", lists, **options)
    got = _step("triton", lists, **options)
    for i, (a, b) in enumerate(zip(got[:-1], expected[:-1], strict=True)):
        assert torch.equal(a, b), i
    torch.testing.assert_close(got[-1], expected[-1], rtol=1e-12, atol=0)


def test_many_tensors_find_their_rows() -> None:
    """More rows than a power of two, sizes around a tile: the binary search meets every boundary."""
    sizes = [1, 2, 0, 1, 1024, 1025, 1, 2048, 2049, 1, 4]
    streams = [2**32 - 1 - i for i in range(len(sizes))]
    _assert_same(_lists(sizes, torch.bfloat16), rounding="stochastic", streams=streams)


def test_addresses_that_are_not_aligned() -> None:
    lists = _lists([1030, 7], torch.bfloat16, skip=3)
    assert lists[0][0].data_ptr() % 16
    _assert_same(lists, rounding="stochastic", denom_scale=0.5)


def test_a_tensor_at_an_old_address_gets_its_own_table() -> None:
    """Tables are kept between calls: one must not be taken for another list's."""
    lists = _lists([100], torch.bfloat16)
    for stream in (1, 2, 1):
        for n in (100, 60):
            _assert_same([[t[:n] for t in ts] for ts in lists], rounding="stochastic", streams=[stream])


def test_dtypes_may_be_mixed() -> None:
    halves, floats = _lists([5, 300], torch.bfloat16), _lists([300, 9], torch.float32)
    _assert_same([a + b for a, b in zip(halves, floats, strict=True)])


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("kind", ["exp_avg", "hessian"])
def test_codes_of_any_float(kind: str, seed: int | None) -> None:
    """Random bit patterns, subnormals, infinities and NaN among them; blocks of zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (2000,), generator=generator).to(torch.int32).view(torch.float32)
    x[:256] = torch.rand(256, generator=generator) * 1e-39
    x[256:512] = 0.0
    x[512:516] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0])
    x[768:1024] = torch.inf
    with tenfold.use_backend("reference"):
        expected = sophia8_quantize(x, kind, seed=seed, stream=3)
    with tenfold.use_backend("triton"):
        got = sophia8_quantize(x.to(DEVICE), kind, seed=seed, stream=3)
    assert torch.equal(got[0].cpu(), expected[0])
    assert torch.equal(got[1].cpu(), expected[1])

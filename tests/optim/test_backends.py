"""Given the same losses, a run gives the same bits whatever computes it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tenfold
from tenfold.optim import FZOO, ZOSGD, ZOAdam

RUNS = [
    (ZOSGD, torch.float32, {"weight_decay": 0.1}),
    (ZOSGD, torch.bfloat16, {"rounding": "sr", "num_queries": 3}),
    (ZOSGD, torch.float16, {"restore": "exact", "one_sided": True}),
    (FZOO, torch.bfloat16, {}),
    (ZOAdam, torch.float32, {"num_queries": 2}),
    (ZOAdam, torch.bfloat16, {"rounding": "sr", "weight_decay": 0.1}),
]


def run(optimizer, dtype, options, device="cpu"):
    """Three steps on losses that do not depend on the weights; a transposed weight among the parameters."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype).to(device) for shape in ((33, 70), (129,))]
    params = [nn.Parameter(values[0].t()), nn.Parameter(values[1])]
    losses = torch.rand(100, generator=generator).tolist()
    opt = optimizer(params, lr=0.01, seed=3, **options)
    for _ in range(3):
        opt.step(lambda: losses.pop())
    return [p.detach().cpu() for p in params]


@pytest.mark.parametrize(("optimizer", "dtype", "options"), RUNS)
def test_reference_and_native_agree_bit_for_bit(optimizer, dtype, options):
    native = run(optimizer, dtype, options)
    with tenfold.use_backend("reference"):
        reference = run(optimizer, dtype, options)
    assert all(torch.equal(a, b) for a, b in zip(native, reference, strict=True))


@pytest.mark.parametrize(("optimizer", "dtype", "options"), RUNS)
def test_thread_count_does_not_matter(optimizer, dtype, options):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(run(optimizer, dtype, options))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("optimizer", "dtype", "options"), RUNS)
def test_cpu_and_cuda_agree_bit_for_bit(optimizer, dtype, options):
    on_cpu, on_cuda = run(optimizer, dtype, options), run(optimizer, dtype, options, "cuda")
    assert all(torch.equal(a, b) for a, b in zip(on_cpu, on_cuda, strict=True))

"""Masked Adam, saliency and selection on a GPU, or their CUDA source on the host, equal the reference."""

from __future__ import annotations

import pytest
import torch
from tenfold.kernels.erase import erase_native, erase_reference, erase_select
from tenfold.kernels.erase.erase_reference import AdamArgs
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES = [(2048 * 2 + 5,), (1,), (0,), (64, 32), (7, 9, 3)]
ARGS = AdamArgs(0.999, 0.1, 0.999, 1e-3, 1.7, 1e-8, 0.01)


def kernels_of(gpu):
    if gpu.name == "triton":
        from tenfold.kernels.erase import erase_triton

        return erase_triton
    return erase_native  # `gpu` has seen to it that its calls go to CUDA


def drawn(dtype: torch.dtype, seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in SHAPES]


def same(a: Tensor, b: Tensor) -> bool:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.cpu().contiguous().view(kind), b.cpu().contiguous().view(kind))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["states alike", "states wide"])
def test_masked_adam(gpu, dtype, wide):
    states = torch.promote_types(dtype, torch.float32) if wide else dtype
    params, grads = drawn(dtype, 1), drawn(dtype, 2)
    means = [t.to(states) for t in drawn(torch.float32, 3)]
    squares = [t.square() for t in means]
    draw = torch.Generator().manual_seed(4)
    masks = [torch.randint(0, 256, ((p.numel() + 7) // 8,), generator=draw).to(torch.uint8) for p in params]
    for bits in masks:
        bits[1::3], bits[2::3] = 255, 0
    for bits, p in zip(masks, params, strict=True):
        if p.numel() % 8:
            bits[-1] &= (1 << p.numel() % 8) - 1
    runs = []
    for module, device in ((kernels_of(gpu), gpu.device), (erase_reference, torch.device("cpu"))):
        columns = [[t.clone().to(device) for t in each] for each in (params, grads, means, squares, masks)]
        for _ in range(2):
            module.adam_(*columns, ARGS)
        runs.append(columns)
    for got, want in zip(*runs, strict=True):
        assert all(same(a, b) for a, b in zip(got[:4], want[:4], strict=True) if a.dtype != torch.uint8)


@pytest.mark.parametrize("mode", erase_reference.MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("total", [torch.float32, torch.float64], ids=str)
def test_saliency(gpu, total, dtype, mode):
    acc, grads, weights = drawn(total, 1), drawn(dtype, 2), drawn(dtype, 3)
    runs = []
    for module, device in ((kernels_of(gpu), gpu.device), (erase_reference, torch.device("cpu"))):
        columns = [[t.clone().to(device) for t in each] for each in (acc, grads, weights)]
        module.saliency_(*columns, mode)
        runs.append(columns[0])
    assert all(same(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_selection(gpu, dtype):
    """By the counting passes of the family zo, which `gpu` has as a module."""
    tensors = [t.to(gpu.device) for t in drawn(dtype, 6)]
    values = torch.cat([t.cpu().double().abs().flatten() for t in tensors]).sort().values
    for rank in (1, len(values) // 3, len(values)):
        found = erase_select.select_by_digits(gpu.module, tensors, rank)
        threshold = values[rank - 1]
        counts = int((values < threshold).sum()), int((values == threshold).sum())
        assert found == (threshold.item(), *counts, 0)
        ties = rank - found.below
        out = [torch.empty((t.numel() + 7) // 8, dtype=torch.uint8, device=gpu.device) for t in tensors]
        erase_select.bits_by_threshold_(gpu.module, out, tensors, found, ties, False)
        chosen = sum(int(erase_reference.unpacked(b, t).sum()) for b, t in zip(out, tensors, strict=True))
        assert chosen == rank


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_attention_columns(real_gpu, dtype):
    if real_gpu.name != "triton":
        pytest.skip("attention columns are written in Triton")
    from tenfold.kernels.erase import erase_triton

    draw = torch.Generator().manual_seed(8)
    q, k = (torch.randn(2, 3, n, 40, generator=draw).to(dtype) for n in (300, 77))
    mask = torch.rand(2, 77, generator=draw) < 0.3
    grad = torch.tensor(1.5, dtype=torch.float64)
    expected = erase_reference.column_norm(q.double(), k.double(), mask, 0.2)
    want = [torch.empty_like(t, dtype=torch.float64) for t in (q, k)]
    erase_reference.column_norm_backward(grad, q.double(), k.double(), mask, 0.2, *want)
    given = [t.to(real_gpu.device) for t in (q, k, mask)]
    found = erase_triton.column_norm(*given, 0.2)
    got = [torch.empty_like(t) for t in given[:2]]
    erase_triton.column_norm_backward(grad.to(real_gpu.device), *given, 0.2, *got)
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    assert abs(found.item() - expected.item()) <= tolerance * expected.item()
    for a, b in zip(got, want, strict=True):
        assert (a.cpu().double() - b).abs().max() <= tolerance * b.abs().max()

"""Low-rank and perturbed-layer kernels on a GPU, or their CUDA source on the host, equal the references."""

from __future__ import annotations

import pytest
import torch
from tenfold.kernels.dual import dual_native, dual_reference
from tenfold.kernels.lowrank import lowrank_native, lowrank_reference
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SEED = 2**64 - 3


def bits(x: Tensor) -> Tensor:
    x = x.detach().cpu().contiguous()
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def draw(*shape: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def modules(gpu):
    """The kernels under test: what `gpu` sends to the emulator, to CUDA, or to Triton."""
    if gpu.name == "triton":
        from tenfold.kernels.dual import dual_triton
        from tenfold.kernels.lowrank import lowrank_triton

        return lowrank_triton, dual_triton
    return lowrank_native, dual_native


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lowrank_pass(gpu, dtype):
    kernels, _ = modules(gpu)
    shapes = [(9, 530), (17, 36), (1, 1), (0, 4), (3, 0)]
    clean = [draw(*shape).to(dtype) for shape in shapes] + [
        draw(20, 11).to(dtype).t(),
        draw(9, 40).to(dtype)[:, 2:37:5],
    ]
    vs = [draw(p.shape[1], 1 + i, seed=1, scale=1.0).float() for i, p in enumerate(clean)]
    us = [draw(p.shape[0], 1 + i, seed=2, scale=1.0).float() for i, p in enumerate(clean)]
    streams = list(range(len(clean)))
    for explicit, stochastic in ((False, True), (True, False)):
        count = 1 if explicit else 3
        terms = [SEED - k for k in range(count)], list(range(count)), [0.1 * (k + 1) for k in range(count)]
        runs = []
        for module, device in ((kernels, gpu.device), (lowrank_reference, torch.device("cpu"))):
            params = [p.clone(memory_format=torch.preserve_format).to(device) for p in clean]
            factors = [v.to(device) for v in vs], [u.to(device) for u in us] if explicit else None
            module.lowrank_(params, None, *factors, streams, *terms, 0.9, stochastic, 77, 3)
            runs.append(params)
        for got, want in zip(*runs, strict=True):
            assert torch.equal(bits(got), bits(want)), (explicit, tuple(got.shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factors(gpu, dtype):
    kernels, _ = modules(gpu)
    for rows, rank in ((1, 1), (301, 3), (5, 256)):
        got, want = (
            torch.empty(rows, rank, dtype=dtype, device=gpu.device),
            torch.empty(rows, rank, dtype=dtype),
        )
        kernels.factor_(got, SEED, 2**32 - 1, 2**24 - 1, "v")
        lowrank_reference.factor_(want, SEED, 2**32 - 1, 2**24 - 1, "v")
        assert torch.equal(bits(got), bits(want))
    got, want = torch.empty(301, 3, device=gpu.device), torch.empty(301, 3)
    for module, out in ((kernels, got), (lowrank_reference, want)):
        module.project_(out, [1, SEED], [2, 3], [0.5, -0.25], 4, "u")
    assert torch.equal(bits(got), bits(want))


@pytest.mark.parametrize("dist", ["gaussian", "rademacher", "gauss16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fill(gpu, dtype, dist):
    _, kernels = modules(gpu)
    base = draw(12, 2 * 131).to(dtype)
    for weight in (base[:, :132].contiguous(), base[:, 1:132], base[:, ::2], base.t()[:40]):
        k = weight.shape[1]
        for to in {dtype, torch.float64 if dtype == torch.float64 else torch.float32}:
            for z_round in (None, torch.bfloat16):
                runs = []
                for module, device in ((kernels, gpu.device), (dual_reference, torch.device("cpu"))):
                    outs = [torch.full((5, k), torch.nan, dtype=to, device=device) for _ in range(3)]
                    where = weight if device.type == "cpu" else weight.to(device)
                    module.fill(where, 3, outs, [0.5, -0.5, 1e-3], SEED, 5, 6, dist, z_round)
                    runs.append(torch.stack(outs))
                assert torch.equal(bits(runs[0]), bits(runs[1])), (k, to, z_round)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embed(gpu, dtype):
    _, kernels = modules(gpu)
    for k in (1, 12, 37):
        weight = draw(9, k).to(dtype)
        ids = [torch.tensor([8, 0, 3, 3]), torch.tensor([8, 1, 3, 0])]
        runs = []
        for module, device in ((kernels, gpu.device), (dual_reference, torch.device("cpu"))):
            outs = [torch.full((4, k), torch.nan, dtype=dtype, device=device) for _ in range(2)]
            index = [i.to(device) for i in ids]
            module.embed(weight.to(device), index, outs, [0.5, -0.25], SEED, 5, 6, "gaussian", None)
            runs.append(torch.stack(outs))
        assert torch.equal(bits(runs[0]), bits(runs[1])), k


@pytest.mark.parametrize("mode", ["fold", "split"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear(gpu, dtype, mode):
    """The composite over the kernel's fill; on a GPU the fused Triton kernel as well. 40 rows are not few."""
    _, kernels = modules(gpu)
    for rows in (3, 40):
        x, w, b = (
            draw(3, rows, 64, scale=1.0).to(dtype),
            draw(50, 64, seed=1).to(dtype),
            draw(50, seed=2).to(dtype),
        )
        rest = (SEED, 3, 4, [5, 5, 0], [0.1, -0.1, 0.0], "gaussian", mode == "fold", None, dtype)
        got = kernels.linear(x.to(gpu.device), w.to(gpu.device), b.to(gpu.device), *rest).cpu().double()
        want = dual_reference.linear(x, w, b, *rest).double()
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
        assert torch.allclose(got, want, atol=tolerance, rtol=tolerance)

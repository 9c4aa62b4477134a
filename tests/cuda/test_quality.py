"""The picture-quality kernels on a GPU, or their CUDA source on the host, against float64."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch
from tenfold.kernels.quality import quality_native, quality_reference
from tenfold.kernels.quality.quality_reference import Options

SHAPES = [(1, 1, 11, 12), (2, 2, 45, 33), (1, 1, 16, 71)]
OPTIONS = [
    Options("gaussian", 1e-4, 9e-4, 1.0),
    Options("gaussian", 1e-4, 9e-4, 0.5, contrast=True),
    Options("uniform", 1e-4, 9e-4, 2.0),
]


def module_of(gpu, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    if gpu.name == "triton":
        from tenfold.kernels.quality import quality_triton

        return quality_triton
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(quality_native, "_native", SimpleNamespace(cuda=built, cpu=None))
        monkeypatch.setattr(quality_native, "_on_cuda", lambda tensor: True)
        monkeypatch.setattr(quality_native, "_stream", lambda tensor: 0)
    return quality_native


def draw(shape, dtype):
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    y = (x + 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return x.to(dtype), y.to(dtype)


def near(got, want, dtype, share=2e-5):
    step = {torch.float64: 1e-12, torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, share)
    assert got.shape == want.shape
    assert (got.cpu().double() - want).abs().max() <= step * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_similarity_both_ways(gpu, monkeypatch, request, dtype, options, shape):
    kernels = module_of(gpu, monkeypatch, request)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    pictures = draw(shape, dtype)
    x, y = (v.to(gpu.device) for v in pictures)
    exact = [v.double() for v in pictures]
    got, want = kernels.similarity(x, y, options, True), quality_reference.similarity(*exact, options, True)
    for a, b in zip(got, want, strict=True):
        near(a, b, wide)
    generator = torch.Generator().manual_seed(8)
    grad, *pooled = (torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in want)
    for wanted, more in ((3, True), (1, False), (2, True)):
        outs = [
            [torch.empty_like(v) if wanted >> i & 1 else None for i, v in enumerate(p)]
            for p in ((x, y), exact)
        ]
        given = [[v if more and wanted >> i & 1 else None for i, v in enumerate(pooled)] for _ in range(2)]
        given[0] = [None if v is None else v.to(gpu.device, wide) for v in given[0]]
        kernels.similarity_backward(grad.to(gpu.device), x, y, tuple(given[0]), options, tuple(outs[0]))
        quality_reference.similarity_backward(grad, *exact, tuple(given[1]), options, tuple(outs[1]))
        for a, b in zip(*outs, strict=True):
            if b is not None:
                near(a, b, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (2, 3, 45, 33)], ids=str)
def test_squared_error_both_ways(gpu, monkeypatch, request, dtype, shape):
    kernels = module_of(gpu, monkeypatch, request)
    pictures = draw(shape, dtype)
    x, y = (v.to(gpu.device) for v in pictures)
    exact = [v.double() for v in pictures]
    want = quality_reference.squared_error(*exact)
    near(kernels.squared_error(x, y), want, torch.float64 if dtype == torch.float64 else torch.float32)
    grad = torch.arange(1.0, len(x) + 1, dtype=torch.float64)
    outs = [tuple(torch.empty_like(v) for v in p) for p in ((x, y), exact)]
    kernels.squared_error_backward(grad.to(gpu.device), x, y, outs[0])
    quality_reference.squared_error_backward(grad, *exact, outs[1])
    for a, b in zip(*outs, strict=True):
        near(a, b, dtype)


def test_strides_and_bytes(gpu, monkeypatch, request):
    kernels = module_of(gpu, monkeypatch, request)
    x, y = ((255 * v).byte() for v in draw((2, 3, 40, 36), torch.float64))
    options = Options("gaussian", 1e-4, 9e-4, 2.0**-8)
    want = quality_reference.similarity(x.double(), y.double(), options, False)[0]
    last = x.contiguous(memory_format=torch.channels_last).to(gpu.device)
    near(kernels.similarity(last, y.to(gpu.device), options, False)[0], want, torch.float32)

"""The soft-overlap kernels on a GPU, or their CUDA source on the host, against the reference."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch
from tenfold.kernels.softdice import softdice_native, softdice_reference
from tenfold.kernels.softdice.softdice_reference import Options

OPTIONS = [
    Options(),
    Options(gamma=2.0, ignore=1),
    Options("sigmoid"),
    Options("sigmoid", gamma=0.5, squares=False),
    Options("none", logs=False),
]


def module_of(gpu, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    if gpu.name == "triton":
        from tenfold.kernels.softdice import softdice_triton

        return softdice_triton
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        native = SimpleNamespace(cuda=built, cpu=None)
        monkeypatch.setattr(softdice_native, "_native", native)
        monkeypatch.setattr(softdice_native, "_on_cuda", lambda tensor: True)
        monkeypatch.setattr(softdice_native, "_stream", lambda tensor: 0)
    return softdice_native


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dense", [False, True], ids=["labels", "map"])
def test_both_ways(gpu, monkeypatch, request, dtype, options, dense):
    kernels = module_of(gpu, monkeypatch, request)
    for shape in ((2, 3, 300), (1, 19, 129), (2, 1, 1)):
        generator = torch.Generator().manual_seed(7)
        x = 2 * torch.randn(shape, generator=generator).to(dtype)
        y = torch.randint(0, shape[1], (shape[0], shape[2]), generator=generator)
        if dense:
            y = torch.rand(shape, generator=generator)
        mask = torch.rand(shape[0], shape[2], generator=generator).lt(0.8)
        grad = torch.randn(shape[0], shape[1], 7, generator=generator, dtype=torch.float64)
        found = []
        for module, device, z in (
            (kernels, gpu.device, x),
            (softdice_reference, torch.device("cpu"), x.double()),
        ):
            z, t, m = z.to(device), y.to(device), mask.to(device)
            sums, lse, bad = module.forward(z, t, m, options)
            out = torch.empty_like(z)
            module.backward(grad.to(device), z, t, m, lse, options, out)
            found.append((sums.cpu(), lse.cpu().double(), out.cpu().double()))
            assert int(bad.sum()) == 0
        # An entry that is not wanted is not compared: its gradient is zero in use.
        tolerance = 1e-11 if dtype == torch.float64 else 3e-6
        for got, want in zip(found[0][:2], found[1][:2], strict=True):
            assert (
                (got - want).abs().max() <= tolerance * max(1.0, want.abs().max().item())
                if want.numel()
                else True
            )
        step = {torch.bfloat16: 4e-3, torch.float16: 1e-3}.get(dtype, tolerance)
        floor = 1e-12 if dtype == torch.float64 else 1e-6
        assert (found[0][2] - found[1][2]).abs().max() <= step * found[1][2].abs().max() + floor


def test_labels_outside_the_classes(gpu, monkeypatch, request):
    kernels = module_of(gpu, monkeypatch, request)
    x, y = torch.randn(1, 3, 200), torch.zeros(1, 200, dtype=torch.int64)
    y[0, [3, 150]] = torch.tensor([3, -4])
    _, _, bad = kernels.forward(x.to(gpu.device), y.to(gpu.device), None, Options())
    assert int(bad.sum()) == 2

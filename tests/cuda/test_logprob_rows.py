"""The row kernels of logprob on a GPU, or their CUDA source on the host, against the reference."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from tenfold.kernels.logprob import rows_native, rows_reference
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def rows_of(gpu, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The kernels under test: on the emulator, on CUDA, or in Triton."""
    if gpu.name == "triton":
        from tenfold.kernels.logprob import rows_triton

        return rows_triton
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(rows_native, "_module", lambda tensor: (built, (0,)))
    return rows_native


def near(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        got.cpu().double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def logits_of(size: int, dtype: torch.dtype) -> Tensor:
    z = 3 * torch.randn(2, 4, size, generator=torch.Generator().manual_seed(size))
    z[0, 1, size // 2 + 1 :] = -torch.inf
    z[1, 1, size - 1] = torch.nan
    z[1, 2] = 0.0
    return z.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [(None, 1.0), (4.0, 0.7)])
def test_forward_and_gradient(gpu, monkeypatch, request, dtype, options):
    rows = rows_of(gpu, monkeypatch, request)
    for size in (1, 33, 2048, 5000):
        whole = logits_of(size, dtype)
        z = whole[:, :-1]  # a view with two strides
        targets = torch.tensor([0, size // 2, -1, size - 1, size // 3, 0])
        want = rows_reference.forward(z, targets, *options)
        moved, t = whole.to(gpu.device)[:, :-1], targets.to(gpu.device)
        got = rows.forward(moved, t, *options)
        assert torch.equal(got.argmax.cpu(), want.argmax), size
        for name in ("logp", "lse", "mean_logit", "mean_logp", "mean_logp2"):
            near(getattr(got, name), getattr(want, name), 4e-5)
        coef, at = torch.linspace(-1, 1, 6), torch.linspace(0.3, 2, 6)
        outs = []
        for module, x, at_device in ((rows, moved, gpu.device), (rows_reference, z, torch.device("cpu"))):
            out = torch.empty(x.shape, dtype=dtype, device=at_device)
            per_row = (v.to(at_device) for v in (targets, want.lse, coef.double(), at.double()))
            module.softmax_(out, x, *per_row, *options)
            outs.append(out)
        near(outs[0], outs[1], {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_are_the_reference_s(gpu, monkeypatch, request, dtype):
    rows = rows_of(gpu, monkeypatch, request)
    for size in (1, 33, 2048, 9000):
        z = logits_of(size, dtype).flatten(0, 1)
        for inverse in (1.0, 1 / 1.7):
            for k in range(4):
                u = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
                u[3] = -1.0
                want = rows_reference.sample(z, u, inverse)
                got = rows.sample(z.to(gpu.device), u.to(gpu.device), inverse)
                assert torch.equal(got[0].cpu(), want[0])
                near(got[1], want[1], 1e-6)
                near(got[2], want[2], 1e-6)


def test_losses_of_whole_rows(gpu, monkeypatch, request):
    rows = rows_of(gpu, monkeypatch, request)
    for size in (2, 33, 5000):
        x, y = logits_of(size, torch.float32)[0], logits_of(size + 1, torch.float32)[0, :, :size]
        y[x == -torch.inf] = -torch.inf
        targets = torch.tensor([0, 1, -1, size - 1])
        for got, want in zip(
            rows.ceu(x.to(gpu.device), targets.to(gpu.device)), rows_reference.ceu(x, targets), strict=True
        ):
            near(got, want)
        for kind in rows_reference.KINDS:
            beta = 10.0 if kind == "cross_entropy" else 0.0
            want = rows_reference.divergence(x, y, targets, beta, kind)
            moved = [v.to(gpu.device) for v in (x, y.contiguous(), targets)]
            for a, b in zip(rows.divergence(*moved, beta, kind), want, strict=True):
                near(a, b)
            slopes = []
            for module, device in ((rows, gpu.device), (rows_reference, torch.device("cpu"))):
                out = torch.empty(x.shape, device=device)
                pair = [v.to(device) for v in (x, y.contiguous(), targets)]
                per_row = [v.to(device) for v in (*want, torch.linspace(1, 2, 4).double())]
                module.divergence_(out, *pair, beta, kind, *per_row)
                slopes.append(out)
            near(slopes[0], slopes[1], 3e-6)

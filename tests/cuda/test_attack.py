"""Token steps of attacks, losses and guidance on a GPU, or their CUDA on the host, against the reference."""

from __future__ import annotations

import math
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tenfold.kernels.attack import attack_native, attack_reference, guidance_native, guidance_reference
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NEAR = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 2**-8, torch.float16: 2**-10}


@pytest.fixture
def kernels(gpu, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[ModuleType, ...]:
    """The modules of tokens and of guidance."""
    if gpu.name == "triton":
        from tenfold.kernels.attack import attack_triton, guidance_triton

        return attack_triton, guidance_triton
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(attack_native, "_native", SimpleNamespace(cuda=built, cpu=None))
        monkeypatch.setattr(attack_native, "_on_cuda", lambda tensor: True)
        monkeypatch.setattr(attack_native, "_stream", lambda tensor: 0)
    return attack_native, guidance_native


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(got: Tensor, want: Tensor, dtype: torch.dtype, share: float = 1.0) -> None:
    """Within a share of the largest number; NaN where it belongs."""
    a, b = got.cpu().double(), want.double()
    assert a.shape == b.shape
    assert torch.equal(a.isnan(), b.isnan())
    a, b = a.nan_to_num(0.0), b.nan_to_num(0.0)
    assert (a - b).abs().max() <= share * NEAR[dtype] * b.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [1, 3, 37, 4096, 5003])
def test_projection(gpu, kernels, columns, dtype):
    p = normal(5, columns, seed=columns).to(dtype)
    p[1] = 1 / columns
    if columns > 3:
        p[2, ::3] = -math.inf
        p[3, 2], p[4, 3] = math.nan, math.inf
    for radius in (1.0, 0.25, 40.0):
        found = kernels[0].simplex_project(p.to(gpu.device), radius)
        near(found, attack_reference.simplex_project(p, radius), dtype, share=2.0)
    lowest = torch.full((2, columns), -math.inf, dtype=dtype, device=gpu.device)
    assert bool(kernels[0].simplex_project(lowest, 1.0).isnan().all())
    assert kernels[0].simplex_project(p[:0].to(gpu.device), 1.0).shape == (0, columns)


@pytest.mark.parametrize("table_dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (40, 5), (2, 1500), (3, 1027)])
def test_steps_of_adam(gpu, kernels, rows, columns, table_dtype):
    table = normal(columns, 12, seed=1).to(table_dtype)
    banned = normal(columns, seed=2) < -1
    states = [
        torch.full((rows, columns), 1 / columns),
        torch.zeros(rows, columns),
        torch.zeros(rows, columns),
    ]
    got, want = ([t.to(place) for t in states] for place in (gpu.device, "cpu"))
    want = [t.clone() for t in want]
    got = [t.clone() for t in got]
    for step in (1, 2, 3):
        gradient = normal(rows, 12, seed=10 + step).float()
        numbers = (0.01, 0.9, 0.999, 1e-8, 0.1, step)
        given = (gradient.to(gpu.device), table.to(gpu.device), *numbers, banned.to(gpu.device))
        kernels[0].ste_adam_simplex_(*got, *given)
        attack_reference.ste_adam_simplex_(*want, gradient, table, *numbers, banned)
    share = 4.0 if table_dtype == torch.float32 else 2e3  # half-precision products differ by their order
    for a, b in zip(got, want, strict=True):
        near(a, b, torch.float32, share)
    assert float(got[0].cpu()[:, banned].abs().sum()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [1, 31, 32, 1024, 33000])
def test_samples(gpu, kernels, columns, dtype):
    """Powers of two add without rounding, so every order of sums finds the same number."""
    p = torch.where(normal(9, columns, seed=columns) < 0.5, 0.0, 0.25).to(dtype)
    p[:, columns // 2] = 0.5
    p[0] = 0.0
    p[1] = 0.0
    p[1, columns // 3] = 2.0
    u = torch.tensor([0.5, 0.99, 0.0, 0.25, 0.5, 0.75, 1 - 2**-20, 1.0, 0.125], dtype=torch.float64)
    want = attack_reference.sample_rows(p, u)
    assert torch.equal(kernels[0].sample_rows(p.to(gpu.device), u.to(gpu.device)).cpu(), want)
    p[2, 0], p[3, 0] = math.nan, math.inf
    assert kernels[0].sample_rows(p.to(gpu.device), u.to(gpu.device)).cpu()[2:4].tolist() == [-1, -1]


@pytest.mark.parametrize("metric", ["cos", "l2"])
@pytest.mark.parametrize("table_dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 1, 1), (3, 70, 37), (8, 301, 64), (19, 130, 132)])
def test_nearest(gpu, kernels, rows, columns, width, table_dtype, metric):
    if gpu.name == "triton":
        pytest.skip("the nearest token has no Triton kernel")
    table = normal(columns, width, seed=1).to(table_dtype)
    table[columns // 2 :: 7] = table[columns // 3].clone()  # equal words: the lowest id
    table[0] = 0 if columns > 1 else 1
    q = table[torch.arange(rows) * 5 % columns].float() + 0.1 * normal(rows, width, seed=2).float()
    q[rows - 1] = table[columns // 3].float()
    mask = normal(columns, seed=3) > -1
    mask[columns // 3] = True
    norms = attack_reference.inverse_norms(table)
    for given in ((None, None), (norms if metric == "cos" else None, mask)):
        want = attack_reference.nearest_token(q, table, given[0], metric, given[1])
        on = [None if t is None else t.to(gpu.device) for t in given]
        ids, scores = kernels[0].nearest_token(q.to(gpu.device), table.to(gpu.device), on[0], metric, on[1])
        assert torch.equal(ids.cpu(), want[0])
        size = (
            1.0 if metric == "cos" else float(q.square().sum(1).max())
        )  # what an l2 score is a difference of
        assert (scores.cpu() - want[1]).abs().max() <= 2e-6 * size
    q[0] = math.nan
    ids, scores = kernels[0].nearest_token(q.to(gpu.device), table.to(gpu.device), None, metric, None)
    assert ids[0] == -1
    assert bool(scores[0].isnan())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [None, 0.3])
def test_sign_steps(gpu, kernels, eps, norm, dtype):
    for shape in ((1, 1), (3, 4, 300), (2, 1025)):
        delta, grad, origin = (normal(*shape, seed=s).to(dtype) for s in (1, 2, 3))
        grad.view(-1)[0] = 0
        for centre in (None, origin) if eps is not None else (None,):
            got, want = delta.clone().to(gpu.device), delta.clone()
            on = None if centre is None else centre.to(gpu.device)
            kernels[0].sign_step_(got, grad.to(gpu.device), 0.05, eps, norm, on)
            attack_reference.sign_step_(want, grad, 0.05, eps, norm, centre)
            near(got, want, dtype)


SHAPES = [(1, 1), (3, 4, 9, 29), (2, 8193), (5, 1024)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("criterion", ["l1", "l2"])
@pytest.mark.parametrize("eta", [None, 0.0, 1.5])
def test_means_of_differences(gpu, kernels, eta, criterion, dtype):
    for shape in SHAPES:
        pred, target, other = (normal(*shape, seed=s).to(dtype).flatten(1) for s in (1, 2, 3))
        rest = None if eta is None else other
        on = [None if t is None else t.to(gpu.device) for t in (pred, target, rest)]
        found = kernels[1].mse_rows(*on, eta or 0.0, criterion)
        near(
            found, guidance_reference.mse_rows(pred, target, rest, eta or 0.0, criterion), torch.float64, 1e7
        )
        grad = normal(shape[0], seed=4)
        got = kernels[1].mse_rows_backward(grad.to(gpu.device), *on, eta or 0.0, criterion)
        want = guidance_reference.mse_rows_backward(grad, pred, target, rest, eta or 0.0, criterion)
        near(got, want, dtype, share=2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_steps_and_guidance(gpu, kernels, dtype):
    for shape in SHAPES:
        x, u, c, s = (normal(*shape, seed=k).to(dtype) for k in range(4))
        rows = shape[0]
        abar = torch.linspace(0.999, 0.005, 50, dtype=torch.float64)
        t = torch.arange(rows) * 13 - 1
        on = [v.to(gpu.device) for v in (x, u, c, s)]
        got = kernels[1].add_noise_rows(on[0], on[1], t.to(gpu.device), abar.to(gpu.device))
        near(got, guidance_reference.add_noise_rows(x, u, t, abar), dtype)
        guidance, a, b = torch.full((1,), 7.5).double(), abar[t.clamp(0, 48) + 1], abar[t.clamp(0, 48)]
        for prediction in guidance_reference.PREDICTIONS:
            for base, doubled in ((u, False), (None, True)):
                numbers = [v.to(gpu.device) for v in (guidance, a, b)]
                given = None if base is None else base.to(gpu.device)
                got = kernels[1].cfg_ddim_step(on[0], given, on[2], *numbers, prediction, doubled)
                args = (x, base, c, guidance, a, b, prediction, doubled)
                near(got, guidance_reference.cfg_ddim_step(*args), dtype, share=2.0)
        for warm in (True, False):
            numbers = (5.0, 0.01, 0.3, 0.4, warm)
            got = kernels[1].sld_guidance(*on, guidance.to(gpu.device), *numbers)
            want = guidance_reference.sld_guidance(x, u, c, s, guidance, *numbers)
            for one, two in zip(got, want, strict=True):
                near(one, two, dtype, share=2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 64])
def test_splicing(gpu, kernels, width, dtype):
    embeds, adv = normal(3, 11, width, seed=1).to(dtype), normal(3, 4, width, seed=2).to(dtype)
    index = torch.randint(0, 15, (3, 11), generator=torch.Generator().manual_seed(3))
    on = [t.to(gpu.device) for t in (embeds, adv, index)]
    got = kernels[1].splice_embed(*on)
    assert torch.equal(got.cpu(), guidance_reference.splice_embed(embeds, adv, index))
    grad = normal(3, 11, width, seed=4).to(dtype)
    found = kernels[1].splice_embed_backward(grad.to(gpu.device), on[2], 4)
    for a, b in zip(found, guidance_reference.splice_embed_backward(grad, index, 4), strict=True):
        near(a, b, dtype)
    beyond = on[2].clone()
    beyond[1, 5], beyond[2, 0] = 15, -1
    if gpu.name != "triton" or dtype != torch.float64:  # that one is PyTorch's gather, which refuses
        assert kernels[1].splice_embed(on[0], on[1], beyond).cpu()[[1, 2], [5, 0]].isnan().all()

"""Kernel discrepancies: published numbers, float64 references, every backend, what must not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tenfold.kernels.mmd import mmd_reference
from tenfold.kernels.mmd.mmd_reference import Contrast, Pairs
from torch import Tensor

from tenfold._backend import OPS
from tenfold.ops import cdd, coral, linear_mmd, lmmd, median_distance, mmd, weighted_mmd
from tenfold.ops.mmd import factors_of, mmd_with_base
from tenfold.ops.mmd_classes import lmmd_weights

FACTORS = factors_of(5, 2.0)


def sample(seed: int, n: int, d: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
    values = np.random.RandomState(seed).standard_normal((n, d)) * scale + offset
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture
def written(backend: Any) -> Any:
    if backend.name not in OPS["mmd"]:
        pytest.skip(f"mmd is not written for {backend.name}")
    return backend


def naive(x: Tensor, y: Tensor, factors: list[float], unbiased: bool = False) -> Tensor:
    """The definition, with the whole kernel matrix and autograd."""
    z = torch.cat((x, y))
    n, m, total = len(x), len(y), len(x) + len(y)
    d = (z[:, None] - z[None]).square().sum(-1)
    base = d.detach().sum() / (total * total - total)
    k = sum(torch.exp(-d / (base * f)) for f in factors)
    assert isinstance(k, Tensor)
    xx, yy, xy = k[:n, :n], k[n:, n:], k[:n, n:]
    if not unbiased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    off_x, off_y = xx.sum() - xx.diagonal().sum(), yy.sum() - yy.diagonal().sum()
    return off_x / (n * (n - 1)) + off_y / (m * (m - 1)) - 2 * xy.mean()


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs)


def off(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


# ---- numbers from elsewhere ------------------------------------------------------------------------------


def test_values_and_gradients_that_the_authors_code_gives(written: Any) -> None:
    """MS-MDA's kernel, DSAN's and CAN's: 5 widths that double, around the mean distance."""
    x, y = (t.to(written.device).requires_grad_() for t in (sample(11, 32, 64), sample(12, 32, 64, 1.2, 0.3)))
    value = mmd(x, y)
    gx, gy = gradients(value, x, y)
    assert value.item() == pytest.approx(0.284031192, rel=5e-6)
    assert gx.norm().item() == pytest.approx(0.0194824889, rel=1e-5)
    assert gy.norm().item() == pytest.approx(0.0176687789, rel=1e-5)


def test_float64_to_seven_digits() -> None:
    x, y = sample(11, 32, 64).double(), sample(12, 32, 64, 1.2, 0.3).double()
    assert mmd(x, y).item() == pytest.approx(0.284031192, rel=1e-7)
    assert mmd(x, y, estimator="linear").item() == pytest.approx(0.162658882, rel=1e-7)


def test_bfloat16_near_the_float32_value() -> None:
    x, y = sample(11, 32, 64), sample(12, 32, 64, 1.2, 0.3)
    assert mmd(x.bfloat16(), y.bfloat16()).item() == pytest.approx(0.284031192, rel=5e-4)


def test_transfer_learning_library_counts_two_too_many() -> None:
    """Its loss adds 2 / (N - 1) whatever the number of kernels."""
    x, y = sample(11, 32, 64), sample(12, 32, 64, 1.2, 0.3)
    value = mmd(x, y, bandwidth="tllib", estimator="unbiased").item()
    assert value + 2 / 31 == pytest.approx(0.158700, abs=1e-6)


# ---- against the definition ------------------------------------------------------------------------------


SHAPES = [(1, 1, 1), (5, 3, 2), (32, 32, 64), (130, 17, 33), (3, 140, 17)]
LARGE = [
    pytest.param(3, 300, 100, marks=pytest.mark.slow),
    pytest.param(400, 270, 65, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("n", "m", "d"), [*SHAPES, *LARGE])
@pytest.mark.parametrize("mul", [2.0, 1.7])
def test_every_backend_against_the_definition_in_float64(
    written: Any, n: int, m: int, d: int, mul: float
) -> None:
    if written.interpreted and (n + m > 145 or (n + m > 70 and mul != 2.0)):
        pytest.skip("slow in the interpreter")
    x = sample(1, n, d).to(written.device).requires_grad_()
    y = sample(2, m, d, 1.5, 0.5).to(written.device).requires_grad_()
    xd, yd = (t.detach().double().requires_grad_() for t in (x, y))
    for estimator in ("biased", "unbiased") if min(n, m) > 1 else ("biased",):
        expected = naive(xd, yd, factors_of(5, mul), estimator == "unbiased")
        value = mmd(x, y, mul=mul, estimator=estimator)
        assert value.item() == pytest.approx(expected.item(), rel=2e-5, abs=2e-6)
        for got, wanted in zip(gradients(value, x, y), gradients(expected, xd, yd), strict=True):
            assert torch.allclose(
                got.double(), wanted, rtol=1e-4, atol=2e-6 * float(wanted.abs().max()) + 1e-9
            )


def test_a_batch_is_a_loop(written: Any) -> None:
    x, y = torch.randn(3, 20, 6, device=written.device), torch.randn(3, 9, 6, device=written.device)
    x.requires_grad_()
    values = mmd(x, y)
    (g,) = gradients(values @ torch.tensor([1.0, -2.0, 3.0], device=written.device), x)
    for k, factor in enumerate((1.0, -2.0, 3.0)):
        one = x[k].detach().requires_grad_()
        value = mmd(one, y[k])
        assert torch.equal(value, values[k])
        assert torch.allclose(factor * gradients(value, one)[0], g[k], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
def test_native_passes_against_the_reference(written: Any, unbiased: bool) -> None:
    from tenfold.ops.mmd_dispatch import _backend

    x, y = torch.randn(2, 40, 7, device=written.device), torch.randn(2, 33, 7, device=written.device)
    v = torch.randn(2, 73, 20, device=written.device)
    module = _backend("mmd", x.device)
    for by_column in (False, True):
        options = Pairs(FACTORS, 1e-5, unbiased, by_column, not by_column)
        got = module.pairs(x, y, v, None, options)
        wanted = mmd_reference.pairs(x.double(), y.double(), v, None, options)
        for g, w in zip(got, wanted, strict=True):
            assert g.shape == w.shape
            assert g.numel() == 0 or off(g, w) < 3e-6


def test_weights_are_repeated_points(written: Any) -> None:
    x, y = torch.randn(4, 3, device=written.device), torch.randn(5, 3, device=written.device)
    twice = torch.cat((x, x[:2]))
    base = torch.tensor(2.5)
    weights = (torch.tensor([2.0, 2.0, 1.0, 1.0], device=x.device), torch.ones(5, device=x.device))
    weighted = mmd(x, y, weights=weights, bandwidth=base)
    assert weighted.item() == pytest.approx(mmd(twice, y, bandwidth=base).item(), rel=1e-5)


def test_linear_time_estimate_is_the_ring() -> None:
    x, y = sample(11, 32, 64), sample(12, 32, 64, 1.2, 0.3)
    assert mmd(x, y, estimator="linear").item() == pytest.approx(0.162658882, rel=2e-6)


def test_weighted_mmd_is_the_quadratic_form() -> None:
    z, v = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    k = sum(torch.exp(-(z[:, None] - z[None]).square().sum(-1) / (3.0 * f)) for f in FACTORS)
    assert isinstance(k, Tensor)
    assert weighted_mmd(z, v, 3.0).item() == pytest.approx(float((v @ v.T * k).sum()), rel=1e-10)
    assert weighted_mmd(z, v[:, 0], 3.0).item() == pytest.approx(float(v[:, 0] @ k @ v[:, 0]), rel=1e-10)


def test_gradcheck_with_the_width_as_a_constant() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: mmd(a, b, bandwidth=2.0), (x, y))
    assert torch.autograd.gradcheck(lambda a, b: mmd(a, b, bandwidth=2.0, estimator="unbiased"), (x, y))
    base = mmd_with_base(x, y)[1]
    ring = x[:, :3].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: mmd(a, b, bandwidth=base, estimator="linear"), (ring, y))
    labels, q = torch.tensor([[0, 1, -1, 0], [2, 2, 1, 0]]), torch.rand(2, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: lmmd(a, labels, b, q, bandwidth=2.0), (x, y))


def test_gradcheck_of_the_contrastive_discrepancy() -> None:
    """Widths held: the points move, and the bases of the unmoved points are put in their place."""
    s = torch.randn(1, 6, 3, dtype=torch.float64)
    t = torch.randn(1, 5, 3, dtype=torch.float64)
    ys, yt = torch.tensor([[0, 0, 1, 1, -1, 0]]), torch.tensor([[0, 1, 1, 0, -1]])
    options = Contrast(3, FACTORS, 1e-5, False, 2, True)
    _, _, _, (g_intra, g_inter) = mmd_reference.contrast(s, ys, t, yt, options)
    with pytest.MonkeyPatch.context() as patch:
        held: list[Tensor] = []
        original = mmd_reference.class_mean_distances

        def hold(*arguments: Any) -> Tensor:
            if not held:
                held.append(original(*arguments))
            return held[0]

        patch.setattr(mmd_reference, "class_mean_distances", hold)
        mmd_reference.contrast(s, ys, t, yt, options)
        for i, j in ((0, 0), (3, 1), (5, 2), (4, 0)):
            moved = []
            for step in (1e-5, -1e-5):
                there = s.clone()
                there[0, i, j] += step
                moved.append(mmd_reference.contrast(there, ys, t, yt, options))
            for which, g in ((0, g_intra), (1, g_inter)):
                slope = (moved[0][which] - moved[1][which]).item() / 2e-5
                assert g[0, i, j].item() == pytest.approx(slope, abs=1e-8)


# ---- contrastive, local, coral ---------------------------------------------------------------------------


@pytest.mark.parametrize("clamp", ["none", "can"])
def test_contrastive_discrepancy_against_the_reference(written: Any, clamp: str) -> None:
    s, t = torch.randn(2, 24, 8, device=written.device), torch.randn(2, 19, 8, device=written.device) + 0.3
    s.requires_grad_(), t.requires_grad_()
    ys, yt = torch.randint(-1, 4, (2, 24)), torch.randint(-1, 3, (2, 19))  # class 3 is missing in the target
    found = cdd(s, ys.to(s.device), t, yt.to(s.device), 5, clamp=clamp)
    options = Contrast(5, FACTORS, 1e-5, clamp == "can", 2, True)
    sd, td = s.detach().double().cpu(), t.detach().double().cpu()
    intra, inter, matrix, (g_intra, g_inter) = mmd_reference.contrast(sd, ys, td, yt, options)
    assert torch.equal(found.matrix.isnan().cpu(), matrix.isnan())
    assert matrix.isnan()[:, :, 3:].all()
    assert off(found.intra.detach().cpu(), intra) < 3e-6
    assert off(found.inter.detach().cpu(), inter) < 3e-6
    assert off(found.matrix.cpu().nan_to_num(), matrix.nan_to_num()) < 3e-6
    gs, gt = gradients((found.intra - 0.5 * found.inter).sum(), s, t)
    expected = g_intra - 0.5 * g_inter
    assert off(torch.cat((gs, gt), 1).cpu(), expected) < 1e-5


def test_one_class_is_the_mmd() -> None:
    s, t = torch.randn(40, 8), torch.randn(31, 8)
    zeros = torch.zeros(40, dtype=torch.int64)
    found = cdd(s, zeros, t, zeros[:31], 1)
    assert found.intra.item() == pytest.approx(mmd(s, t).item(), rel=1e-6)
    assert found.inter.item() == 0.0


def test_clamping_moves_both_parts_alike() -> None:
    """CAN's floor changes intra and inter by the same amount: their difference stays."""
    s, t = torch.randn(60, 8, dtype=torch.float64), torch.randn(60, 8, dtype=torch.float64)
    labels = torch.arange(60) % 3
    plain, can = cdd(s, labels, t, labels, 3), cdd(s, labels, t, labels, 3, clamp="can")
    shift = 5e-5 / 20 + 5e-5 / 20
    assert (plain.intra - can.intra).item() == pytest.approx(shift, rel=1e-2)
    assert (plain.intra - plain.inter).item() == pytest.approx((can.intra - can.inter).item(), abs=1e-8)


def test_too_few_points_do_not_count() -> None:
    s, t = torch.randn(4, 2), torch.randn(4, 2)
    ys, yt = torch.tensor([0, 0, 1, -1]), torch.tensor([0, 0, 1, 1])
    found = cdd(s, ys, t, yt, 2)
    assert found.matrix.isnan().tolist() == [[False, False], [True, True]]
    nothing = cdd(s, torch.full((4,), -1), t, yt, 2)
    assert (nothing.intra.item(), nothing.inter.item()) == (0.0, 0.0)
    assert not cdd(s, ys, t, yt, 2, min_count=1).matrix.isnan().any()


def test_local_mmd_is_the_sum_over_its_classes() -> None:
    s, t = torch.randn(12, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    ys, q = torch.randint(0, 3, (12,)), torch.rand(9, 4, dtype=torch.float64).softmax(1)
    q[:, 2] = 0.0  # never the arg max
    v = lmmd_weights(ys[None], q[None])[0]
    base = mmd_with_base(s, t)[1].item()
    k = sum(
        torch.exp(-(torch.cat((s, t))[:, None] - torch.cat((s, t))[None]).square().sum(-1) / (base * f))
        for f in FACTORS
    )
    assert isinstance(k, Tensor)
    kept = [c for c in range(4) if (ys == c).any() and (q.argmax(1) == c).any()]
    total = 0.0
    for c in kept:
        p = (ys == c).double() / (ys == c).sum()
        w = torch.cat((p, -q[:, c] / q[:, c].sum()))
        total += float(w @ k @ w)
    assert lmmd(s, ys, t, q).item() == pytest.approx(total / len(kept), rel=1e-9)
    assert v.shape == (21, 4)
    assert lmmd(s, torch.full((12,), -1), t, q).item() == 0.0


def test_coral_is_the_covariances_distance() -> None:
    x, y = torch.randn(50, 6, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64) * 2
    expected = (torch.cov(x.T) - torch.cov(y.T)).square().sum() / (4 * 36)
    assert coral(x, y).item() == pytest.approx(expected.item(), rel=1e-12)
    assert linear_mmd(x, y).item() == pytest.approx((x.mean(0) - y.mean(0)).square().sum().item(), rel=1e-12)


def test_median_of_distances_is_exact(written: Any) -> None:
    for n in (1, 2, 50, 333):
        x = torch.randn(n, 5, device=written.device)
        d = (x[:, None].double() - x[None].double()).square().sum(-1).flatten()
        assert float(median_distance(x)) == pytest.approx(float(d.median()), rel=1e-5, abs=1e-9)
    broken = torch.tensor([[1.0], [float("nan")]], device=written.device)
    assert torch.isnan(median_distance(broken))


# ---- what must not change the result ---------------------------------------------------------------------


def test_same_samples_have_no_discrepancy(written: Any) -> None:
    x = torch.randn(40, 5, device=written.device)
    assert abs(mmd(x, x).item()) <= 1e-7
    assert mmd(x, x + 1).item() > 0.05


def test_symmetric_and_blind_to_order_and_origin(written: Any) -> None:
    x, y = torch.randn(40, 5, device=written.device), torch.randn(30, 5, device=written.device) + 0.5
    value = mmd(x, y).item()
    assert mmd(y, x).item() == pytest.approx(value, rel=1e-5)
    assert mmd(x[torch.randperm(40)], y).item() == pytest.approx(value, rel=1e-5)
    far = mmd(x.double() + 1e4, y.double() + 1e4).item()
    assert mmd((x + 1e4).float(), (y + 1e4).float()).item() == pytest.approx(value, rel=2e-2)
    assert far == pytest.approx(mmd(x.double(), y.double()).item(), rel=1e-6)


def test_features_far_from_the_origin_lose_nothing_but_their_own_digits(written: Any) -> None:
    """Uncentred |a|^2 + |b|^2 - 2ab would be wrong by 64 times the distance at 1e4."""
    near = (torch.randn(50, 16) * 64).round() / 64  # exact also with 1e4 added
    x, y = near[:30].to(written.device), near[30:].to(written.device)
    assert mmd(x + 1e4, y + 1e4).item() == pytest.approx(mmd(x, y).item(), rel=1e-4)


def test_threads_do_not_change_a_bit() -> None:
    x, y = torch.randn(700, 20, requires_grad=True), torch.randn(500, 20)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            value = mmd(x, y)
            found.append((value.detach(), *gradients(value, x)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_halves_strides_and_arrays(written: Any, dtype: torch.dtype) -> None:
    x = torch.randn(6, 40, device=written.device).to(dtype).T.requires_grad_()
    y = torch.randn(60, 6, device=written.device).to(dtype)[::2]
    value = mmd(x, y)
    assert value.dtype == torch.float32
    expected = mmd_reference.pairs(
        x.detach().double()[None], y.double()[None], None, None, Pairs(FACTORS, 1e-5, False, False, True)
    )
    assert value.item() == pytest.approx(expected[0].item(), rel=1e-5)
    (g,) = gradients(value, x)
    assert g.dtype == dtype
    assert off(g, expected[2][0, :40]) < (1e-5 if dtype == torch.float32 else 5e-3)


def test_numpy_in_numpy_out() -> None:
    x = np.random.RandomState(0).randn(9, 3).astype(np.float32)
    value = mmd(x, x + 1)
    assert isinstance(value, np.ndarray)
    assert float(value) == pytest.approx(mmd(torch.from_numpy(x), torch.from_numpy(x + 1)).item())


def test_equal_points_give_zero_and_no_nan(written: Any) -> None:
    x = torch.ones(5, 3, device=written.device, requires_grad=True)
    value = mmd(x, torch.ones(4, 3, device=written.device))
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(gradients(value, x)[0], torch.zeros_like(x))


def test_nan_comes_out_as_nan(written: Any) -> None:
    x = torch.randn(40, 3, device=written.device)
    x[7, 1] = float("nan")
    assert torch.isnan(mmd(x, torch.randn(30, 3, device=written.device)))
    x[7, 1] = float("inf")
    assert torch.isnan(mmd(x, torch.randn(30, 3, device=written.device)))


# ---- as torch ops ----------------------------------------------------------------------------------------


FAST_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
TRACED = (*FAST_CHECKS, "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("utils", [FAST_CHECKS, pytest.param(TRACED, marks=pytest.mark.slow)])
def test_opcheck(utils: tuple[str, ...]) -> None:
    x, y = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    base = torch.tensor([1.0, 2.0], dtype=torch.float64)
    options = (torch.randn(1, 9, 2), base, FACTORS, 1e-5, False, False, True)
    torch.library.opcheck(torch.ops.tenfold.mmd, (x, y, *options), test_utils=utils)
    # both classes on both sides: opcheck knows no NaN
    labels = torch.tensor([[0, 0, 1, 1, -1], [1, 1, 0, 0, 1]])
    arguments = (x, labels, y, labels[:, :4].contiguous(), 2, FACTORS, 1e-5, False, 1, True)
    torch.library.opcheck(torch.ops.tenfold.cdd, arguments, test_utils=utils)


def test_compiles_without_a_break() -> None:
    x, y = torch.randn(20, 4, requires_grad=True), torch.randn(15, 4)
    labels = torch.arange(20) % 2

    def loss(a: Tensor, b: Tensor) -> Tensor:
        parts = cdd(a, labels, b, labels[:15], 2)
        return mmd(a, b) + parts.intra - parts.inter

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value = compiled(x, y)
    assert torch.allclose(value, loss(x, y), rtol=1e-6)
    assert torch.allclose(gradients(value, x)[0], gradients(loss(x, y), x)[0], rtol=1e-5, atol=1e-8)


def test_second_derivatives_are_refused() -> None:
    x, y = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3)
    labels = torch.arange(8) % 2
    (g,) = torch.autograd.grad(mmd(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        (g * x).sum().backward()
    (g,) = torch.autograd.grad(cdd(x, labels, y, labels, 2).intra, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        g.sum().backward()


def test_under_function_transforms() -> None:
    x, y = torch.randn(8, 3), torch.randn(8, 3)
    (wanted,) = gradients(mmd(x.requires_grad_(), y), x)
    assert torch.equal(torch.func.grad(lambda a: mmd(a, y))(x.detach()), wanted)
    many = torch.randn(3, 8, 3)
    loop = torch.stack([mmd(one, y) for one in many])
    assert torch.equal(torch.vmap(lambda a: mmd(a, y))(many), loop)
    assert torch.equal(torch.vmap(lambda a: mmd(y, a), in_dims=1)(many.transpose(0, 1)), loop)
    slopes = torch.vmap(torch.func.grad(lambda a: mmd(a, y)))(many)
    for one, slope in zip(many, slopes, strict=True):
        assert torch.allclose(slope, gradients(mmd(one.requires_grad_(), y), one)[0], rtol=1e-6, atol=1e-9)
    total = torch.func.grad(lambda a: torch.vmap(lambda one: mmd(one, y))(a).sum())(many.detach())
    assert torch.allclose(total, slopes, rtol=1e-6, atol=1e-9)


# ---- wrong arguments -------------------------------------------------------------------------------------

X, Y, LABELS = torch.randn(6, 3), torch.randn(5, 3), torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: mmd(X[:0], Y), ValueError, "x: expected at least one point"),
        (lambda: mmd(X, Y[:0]), ValueError, "y: expected at least one point"),
        (lambda: mmd(X, Y[:, :2]), ValueError, "y: expected shape"),
        (lambda: mmd(X[None], Y), ValueError, "y: expected shape"),
        (lambda: mmd(X[0], Y), ValueError, r"x: expected shape \[N, d\]"),
        (lambda: mmd(X, Y.double()), TypeError, "y: expected the dtype of x"),
        (lambda: mmd(X, Y.to("meta")), TypeError, "y: expected the device of x"),
        (lambda: mmd(X.long(), Y.long()), TypeError, "x: expected dtype"),
        (lambda: mmd([1.0], Y), TypeError, "x: expected a torch.Tensor"),
        (lambda: mmd(X, Y, estimator="u"), ValueError, "estimator: expected one of"),
        (lambda: mmd(X[:1], Y, estimator="unbiased"), ValueError, "x: expected at least two"),
        (lambda: mmd(X, Y[:1], estimator="unbiased"), ValueError, "y: expected at least two"),
        (lambda: mmd(X, Y, estimator="linear"), ValueError, "y: expected 6 points"),
        (lambda: mmd(X, Y, kernels=0), ValueError, "kernels: expected"),
        (lambda: mmd(X, Y, mul=0.0), ValueError, "mul: expected"),
        (lambda: mmd(X, Y, bandwidth="silverman"), ValueError, "bandwidth: expected one of"),
        (lambda: mmd(X, Y, bandwidth=-1.0), ValueError, "bandwidth: expected"),
        (lambda: mmd(X, Y, bandwidth=torch.ones(2)), ValueError, "bandwidth: expected a number"),
        (lambda: mmd(X, Y, floor=0.0), ValueError, "floor: expected"),
        (lambda: mmd(X, Y, weights=torch.ones(6)), TypeError, "weights: expected a pair"),
        (
            lambda: mmd(X, Y, weights=(torch.ones(5), torch.ones(5))),
            ValueError,
            r"weights\[0\]: expected shape",
        ),
        (
            lambda: mmd(X, Y, weights=(-torch.ones(6), torch.ones(5))),
            ValueError,
            r"weights\[0\]: expected weights >= 0",
        ),
        (lambda: cdd(X, LABELS, Y, LABELS, 2), ValueError, "yt: expected shape"),
        (
            lambda: cdd(X, LABELS + 2, Y, LABELS[:5], 2),
            ValueError,
            r"ys: expected labels in \[-1, 2\), got 2",
        ),
        (lambda: cdd(X, LABELS - 2, Y, LABELS[:5], 2), ValueError, "ys: expected labels"),
        (lambda: cdd(X, LABELS.float(), Y, LABELS[:5], 2), TypeError, "ys: expected dtype int64"),
        (lambda: cdd(X, LABELS, Y, LABELS[:5], 0), ValueError, "num_classes: expected"),
        (lambda: cdd(X, LABELS, Y, LABELS[:5], 2, clamp="x"), ValueError, "clamp: expected one of"),
        (lambda: lmmd(X, LABELS, Y, torch.ones(6, 2)), ValueError, "q: expected shape"),
        (lambda: weighted_mmd(X, torch.ones(5), 1.0), ValueError, "v: expected shape"),
        (lambda: coral(X[:1], Y), ValueError, "x: expected at least two points"),
        (lambda: mmd(X, Y, bandwidth=torch.tensor(-1.0)), ValueError, "bandwidth: expected widths > 0"),
        (lambda: mmd(X, Y, bandwidth=torch.tensor(0.0)), ValueError, "bandwidth: expected widths > 0"),
        (lambda: mmd(X, Y, mul=1e300), ValueError, "mul: expected a number whose powers"),
        (
            lambda: mmd(X, Y, weights=(torch.full((6,), torch.inf), torch.ones(5))),
            ValueError,
            r"weights\[0\]: expected weights >= 0 with a positive, finite sum",
        ),
        (
            lambda: mmd(X, Y, weights=(torch.ones(6), torch.ones(5, device="meta"))),
            TypeError,
            r"weights\[1\]: expected the device of its points \(cpu\), got meta",
        ),
        (lambda: lmmd(X, LABELS, Y, -torch.ones(5, 2)), ValueError, "q: expected probabilities >= 0"),
        (lambda: lmmd(X, LABELS, Y, torch.ones(5, 2, device="meta")), TypeError, "q: expected the device"),
        (lambda: lmmd(X, LABELS, Y, torch.ones(5, 0)), ValueError, "q: expected probabilities of"),
    ],
)
def test_wrong_arguments_are_named(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear", "pairs"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_with_a_given_width(estimator: str, bad: float) -> None:
    x = sample(1, 8, 3)
    x[2, 1] = bad
    assert mmd(x, sample(2, 8, 3), bandwidth=1.0, estimator=estimator).isnan()


def test_forward_mode_is_refused_not_answered_with_zero() -> None:
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        for call in (
            lambda: mmd(dual, Y),
            lambda: mmd(dual[None], Y[None]),
            lambda: cdd(dual, LABELS, Y, LABELS[:5], 2),
        ):
            with pytest.raises(RuntimeError, match="expected reverse mode"):
                call()
        assert torch.equal(mmd(X, Y), mmd(X.detach(), Y))


def test_coral_keeps_its_digits_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = coral(X, Y)
    assert found.dtype == torch.float32
    assert torch.equal(found, coral(X, Y))

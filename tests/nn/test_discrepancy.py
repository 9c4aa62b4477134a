"""The losses against the formulas of the code whose names they take, and against pytorch-adapt itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold import nn as tnn
from tenfold import ops
from tenfold.nn.compat import can, dsan, msmda, pytorch_adapt, tllib

N, D = 24, 7


def points(seed: int, n: int = N, d: int = D, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, d, generator=generator, dtype=torch.float64) + shift
    return values.requires_grad_()


S, T = points(1), points(2, shift=0.4)


def same(
    loss: Callable[..., Tensor], formula: Callable[..., Tensor], *inputs: Tensor, rel: float = 1e-9
) -> None:
    """Equal values and gradients; float64 in float64, and float32 to its digits."""
    for dtype, bound in ((torch.float64, rel), (torch.float32, 2e-4)):
        mine = [t.detach().to(dtype).requires_grad_() for t in inputs]
        theirs = [t.detach().double().requires_grad_() for t in inputs]
        value, expected = loss(*mine), formula(*theirs)
        assert value.dtype == dtype
        assert value.item() == pytest.approx(expected.item(), rel=bound, abs=bound)
        found = torch.autograd.grad(value.sum(), mine)
        for got, wanted in zip(found, torch.autograd.grad(expected.sum(), theirs), strict=True):
            scale = float(wanted.abs().max())
            assert torch.allclose(got.double(), wanted, rtol=bound, atol=bound * scale)


def distances(z: Tensor) -> Tensor:
    return (z[:, None] - z[None]).square().sum(-1)


def ring(k: Tensor, n: int) -> Tensor:
    a = torch.arange(n)
    b = (a + 1) % n
    return (k[a, b] + k[n + a, n + b] - k[a, n + b] - k[b, n + a]).sum() / n


# ---- MS-MDA ----------------------------------------------------------------------------------------------


def gaussian_sum(s: Tensor, t: Tensor, mul: float, num: int, sigma: float | None) -> Tensor:
    z = torch.cat((s, t))
    d = distances(z)
    base: Any = sigma if sigma else d.detach().sum() / (len(z) ** 2 - len(z))
    base = base / mul ** (num // 2)
    k = sum(torch.exp(-d / (base * mul**u)) for u in range(num))
    assert isinstance(k, Tensor)
    return k


@pytest.mark.parametrize(("mul", "num", "sigma"), [(2.0, 5, None), (3.0, 4, 1.7)])
def test_msmda(mul: float, num: int, sigma: float | None) -> None:
    def biased(s: Tensor, t: Tensor) -> Tensor:
        k = gaussian_sum(s, t, mul, num, sigma)
        return (k[:N, :N] + k[N:, N:] - k[:N, N:] - k[N:, :N]).mean()

    options = {"kernel_mul": mul, "kernel_num": num, "fix_sigma": sigma}
    same(lambda s, t: msmda.mmd(s, t, **options), biased, S, T)
    linear = lambda s, t: ring(gaussian_sum(s, t, mul, num, sigma), N)  # noqa: E731
    same(lambda s, t: msmda.mmd_rbf_accelerate(s, t, **options), linear, S, T)
    if sigma is None:
        same(tnn.MMDLoss(num, mul), biased, S, T)
        same(tnn.MMDLoss(num, mul, compat="msmda"), biased, S, T)


def test_msmda_linear_kernel_and_coral() -> None:
    same(msmda.mmd_linear, lambda s, t: ((s - t) @ (s - t).T).mean(), S, T)
    same(tnn.LinearMMDLoss(), lambda s, t: ((s - t) @ (s - t).T).mean(), S, T)

    def published(s: Tensor, t: Tensor) -> Tensor:
        parts = [(z.mean(1, keepdim=True) - z).T @ (z.mean(1, keepdim=True) - z) for z in (s, t)]
        return ((parts[0] - parts[1]) ** 2).mean() / (4 * D * 4)

    same(msmda.CORAL, published, S, T)


# ---- Transfer-Learning-Library ---------------------------------------------------------------------------


def tllib_kernel(z: Tensor, kernel: tllib.GaussianKernel) -> Tensor:
    d = distances(z)
    variance = kernel.alpha * d.detach().mean() if kernel.track_running_stats else kernel.sigma_square
    return torch.exp(-d / (2 * variance))


def tllib_index(n: int) -> Tensor:
    index = torch.full((2 * n, 2 * n), 1.0 / (n * (n - 1)), dtype=torch.float64)
    index[:n, n:] = index[n:, :n] = -1.0 / (n * n)
    return index.fill_diagonal_(0.0)


TRACKED = [tllib.GaussianKernel(alpha=2.0**u) for u in range(-3, 2)]
FIXED = [tllib.GaussianKernel(sigma=s, track_running_stats=False) for s in (0.92, 2.5)]


@pytest.mark.parametrize("kernels", [TRACKED, FIXED, [TRACKED[1], FIXED[0], TRACKED[4]]])
@pytest.mark.parametrize("linear", [False, True])
def test_transfer_learning_library(kernels: list[tllib.GaussianKernel], linear: bool) -> None:
    def formula(s: Tensor, t: Tensor) -> Tensor:
        k = sum(tllib_kernel(torch.cat((s, t)), kernel) for kernel in kernels)
        assert isinstance(k, Tensor)
        return (ring(k, N) if linear else (k * tllib_index(N)).sum()) + 2.0 / (N - 1)

    same(tllib.MultipleKernelMaximumMeanDiscrepancy(kernels, linear), formula, S, T)
    if kernels is TRACKED and not linear:
        same(tnn.MMDLoss(compat="tllib"), formula, S, T)


@pytest.mark.parametrize("linear", [False, True])
def test_joint_mmd_of_transfer_learning_library(linear: bool) -> None:
    kernels = (TRACKED, FIXED[:1])
    s2, t2 = points(3, d=3), points(4, d=3, shift=0.2)

    def formula(s: Tensor, t: Tensor, u: Tensor, w: Tensor) -> Tensor:
        product = torch.ones(2 * N, 2 * N, dtype=torch.float64)
        for z, layer in ((torch.cat((s, t)), kernels[0]), (torch.cat((u, w)), kernels[1])):
            product = product * sum(tllib_kernel(z, k) for k in layer)
        return (ring(product, N) if linear else (product * tllib_index(N)).sum()) + 2.0 / (N - 1)

    loss = tllib.JointMultipleKernelMaximumMeanDiscrepancy(kernels, linear=linear)
    same(lambda s, t, u, w: loss((s, u), (t, w)), formula, S, T, s2, t2)
    if not linear:  # one layer is the MMD
        plain = tnn.JointMMDLoss()([S], [T])
        assert plain.item() == pytest.approx(ops.mmd(S, T).item(), rel=1e-9)


def test_theta_turns_gradients_around() -> None:
    kernels = (TRACKED,)
    theta = tllib.Theta(D).double()
    loss = tllib.JointMultipleKernelMaximumMeanDiscrepancy(kernels, thetas=[theta], linear=False)
    plain = tllib.JointMultipleKernelMaximumMeanDiscrepancy(kernels, linear=False)
    value = loss((S,), (T,))
    assert value.item() == pytest.approx(plain((S,), (T,)).item(), rel=1e-9)  # the identity at first
    (through, weight) = torch.autograd.grad(value, (S, theta.layer1.weight))
    assert torch.allclose(through, torch.autograd.grad(plain((S,), (T,)), S)[0])  # reversed twice
    free = theta.layer1.weight.detach().clone().requires_grad_()
    (straight,) = torch.autograd.grad(plain((S @ free.T,), (T @ free.T,)), free)
    assert torch.allclose(weight, -straight)


def test_correlation_alignment_of_transfer_learning_library() -> None:
    def formula(s: Tensor, t: Tensor) -> Tensor:
        means = (s.mean(0) - t.mean(0)).pow(2).mean()
        return means + (torch.cov(s.T) - torch.cov(t.T)).pow(2).mean()

    same(tllib.CorrelationAlignmentLoss(), formula, S, points(5, 15))


def test_a_kernel_without_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match="sigma: expected a number"):
        tllib.GaussianKernel(track_running_stats=False)
    k = tllib.GaussianKernel(alpha=0.5)
    assert torch.allclose(k(S), tllib_kernel(S, tllib.GaussianKernel(alpha=0.5)))


# ---- pytorch-adapt ---------------------------------------------------------------------------------------

SCALES = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0])


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("scales", [1, SCALES, 2.0 ** torch.linspace(-8, 8, 33, dtype=torch.float64)])
@pytest.mark.parametrize("bandwidth", [None, 3.0])
def test_pytorch_adapt(kind: str, scales: Any, bandwidth: float | None) -> None:
    layers = pytest.importorskip("pytorch_adapt.layers")
    options = {"kernel_scales": scales, "mmd_type": kind, "bandwidth": bandwidth}
    theirs, ours = layers.MMDLoss(**options), pytorch_adapt.MMDLoss(**options)
    others = (points(5, 15, shift=0.1),) if kind == "quadratic" else (T, points(6, N, shift=1.0))
    for t in others:
        same(ours, theirs, S, t, rel=1e-6)  # its median is that of rounded distances
    u, w = points(3, d=3), points(4, len(others[-1]), d=3)
    same(
        lambda s, t, a, b: ours([s, a], [t, b]),
        lambda s, t, a, b: theirs([s, a], [t, b]),
        S,
        others[-1],
        u,
        w,
        rel=1e-6,
    )
    if kind == "quadratic" and scales is SCALES and bandwidth is None:
        same(tnn.MMDLoss(compat="pytorch_adapt"), theirs, S, T, rel=1e-6)
        batched = layers.MMDBatchedLoss(batch_size=10, **options)
        same(pytorch_adapt.MMDBatchedLoss(batch_size=10, **options), batched, S, T, rel=1e-6)


def test_pytorch_adapt_coral_and_refusals() -> None:
    layers = pytest.importorskip("pytorch_adapt.layers")
    same(pytorch_adapt.CORALLoss(), layers.CORALLoss(), S, points(5, 15))
    same(tnn.CORALLoss(), layers.CORALLoss(), S, points(5, 15))
    with pytest.raises(ValueError, match="y: expected 24 points"):
        pytorch_adapt.MMDLoss()(S, points(5, 15))
    with pytest.raises(ValueError, match="mmd_type: expected 'quadratic'"):
        pytorch_adapt.MMDBatchedLoss()
    with pytest.raises(TypeError, match="dist_func"):
        pytorch_adapt.MMDLoss(dist_func=torch.cdist)
    with pytest.raises(TypeError, match="x: expected a tensor"):
        pytorch_adapt.MMDBatchedLoss(mmd_type="quadratic")([S], [T])


# ---- DSAN and CAN ----------------------------------------------------------------------------------------


def test_dsan() -> None:
    labels = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(0))
    logits = points(9, N, 5)
    q = logits.detach().softmax(1)

    def formula(s: Tensor, t: Tensor) -> Tensor:
        k = gaussian_sum(s, t, 2.0, 5, None)
        shared = sorted(set(labels.tolist()) & set(q.argmax(1).tolist()))
        total = torch.zeros((), dtype=torch.float64)
        for c in shared:
            a = (labels == c).double() / (labels == c).sum()
            b = q[:, c] / q[:, c].sum()
            total = total + a @ k[:N, :N] @ a + b @ k[N:, N:] @ b - 2 * (a @ k[:N, N:] @ b)
        return total / len(shared)

    same(lambda s, t: dsan.LMMD_loss(5).get_loss(s, t, labels, q), formula, S, T)
    same(lambda s, t: tnn.LMMDLoss()(s, t, labels, q), formula, S, T)
    assert dsan.LMMD_loss(5)(S, T, labels, q).shape == (1,)
    assert torch.isnan(dsan.LMMD_loss(5)(S * float("nan"), T, labels, q))  # there: 0
    with pytest.raises(ValueError, match="t_label"):
        dsan.LMMD_loss(4)(S, T, labels, q)


def can_formula(
    s: Tensor, t: Tensor, nums_s: Sequence[int], nums_t: Sequence[int], mul: float, num: int
) -> tuple[Tensor, Tensor]:
    """Sums over equal and over different classes of a biased MMD with clamped exponents."""

    def mean_kernel(a: Tensor, b: Tensor, gamma: Tensor) -> Tensor:
        d = (a[:, None] - b[None]).square().sum(-1)
        widths = [(gamma / mul ** (num // 2) * mul**u).clamp_min(1e-5) for u in range(num)]
        return torch.stack([torch.exp(-(d / w).clamp(1e-5, 1e5)) for w in widths]).sum(0).mean()

    intra, inter = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for i, a in enumerate(s.split(list(nums_s))):
        for j, b in enumerate(t.split(list(nums_t))):
            z = torch.cat((a, b)).detach()
            gamma = distances(z).sum() / (len(z) ** 2 - len(z))
            value = mean_kernel(a, a, gamma) + mean_kernel(b, b, gamma) - 2 * mean_kernel(a, b, gamma)
            if i == j:
                intra = intra + value
            else:
                inter = inter + value
    return intra, inter


def test_can() -> None:
    nums_s, nums_t = (8, 6, 10), (5, 12, 7)
    u, w = points(3, d=3), points(4, d=3, shift=0.2)
    total = 7  # classes of the data set, of which three are in the batch

    def formula(s: Tensor, t: Tensor, a: Tensor, b: Tensor) -> Tensor:
        first = can_formula(s, t, nums_s, nums_t, 2.0, 5)
        second = can_formula(a, b, nums_s, nums_t, 3.0, 2)
        intra = (first[0] + second[0]) / total
        return intra - (first[1] + second[1]) / (total * (total - 1))

    loss = can.CDD(2, [5, 2], [2.0, 3.0], total)
    same(lambda s, t, a, b: loss.forward([s, a], [t, b], nums_s, nums_t)["cdd"], formula, S, T, u, w)
    only = can.CDD(1, [5], [2.0], 3, intra_only=True).forward([S], [T], nums_s, nums_t)
    assert only["inter"] is None
    assert only["cdd"].item() == pytest.approx(can_formula(S, T, nums_s, nums_t, 2.0, 5)[0].item() / 3)
    with pytest.raises(ValueError, match="nums_T: expected at least one point of each class"):
        loss.forward([S], [T], (12, 12), (24, 0))


def test_contrastive_loss_is_its_op() -> None:
    s, t = torch.randn(3, 20, 4), torch.randn(3, 18, 4)
    ys, yt = torch.randint(-1, 3, (3, 20)), torch.randint(0, 3, (3, 18))
    found = ops.cdd(s, ys, t, yt, 3)
    values = found.intra - 0.3 * found.inter
    assert torch.equal(tnn.CDDLoss(3, beta=0.3, reduction="none")(s, t, ys, yt), values)
    assert torch.equal(tnn.CDDLoss(3, beta=0.3)(s, t, ys, yt), values.mean())
    assert torch.equal(tnn.CDDLoss(3, beta=0.3, reduction="sum")(s, t, ys, yt), values.sum())


# ---- what the modules add --------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["biased", "unbiased", "linear", "pairs"])
def test_modules_take_every_estimator_and_keep_the_mean_distance(estimator: str) -> None:
    loss = tnn.MMDLoss(estimator=estimator)
    assert loss(S, T).item() == pytest.approx(ops.mmd(S, T, estimator=estimator).item())
    z = torch.cat((S, T)).detach()
    assert loss.mean_distance is not None
    assert loss.mean_distance.item() == pytest.approx((distances(z).sum() / (4 * N * N - 2 * N)).item())
    assert estimator in repr(loss)


def test_shrinking_features_are_named_once() -> None:
    loss = tnn.MMDLoss()
    loss(S, T)
    with pytest.warns(RuntimeWarning, match="the features have shrunk"):
        loss(S * 1e-2, T * 1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(S * 1e-3, T * 1e-3)
        fixed = tnn.MMDLoss(bandwidth=2.0)
        fixed(S, T), fixed(S * 1e-3, T * 1e-3)


def test_joint_strips_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    from tenfold.kernels.mmd import mmd_reference

    u, w = points(3, d=3), points(4, 15, d=3)
    t = points(8, 15)
    whole = ops.joint_mmd([S, u], [t, w])
    gradients = torch.autograd.grad(whole, (S, w))
    monkeypatch.setattr(mmd_reference, "STRIP", 5 * 39)
    value = ops.joint_mmd([S, u], [t, w])
    assert value.item() == pytest.approx(whole.item(), rel=1e-12)
    for got, wanted in zip(torch.autograd.grad(value, (S, w)), gradients, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10)
    (again,) = torch.autograd.grad(ops.joint_mmd([S, u], [t, w]), S, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        again.sum().backward()


def test_gradcheck_of_the_joint_mmd() -> None:
    def f(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Any:
        return ops.joint_mmd([a, c], [b, d], bandwidth=[1.5, 0.7], kernels=[3, 1], estimator="unbiased")

    parts = (points(1, 4, 3), points(2, 3, 3), points(3, 4, 2), points(4, 3, 2))
    assert torch.autograd.gradcheck(f, parts)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: tnn.MMDLoss(compat="x"), ValueError, "compat: expected None or one of"),
        (lambda: tnn.MMDLoss(estimator="x"), ValueError, "estimator: expected one of"),
        (lambda: tnn.MMDLoss(bandwidth="x"), ValueError, "bandwidth: expected one of"),
        (lambda: tnn.MMDLoss(reduction="x"), ValueError, "reduction: expected one of"),
        (lambda: tnn.CDDLoss(3, beta=-1.0), ValueError, "beta: expected"),
        (lambda: ops.joint_mmd([], []), ValueError, "xs: expected at least one layer"),
        (lambda: ops.joint_mmd([S], [T, T]), ValueError, "ys: expected 1 entries"),
        (lambda: ops.joint_mmd([S, S[:3]], [T, T]), ValueError, r"xs\[1\]: expected 24 and 24 points"),
        (lambda: ops.joint_mmd([S, S.float()], [T, T.float()]), TypeError, r"xs\[1\]: expected the dtype"),
        (
            lambda: ops.joint_mmd([S[:1]], [T], estimator="unbiased"),
            ValueError,
            r"xs\[0\]: expected at least",
        ),
        (lambda: ops.joint_mmd([S], [T], kernels=[5, 5]), ValueError, "kernels: expected 1 entries"),
        (lambda: ops.mmd(S, T, factors=[]), ValueError, "factors: expected 1 to 64"),
        (lambda: ops.mmd(S, T, factors=[1.0, -1.0]), ValueError, r"factors\[1\]: expected"),
        (lambda: ops.mmd(S[:1], T[:1], estimator="pairs"), ValueError, "x: expected at least two points"),
    ],
)
def test_wrong_arguments(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


def test_a_contrastive_loss_refuses_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="num_classes: expected"):
        tnn.CDDLoss(0)
    with pytest.raises(ValueError, match="min_count: expected"):
        tnn.CDDLoss(2, min_count=0)
    with pytest.raises(ValueError, match="clamp: expected one of"):
        tnn.CDDLoss(2, clamp="CAN")


def test_pytorch_adapt_s_degenerate_settings() -> None:
    with pytest.raises(ValueError, match="kernel_scales: expected a finite number > 0"):
        pytorch_adapt.MMDLoss(kernel_scales=0)
    equal = torch.zeros(20, 4)  # every median is 0
    loss = pytorch_adapt.MMDBatchedLoss(batch_size=5, mmd_type="quadratic")
    whole = pytorch_adapt.MMDLoss(mmd_type="quadratic")
    torch.testing.assert_close(loss(equal, equal + 1), whole(equal, equal + 1))

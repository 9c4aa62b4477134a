"""The weighted cross-entropy: values, gradients of first and second order, exact zeros, errors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tenfold.ops import weighted_cross_entropy

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def drawn(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows + classes)
    z = (3 * torch.randn(rows, classes, generator=generator)).to(dtype)
    labels = torch.randint(classes, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator)
    return z.to(device), labels.to(device), weights.to(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 10), (33, 100), (5, 3001)])
def test_float64_is_met(backend, dtype, shape):
    z, labels, weights = drawn(*shape, dtype, backend.device)
    z.requires_grad_()
    weights = weights.to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
    loss = weighted_cross_entropy(z, labels, weights)
    grads = torch.autograd.grad(loss, (z, weights))
    exact_z, exact_w = (t.detach().double().requires_grad_() for t in (z, weights))
    exact = (exact_w * F.cross_entropy(exact_z, labels, reduction="none")).mean()
    want = torch.autograd.grad(exact, (exact_z, exact_w))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=tolerance)
    rounding = {torch.bfloat16: 8e-3, torch.float16: 1e-3}.get(dtype, tolerance)
    torch.testing.assert_close(grads[0].double(), want[0], rtol=rounding, atol=max(tolerance, rounding / 1e3))
    torch.testing.assert_close(grads[1].double(), want[1], rtol=10 * tolerance, atol=tolerance)
    assert grads[0].dtype == dtype


def test_reductions(backend):
    z, labels, weights = drawn(9, 4, torch.float32, backend.device)
    each = weighted_cross_entropy(z, labels, weights, reduction="none")
    total = weighted_cross_entropy(z, labels, weights, reduction="sum")
    mean = weighted_cross_entropy(z, labels, weights)
    torch.testing.assert_close(each, weights * F.cross_entropy(z, labels, reduction="none"))
    torch.testing.assert_close(each.sum(), total)
    torch.testing.assert_close(mean * 9, total)


def test_weight_zero_means_gradient_zero(backend):
    z, labels, weights = drawn(6, 5, torch.float32, backend.device)
    weights[2] = 0.0
    z.requires_grad_()
    weights.requires_grad_()
    loss = weighted_cross_entropy(z, labels, weights)
    by_logits, by_weights = torch.autograd.grad(loss, (z, weights))
    assert (by_logits[2] == 0).all()
    assert (by_logits[3] != 0).all()
    torch.testing.assert_close(by_weights, F.cross_entropy(z, labels, reduction="none").detach() / 6)


def test_nan_propagates(backend):
    z, labels, weights = drawn(6, 5, torch.float32, backend.device)
    z[4, 1] = torch.nan
    z.requires_grad_()
    loss = weighted_cross_entropy(z, labels, weights)
    loss.backward()
    assert loss.isnan()
    assert z.grad[4].isnan().all()
    assert z.grad[:4].isfinite().all()


def test_a_class_ruled_out_costs_infinity(backend):
    z, labels, weights = drawn(3, 5, torch.float32, backend.device)
    z[1, labels[1]] = -torch.inf
    each = weighted_cross_entropy(z, labels, weights, reduction="none")
    assert each[1] == torch.inf
    assert each[[0, 2]].isfinite().all()


def test_gradients_of_both_orders():
    z, labels, weights = drawn(4, 3, torch.float64, torch.device("cpu"))
    z.requires_grad_()
    weights = weights.double().requires_grad_()
    for reduction in ("mean", "sum", "none"):
        loss = lambda a, w, r=reduction: weighted_cross_entropy(a, labels, w, reduction=r)  # noqa: E731
        assert torch.autograd.gradcheck(loss, (z, weights))
        assert torch.autograd.gradgradcheck(loss, (z, weights))


def test_second_order_in_float32(backend):
    """Through the native kernels: the meta-gradient of weights after one step of descent."""
    z, labels, weights = drawn(8, 6, torch.float32, backend.device)
    found = []
    for loss in (
        weighted_cross_entropy,
        lambda a, y, w: (w * F.cross_entropy(a, y, reduction="none")).mean(),
    ):
        a, w = z.clone().requires_grad_(), weights.clone().requires_grad_()
        (step,) = torch.autograd.grad(loss(a, labels, w), a, create_graph=True)
        after = loss(a - 2.0 * step, labels, torch.ones_like(w))
        found.append(torch.autograd.grad(after, (a, w)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_layouts(backend):
    z, labels, weights = drawn(12, 9, torch.float32, backend.device)
    for view in (z[::2, :7], z.T[:9].contiguous().T[:6], z[:1].expand(6, 9), z[:6, ::2]):
        y = labels[:6] % view.shape[1]
        leaf = view.detach().requires_grad_()
        loss = weighted_cross_entropy(leaf, y, weights[:6])
        want = (weights[:6] * F.cross_entropy(view, y, reduction="none")).mean()
        torch.testing.assert_close(loss, want)
        loss.backward()
        plain = view.detach().clone().requires_grad_()
        (weights[:6] * F.cross_entropy(plain, y, reduction="none")).mean().backward()
        torch.testing.assert_close(leaf.grad, plain.grad)
    assert weighted_cross_entropy(z[:0], labels[:0], weights[:0], reduction="sum") == 0
    assert weighted_cross_entropy(z[:0], labels[:0], weights[:0], reduction="none").shape == (0,)


def test_threads_change_nothing(set_threads):
    z, labels, weights = drawn(300, 200, torch.float32, torch.device("cpu"))
    found = []
    for threads in (1, 2):
        set_threads(threads)
        leaf = z.clone().requires_grad_()
        loss = weighted_cross_entropy(leaf, labels, weights)
        loss.backward()
        found.append((loss, leaf.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_bad_input():
    z, labels, weights = drawn(3, 5, torch.float32, torch.device("cpu"))
    for change, error, message in (
        ({"labels": labels + 5}, ValueError, r"labels: expected labels in \[0, 5\)"),
        ({"labels": labels[:2]}, ValueError, "labels: expected shape"),
        ({"weights": weights[:2]}, ValueError, "weights: expected shape"),
        ({"weights": labels}, TypeError, "weights: expected dtype"),
        ({"logits": z[0]}, ValueError, r"logits: expected shape \[B, C\]"),
        ({"reduction": "average"}, ValueError, "reduction: expected one of"),
    ):
        with pytest.raises(error, match=message):
            weighted_cross_entropy(**{"logits": z, "labels": labels, "weights": weights, **change})


def test_torch_machinery(inductor):
    z, labels, weights = drawn(4, 5, torch.float32, torch.device("cpu"))
    z.requires_grad_()
    torch.library.opcheck(torch.ops.tenfold.cross_entropy_rows.default, (z, labels))
    _, top, log_total = torch.ops.tenfold.cross_entropy_rows(z.detach(), labels)
    by_row = weights.clone().requires_grad_()
    torch.library.opcheck(
        torch.ops.tenfold.cross_entropy_rows_backward.default, (by_row, z, labels, top, log_total)
    )
    compiled = torch.compile(weighted_cross_entropy, fullgraph=True, backend=inductor)
    torch.testing.assert_close(compiled(z, labels, weights), weighted_cross_entropy(z, labels, weights))

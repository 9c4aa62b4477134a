"""Soft overlap and its losses: known numbers, gradients, dtypes, layouts, and what is left out."""

from __future__ import annotations

import pytest
import torch
from tenfold.kernels.softdice import softdice_reference
from torch import Tensor
from torch.nn import functional as F

import tenfold
from tenfold.ops import (
    SoftOverlap,
    dice_ce_loss,
    dice_loss,
    generalized_dice_loss,
    soft_overlap,
    tversky_loss,
)

# x[b, c, i] = 2 sin(0.7 b + 1.3 c + 0.11 i (c + 1)), y[b] = b, in float64: loss, the gradient's norm, entries
# [0, 0, 0, 0] and [1, 3, 4, 1]; computed with MONAI 1.6.1.
KNOWN = {
    "dice": (dice_loss, {}, 0.8993051825, 0.0166929077, -0.0012536693, 0.0001018537),
    "foreground_batch": (
        dice_loss,
        {"include_background": False, "batch": True},
        0.9134084280,
        0.0235250105,
        -0.0002962278,
        0.0002090580,
    ),
    "dice_ce": (dice_ce_loss, {}, 2.6694584177, 0.2319082911, -0.0466775352, 0.0176320296),
    "tversky": (
        tversky_loss,
        {"alpha": 0.3, "beta": 0.7},
        0.9185601139,
        0.0152761044,
        -0.0011769413,
        0.0000896750,
    ),
    "jaccard": (dice_loss, {"jaccard": True}, 0.9367197102, 0.0131931282, -0.0010393645, 0.0000756789),
    "squared": (dice_loss, {"squared_pred": True}, 0.8842128292, 0.0199231134, -0.0018038389, 0.0001169016),
}
SHAPES = [(2, 4, 5, 2), (1, 55, 9, 31), (3, 2, 70), (2, 5, 3, 4, 23), (1, 300, 65)]


def known_input(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    b, c, i = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (2, 4, 10)), indexing="ij")
    x = 2 * torch.sin(0.7 * b + 1.3 * c + 0.11 * i * (c + 1))
    y = torch.arange(2)[:, None, None, None].expand(2, 1, 5, 2)
    return x.reshape(2, 4, 5, 2).to(device, dtype).requires_grad_(), y.to(device)


def draw(shape, dtype, device, dense, activation="softmax", seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    if activation == "none":
        x = x.sigmoid()
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    if dense:
        y = torch.rand(shape, generator=generator).lt(0.4).float()
    return x.to(dtype).to(device), y.to(device)


def sums_and_gradient(x, y, weights, **options):
    z = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    sums = torch.stack(soft_overlap(z, y, **options), 2)
    (sums * weights.to(sums.device)).sum().backward()
    return sums.detach().cpu(), z.grad.cpu()


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_known_numbers(backend, name, dtype):
    loss, options, *expected = KNOWN[name]
    x, y = known_input(dtype, backend.device)
    value = loss(x, y, **options)
    value.backward()
    got = (value, x.grad.norm(), x.grad[0, 0, 0, 0], x.grad[1, 3, 4, 1])
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    for g, e in zip(got, expected, strict=True):
        assert abs(g.item() - e) <= tolerance


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("dense", [False, True], ids=["labels", "map"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference_in_float64(backend, activation, dense, gamma, shape):
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(shape[0], shape[1], 7, generator=generator, dtype=torch.float64)
    if backend.interpreted and shape[1] > 100:
        pytest.skip("slow in the interpreter")
    x, y = draw(shape, torch.float32, backend.device, dense, activation)
    got = sums_and_gradient(x, y, weights, activation=activation, gamma=gamma)
    with tenfold.use_backend("reference"):
        want = sums_and_gradient(x.double(), y, weights, activation=activation, gamma=gamma)
    for g, w in zip(got, want, strict=True):
        assert (g - w).abs().max() <= 2e-6 * w.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(backend, dtype):
    """Within 2e-3 of float64 on the same stored values; the gradient is rounded once."""
    x, y = draw((2, 7, 6, 11), dtype, backend.device, False)
    z = x.clone().requires_grad_()
    loss = dice_ce_loss(z, y)
    loss.backward()
    exact = x.double().requires_grad_()
    with tenfold.use_backend("reference"):
        expected = dice_ce_loss(exact, y)
        expected.backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - expected.item()) <= 1e-5
    assert z.grad.dtype == dtype
    error = (z.grad.double() - exact.grad).cpu()
    cuts = backend.name == "triton" and backend.device.type == "cpu"  # Triton's interpreter cuts bfloat16 off
    step = 2 if cuts and dtype == torch.bfloat16 else 1
    assert error.norm() <= step * 2e-3 * exact.grad.norm()
    assert (error.abs() <= step * 2**-8 * exact.grad.abs().cpu() + 1e-6).all()  # bfloat16's rounding, or less


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_gradcheck(backend, activation, dense, gamma):
    if backend.name == "triton":
        pytest.skip("Triton kernels are float32")
    x, y = draw((2, 3, 2, 2), torch.float64, backend.device, dense, activation)
    x.requires_grad_()
    keep = torch.tensor([[[1, 1], [0, 1]], [[1, 0], [1, 1]]], dtype=torch.bool, device=backend.device)
    run = lambda z: tuple(soft_overlap(z, y, activation=activation, gamma=gamma, mask=keep))  # noqa: E731
    assert torch.autograd.gradcheck(run, (x,), atol=1e-6)


def test_second_derivative_is_refused():
    x, y = known_input(torch.float64, torch.device("cpu"))
    (g,) = torch.autograd.grad(dice_loss(x, y), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        g.sum().backward()


def test_opcheck():
    x, y = known_input(torch.float32, torch.device("cpu"))
    for target in (y[:, 0].contiguous(), torch.rand(x.shape)):
        arguments = (x, target, None, "softmax", 0.0, None, True, True)
        torch.library.opcheck(torch.ops.tenfold.soft_overlap.default, arguments)


def test_compiles_in_one_piece(inductor):
    x, y = draw((2, 5, 4, 6), torch.float32, torch.device("cpu"), False)
    compiled = torch.compile(
        lambda z: dice_ce_loss(z, y, weight=[1.0, 2, 3, 4, 5]), fullgraph=True, backend=inductor
    )
    grads = []
    for run in (compiled, lambda z: dice_ce_loss(z, y, weight=[1.0, 2, 3, 4, 5])):
        z = x.clone().requires_grad_()
        loss = run(z)
        loss.backward()
        grads.append((loss.detach(), z.grad))
    assert torch.allclose(grads[0][0], grads[1][0], rtol=1e-6)
    assert torch.allclose(grads[0][1], grads[1][1], rtol=1e-5, atol=1e-8)


def test_autocast():
    x, y = draw((1, 4, 8, 8), torch.float32, torch.device("cpu"), False)
    w = torch.randn(4, 4, 1, 1, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = F.conv2d(x, w)
        loss = dice_ce_loss(logits, y)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert w.grad.isfinite().all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_what_is_left_out_does_not_matter(backend, activation):
    """Neither logits (NaN) nor labels of voxels that are ignored or masked; their gradient is zero."""
    shape = (2, 5, 7, 13)
    x, y = draw(shape, torch.float32, backend.device, False)
    generator = torch.Generator().manual_seed(3)
    out = torch.rand((2, 7, 13), generator=generator).lt(0.3).to(backend.device)
    spoiled, spoiled_y = x.clone(), y.clone()
    spoiled[out[:, None].expand(shape)] = torch.nan
    spoiled_y[out] = 77
    ignored_y = torch.where(out, -1, y)
    weights = torch.randn(2, 5, 7, dtype=torch.float64)
    with tenfold.use_backend("reference"):
        whole = sums_and_gradient(x.double(), y, weights, activation=activation, mask=~out)
    by_mask = sums_and_gradient(spoiled, spoiled_y, weights, activation=activation, mask=(~out)[:, None])
    by_label = sums_and_gradient(spoiled, ignored_y, weights, activation=activation, ignore_index=-1)
    for got in (by_mask, by_label):
        for g, w in zip(got, whole, strict=True):
            assert (g - w).abs().max() <= 2e-6 * w.abs().max()
    assert (by_mask[1][out[:, None].expand(shape).cpu()] == 0).all()
    kept = int((~out[0]).sum())
    assert by_mask[0][0, :, softdice_reference.TARGET].sum() == kept


def test_all_ignored_and_absent_classes(backend):
    x, _ = draw((2, 3, 6, 6), torch.float32, backend.device, False)
    y = torch.zeros(2, 6, 6, dtype=torch.int64, device=backend.device)
    y[0] = 255
    z = x.clone().requires_grad_()
    loss = dice_loss(z, y, ignore_index=255, reduction="none")
    assert torch.equal(
        loss[0].detach().cpu(), torch.zeros(3)
    )  # nothing predicted, nothing there: 1 - eps / eps
    assert loss[1, 1] > 0.99
    loss.sum().backward()
    assert (z.grad[0] == 0).all()
    assert z.grad.isfinite().all()


def test_a_nan_logit_makes_its_item_nan(backend):
    x, y = draw((2, 4, 5, 9), torch.float32, backend.device, False)
    x[1, 2, 3, 4] = torch.nan
    sums = soft_overlap(x, y)
    assert sums.prediction[0].isfinite().all()
    assert sums.prediction[1].isnan().any()
    assert dice_ce_loss(x, y).isnan()


def test_extreme_logits(backend):
    """Gaps of hundreds and infinities: what log-sum-exp gives, not 0 * inf."""
    x = torch.tensor([[[200.0, -300.0, 0.0, -torch.inf], [0.0, 400.0, 0.0, 2.0]]], device=backend.device)
    y = torch.tensor([[1, 1, 0, 1]], device=backend.device)
    sums = soft_overlap(x, y)
    assert torch.allclose(sums.log_positive.cpu(), torch.tensor([[0.6931472, 200.0]], dtype=torch.float64))
    assert torch.allclose(sums.prediction.cpu(), torch.tensor([[1.5, 2.5]], dtype=torch.float64))


@pytest.mark.parametrize("label", [4, -1, 2**40])
def test_labels_outside_the_classes(backend, label):
    x, y = draw((1, 4, 5, 9), torch.float32, backend.device, False)
    y[0, 2, 3] = label
    if backend.device.type == "cpu":
        with pytest.raises(ValueError, match=rf"target: expected labels in \[0, 4\), got {label}"):
            soft_overlap(x, y)
    else:
        assert soft_overlap(x, y).prediction.isnan().all()


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool], ids=str
)
def test_label_dtypes(backend, dtype):
    x, y = draw((2, 2, 5, 40), torch.float32, backend.device, False)
    assert torch.equal(torch.stack(soft_overlap(x, y.to(dtype))).cpu(), torch.stack(soft_overlap(x, y)).cpu())
    dense = F.one_hot(y, 2).movedim(-1, 1).to(dtype)
    a, b = torch.stack(soft_overlap(x, dense)), torch.stack(soft_overlap(x, y))
    assert torch.allclose(a, b, rtol=1e-6)


def test_layouts(backend):
    """Channels last, slices, transposes and labels of any stride give what contiguous memory gives."""
    x, y = draw((2, 6, 4, 10, 12), torch.float32, backend.device, False)
    weights = torch.randn(2, 6, 7, dtype=torch.float64)
    want = sums_and_gradient(x, y, weights)
    wide = torch.zeros(2, 6, 4, 10, 24, device=backend.device)
    wide[..., ::2] = x
    flipped = y.flip(3).contiguous().flip(3)
    for z, labels in (
        (x.contiguous(memory_format=torch.channels_last_3d), y),
        (wide[..., ::2], y),
        (x.transpose(2, 3).contiguous().transpose(2, 3), flipped),
        (x, y.transpose(1, 3).contiguous().transpose(1, 3)),
    ):
        got = sums_and_gradient(z, labels, weights)
        for g, w in zip(got, want, strict=True):
            assert torch.allclose(g, w, rtol=1e-5, atol=1e-6 * w.abs().max().item())


def test_channels_last_gradient_is_channels_last():
    x, y = draw((1, 6, 4, 5), torch.float32, torch.device("cpu"), False)
    z = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    dice_loss(z, y).backward()
    assert z.grad.is_contiguous(memory_format=torch.channels_last)


def test_threads_change_nothing():
    x, y = draw((2, 5, 30, 31, 17), torch.float32, torch.device("cpu"), False)
    weights = torch.randn(2, 5, 7, dtype=torch.float64)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(sums_and_gradient(x, y, weights))
    finally:
        torch.set_num_threads(before)
    for got in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(got, results[0], strict=True))


def test_one_class_with_sigmoid(backend):
    x, _ = draw((2, 1, 6, 7), torch.float32, backend.device, False)
    y = torch.rand(2, 1, 6, 7).lt(0.5).to(backend.device)
    loss = dice_ce_loss(x, y, activation="sigmoid", weight=3.0)
    p = x.double().sigmoid()
    dims = (2, 3)
    dice = 1 - (2 * (p * y).sum(dims) + 1e-5) / (p.sum(dims) + y.sum(dims) + 1e-5)
    weight = torch.tensor(3.0, dtype=torch.float64, device=backend.device)
    bce = F.binary_cross_entropy_with_logits(x.double(), y.double(), pos_weight=weight)
    assert abs(loss.item() - (dice.mean() + bce).item()) <= 1e-6


def test_empty_and_single(backend):
    labels = torch.zeros(2, 0, 4, dtype=torch.int64, device=backend.device)
    none = soft_overlap(torch.zeros(2, 3, 0, 4, device=backend.device), labels)
    assert all(torch.equal(value.cpu(), torch.zeros(2, 3, dtype=torch.float64)) for value in none)
    x = torch.tensor([[1.0, 2.0]], device=backend.device)
    flat = soft_overlap(x, torch.tensor([1], device=backend.device))
    assert torch.allclose(flat.prediction.cpu(), x.double().softmax(1).cpu())


def test_generalized_dice(backend):
    x, y = draw((2, 4, 9, 9), torch.float32, backend.device, False)
    y[y == 3] = 0  # a class without voxels
    truth = F.one_hot(y, 4).movedim(-1, 1).double()
    p = x.double().softmax(1)
    volume = truth.sum((2, 3))
    w = 1 / volume**2
    w[:, 3] = w[:, :3].amax(1)
    tp, total = (p * truth).sum((2, 3)), p.sum((2, 3)) + volume
    want = (1 - (2 * (w * tp).sum(1) + 1e-5) / ((w * total).sum(1) + 1e-5)).mean()
    assert abs(generalized_dice_loss(x, y).item() - want.item()) <= 1e-6


def test_profiles():
    """nnU-Net: cross-entropy minus mean foreground Dice. PyMIC: pooled Dice, normalised weights."""
    x, y = draw((2, 4, 9, 9), torch.float64, torch.device("cpu"), False)
    truth = F.one_hot(y, 4).movedim(-1, 1).double()
    p, w = x.softmax(1), torch.tensor([1.0, 10, 2, 4], dtype=torch.float64)
    for batch, dims in ((False, (2, 3)), (True, (0, 2, 3))):
        tp, total = (p * truth).sum(dims), p.sum(dims) + truth.sum(dims)
        dc = ((2 * tp + 1e-5) / (total + 1e-5))[..., 1:].mean()
        want = F.cross_entropy(x, y) - dc
        assert abs(dice_ce_loss(x, y, profile="nnunet", batch=batch) - want) <= 1e-12
    dice = 1 - (2 * tp + 1e-5) / (total + 1e-5)
    ce = -(w[:, None, None] * truth * x.log_softmax(1)).sum(1).mean()
    want = (dice * w).sum() / w.sum() + ce
    assert abs(dice_ce_loss(x, y, profile="pymic", weight=w) - want) <= 1e-12
    far = torch.tensor([[[0.0], [200.0]]])
    assert dice_ce_loss(far, torch.tensor([[0]]), profile="pymic").item() == pytest.approx(200 + 1, abs=1e-3)


def test_weighted_mean_is_torchs(backend):
    x, y = draw((2, 5, 9, 9), torch.float32, backend.device, False)
    w = [0.5, 1.0, 2.0, 0.0, 3.0]
    got = dice_ce_loss(x, y, weight=w, lambda_dice=0.0, ignore_index=2)
    want = F.cross_entropy(x.double().cpu(), y.cpu(), torch.tensor(w).double(), ignore_index=2)
    assert abs(got.item() - want.item()) <= 1e-6


def test_numpy_in_numpy_out():
    x, y = draw((1, 3, 4, 4), torch.float32, torch.device("cpu"), False)
    sums = soft_overlap(x.numpy(), y.numpy())
    assert isinstance(sums, SoftOverlap)
    assert (sums.target == soft_overlap(x, y).target.numpy()).all()


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"target": torch.zeros(2, 5, 3, dtype=torch.int64)}, ValueError, "target: expected"),
        ({"target": torch.zeros(2, 5, 2)}, TypeError, "target: expected integer labels"),
        ({"target": "labels"}, TypeError, "target: expected"),
        ({"logits": torch.zeros(2, 4, 5, 2, dtype=torch.int64)}, TypeError, "logits: expected dtype"),
        ({"activation": "tanh"}, ValueError, "activation: expected one of"),
        ({"gamma": -1.0}, ValueError, "gamma: expected"),
        ({"gamma": float("nan")}, ValueError, "gamma: expected"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index: expected"),
        ({"mask": torch.ones(2, 5, 3, dtype=torch.bool)}, ValueError, "mask: expected shape"),
        ({"mask": torch.ones(2, 5, 2)}, TypeError, "mask: expected dtype"),
    ],
)
def test_bad_input(change, kind, message):
    x, y = known_input(torch.float32, torch.device("cpu"))
    arguments = {"logits": x, "target": y} | change
    with pytest.raises(kind, match=message):
        soft_overlap(**arguments)


def test_bad_options_of_losses():
    x, y = known_input(torch.float32, torch.device("cpu"))
    for options, message in (
        ({"reduction": "none"}, "reduction: expected"),
        ({"weight": [1.0, 2.0]}, "weight: expected"),
        ({"weight": [1.0, -2.0, 1, 1]}, "weight: expected"),
        ({"lambda_ce": -1.0}, "lambda_ce: expected"),
        ({"profile": "other"}, "profile: expected"),
        ({"profile": "nnunet", "jaccard": True}, "profile: expected"),
        ({"activation": "none"}, "activation: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            dice_ce_loss(x, y, **options)


def test_tensors_as_weights_of_the_tversky_loss():
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 1, 4, 5))
    alpha = torch.tensor(0.3, requires_grad=True)
    loss = tversky_loss(logits, target, alpha=alpha, smooth_nr=torch.tensor(1e-5))
    torch.testing.assert_close(loss, tversky_loss(logits, target, alpha=0.3))
    (slope,) = torch.autograd.grad(loss, alpha)
    step = tversky_loss(logits, target, alpha=0.31) - tversky_loss(logits, target, alpha=0.29)
    torch.testing.assert_close(slope, step / 0.02, rtol=1e-2, atol=1e-4)
    many = torch.vmap(lambda a: tversky_loss(logits, target, alpha=a))(torch.tensor([0.3, 0.7]))
    torch.testing.assert_close(many[0], loss.detach())


def test_errors_of_a_device_are_not_called_a_bad_weight(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(Tensor, "to", full)
    with pytest.raises(torch.OutOfMemoryError):
        dice_loss(torch.randn(2, 3, 4, 5), torch.randint(3, (2, 1, 4, 5)), weight=[1.0, 2.0, 3.0])

"""Focal loss and deep supervision: published numbers of MONAI, relations between losses, torch.export."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from tenfold import nn as tnn

# Three equal channels; labels 0, 1, 2, 0.
FLAT = torch.tensor([[[1.0, 1.0], [0.5, 0.0]]]).expand(1, 3, 2, 2).contiguous()
LABELS = torch.tensor([[[[0, 1], [2, 0]]]])
ONE_HOT = F.one_hot(LABELS[:, 0], 3).movedim(-1, 1)
EACH = [
    [[0.02266, 0.70187], [0.37741, 0.17329]],
    [[0.70187, 0.02266], [0.37741, 0.17329]],
    [[0.70187, 0.70187], [0.06757, 0.17329]],
]
WEIGHTED = [
    [[0.01133, 0.35093], [0.18871, 0.08664]],
    [[0.07019, 0.00227], [0.03774, 0.01733]],
    [[0.14037, 0.14037], [0.01352, 0.03466]],
]
# (arguments, target, value): the published cases of MONAI's tests.
FOCAL = [
    ({"to_onehot_y": True}, LABELS, 0.34959),
    ({}, ONE_HOT, 0.34959),
    ({"to_onehot_y": True, "include_background": False}, LABELS, 0.36498),
    ({"to_onehot_y": True, "alpha": 0.8}, LABELS, 0.08423),
    ({"to_onehot_y": True, "reduction": "none"}, LABELS, [EACH]),
    ({"to_onehot_y": True, "weight": (0.5, 0.1, 0.2), "reduction": "none"}, LABELS, [WEIGHTED]),
    ({"to_onehot_y": True, "use_softmax": True}, LABELS, 0.16276),
    ({"to_onehot_y": True, "use_softmax": True, "alpha": 0.8}, LABELS, 0.08138),
]


@pytest.mark.parametrize(("arguments", "target", "expected"), FOCAL)
def test_published_focal_values(arguments, target, expected):
    got = tnn.FocalLoss(**arguments)(FLAT, target)
    torch.testing.assert_close(got, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_focal_of_background_and_foreground():
    """One voxel of foreground in a plane of 25, and a prediction that has none."""
    x = torch.cat((torch.ones(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)), 1)
    y = x.clone()
    y[0, :, 2, 2] = torch.tensor([0.0, 1.0])
    assert tnn.FocalLoss()(x, y).item() == pytest.approx(0.1116, abs=1e-3)
    assert tnn.FocalLoss(include_background=False)(x, y).item() == pytest.approx(0.1733, abs=1e-3)


@pytest.mark.parametrize("use_softmax", [False, True])
def test_a_sure_and_right_prediction_costs_nothing(use_softmax):
    for labels in (torch.zeros(1, 4, 4, dtype=torch.int64), torch.arange(16).reshape(1, 4, 4) % 6):
        x = 1000.0 * F.one_hot(labels, 6).movedim(-1, 1).float() - 500
        for alpha in (None, 0.5):
            loss = tnn.FocalLoss(to_onehot_y=True, use_softmax=use_softmax, alpha=alpha)
            assert abs(loss(x, labels[:, None]).item()) <= 1e-6


def test_gamma_zero_is_the_binary_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 10, 8, 4, generator=generator)
    y = torch.randint(0, 2, x.shape, generator=generator).float()
    for reduction in ("mean", "none"):
        got = tnn.FocalLoss(gamma=0.0, reduction=reduction, weight=1.0)(x, y)
        torch.testing.assert_close(got, F.binary_cross_entropy_with_logits(x, y, reduction=reduction))
    other = tnn.FocalLoss(gamma=0.1)(x, y)
    assert (other - F.binary_cross_entropy_with_logits(x, y)).abs() > 1e-3


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("weight", [None, (3, 2.0, 1)])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_dice_focal_is_the_sum_of_both(reduction, weight, sigmoid):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, 5, 5, generator=generator)
    y = torch.randint(0, 2, x.shape, generator=generator)
    common = {"reduction": reduction, "weight": weight}
    for lambda_focal, alpha in itertools.product((0.5, 1.5), (None, 0.25)):
        both = tnn.DiceFocalLoss(sigmoid=sigmoid, gamma=1.0, lambda_focal=lambda_focal, alpha=alpha, **common)
        dice = tnn.DiceLoss(sigmoid=sigmoid, **common)(x, y)
        want = dice + lambda_focal * tnn.FocalLoss(gamma=1.0, alpha=alpha, **common)(x, y)
        torch.testing.assert_close(both(x, y), want, rtol=1e-5, atol=1e-6)


PYRAMID = [
    torch.tensor([[[[1.0, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 1, 0]]]]),
    torch.tensor([[[[1.0, 1], [0, 0]], [[1, 0], [0, 1]]]]),
    torch.tensor([[[[1.0], [0]], [[1], [0]]]]),
]
TRUTH = torch.tensor([[[[1.0, 0, 1], [0, 1, 0]]]])
LEVELS = [
    (tnn.DiceCELoss, {}, PYRAMID[0], 0.606557),
    (tnn.DiceCELoss, {}, PYRAMID, 1.78144),
    (tnn.DiceCELoss, {"weight_mode": "same"}, PYRAMID, 3.5529),
    (tnn.DiceCELoss, {"weight_mode": "two"}, PYRAMID, 2.07973),
    (tnn.DiceCELoss, {"weights": [0.1, 0.2, 0.3]}, PYRAMID, 0.76924),
    (tnn.DiceLoss, {}, PYRAMID[0], 0.166666),
    (tnn.DiceLoss, {}, PYRAMID, 0.666665),
    (tnn.DiceFocalLoss, {}, PYRAMID[0], 0.32124),
    (tnn.DiceFocalLoss, {}, PYRAMID, 1.06452),
]


@pytest.mark.parametrize(("loss", "arguments", "outputs", "expected"), LEVELS)
def test_published_values_of_deep_supervision(loss, arguments, outputs, expected):
    got = tnn.DeepSupervisionLoss(loss(to_onehot_y=True), **arguments)(outputs, TRUTH)
    assert got.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        tnn.DiceLoss(softmax=True, to_onehot_y=True),
        tnn.DiceCELoss(softmax=True, to_onehot_y=True, weight=[1.0, 2.0]),
        tnn.DiceFocalLoss(sigmoid=True, to_onehot_y=True),
        tnn.GeneralizedDiceLoss(softmax=True, to_onehot_y=True),
        tnn.TverskyLoss(softmax=True, to_onehot_y=True),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_export(loss):
    """What MONAI's losses do through TorchScript, these do through torch.export."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 2, 8, 8, generator=generator)
    y = torch.randint(0, 2, (2, 1, 8, 8), generator=generator)
    program = torch.export.export(loss, (x, y))
    torch.testing.assert_close(program.module()(x, y), loss(x, y))

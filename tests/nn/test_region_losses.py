"""The losses equal MONAI's, on the inputs and numbers that MONAI publishes and on drawn ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from tenfold import nn as tnn

TWO_BY_TWO = [[1.0, -1.0], [-1.0, 1.0]]
A = (torch.tensor([[TWO_BY_TWO]]), torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]]))
B = (
    torch.tensor([[TWO_BY_TWO], [TWO_BY_TWO]]),
    torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]], [[[1.0, 0.0], [1.0, 0.0]]]]),
)
ZERO = (torch.tensor([[[[1.0, -0.0], [-1.0, 1.0]]], [TWO_BY_TWO]]), B[1])
SOFT = (torch.tensor([[[[0.3, 0.4], [0.7, 0.9]]], [[[1.0, 0.1], [0.5, 0.3]]]]),) * 2
EXACT = (
    torch.tensor([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]),
    torch.tensor([[[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]),
)
FAR = (EXACT[0].clone(), EXACT[1])
FAR[0][0, 0, :2] = 100.0
LINE = (
    torch.tensor([[[-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]),
    torch.tensor([[[1.0, 0.0, 0.0]], [[1.0, 1.0, 0.0]]]),
)
COLUMN = tuple(t[..., None] for t in LINE)
CUBE = (
    torch.tensor([[[[[1.0, -1.0], [1.0, -1.0]], [[-1.0, 1.0], [-1.0, 1.0]]]]]),
    torch.tensor([[[[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]]]]),
)
PAIR = (
    torch.tensor([[TWO_BY_TWO, TWO_BY_TWO]]),
    torch.tensor([[[[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]]),
)


def small(value: float) -> dict[str, float]:
    return {"smooth_nr": value, "smooth_dr": value}


def log_softmax(x):
    return torch.log_softmax(x, dim=1)


ONE_HOT = {"to_onehot_y": True}
# (loss, arguments, (input, target), value): the published cases of MONAI 1.6.1's tests.
PUBLISHED = [
    ("DiceLoss", {"sigmoid": True} | small(1e-6), A, 0.307576),
    ("DiceLoss", {"sigmoid": True} | small(1e-4), B, 0.416657),
    ("DiceLoss", {"soft_label": True} | small(1e-4), SOFT, 0.0),
    ("DiceLoss", small(1e-4), SOFT, 0.307773),
    ("DiceLoss", {"include_background": False} | ONE_HOT | small(0), EXACT, 0.0),
    ("DiceLoss", {"sigmoid": True} | ONE_HOT | small(1e-4), LINE, 0.435050),
    (
        "DiceLoss",
        {"sigmoid": True, "reduction": "none"} | ONE_HOT | small(1e-4),
        LINE,
        [[[0.296529], [0.415136]], [[0.599976], [0.428559]]],
    ),
    ("DiceLoss", {"softmax": True} | ONE_HOT | small(1e-4), LINE, 0.383713),
    ("DiceLoss", {"softmax": True, "reduction": "sum"} | ONE_HOT | small(1e-4), LINE, 1.534853),
    ("DiceLoss", {"sigmoid": True, "squared_pred": True}, A, 0.178337),
    ("DiceLoss", {"sigmoid": True, "jaccard": True}, A, 0.470451),
    ("DiceLoss", {"other_act": torch.tanh} | small(1e-4), B, 0.999963),
    ("DiceLoss", {"other_act": log_softmax} | ONE_HOT | small(1e-4), LINE, -8.522593),
    ("DiceLoss", {"other_act": torch.tanh, "batch": True} | small(1e-4), ZERO, 0.774718),
    (
        "DiceLoss",
        {"other_act": torch.tanh, "smooth_nr": 0, "smooth_dr": 1e-4, "batch": True},
        ZERO,
        0.774733,
    ),
    ("DiceLoss", {"other_act": torch.tanh, "smooth_nr": 0, "smooth_dr": 1e-4}, ZERO, 0.840058),
    ("DiceLoss", {"other_act": log_softmax, "weight": (0, 1)} | ONE_HOT | small(1e-4), LINE, -8.268515),
    ("DiceCELoss", ONE_HOT, EXACT, 0.3133),
    ("DiceCELoss", {}, (EXACT[0], EXACT[0]), 0.3133),
    ("DiceCELoss", {}, (EXACT[0], EXACT[0].to(torch.uint8)), 0.3133),
    (
        "DiceCELoss",
        {"include_background": False, "weight": torch.tensor([1.0, 1.0])} | ONE_HOT,
        FAR,
        0.2088,
    ),
    (
        "DiceCELoss",
        {"include_background": False, "weight": torch.tensor([1.0, 1.0]), "lambda_ce": 2.0} | ONE_HOT,
        FAR,
        0.4176,
    ),
    (
        "DiceCELoss",
        {"include_background": False, "weight": torch.tensor([0.0, 1.0])} | ONE_HOT,
        FAR,
        0.3133,
    ),
    (
        "DiceCELoss",
        {"weight": torch.tensor([0.5]), "sigmoid": True},
        (torch.tensor([[[0.8, 0.6, 0.0]], [[0.0, 0.0, 0.9]]]), EXACT[1]),
        1.445239,
    ),
    ("GeneralizedDiceLoss", {"sigmoid": True} | small(1e-6), A, 0.307576),
    ("GeneralizedDiceLoss", {"sigmoid": True} | small(1e-4), B, 0.416597),
    ("GeneralizedDiceLoss", {"soft_label": True} | small(1e-4), SOFT, 0.0),
    ("GeneralizedDiceLoss", small(1e-4), SOFT, 0.307748),
    ("GeneralizedDiceLoss", {"include_background": False} | ONE_HOT | small(0.0), EXACT, 0.0),
    ("GeneralizedDiceLoss", {"sigmoid": True} | ONE_HOT | small(1e-4), LINE, 0.469964),
    ("GeneralizedDiceLoss", {"softmax": True} | ONE_HOT | small(1e-4), LINE, 0.414507),
    ("GeneralizedDiceLoss", {"softmax": True, "reduction": "sum"} | ONE_HOT | small(1e-4), LINE, 0.829015),
    (
        "GeneralizedDiceLoss",
        {"softmax": True, "reduction": "none"} | ONE_HOT | small(1e-4),
        LINE,
        [[[0.273476]], [[0.555539]]],
    ),
    (
        "GeneralizedDiceLoss",
        {"include_background": False} | ONE_HOT | small(1e-8),
        (EXACT[0], torch.zeros(2, 1, 3)),
        0.0,
    ),
    (
        "GeneralizedDiceLoss",
        {"softmax": True, "w_type": "simple"} | ONE_HOT | small(0),
        (torch.tensor([[[0.0, 10.0, 10.0, 10.0], [10.0, 0.0, 0.0, 0.0]]]), torch.tensor([[[1, 1, 0, 0]]])),
        0.250023,
    ),
    ("GeneralizedDiceLoss", {"other_act": torch.tanh} | small(1e-4), B, 0.99970),
    ("GeneralizedDiceLoss", {"other_act": log_softmax} | ONE_HOT | small(1e-4), LINE, -0.097833),
    ("TverskyLoss", {"sigmoid": True} | small(1e-6), A, 0.307576),
    ("TverskyLoss", {"sigmoid": True} | small(1e-4), B, 0.416657),
    ("TverskyLoss", {"soft_label": True} | small(1e-4), SOFT, 0.0),
    ("TverskyLoss", small(1e-4), SOFT, 0.307773),
    ("TverskyLoss", {"include_background": False} | ONE_HOT | small(0), EXACT, 0.0),
    (
        "TverskyLoss",
        {"include_background": False, "smooth_nr": 0, "smooth_dr": 1e-3} | ONE_HOT,
        EXACT,
        0.000999,
    ),
    ("TverskyLoss", {"sigmoid": True} | ONE_HOT | small(1e-4), LINE, 0.435050),
    ("TverskyLoss", {"sigmoid": True, "batch": True} | ONE_HOT, LINE, 0.422979),
    ("TverskyLoss", {"sigmoid": True, "reduction": "sum"} | ONE_HOT | small(1e-4), LINE, 1.74013),
    ("TverskyLoss", {"softmax": True} | ONE_HOT | small(1e-4), LINE, 0.383713),
    (
        "TverskyLoss",
        {"softmax": True, "reduction": "none"} | ONE_HOT | small(1e-4),
        LINE,
        [[0.210961, 0.295339], [0.599952, 0.428547]],
    ),
    ("TverskyLoss", {"sigmoid": True, "alpha": 0.3, "beta": 0.7} | small(1e-6), A, 0.3589),
    ("TverskyLoss", {"sigmoid": True, "alpha": 0.7, "beta": 0.3} | small(1e-6), A, 0.247366),
    ("TverskyLoss", {"other_act": torch.tanh} | small(1e-4), B, 0.999963),
    ("TverskyLoss", {"other_act": log_softmax} | ONE_HOT | small(1e-4), LINE, -8.533317),
    ("HausdorffDTLoss", {"include_background": True, "sigmoid": True}, A, 0.509329),
    (
        "HausdorffDTLoss",
        {"include_background": True, "sigmoid": True},
        tuple(t[:, None] for t in A),
        0.509329,
    ),
    ("HausdorffDTLoss", {"include_background": True, "sigmoid": True}, CUBE, 0.375718),
    ("HausdorffDTLoss", {"include_background": True, "sigmoid": True}, PAIR, 0.326994),
    ("HausdorffDTLoss", {"include_background": True, "sigmoid": True}, B, 0.455082),
    ("HausdorffDTLoss", {"sigmoid": True}, PAIR, 0.144659),
    (
        "HausdorffDTLoss",
        {"include_background": True, "sigmoid": True, "reduction": "none"} | ONE_HOT,
        COLUMN,
        [[[[0.407765]], [[0.407765]]], [[[0.5000]], [[0.5000]]]],
    ),
    ("HausdorffDTLoss", {"include_background": True, "softmax": True} | ONE_HOT, COLUMN, 0.357016),
    (
        "HausdorffDTLoss",
        {"include_background": True, "softmax": True, "reduction": "sum"} | ONE_HOT,
        COLUMN,
        1.428062,
    ),
    ("HausdorffDTLoss", {"include_background": True, "other_act": torch.tanh}, B, 1.870039),
    ("HausdorffDTLoss", {"include_background": True, "other_act": log_softmax} | ONE_HOT, COLUMN, 4.366613),
    ("HausdorffDTLoss", {"include_background": True, "other_act": torch.tanh, "batch": True}, ZERO, 1.607137),
    ("LogHausdorffDTLoss", {"include_background": True, "sigmoid": True}, A, math.log(1.509329)),
]


@pytest.mark.parametrize(("name", "arguments", "data", "expected"), PUBLISHED)
def test_published_values(name, arguments, data, expected):
    got = getattr(tnn, name)(**arguments)(*data)
    tolerance = 1e-4 if name in ("DiceCELoss", "TverskyLoss") else 1e-5  # those of the published tests
    torch.testing.assert_close(got, torch.tensor(expected).to(got), rtol=tolerance, atol=tolerance)


def drawn(classes: int, dense: bool, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(2, classes, 6, 7, generator=generator, dtype=torch.float64)
    y = torch.randint(0, classes, (2, 1, 6, 7), generator=generator)
    if dense:
        y = F.one_hot(y[:, 0], classes).movedim(-1, 1).double()
    return x.to(dtype), y


def both(name: str, arguments: dict, x, y):
    """Loss and gradient of ours and of MONAI's."""
    losses = pytest.importorskip("monai.losses")
    out = []
    for module in (getattr(tnn, name)(**arguments), getattr(losses, name)(**arguments)):
        z = x.clone().requires_grad_()
        loss = module(z, y)
        loss.sum().backward()
        out.append((loss.detach(), z.grad))
    return out


def options(*groups: list[dict]) -> list[dict]:
    return [
        dict(itertools.chain.from_iterable(d.items() for d in chosen))
        for chosen in itertools.product(*groups)
    ]


ACTIVATIONS = [{"softmax": True}, {"sigmoid": True}, {"other_act": torch.sigmoid}]
BACKGROUND = [{}, {"include_background": False}]
CASES = [
    *(
        ("DiceLoss", o)
        for o in options(
            ACTIVATIONS, BACKGROUND, [{}, {"squared_pred": True}, {"jaccard": True}], [{}, {"batch": True}]
        )
    ),
    *(("DiceLoss", o) for o in options(ACTIVATIONS[:1], [{"weight": 2.0}, {"weight": [1.0, 2, 0, 4]}])),
    *(("DiceLoss", o) for o in options(ACTIVATIONS, [{"ignore_index": 2}], [{}, {"reduction": "none"}])),
    *(("DiceLoss", o) for o in options([{"softmax": True}], [{"reduction": "none", "batch": True}])),
    *(("TverskyLoss", o) for o in options(ACTIVATIONS, BACKGROUND, [{"alpha": 0.2, "beta": 0.9}])),
    *(("TverskyLoss", o) for o in options(ACTIVATIONS[:2], [{"ignore_index": 1}], [{}, {"batch": True}])),
    *(
        ("GeneralizedDiceLoss", o)
        for o in options(ACTIVATIONS, BACKGROUND, [{}, {"w_type": "simple"}, {"w_type": "uniform"}])
    ),
    *(("GeneralizedDiceLoss", o) for o in options([{"softmax": True}], [{"batch": True}])),
    *(
        ("DiceCELoss", o)
        for o in options(
            ACTIVATIONS,
            BACKGROUND,
            [{}, {"weight": torch.tensor([1.0, 2.0, 0.5, 4.0]).double()}, {"label_smoothing": 0.1}],
            [{}, {"reduction": "sum"}],
        )
    ),
    *(
        ("DiceFocalLoss", o)
        for o in options(ACTIVATIONS, BACKGROUND, [{}, {"gamma": 0.5}, {"alpha": 0.3}, {"reduction": "sum"}])
    ),
    *(
        ("FocalLoss", o)
        for o in options(
            [{}, {"use_softmax": True}],
            BACKGROUND,
            [{}, {"gamma": 1.3}, {"alpha": 0.3}, {"weight": 2.0}],
            [{}, {"reduction": "sum"}, {"reduction": "none"}],
        )
    ),
    *(("FocalLoss", o) for o in options([{}, {"use_softmax": True}], [{"weight": [1.0, 2, 3, 4]}])),
    *(("FocalLoss", o) for o in options([{}, {"use_softmax": True}], [{"alpha": [0.1, 0.2, 0.3, 0.4]}])),
    *(
        ("FocalLoss", o)
        for o in options(
            [{}, {"use_softmax": True}],
            [{"ignore_index": 1}],
            [{}, {"reduction": "sum"}, {"reduction": "none"}],
        )
    ),
    *(("HausdorffDTLoss", o) for o in options(ACTIVATIONS, BACKGROUND, [{}, {"alpha": 1.0, "batch": True}])),
    *(("LogHausdorffDTLoss", o) for o in options(ACTIVATIONS[:1], BACKGROUND)),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dense", [False, True], ids=["labels", "map"])
@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_equals_monai(name, arguments, dense):
    x, y = drawn(4, dense)
    ours, theirs = both(name, arguments | {"to_onehot_y": not dense}, x, y)
    # MONAI works in float32 in its focal and Hausdorff losses, and squares labels in float32.
    exact = name in ("DiceLoss", "DiceCELoss", "TverskyLoss") and not arguments.get("squared_pred")
    tolerance = 1e-9 if exact else 2e-5
    for got, want in zip(ours, theirs, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got.double(), want.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("DiceLoss", {"sigmoid": True}),
        ("DiceLoss", {"softmax": True, "to_onehot_y": True, "include_background": False}),
        ("DiceCELoss", {"sigmoid": True, "weight": torch.tensor([3.0])}),
        ("DiceFocalLoss", {"sigmoid": True}),
        ("FocalLoss", {"alpha": 0.2}),
    ],
)
def test_one_channel_equals_monai(name, arguments):
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(2, 1, 5, 6, generator=generator)
    y = torch.rand(2, 1, 5, 6, generator=generator).lt(0.4).float()
    ours, theirs = both(name, arguments, x, y)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["same", "exp", "two"])
def test_deep_supervision_equals_monai(mode):
    losses = pytest.importorskip("monai.losses")
    x, y = drawn(3, False, torch.float32)
    levels = [x, x[:, :, ::2, ::2].contiguous(), x[:, :, ::3, ::3].contiguous()]
    ours = tnn.DeepSupervisionLoss(tnn.DiceCELoss(to_onehot_y=True, softmax=True), mode)(levels, y)
    theirs = losses.DeepSupervisionLoss(losses.DiceCELoss(to_onehot_y=True, softmax=True), mode)
    assert abs(ours.item() - theirs(levels, y.float()).item()) <= 1e-6


def test_deep_supervision_of_pymic_and_nnunet():
    x, y = drawn(3, False)
    small_x = x[:, :, ::2, ::2].contiguous()
    loss = tnn.DiceCELoss(to_onehot_y=True, softmax=True)
    up = F.interpolate(small_x, y.shape[2:], mode="bilinear", align_corners=False)
    pymic = tnn.DeepSupervisionLoss(loss, "pymic")([x, small_x], y)
    assert abs(pymic - (loss(x, y) * 2 + loss(up, y)) / 3) <= 1e-12
    nnunet = tnn.DeepSupervisionLoss(loss, "nnunet")([x, small_x], y)
    assert abs(nnunet - loss(x, y)) <= 1e-12
    assert tnn.DeepSupervisionLoss(loss, "nnunet").get_weights(3) == [2 / 3, 1 / 3, 0.0]


def test_signed_distance():
    """One voxel in a row: distances outside, 0 inside; a class that is absent has zeros."""
    labels = torch.tensor([[[0, 0, 1, 1, 1, 0]]])
    got = tnn.signed_distance_maps(labels, 3)
    assert torch.equal(got[0, 1, 0], torch.tensor([2.0, 1, 0, -1, 0, 1]))
    assert torch.equal(got[0, 0, 0], torch.tensor([-1.0, 0, 1, 2, 1, 0]))
    assert (got[0, 2] == 0).all()
    scaled = tnn.signed_distance_maps(labels, 2, (3.0, 0.5))
    assert torch.equal(scaled[0, 1, 0], torch.tensor([1.0, 0.5, 0, -0.5, 0, 0.5]))


def test_boundary_loss():
    x, y = drawn(3, False)
    x.requires_grad_()
    phi = tnn.signed_distance_maps(y[:, 0], 3).double()
    want = (x.softmax(1) * phi)[:, 1:].mean()
    (g_want,) = torch.autograd.grad(want, x)
    for target, one_hot in ((y, True), (phi, False)):
        got = tnn.BoundaryLoss(to_onehot_y=one_hot, softmax=True)(x, target)
        (g_got,) = torch.autograd.grad(got, x)
        assert abs(got - want) <= 1e-12
        torch.testing.assert_close(g_got, g_want, rtol=1e-9, atol=1e-12)


def test_profiles_as_modules():
    from tenfold.ops import dice_ce_loss

    x, y = drawn(4, False)
    for profile in ("nnunet", "pymic"):
        module = tnn.DiceCELoss(softmax=True, to_onehot_y=True, profile=profile, weight=[1.0, 2, 3, 4])
        assert module(x, y) == dice_ce_loss(x, y, profile=profile, weight=[1.0, 2, 3, 4])


def test_bad_arguments():
    x, y = drawn(3, False)
    for kind, make in (
        (ValueError, lambda: tnn.DiceLoss(sigmoid=True, softmax=True)),
        (ValueError, lambda: tnn.DiceLoss(reduction="unknown")),
        (ValueError, lambda: tnn.DiceCELoss(reduction="none")),
        (TypeError, lambda: tnn.DiceLoss(other_act=3)),
        (ValueError, lambda: tnn.DiceCELoss(lambda_ce=-1)),
        (ValueError, lambda: tnn.DiceCELoss(profile="nnunet")),
        (ValueError, lambda: tnn.GeneralizedDiceLoss(w_type="cube")),
        (ValueError, lambda: tnn.DeepSupervisionLoss(tnn.DiceLoss(), "other")),
        (ValueError, lambda: tnn.DiceLoss()(x, y)),
        (ValueError, lambda: tnn.DiceLoss(to_onehot_y=True)(x, y + 0.5)),
        (ValueError, lambda: tnn.DiceLoss(to_onehot_y=True)(x, y[:, 0])),
        (ValueError, lambda: tnn.DiceLoss(to_onehot_y=True)(x, y + 2)),
        (ValueError, lambda: tnn.DiceCELoss()(x, x[:, :2])),
        (ValueError, lambda: tnn.DiceCELoss()(x, y[:, 0])),
        (ValueError, lambda: tnn.HausdorffDTLoss()(x[0], y[0])),
    ):
        with pytest.raises(kind, match="expected"):
            make()


def test_an_empty_batch_keeps_its_type_and_shape():
    x, y = torch.zeros(0, 3, 4, 5, requires_grad=True), torch.zeros(0, 1, 4, 5)
    for kind in (tnn.DiceLoss, tnn.DiceCELoss, tnn.TverskyLoss, tnn.GeneralizedDiceLoss):
        loss = kind(to_onehot_y=True, softmax=True, reduction="sum")(x, y)
        assert loss.shape == ()
        (gradient,) = torch.autograd.grad(loss, x)
        assert gradient.shape == x.shape


def test_boundary_loss_names_wrong_labels():
    loss = tnn.BoundaryLoss(to_onehot_y=True, softmax=True)
    x = torch.zeros(2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"labels: expected labels in \[0, 3\), got 3"):
        loss(x, torch.full((2, 1, 4, 5), 3))
    with pytest.raises(ValueError, match=r"target: expected shape \[B, 1, spatial...\]"):
        loss(x, torch.zeros(2, 4, 5))


def test_one_channel_warns():
    x = torch.ones(1, 1, 3)
    for option in ({"include_background": False}, {"softmax": True}, {"to_onehot_y": True}):
        with pytest.warns(UserWarning, match="is ignored"):
            tnn.DiceLoss(**option)(x, x)


def test_state_and_device_follow_the_module():
    loss = tnn.DiceLoss(softmax=True, weight=[1.0, 2.0])
    assert "class_weight" in loss.state_dict()

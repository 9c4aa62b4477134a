"""The values that MONAI's own tests of its metrics ask for, met with compat="monai", without MONAI.

Its tests also cover what these metrics do not have, by design:
  distances other than the Euclidean ("chessboard", "taxicab")
  reductions that sum ("sum", "sum_batch", "sum_channel"), and the count of values that are not NaN
  results as a dict of labels (`return_with_label`), scores per connected component (`per_component`)
  DiceHelper's thresholding and argmax of the input: masks and label maps come ready
  the wording of errors, and lists of channel-first tensors as input
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tenfold import metrics

MONAI = {"compat": "monai"}
SPACING = (0.85, 1.2, 0.9)


def masks(*rows):
    """[B, C, 2, 2] from one text per case: channels by spaces, four digits each."""
    return torch.tensor([[[float(x) for x in c] for c in row.split()] for row in rows]).reshape(
        len(rows), -1, 2, 2
    )


# ---- Dice -------------------------------------------------------------------------------------------------

DICE = {  # prediction, reference, include_background, scores
    "one channel": (["1001"], ["1011"], True, [[0.8]]),
    "without background": (
        ["0100 0011 1000", "0001 1000 0110"],
        ["0001 1010 0100", "0001 1100 0010"],
        False,
        [[0.5, 0.0], [2 / 3, 2 / 3]],
    ),
    "empty references": (
        ["0000 0000 1111", "0000 0000 1111"],
        ["1111 0000 0000", "0110 1001 0000"],
        True,
        [[0, math.nan, math.nan], [0, 0, math.nan]],
    ),
}


@pytest.mark.parametrize("name", DICE)
def test_dice(name):
    pred, target, background, want = DICE[name]
    got = metrics.dice_score(masks(*pred), masks(*target), include_background=background, **MONAI)
    assert torch.allclose(got, torch.tensor(want).double(), atol=1e-4, equal_nan=True)
    kept = metrics.DiceScore(include_background=background, reduction="none", **MONAI)
    kept.update(masks(*pred), masks(*target))
    assert torch.equal(kept.compute().reshape(got.shape).nan_to_num(nan=-1), got.nan_to_num(nan=-1))


@pytest.mark.parametrize(("pred", "target", "want"), [(1, 1, 1.0), (0, 0, 1.0), (1, 0, 0.0)])
def test_dice_of_constant_masks(pred, target, want):
    one, other = (torch.full((2, 2, 3, 3), float(x)) for x in (pred, target))
    assert (metrics.dice_score(one, other, ignore_empty=False, **MONAI) == want).all()


PRED = ["1110 0100 0111", "1011 0111 0110"]
MIXED = ["1111 0000 0000", "0001 1100 0010"]
FIRST_ONLY = ["1111 0000 0000", "1111 0000 0000"]


@pytest.mark.parametrize(
    ("target", "reduction", "want"),
    [
        (MIXED, "mean_batch", [0.6786, 0.4, 0.6667]),
        (MIXED, "mean", 0.689683),
        (FIRST_ONLY, "mean", 0.857143),
    ],
)
def test_mean_dice(target, reduction, want):
    metric = metrics.DiceScore(reduction=reduction, **MONAI)
    metric.update(masks(*PRED), masks(*target))
    assert torch.allclose(metric.compute(), torch.tensor(want).double(), atol=1e-4)


# ---- surface Dice -----------------------------------------------------------------------------------------


def half(shape, first):
    """Two classes, one-hot; a batch of a half space, from `first` on along the last axis, and background."""
    label = torch.zeros(2, *shape, dtype=torch.int64)
    label[0, ..., first:] = 1
    return torch.stack((label == 0, label == 1), 1).float()


def shares(shape, inner):
    """1 - differing / all border elements, for the classes of a shift by 10, counted by hand."""
    if len(shape) == 2:
        differing, ends = 478 + 480 + 9 * 2, 480 * 4
        sides = [ends + (48 + 58) * 2, ends + (588 + 578) * 2]
    else:
        differing, ends = 200 * 110 + 198 * 108 + 9 * 200 * 2 + 9 * 108 * 2, 200 * 110 * 4
        sides = [ends + n * 200 * 2 + n * 108 * 2 for n in inner]
    return [[1 - differing / side for side in sides], [1, math.nan]]


@pytest.mark.parametrize(
    ("shape", "starts", "inner", "spacing", "enough"),
    [
        ((480, 640), (50, 60), (), 1.0, 10),
        ((480, 640), (50, 60), (), SPACING[:2], 12),
        ((200, 110, 80), (20, 30), (28 + 18, 58 + 48), 1.0, 10),
    ],
    ids=["pixels", "millimetres", "voxels"],
)
def test_surface_dice_of_shifted_halves(shape, starts, inner, spacing, enough):
    pred, target = (half(shape, s) for s in starts)

    def score(tolerance):
        return metrics.surface_dice(
            pred, target, [tolerance] * 2, include_background=True, spacing=spacing, **MONAI
        )

    assert torch.allclose(score(0), torch.tensor(shares(shape, inner)).double(), equal_nan=True)
    row = [score(t)[0] for t in (0, 1, 9, enough, enough + 1)]
    for less, more in pairwise(row[:4]):
        assert (less < more).all()
    assert torch.equal(row[3], row[4])
    metric = metrics.SurfaceDice(class_thresholds=[0, 0], include_background=True, spacing=spacing, **MONAI)
    metric.update(pred, target)
    assert float(metric.compute()) == pytest.approx(np.nanmean(np.nanmean(shares(shape, inner), 1)))


@pytest.mark.parametrize(
    ("limits", "want"),
    [((0, 0), (1 - 12 / 84, 0)), ((2.8, 5.5), (1 - 3 / 84, 1 / 3)), ((3, 6), (1 - 1 / 84, 2 / 3))],
)
def test_surface_dice_of_two_bars(limits, want):
    pred, target = (torch.zeros(1, 10, 10, dtype=torch.int64) for _ in range(2))
    pred[0, 1:4, 1] = 1
    target[0, 5:8, 6] = 1
    hot = [torch.stack((x == 0, x == 1), 1) for x in (pred, target)]
    got = metrics.surface_dice(*hot, list(limits), include_background=True, **MONAI)
    assert torch.allclose(got, torch.tensor([want]).double(), atol=1e-6)


# ---- distances --------------------------------------------------------------------------------------------


def ball(radius=20.0, centre=(49, 49, 49), spacing=(1.0, 1.0, 1.0)):
    """99^3 voxels, those within `radius` of `centre`, both in mm."""
    at = np.ogrid[:99, :99, :99]
    square = sum((x * s - c) ** 2 for x, s, c in zip(at, spacing, centre, strict=True))
    return square <= radius * radius


def both(pred, target, batch=1, classes=2):
    """[B, C, ...] with the same masks everywhere."""
    return [torch.from_numpy(x)[None, None].repeat(batch, classes, 1, 1, 1) for x in (pred, target)]


NOTHING = np.zeros((99, 99, 99), bool)
HAUSDORFF = {  # prediction, reference, spacing, percentile, directed, undirected
    "equal": (ball(), ball(), None, 1, 0, 0),
    "diagonal step": (ball(20, (20, 20, 20)), ball(20, (19, 19, 19)), None, None, 3**0.5, 3**0.5),
    "one step": (ball(33, (19, 33, 22)), ball(33, (20, 33, 22)), None, None, 1, 1),
    "concentric": (
        ball(20, (20, 33, 22)), ball(40, (20, 33, 22)), None, None, 20.09975124224178, 20.223748416156685
    ),
    "concentric, 95": (
        ball(20, (20, 33, 22)), ball(40, (20, 33, 22)), None, 95, 19.924858845171276, 20.09975124224178
    ),
    "no prediction": (NOTHING, ball(40, (20, 33, 22)), None, None, math.inf, math.inf),
    "no reference": (ball(), NOTHING, None, None, math.inf, math.inf),
    "step in mm": (
        ball(20, (20, 20, 20), SPACING), ball(20, (19, 19, 19), SPACING), SPACING, None,
        2.0808651447296143, 2.2671568,
    ),
    "concentric in mm": (
        ball(15, (20, 33, 22), SPACING), ball(30, (20, 33, 22), SPACING), SPACING, None,
        15.439640998840332, 15.62594,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HAUSDORFF)
def test_hausdorff_distance(name):
    pred, target, spacing, percentile, *want = HAUSDORFF[name]
    for directed, value in zip((True, False), want, strict=True):
        metric = metrics.HausdorffDistance(percentile=percentile, directed=directed, **MONAI)
        metric.update(*both(pred, target), spacing=spacing)
        assert float(metric.compute()) == pytest.approx(value, rel=1e-6)


DISTANCE = {  # prediction, reference, spacing, symmetric, from the prediction
    "equal": (ball(), ball(), None, 0, 0),
    "one step": (ball(33, (19, 33, 22)), ball(33, (20, 33, 22)), None, 0.350217, 0.3483278807706289),
    "concentric": (ball(20, (20, 33, 22)), ball(40, (20, 33, 22)), None, 15.117741, 12.040033513150455),
    "no prediction": (NOTHING, ball(40, (20, 33, 22)), None, math.inf, math.inf),
    "no reference": (ball(), NOTHING, None, math.inf, math.inf),
    "step in mm": (
        ball(33, (42, 45, 52), SPACING), ball(33, (43, 45, 52), SPACING), SPACING, 0.4951, 0.4951,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTANCE)
def test_average_surface_distance(name):
    pred, target, spacing, *want = DISTANCE[name]
    for symmetric, value in zip((True, False), want, strict=True):
        metric = metrics.AverageSurfaceDistance(symmetric=symmetric, **MONAI)
        metric.update(*both(pred, target), spacing=spacing)
        assert float(metric.compute()) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("spacing", [None, SPACING])
def test_distances_of_two_empty_masks_average_to_nothing(spacing):
    for kind in (metrics.HausdorffDistance, metrics.AverageSurfaceDistance):
        metric = kind(include_background=True, **MONAI)
        metric.update(*both(NOTHING, NOTHING, 1, 1), spacing=spacing)
        assert float(metric.compute()) == 0

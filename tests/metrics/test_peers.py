"""The numbers of the peers: surface-distance, MONAI, medpy, SimpleITK, on random and awkward masks.

What is not installed is skipped.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold import metrics
from tenfold.ops import surface_metrics

_spec = importlib.util.spec_from_file_location("volumes", Path(__file__).parents[1] / "ops" / "volumes.py")
volumes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(volumes)

CASES = 60
pytestmark = pytest.mark.filterwarnings("ignore")


def pairs(seed, cases, most=15, ndims=(3,)):
    """Pairs of masks and a spacing: random ones, and those that break implementations."""
    rng = np.random.default_rng(seed)
    for i in range(cases):
        ndim = ndims[i % len(ndims)]
        shape = tuple(int(n) for n in rng.integers(1, most if ndim == 3 else 3 * most, ndim))
        a, b = (volumes.draw(rng, shape, 2) > 0 for _ in range(2))
        if i % 5 == 0:
            b = np.roll(a, 1, int(rng.integers(0, ndim)))
        if i % 7 == 0:
            a, b = np.pad(a, 2), np.pad(b, 2)
        spacing = [float(s) for s in rng.uniform(0.4, 3.5, ndim)]
        yield (i, volumes.arrange(rng, a, bool), volumes.arrange(rng, b, bool), spacing)


# ---- DeepMind's surface-distance --------------------------------------------------------------------------


@pytest.fixture
def deepmind(monkeypatch):
    found = pytest.importorskip("surface_distance")
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # it uses names that NumPy 2 has removed
    monkeypatch.setattr(np, "NaN", np.nan, raising=False)
    return found


def at_a_tie(distances, areas, share):
    """Whether the cumulative area is exactly the share somewhere: then rounding decides, and differs."""
    if len(areas) == 0:
        return False
    return bool((np.abs(np.cumsum(areas) / np.sum(areas) - share) < 1e-9).any())


def check_deepmind(deepmind, a, b, spacing, one=None):
    theirs = deepmind.compute_surface_distances(np.ascontiguousarray(a), np.ascontiguousarray(b), spacing)
    got = surface_metrics(a, b, [(1,)], spacing, tolerances=(0.5, 1, 2.5)) if one is None else one
    with np.errstate(all="ignore"):
        dice = deepmind.compute_dice_coefficient(a, b)
        nsd = [deepmind.compute_surface_dice_at_tolerance(theirs, t) for t in (0.5, 1, 2.5)]
        asd = deepmind.compute_average_surface_distance(theirs)
    assert np.array_equal(got.dice()[0], dice, equal_nan=True)
    assert np.allclose(got.nsd()[0], nsd, rtol=1e-12, equal_nan=True)
    assert np.allclose(got.asd()[0], asd, rtol=1e-12, equal_nan=True)
    assert got.hausdorff()[0, 1] == deepmind.compute_robust_hausdorff(theirs, 100)
    directions = (("gt_to_pred", "gt"), ("pred_to_gt", "pred"))
    sides = [(theirs[f"distances_{way}"], theirs[f"surfel_areas_{side}"]) for way, side in directions]
    if not any(at_a_tie(*side, 0.95) for side in sides):
        assert got.hausdorff()[0, 0] == deepmind.compute_robust_hausdorff(theirs, 95)
        return 1
    return 0


@pytest.mark.parametrize("ndims", [(3,), (2,)], ids=["volumes", "pictures"])
def test_surface_distance_on_random_masks(deepmind, ndims):
    compared = sum(check_deepmind(deepmind, a, b, s) for _, a, b, s in pairs(0, CASES, ndims=ndims))
    assert compared > CASES // 2


@pytest.mark.slow
def test_surface_distance_on_five_hundred(deepmind, isa):
    for _, a, b, spacing in pairs(1, 500, most=41):
        check_deepmind(deepmind, a, b, spacing)


def test_all_organs_of_surface_distance_in_one_call(deepmind):
    rng = np.random.default_rng(2)
    target = volumes.blocks(rng, (14, 20, 24), 6, side=6)
    pred = np.roll(target, 1, 2)
    got = surface_metrics(target, pred, None, (3, 0.5, 0.5), tolerances=(0.5, 1, 2.5))
    for i, (label,) in enumerate(got.organs):
        row = type(got)([(label,)], *(x[i : i + 1] for x in got[1:]))
        check_deepmind(deepmind, target == label, pred == label, (3, 0.5, 0.5), row)


# ---- MONAI ------------------------------------------------------------------------------------------------


@pytest.fixture
def monai():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("monai.metrics")


def one_hot(mask):
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()


KINDS = [
    pytest.param((3,), CASES // 2, 15, id="volumes"),
    pytest.param((2,), CASES // 2, 15, id="pictures"),
    pytest.param((3, 2), 200, 24, id="many", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("ndims", "cases", "most"), KINDS)
def test_monai_on_random_masks(monai, ndims, cases, most):
    for i, a, b, spacing in pairs(3, cases, most, ndims):
        y, p = one_hot(a), one_hot(b)
        both = {"include_background": True, "spacing": spacing}
        ours = {**both, "compat": "monai"}
        close = {"rtol": 2e-6, "atol": 1e-6, "equal_nan": True}
        for subvoxels in (False, True):
            want = monai.compute_surface_dice(p, y, [1.1], use_subvoxels=subvoxels, **both)
            got = metrics.surface_dice(p, y, 1.1, use_subvoxels=subvoxels, **ours)
            assert torch.allclose(got.float(), want, **close), (i, subvoxels)
        for directed in (False, True):
            for percentile in (None, 95):
                want = monai.compute_hausdorff_distance(
                    p, y, percentile=percentile, directed=directed, **both
                )
                got = metrics.hausdorff_distance(p, y, percentile=percentile, directed=directed, **ours)
                # PyTorch interpolates a float32 quantile between ranks in float32
                quantile = {**close, "rtol": 2e-6 if percentile is None else 1e-5}
                assert torch.allclose(got.float(), want, **quantile), (i, directed, percentile)
            want = monai.compute_average_surface_distance(p, y, symmetric=not directed, **both)
            got = metrics.average_surface_distance(p, y, symmetric=not directed, **ours)
            assert torch.allclose(got.float(), want, **close), (i, directed)
        for ignore_empty in (False, True):
            want = monai.DiceMetric(reduction="none", ignore_empty=ignore_empty)(p, y)
            got = metrics.dice_score(p, y, compat="monai", ignore_empty=ignore_empty)
            assert torch.allclose(got.float(), want, **close), i


def test_monai_reductions(monai):
    rng = np.random.default_rng(4)
    y, p = (torch.from_numpy(rng.random((3, 4, 8, 9, 10)) < 0.4).float() for _ in range(2))
    y[0, 1], p[0, 1], y[2, 3] = 0, 0, 0
    for reduction in ("mean", "mean_batch", "mean_channel"):
        theirs = monai.DiceMetric(include_background=False, reduction=reduction)
        ours = metrics.DiceScore(include_background=False, compat="monai", reduction=reduction)
        for rows in (slice(0, 2), slice(2, 3)):
            theirs(p[rows], y[rows])
            ours.update(p[rows], y[rows])
        assert torch.allclose(ours.compute().float(), theirs.aggregate(), rtol=1e-6)
    theirs = monai.SurfaceDiceMetric([0.5, 1, 1.5], reduction="mean")
    ours = metrics.SurfaceDice(class_thresholds=[0.5, 1, 1.5], compat="monai")
    theirs(p, y)
    ours.update(p, y)
    assert torch.allclose(ours.compute().float(), theirs.aggregate(), rtol=1e-6)


# ---- medpy, SimpleITK -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cases", "most"), [(CASES, 15), pytest.param(300, 30, id="many", marks=pytest.mark.slow)]
)
def test_medpy_on_random_masks(cases, most):
    binary = pytest.importorskip("medpy.metric.binary")
    compared = 0
    for _, a, b, spacing in pairs(5, cases, most):
        if not (a.any() and b.any()):
            continue
        got = surface_metrics(a, b, [(1,)], spacing, definition="edge")
        a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
        want = [f(b, a, spacing) for f in (binary.hd95, binary.hd, binary.asd)] + [binary.dc(b, a)]
        have = [got.hd_pooled[0, 0], got.hausdorff()[0, 1], got.asd()[0, 1], got.dice()[0]]
        assert np.allclose(have, want, rtol=1e-9)
        assert math.isclose(got.assd()[0], binary.assd(b, a, spacing), rel_tol=1e-9)
        compared += 1
    assert compared > cases // 2


def test_simpleitk_overlap():
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(6)
    target = volumes.blocks(rng, (10, 20, 30), 5).astype(np.uint8)
    pred = np.roll(target, 2, 2)
    filter_ = sitk.LabelOverlapMeasuresImageFilter()
    filter_.Execute(sitk.GetImageFromArray(target), sitk.GetImageFromArray(pred))
    got = surface_metrics(target, pred, None, 1.0)
    for i, (label,) in enumerate(got.organs):
        assert got.dice()[i] == pytest.approx(filter_.GetDiceCoefficient(label), rel=1e-12)

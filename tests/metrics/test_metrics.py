"""The metrics by themselves: empty masks in each convention, input formats, the TorchMetrics protocol."""

from __future__ import annotations

import importlib.util
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold import metrics
from tenfold.metrics import _base, functional, segmentation

_spec = importlib.util.spec_from_file_location("volumes", Path(__file__).parents[1] / "ops" / "volumes.py")
volumes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(volumes)

NAN, INF = math.nan, math.inf
MASK = torch.from_numpy(volumes.box((2, 2, 2), (3, 3, 3), (8, 9, 10)))[None, None]
NONE = torch.zeros_like(MASK)


def one(function, preds, target, **options):
    got = function(preds, target, include_background=True, **options)
    assert got.shape == (1, 1)
    return float(got)


# convention -> (target, pred) both empty, target empty, pred empty: Dice, surface Dice, HD95, HD, ASSD
EMPTY = {
    "segrap": ((1, 1, 0, 0, 0), (0, 0, INF, INF, INF), (0, 0, INF, INF, INF)),
    "deepmind": ((NAN, NAN, INF, INF, NAN), (0, 0, INF, INF, INF), (0, 0, INF, INF, INF)),
    "monai": ((NAN, NAN, NAN, NAN, NAN), (NAN, 0, NAN, INF, INF), (0, 0, NAN, INF, INF)),
}


@pytest.mark.parametrize("compat", EMPTY)
def test_empty_masks(compat):
    for (target, pred), want in zip(((NONE, NONE), (NONE, MASK), (MASK, NONE)), EMPTY[compat], strict=True):
        got = [
            one(metrics.dice_score, pred, target, compat=compat),
            one(metrics.surface_dice, pred, target, compat=compat),
            one(metrics.hausdorff_distance, pred, target, compat=compat, percentile=95),
            one(metrics.hausdorff_distance, pred, target, compat=compat),
            one(metrics.average_surface_distance, pred, target, compat=compat),
        ]
        assert got == pytest.approx(want, nan_ok=True)


def test_what_stands_for_the_distance_to_an_empty_mask():
    options = {"spacing": (1, 2, 0.5), "empty_distance": "diagonal"}
    diagonal = math.hypot(8, 18, 5)
    assert one(metrics.hausdorff_distance, NONE, MASK, **options) == diagonal
    assert one(metrics.average_surface_distance, NONE, MASK, **options) == diagonal
    assert math.isnan(one(metrics.hausdorff_distance, NONE, MASK, empty_distance="nan"))
    with pytest.raises(ValueError, match="empty_distance: expected one of 'inf', 'nan', 'diagonal'"):
        metrics.hausdorff_distance(NONE, MASK, empty_distance="zero")


def batch():
    rng = np.random.default_rng(0)
    target = torch.from_numpy(np.stack([volumes.blocks(rng, (8, 10, 12), 4) for _ in range(3)]))
    return target.roll(1, 3), target


def hot(labels, classes=4):
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1)


SURFACE = ("surface_dice", "hausdorff_distance", "average_surface_distance")


def test_label_maps_and_one_hot_masks_give_the_same():
    preds, target = batch()
    for name in ("dice_score", "volume_similarity", *SURFACE):
        function = getattr(metrics, name)
        options = {"spacing": [(1, 2, 3), (2, 1, 1), (1, 1, 1)]} if name in SURFACE else {}
        wide = function(hot(preds), hot(target), include_background=True, **options)
        options["input_format"] = "index"
        labels = function(preds, target, include_background=True, num_classes=4, **options)
        assert wide.shape == (3, 4)
        assert torch.equal(wide, labels)
        sets = function(preds, target, organs=[(1,), (1, 2)], **options)
        assert torch.equal(sets[:, 0], labels[:, 1])
        array = function(preds.numpy(), target.numpy(), organs=[(1,), (1, 2)], **options)
        assert isinstance(array, np.ndarray)
        assert np.array_equal(array, sets.numpy(), equal_nan=True)


def test_thresholds_of_their_own_for_each_class():
    preds, target = batch()
    each = metrics.surface_dice(hot(preds), hot(target), [0.0, 0.5, 1.0])
    for c, limit in enumerate((0.0, 0.5, 1.0)):
        assert torch.equal(each[:, c], metrics.surface_dice(hot(preds), hot(target), limit)[:, c])


def test_everything_at_once():
    preds, target = batch()
    options = {"input_format": "index", "num_classes": 4, "spacing": (3, 1, 1)}
    scores = metrics.segmentation_scores(preds, target, tolerances=(1, 2), **options)
    assert list(scores) == [
        "dsc", "jaccard", "precision", "recall", "vs", "rvd", "nsd_dm@1.0", "nsd_dm@2.0", "hd95_dm", "hd_dm",
        "assd_dm", "nsd_edge@1.0", "nsd_edge@2.0", "hd95_edge_max", "hd_edge", "hd95_edge_pooled",
        "assd_edge",
    ]  # fmt: skip
    surface = {"include_background": False, **options}
    assert torch.equal(scores["nsd_dm@2.0"], metrics.surface_dice(preds, target, 2.0, **surface))
    monai = metrics.hausdorff_distance(preds, target, percentile=95, compat="monai", **surface)
    assert torch.equal(scores["hd95_edge_max"], monai)
    assert torch.allclose(scores["jaccard"], scores["dsc"] / (2 - scores["dsc"]))
    a, b = ((x == 1).sum((1, 2, 3)) for x in (target, preds))
    assert torch.equal(scores["rvd"][:, 0], (b - a).double() / a)


CLASSES = {
    metrics.DiceScore: {},
    metrics.VolumeSimilarity: {},
    metrics.SurfaceDice: {"class_thresholds": 1.5},
    metrics.HausdorffDistance: {"percentile": 95},
    metrics.AverageSurfaceDistance: {},
    metrics.SegmentationMetrics: {},
}


@pytest.fixture(params=["torchmetrics", "alone"])
def classes(request, monkeypatch):
    """The classes over TorchMetrics' base class, and over the one for where it is not installed."""
    if request.param == "torchmetrics":
        pytest.importorskip("torchmetrics")
        return CLASSES
    with monkeypatch.context() as patch:
        patch.setattr(_base, "HAVE_TORCHMETRICS", False)
        spec = importlib.util.spec_from_file_location(
            "tenfold.metrics.segmentation_alone", segmentation.__file__
        )
        alone = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(alone)
    return {getattr(alone, c.__name__): options for c, options in CLASSES.items()}


def values(x):
    return list(x.values()) if isinstance(x, dict) else [x]


def test_cases_add_up_whatever_the_batches(classes):
    preds, target = batch()
    for kind, options in classes.items():
        whole, parts = (kind(4, input_format="index", **options) for _ in range(2))
        whole.update(preds, target)
        for case in range(3):
            now = parts(preds[case : case + 1], target[case : case + 1])
            fresh = kind(4, input_format="index", **options)
            fresh.update(preds[case : case + 1], target[case : case + 1])
            for x, y in zip(values(now), values(fresh.compute()), strict=True):
                assert torch.equal(x, y)
        for x, y in zip(values(whole.compute()), values(parts.compute()), strict=True):
            assert torch.equal(x, y)
        whole.reset()
        with pytest.raises(ValueError, match="expected at least one case, got none"):
            whole.compute()


def test_spacing_may_come_with_each_update(classes):
    preds, target = batch()
    kind = next(c for c in classes if c.__name__ == "HausdorffDistance")
    metric = kind(4, input_format="index", spacing=(1, 1, 1), reduction="none")
    metric.update(preds, target, spacing=(2, 2, 2))
    plain = kind(4, input_format="index", reduction="none")
    plain.update(preds, target)
    assert torch.equal(metric.compute(), 2 * plain.compute())


def test_rows_of_processes_with_and_without_cases_are_gathered():
    pytest.importorskip("torchmetrics")
    preds, target = batch()
    full, idle = (metrics.SegmentationMetrics(4, input_format="index") for _ in range(2))
    full.update(preds, target)
    want, sent = full.compute(), []
    for metric in (full, idle):
        metric._sync_dist(lambda packed, group: sent.append(packed) or sent)
    assert len({x.ndim for x in sent}) == len({x.dtype for x in sent}) == 1  # else the real call breaks
    for name, value in idle._value(gather=False).items():
        assert torch.equal(value.nan_to_num(-1), want[name].nan_to_num(-1))


def test_in_a_metric_collection():
    torchmetrics = pytest.importorskip("torchmetrics")
    preds, target = batch()
    dice = metrics.DiceScore(4, input_format="index")
    surface = metrics.SurfaceDice(4, input_format="index", class_thresholds=1.5)
    collection = torchmetrics.MetricCollection({"dice": dice, "surface": surface})
    for case in range(3):
        collection.update(preds[case : case + 1], target[case : case + 1])
    got = pickle.loads(pickle.dumps(collection)).compute()
    want = metrics.dice_score(preds, target, input_format="index", num_classes=4)
    assert float(got["dice"]) == pytest.approx(float(want.mean(1).mean()))
    assert set(got) == {"dice", "surface"}


def test_reductions():
    scores = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN], [2.0, 4.0, NAN]])
    assert float(metrics.reduce_scores(scores, "mean", "segrap")) == 2.5
    assert metrics.reduce_scores(scores, "mean_batch", "segrap").tolist() == [1.5, 4.0, 3.0]
    assert metrics.reduce_scores(scores, "mean_channel", "monai").tolist() == [2.0, 0.0, 3.0]
    assert metrics.reduce_scores(scores, "none", "segrap") is scores


def test_a_single_channel_is_no_background():
    draw = torch.Generator().manual_seed(5)
    preds, target = ((torch.rand(2, 1, 6, 7, 8, generator=draw) < 0.4).float() for _ in range(2))
    for score in (metrics.dice_score, metrics.surface_dice, metrics.hausdorff_distance):
        without, with_it = (score(preds, target, include_background=b) for b in (False, True))
        assert without.shape == (2, 1)
        assert torch.equal(without, with_it)


def test_spacing_of_scalars_of_numpy_and_torch():
    preds, target = batch()
    options = {"input_format": "index", "num_classes": 4}
    want = metrics.surface_dice(preds, target, 1.0, spacing=(3.0, 0.5, 0.5), **options)
    for kind in (np.float32, np.float64, torch.tensor, np.array):
        entries = tuple(kind(s) for s in (3.0, 0.5, 0.5))  # NiBabel's header.get_zooms() is of np.float32
        for spacing in (entries, [entries] * len(target)):
            got = metrics.surface_dice(preds, target, 1.0, spacing=spacing, **options)
            assert torch.equal(got, want)


def test_one_hot_masks_of_floats_stay_as_they_are():
    preds, target = (torch.nn.functional.one_hot(x, 4).movedim(-1, 1) for x in batch())
    want = metrics.dice_score(preds, target)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8):
        assert torch.equal(metrics.dice_score(preds.to(dtype), target.to(dtype)), want)


INDEX = {"input_format": "index"}
ALL = {"include_background": True}


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: metrics.dice_score(MASK, MASK[0]), ValueError, "preds: expected the shape of target"),
        (lambda: metrics.dice_score(MASK[0, 0], MASK[0, 0]), ValueError, r"target: expected \[B, C, "),
        (lambda: metrics.dice_score(MASK, MASK, compat="nnunet"), ValueError, "compat: expected one of"),
        (lambda: metrics.dice_score(MASK[0], MASK[0], **INDEX), TypeError, "num_classes: expected a number"),
        (lambda: metrics.surface_dice(MASK, MASK, [1.0, 2.0], **ALL), ValueError, "tolerances: expected 1"),
        (lambda: metrics.surface_dice(MASK, MASK, -1.0, **ALL), ValueError, r"tolerances\[0\]: expected"),
        (lambda: metrics.dice_score(MASK, MASK, organs=[(1,)]), ValueError, "organs: expected label maps"),
        (lambda: metrics.dice_score(MASK, MASK * 255), ValueError, "target: expected a one-hot mask, .* 255"),
        (
            lambda: metrics.dice_score(MASK * 0.7, MASK),
            ValueError,
            r"preds: expected a one-hot mask, .* 0\.6",
        ),
        (
            lambda: metrics.dice_score(MASK[0] * 7, MASK[0], num_classes=7, **INDEX),
            ValueError,
            r"preds: expected labels in \[0, 7\), got 7",
        ),
        (lambda: metrics.DiceScore(**INDEX), TypeError, "num_classes: expected a number of classes"),
        (lambda: metrics.DiceScore(reduction="sum"), ValueError, "reduction: expected one of"),
    ],
)
def test_wrong_arguments(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_counting_alone_finds_the_voxels_of_the_surface_pass(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(0, 5, (2, 6, 7, 8), generator=generator).to(dtype)
    preds = torch.randint(0, 5, (2, 6, 7, 8), generator=generator).to(dtype)
    for options in ({"num_classes": 5}, {"num_classes": 7, "include_background": False}):
        found = functional.counts_only(preds, target, input_format="index", **options)
        whole = functional.raw_scores(preds, target, input_format="index", definition="edge", **options)
        assert torch.equal(found.voxels, whole.voxels)
    masks = [torch.stack([x == c for c in range(5)], 1).to(dtype) for x in (preds, target)]
    found, whole = functional.counts_only(*masks), functional.raw_scores(*masks, definition="edge")
    assert torch.equal(found.voxels, whole.voxels)
    with pytest.raises(ValueError, match="preds: expected labels in"):
        functional.counts_only(preds, target.clamp(max=2), input_format="index", num_classes=3)

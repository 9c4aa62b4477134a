"""Segmentation metrics that gather cases: classes with the protocol of TorchMetrics.

Each keeps one row per case, so that what `compute` returns does not depend on batches or processes. With
TorchMetrics installed they are its `Metric`s (MetricCollection, Lightning, synchronisation); without it they
work alone in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _checks

from . import functional
from ._base import HAVE_TORCHMETRICS, base

REDUCTIONS = ("mean", "mean_batch", "mean_channel", "none")
_BASE: Any = base()


def reduce_scores(scores: Tensor, reduction: str, compat: str) -> Tensor:
    """Scores [B, C] averaged without the NaN ones.

    "mean": over the structures of each case, then over cases (MONAI's order); "mean_batch": over cases, [C];
    "mean_channel": over structures, [B]; "none": as they are. Where all are NaN: NaN, for "monai" 0.
    """
    if reduction == "none":
        return scores
    if reduction == "mean":
        out = scores.nanmean(1).nanmean(0)
    else:
        out = scores.nanmean(0 if reduction == "mean_batch" else 1)
    return out.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf) if compat == "monai" else out


class _CaseMetric(_BASE):
    """Rows of scores [B, C] gathered over updates; a subclass says what a row is."""

    is_differentiable = False
    full_state_update = False
    higher_is_better: bool | None = True
    rows: list[Tensor]

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        organs: functional.Organs | None = None,
        include_background: bool = False,
        input_format: str = "one-hot",
        compat: str = "segrap",
        reduction: str = "mean",
        num_threads: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _checks.choice("input_format", input_format, functional.INPUT_FORMATS)
        self.compat = _checks.choice("compat", compat, functional.COMPAT)
        self.reduction = _checks.choice("reduction", reduction, REDUCTIONS)
        if organs is not None and input_format != "index":
            _checks.fail(ValueError, "organs", 'label maps (input_format="index")', input_format)
        if input_format == "index":
            functional._sets(num_classes, organs, 0)
        self.given: dict[str, Any] = {
            "include_background": include_background,
            "input_format": input_format,
            "num_threads": num_threads,
        }
        if input_format == "index":
            self.given |= {"num_classes": num_classes, "organs": organs}
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def _scores(self, preds: Any, target: Any, spacing: Any) -> Tensor:
        """[B, structures, ...] of a batch; each metric's own."""
        raise NotImplementedError

    def update(self, preds: Any, target: Any, spacing: Any = None) -> None:
        """Score a batch; `spacing` overrides the metric's own for these cases (one, or one per case)."""
        self.rows.append(torch.as_tensor(self._scores(preds, target, spacing)))

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """Gather all rows, of processes without a case too.

        TorchMetrics sends an empty list as one axis of float32, which does not meet rows of more axes in a
        collective call. Here everyone sends one axis of float64: the axes of its rows, then the rows.
        """
        gather = dist_sync_fn
        if gather is None:
            from torchmetrics.utilities import distributed

            gather = distributed.gather_all_tensors
        own = self.rows if len(self.rows) else [torch.empty(0, dtype=torch.float64, device=self.device)]
        rows = torch.cat(list(own)).double()
        head = rows.new_tensor([rows.ndim, *rows.shape])
        packed = gather(torch.cat([head, rows.flatten()]), group=process_group or self.process_group)
        self.rows = [found.to(own[0].dtype) for found in map(_unpacked, packed) if found.numel()]

    def compute(self) -> Any:
        """The reduced score of all cases so far; ValueError when there are none."""
        return self._value(gather=True)

    def _value(self, gather: bool) -> Any:
        rows = self.rows if HAVE_TORCHMETRICS else self._gathered("rows", gather)
        if isinstance(rows, Tensor):  # TorchMetrics joins what it has synchronised
            rows = [rows]
        if len(rows) == 0:
            raise ValueError(f"{type(self).__name__}: expected at least one case, got none")
        return self._reduced(torch.cat(list(rows)))

    def _reduced(self, scores: Tensor) -> Any:
        return reduce_scores(scores, self.reduction, self.compat)


def _unpacked(packed: Tensor) -> Tensor:
    axes = int(packed[0])
    return packed[axes + 1 :].reshape([int(n) for n in packed[1 : axes + 1]])


class DiceScore(_CaseMetric):
    """Dice similarity coefficient.

    Args:
        num_classes, organs: the structures of label maps (`input_format="index"`): labels, or label sets that
            may overlap. One-hot input has a structure per channel.
        include_background: whether label or channel 0 is one of them.
        compat: "segrap", "deepmind" or "monai": what empty masks score (`tenfold.metrics.functional`).
        ignore_empty: for "monai", leave cases with an empty reference out.
        reduction: "mean", "mean_batch" (per structure), "mean_channel" (per case) or "none"; NaN is left out.
    """

    def __init__(
        self, num_classes: int | None = None, *, ignore_empty: bool = True, include_background: bool = True,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, include_background=include_background, **options)
        self.ignore_empty = ignore_empty

    def _scores(self, preds: Any, target: Any, spacing: Any) -> Tensor:
        scores: Tensor = functional.dice_score(
            preds, target, compat=self.compat, ignore_empty=self.ignore_empty, **self.given
        )
        return scores


class VolumeSimilarity(_CaseMetric):
    """``1 - ||A| - |B|| / (|A| + |B|)``; arguments as `DiceScore`."""

    def _scores(self, preds: Any, target: Any, spacing: Any) -> Tensor:
        scores: Tensor = functional.volume_similarity(preds, target, compat=self.compat, **self.given)
        return scores


class _SurfaceMetric(_CaseMetric):
    def __init__(self, num_classes: int | None = None, *, spacing: Any = 1.0, **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.spacing = spacing

    def _spacing(self, spacing: Any) -> Any:
        return self.spacing if spacing is None else spacing


class SurfaceDice(_SurfaceMetric):
    """Normalised surface distance (surface Dice).

    Args:
        class_thresholds: tolerances in mm, one for all structures or one for each.
        spacing: mm along the axes of space, or one number; `update` takes another for its cases.
        use_subvoxels: for "monai", area-weighted surface elements in place of border voxels.
        others: as `DiceScore`; without the background by default.
    """

    def __init__(
        self, num_classes: int | None = None, *, class_thresholds: Any = 1.0, use_subvoxels: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, **options)
        self.class_thresholds = class_thresholds
        self.use_subvoxels = use_subvoxels

    def _scores(self, preds: Any, target: Any, spacing: Any) -> Tensor:
        scores: Tensor = functional.surface_dice(
            preds, target, self.class_thresholds, compat=self.compat, use_subvoxels=self.use_subvoxels,
            spacing=self._spacing(spacing), **self.given,
        )  # fmt: skip
        return scores


NormalizedSurfaceDice = SurfaceDice


class HausdorffDistance(_SurfaceMetric):
    """Hausdorff distance in mm, or a percentile of it.

    Args:
        percentile: None for the largest distance, 95 for the robust one.
        directed: from the prediction to the reference only.
        empty_distance: for "segrap", the distance to an empty mask: "inf", "nan" or "diagonal".
        others: as `SurfaceDice`.
    """

    higher_is_better = False

    def __init__(
        self, num_classes: int | None = None, *, percentile: float | None = None, directed: bool = False,
        empty_distance: str = "inf", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, **options)
        self.percentile, self.directed = percentile, directed
        self.empty_distance = _checks.choice("empty_distance", empty_distance, functional.EMPTY_DISTANCES)

    def _scores(self, preds: Any, target: Any, spacing: Any) -> Tensor:
        scores: Tensor = functional.hausdorff_distance(
            preds, target, percentile=self.percentile, directed=self.directed, compat=self.compat,
            empty_distance=self.empty_distance, spacing=self._spacing(spacing), **self.given,
        )  # fmt: skip
        return scores


class AverageSurfaceDistance(_SurfaceMetric):
    """Average distance between the surfaces in mm; `symmetric` or from the prediction to the reference.

    Other arguments as `HausdorffDistance`.
    """

    higher_is_better = False

    def __init__(
        self, num_classes: int | None = None, *, symmetric: bool = True, empty_distance: str = "inf",
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, **options)
        self.symmetric = symmetric
        self.empty_distance = _checks.choice("empty_distance", empty_distance, functional.EMPTY_DISTANCES)

    def _scores(self, preds: Any, target: Any, spacing: Any) -> Tensor:
        scores: Tensor = functional.average_surface_distance(
            preds, target, symmetric=self.symmetric, compat=self.compat, empty_distance=self.empty_distance,
            spacing=self._spacing(spacing), **self.given,
        )  # fmt: skip
        return scores


class SegmentationMetrics(_SurfaceMetric):
    """Everything `tenfold.metrics.segmentation_scores` has, from one look at each case; a dict of scores.

    Args:
        tolerances: in mm, for all structures.
        empty_distance: as `HausdorffDistance`. An infinite distance makes an infinite mean.
        others: as `SurfaceDice`.
    """

    higher_is_better = None

    def __init__(
        self, num_classes: int | None = None, *, tolerances: Sequence[float] = (1.0,),
        empty_distance: str = "inf", **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, **options)
        self.tolerances = tuple(tolerances)
        self.empty_distance = _checks.choice("empty_distance", empty_distance, functional.EMPTY_DISTANCES)
        none = torch.zeros(1, 2, 1, 1, dtype=torch.bool)
        self.names = list(functional.segmentation_scores(none, none, tolerances=self.tolerances))

    def _scores(self, preds: Any, target: Any, spacing: Any) -> Tensor:
        scores = functional.segmentation_scores(
            preds, target, tolerances=self.tolerances, compat=self.compat, empty_distance=self.empty_distance,
            spacing=self._spacing(spacing), **self.given,
        )  # fmt: skip
        return torch.stack([torch.as_tensor(scores[name]) for name in self.names], -1)

    def _reduced(self, scores: Tensor) -> dict[str, Tensor]:
        columns = zip(self.names, scores.unbind(-1), strict=True)
        return {name: reduce_scores(column, self.reduction, self.compat) for name, column in columns}

"""Surface metrics of label volumes: normalised surface distance, Hausdorff and average distances.

All structures of a pair of volumes in one call. Which definition of a surface is meant is always said: "area"
is DeepMind's, weighted by the area of surface elements (Nikolov et al., arXiv 1809.04430); "edge" counts the
border voxels of a mask, as MONAI's default and medpy do. They differ by up to 0.4 on the same masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

from . import _volumes
from .overlap import MAX_LABELS

DEFINITIONS = ("area", "edge")
OPS |= dict.fromkeys(("surface_metrics", "surfels"), ("cpu", "reference"))

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define(
    "surface_metrics(Tensor target, Tensor pred, int[] organ_labels, int[] organ_starts, float[] spacing, "
    "float[] tolerances, float[] percentiles, bool edge, int[] flip_target, int[] flip_pred, int threads) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


class SurfaceMetrics(NamedTuple):
    """Raw numbers of `surface_metrics`: O organs, T tolerances, P percentiles; side 0 = target, 1 = pred.

    What a number is where a mask is empty is left to the reader's convention; `tenfold.metrics` has those in
    use. A distance to an empty surface is inf, and an empty surface has percentile inf.
    """

    organs: list[tuple[int, ...]]
    """The labels of each organ."""
    voxels: Any
    """int64 [O, 3]: |A| (target), |B| (pred), |A and B|."""
    elements: Any
    """int64 [O, 2]: number of surface elements of each side."""
    area: Any
    """float64 [O, 2]: area of each surface in mm^2 (length in mm in 2-D); for "edge" the number."""
    within: Any
    """float64 [O, 2, T]: the area whose distance to the other surface is <= tolerance."""
    distance_sum: Any
    """float64 [O, 2]: sum of distance x area."""
    hd: Any
    """float64 [O, 2, P]: percentile of the distances from each side to the other."""
    hd_pooled: Any
    """float64 [O, P]: percentile of the distances of both sides taken together (medpy's for "edge")."""

    def dice(self) -> Any:
        """[O] 2 |A and B| / (|A| + |B|); NaN where both are empty."""
        return _ratio(2 * self.voxels[:, 2], self.voxels[:, 0] + self.voxels[:, 1])

    def nsd(self) -> Any:
        """[O, T] share of both surfaces within tolerance; NaN where both are empty."""
        within, area = self.within[:, 0] + self.within[:, 1], self.area[:, 0] + self.area[:, 1]
        return _ratio(within, area[:, None])

    def hausdorff(self) -> Any:
        """[O, P] the larger of the two directed percentiles."""
        a, b = self.hd[:, 0], self.hd[:, 1]
        return a.maximum(b) if isinstance(a, Tensor) else _numpy(a).maximum(a, b)

    def asd(self) -> Any:
        """[O, 2] average distance from each side to the other; NaN where the side is empty."""
        return _ratio(self.distance_sum, self.area)

    def assd(self) -> Any:
        """[O] average distance over both surfaces; NaN where both are empty, inf where one is."""
        total = self.distance_sum[:, 0] + self.distance_sum[:, 1]
        return _ratio(total, self.area[:, 0] + self.area[:, 1])


def _numpy(array: Any) -> Any:
    """The module that the array is of: NumPy or CuPy."""
    from importlib import import_module

    return import_module(type(array).__module__.partition(".")[0])


def _ratio(above: Any, below: Any) -> Any:
    """Quotient in float64 with 0 / 0 = NaN and no warning."""
    if isinstance(above, Tensor):
        return above.double() / below.double()
    with _numpy(above).errstate(divide="ignore", invalid="ignore"):
        return above.astype("float64") / below


# ---- the dispatcher's side --------------------------------------------------------------------------------


def _surface_metrics(target: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    if chosen_backend("surface_metrics", target.device.type) == "reference":
        from tenfold.kernels.surface import surface_reference as module
    else:
        from tenfold.kernels.surface import surface_native as module  # type: ignore[no-redef]
    found: tuple[Tensor, ...] = module.metrics(target, *arguments)
    return found


def _surface_metrics_fake(
    target: Tensor,
    pred: Tensor,
    organ_labels: list[int],
    organ_starts: list[int],
    spacing: list[float],
    tolerances: list[float],
    percentiles: list[float],
    *rest: Any,
) -> tuple[Tensor, ...]:
    organs, p = len(organ_starts) - 1, len(percentiles)
    t = len(tolerances) // organs if organs else 0
    whole = [target.new_empty((organs, n), dtype=torch.int64) for n in (3, 2)]
    shapes = ((organs, 2), (organs, 2, t), (organs, 2), (organs, 2, p), (organs, p))
    return (*whole, *(target.new_empty(shape, dtype=torch.float64) for shape in shapes))


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("surface_metrics", _surface_metrics, _device)
torch.library.register_fake("tenfold::surface_metrics", _surface_metrics_fake, lib=_LIBRARY)


# ---- the public side --------------------------------------------------------------------------------------


def surface_metrics(
    target: Any,
    pred: Any,
    organs: Sequence[Sequence[int]] | None,
    spacing: Any,
    *,
    tolerances: Any = (1.0,),
    percentiles: Sequence[float] = (95, 100),
    definition: str = "area",
    num_threads: int | None = None,
) -> SurfaceMetrics:
    """Overlap and surface distances of every organ of a pair of label volumes, exact, in one call.

    Args:
        target, pred: 2-D or 3-D label volumes of one shape, as `overlap_counts` takes them; bool for a mask.
        organs: the label sets to score; they may overlap (`[(2,), (1, 2, 3)]`). Labels in no set are
            ignored. None scores every label above 0 that is present in either volume, in order.
        spacing: size of a voxel along each array axis in mm, or one number for all.
        tolerances: in mm, >= 0; one list for all organs, or one list per organ (all of one length).
            A distance equal to the tolerance is within it.
        percentiles: in [0, 100]; 100 is the Hausdorff distance itself.
        definition: "area", surface elements between voxels weighted by their area (DeepMind's
            surface-distance), percentiles by cumulative area; "edge", border voxels that count 1 (MONAI,
            medpy), percentiles by linear interpolation.
        num_threads: default `torch.get_num_threads()`. Results do not depend on it.

    Returns:
        `SurfaceMetrics`, its arrays of the kind that `target` is.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range, shapes that differ, negative
            labels.
    """
    a, b = _volumes.pair(target, pred, (2, 3))
    sizes = _volumes.spacing(spacing, a.data.ndim)
    edge = _checks.choice("definition", definition, DEFINITIONS) == "edge"
    sets = _present_labels(a, b) if organs is None else _organs(organs)
    limits = _tolerances(tolerances, len(sets))
    shares = [_share(f"percentiles[{i}]", q) for i, q in enumerate(_list("percentiles", percentiles))]
    starts = [0]
    for labels in sets:
        starts.append(starts[-1] + len(labels))
    back = _arrays.kind_of(target)
    found = torch.ops.tenfold.surface_metrics(
        a.data, b.data, [label for labels in sets for label in labels], starts, sizes, limits, shares, edge,
        a.flips, b.flips, _volumes.threads(num_threads),
    )  # fmt: skip
    return SurfaceMetrics(sets, *map(back, found))


def _present_labels(a: _volumes.Volume, b: _volumes.Volume) -> list[tuple[int, ...]]:
    if a.data.numel() == 0:
        return []
    highest = max(_highest("target", a.data), _highest("pred", b.data))
    counts = torch.ops.tenfold.overlap_counts(
        a.data, b.data, highest + 1, a.flips, b.flips, False, torch.get_num_threads()
    )[0]
    present = (counts.sum(0) + counts.sum(1)) > 0
    return [(label,) for label in present.nonzero().flatten().tolist() if label > 0]


def _highest(name: str, data: Tensor) -> int:
    if data.dtype in (torch.uint16, torch.uint32):
        data = data.long()  # torch has no max of these
    value = int(data.max())
    if value >= MAX_LABELS:
        _checks.fail(ValueError, name, f"labels below {MAX_LABELS}", value)
    return max(value, 0)  # a negative label is found, and named, while counting


def _organs(value: Any) -> list[tuple[int, ...]]:
    sets = []
    for i, labels in enumerate(_checks.sequence("organs", value, "label sets")):
        labels = [labels] if isinstance(labels, int) else labels
        labels = _checks.sequence(f"organs[{i}]", labels, "labels")
        if len(labels) == 0:
            _checks.fail(ValueError, f"organs[{i}]", "at least one label", labels)
        checked = {_checks.integer(f"organs[{i}][{j}]", x, 0, MAX_LABELS - 1) for j, x in enumerate(labels)}
        sets.append(tuple(sorted(checked)))
    return sets


def _list(name: str, value: Any) -> list[Any]:
    if isinstance(value, Tensor) or hasattr(value, "__array__"):
        value = value.tolist()
    return list(_checks.sequence(name, value, "numbers"))


def _share(name: str, value: Any) -> float:
    value = _checks.real(name, value, at_least=0.0)
    if value > 100:
        _checks.fail(ValueError, name, "a percentage in [0, 100]", value)
    return value


def _tolerances(value: Any, organs: int) -> list[float]:
    """One after the other for all organs."""
    if isinstance(value, (int, float)):
        value = [value]
    rows = _list("tolerances", value)
    nested = [isinstance(row, (list, tuple)) for row in rows]
    if rows and all(nested):
        _checks.length("tolerances", rows, organs, "the organs")
        if len({len(row) for row in rows}) > 1:
            _checks.fail(ValueError, "tolerances", "lists of one length", [len(row) for row in rows])
        flat = [t for row in rows for t in row]
    elif any(nested):
        _checks.fail(TypeError, "tolerances", "numbers, or one list of numbers per organ", rows)
    else:
        flat = rows * organs
    return [_checks.real(f"tolerances[{i}]", t, at_least=0.0) for i, t in enumerate(flat)]

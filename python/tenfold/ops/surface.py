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
_FLOATS = (torch.float32, torch.float64)
OPS |= dict.fromkeys(("surface_metrics", "surfels", "edt"), ("cpu", "cuda", "reference"))

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define(
    "surface_metrics(Tensor target, Tensor pred, int[] organ_labels, int[] organ_starts, float[] spacing, "
    "float[] tolerances, float[] percentiles, bool edge, int[] flip_target, int[] flip_pred, int threads) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "edt(Tensor features, float[] spacing, bool squared, bool wide, bool index, int threads) "
    "-> (Tensor, Tensor)"
)


class SurfaceMetrics(NamedTuple):
    """Raw numbers of `surface_metrics`: O organs, T tolerances, P percentiles; side 0 = target, 1 = pred.

    What a number is where a mask is empty is left to the reader's convention; `tenfold.metrics` has those in
    use. A distance to an empty surface is inf, and an empty surface has percentile inf.
    """

    organs: list[tuple[int, ...]]
    """The labels of each organ."""
    voxels: Any
    """int64 [O, 3]: voxels in the target, in the prediction, in both."""
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
        """[O] twice the voxels in both over the sum of both sizes; NaN where both are empty."""
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


def _kernels(op: str, device: torch.device) -> Any:
    """The module that implements `op` for the chosen backend; they share their signatures."""
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.surface import surface_reference as module
    elif backend == "cuda":
        from tenfold.kernels.surface import surface_cuda as module
    else:
        from tenfold.kernels.surface import surface_native as module
    return module


def _surface_metrics(target: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _kernels("surface_metrics", target.device).metrics(target, *arguments)
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


def _edt(
    features: Tensor, spacing: list[float], squared: bool, wide: bool, index: bool, threads: int
) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _kernels("edt", features.device).edt(
        features, spacing, squared, wide, index, threads
    )
    return found


def _edt_fake(
    features: Tensor, spacing: list[float], squared: bool, wide: bool, index: bool, threads: int
) -> tuple[Tensor, Tensor]:
    shape = (features.shape[0], 3, *features.shape[1:]) if index else (0,)
    out = features.new_empty(features.shape, dtype=torch.float64 if wide else torch.float32)
    return out, features.new_empty(shape, dtype=torch.int32)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("surface_metrics", _surface_metrics, _device)
    _LIBRARY.impl("edt", _edt, _device)
torch.library.register_fake("tenfold::surface_metrics", _surface_metrics_fake, lib=_LIBRARY)
torch.library.register_fake("tenfold::edt", _edt_fake, lib=_LIBRARY)


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


def surface_dice(
    target: Any,
    pred: Any,
    spacing: Any,
    tolerances: Any = (1.0,),
    *,
    organs: Sequence[Sequence[int]] | None = ((1,),),
    definition: str = "area",
    num_threads: int | None = None,
) -> Any:
    """Normalised surface distance (surface Dice) [organs, tolerances]; NaN where both masks are empty.

    The share of both surfaces that lies within the tolerance of the other; arguments and errors as
    `surface_metrics`. By default target and pred are masks.
    """
    return surface_metrics(
        target, pred, organs, spacing, tolerances=tolerances, percentiles=(), definition=definition,
        num_threads=num_threads,
    ).nsd()  # fmt: skip


class Surfels(NamedTuple):
    """The elements of one surface, in row-major order of their places."""

    at: Any
    """int64 [n, ndim]: the lattice point (its voxels are at - 1 and at along each axis), or the voxel."""
    codes: Any
    """uint8 [n]: which of the 8 voxels around are set, bit 7 - (4 i + 2 j + k) for at - 1 + (i, j, k); in
    2-D bit 3 - (2 j + k), times 17. 0 for "edge"."""
    area: Any
    """float64 [n]: area in mm^2, length in mm in 2-D; 1 for "edge"."""


def surfels(mask: Any, spacing: Any = 1.0, *, definition: str = "area") -> Surfels:
    """The surface elements of a mask: where they are and how large.

    Args:
        mask: 2-D or 3-D, of bool or an integer dtype; 0 is outside, and so is everything beyond the array.
        spacing: size of a voxel along each array axis in mm, or one number for all.
        definition: "area" or "edge", as `surface_metrics`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range; labels other than 0 and 1.
    """
    m = _volumes.volume("mask", mask, (2, 3))
    sizes = _volumes.spacing(spacing, m.data.ndim)
    edge = _checks.choice("definition", definition, DEFINITIONS) == "edge"
    data = m.data if m.data.dtype == torch.bool else _zero_one(m.data)
    found = _kernels("surfels", data.device).surfels(data, sizes, edge, m.flips)
    return Surfels(*map(_arrays.kind_of(mask), found))


def _zero_one(data: Tensor) -> Tensor:
    wide = data.long() if data.dtype in (torch.uint16, torch.uint32) else data
    if bool(((wide != 0) & (wide != 1)).any()):
        _checks.fail(ValueError, "mask", "labels 0 and 1", sorted(set(wide.unique().tolist()) - {0, 1})[0])
    return data


def edt(
    features: Any,
    spacing: Any = 1.0,
    *,
    squared: bool = False,
    dtype: torch.dtype | None = None,
    return_indices: bool = False,
    num_threads: int | None = None,
) -> Any:
    """Exact Euclidean distance of every voxel to the nearest feature, in 1 to 3 dimensions, anisotropic.

    Args:
        features: bool or integers, non-zero = feature; [..., D0, D1, D2]. Axes before those that `spacing`
            has entries for are a batch. (`scipy.ndimage.distance_transform_edt(x)` is `edt(x == 0)`.)
        spacing: 1 to 3 numbers, mm along the last axes; one number stands for all axes, and then there is no
            batch.
        squared: return the square of the distance.
        dtype: torch.float32 (default; relative error about 1e-7) or torch.float64.
        return_indices: also return where the nearest feature is (one of them, where several are as near).
        num_threads: default `torch.get_num_threads()`. Results do not depend on it.

    Returns:
        distances of the shape of `features`, +inf where a volume has no feature; with `return_indices` also
        int32 [..., ndim, D0, D1, D2], -1 there.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.

    Method: Meijster et al. (2000), Felzenszwalb and Huttenlocher (Theory of Computing 8, 2012), Saito and
    Toriwaki (1994); see kernels/surface/README.md.
    """
    f = _volumes.volume("features", features)
    flat = isinstance(spacing, (int, float))
    ndim = f.data.ndim if flat else len(_list("spacing", spacing))
    if not 1 <= ndim <= 3 or f.data.ndim < ndim:
        _checks.fail(ValueError, "features", "1 to 3 axes with a spacing each", tuple(f.data.shape))
    sizes = [1.0] * (3 - ndim) + _volumes.spacing(spacing, ndim)
    wide = dtype is not None and _checks.dtype("dtype", dtype, _FLOATS) == torch.float64
    data = f.data.flip(f.flips) if f.flips else f.data
    if data.dtype not in (torch.bool, torch.uint8):
        data = data != 0
    shape = data.shape
    batch, own = shape[: data.ndim - ndim], shape[data.ndim - ndim :]
    boxes = data.reshape(-1 if data.numel() else _product(batch), *[1] * (3 - ndim), *own)
    out, index = torch.ops.tenfold.edt(
        boxes, sizes, bool(squared), wide, bool(return_indices), _volumes.threads(num_threads)
    )
    back = _arrays.kind_of(features)
    out = out.reshape(shape)
    if not return_indices:
        return back(out)
    return back(out), back(index[:, 3 - ndim :].reshape(*batch, ndim, *own))


def _product(sizes: Sequence[int]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out


def signed_distance(masks: Any, spacing: Any = 1.0, *, num_threads: int | None = None) -> Any:
    """Distance of each voxel to the boundary of its mask: positive outside, negative inside, float32.

    Outside it is the distance to the nearest voxel of the mask; inside, minus the distance to the nearest
    voxel outside, plus one voxel along the finest axis: the map of the boundary loss (Kervadec et al., arXiv
    1812.07032), which takes -(d - 1) for unit spacing. A mask that is empty or full has distance 0.

    Args:
        masks: [..., D0, D1, D2], bool or integers; batch and `spacing` as `edt`, the batch often the labels.

    Raises:
        TypeError, ValueError: as `edt`.
    """
    m = _volumes.volume("masks", masks)
    axes = m.data.ndim if isinstance(spacing, (int, float)) else len(_list("spacing", spacing))
    if not 1 <= axes <= 3 or m.data.ndim < axes:
        _checks.fail(ValueError, "masks", "1 to 3 axes with a spacing each", tuple(m.data.shape))
    data = (m.data.flip(m.flips) if m.flips else m.data) != 0
    outside = edt(data, spacing, num_threads=num_threads)
    inside = edt(~data, spacing, num_threads=num_threads)
    finest = min([spacing] if isinstance(spacing, (int, float)) else _list("spacing", spacing))
    out = torch.where(data, finest - inside, outside)
    return _arrays.kind_of(masks)(torch.where(out.isinf(), 0.0, out))


def _present_labels(a: _volumes.Volume, b: _volumes.Volume) -> list[tuple[int, ...]]:
    if a.data.numel() == 0:
        return []
    highest = max(_highest("target", a.data), _highest("pred", b.data))
    counts = torch.ops.tenfold.overlap_counts(a.data, b.data, highest + 1, a.flips, b.flips, False, 0)[0]
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
    return _checks.items(name, value, "numbers")


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

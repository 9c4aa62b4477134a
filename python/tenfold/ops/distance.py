"""Nearest centres of many rows."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._backend import OPS, chosen_backend
from tenfold.kernels.distance.shards import NotFinite

from ._shards import Features, features, labels

DISTANCE_BACKENDS = ("cpu", "cuda", "triton", "reference")
OPS |= {"nn_assign": DISTANCE_BACKENDS}
METRICS = ("l2", "cosine")
PRECISIONS = ("f32", "bf16")
MOST_NEIGHBORS = 32

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define(
    "nn_assign(Tensor[] x, Tensor centers, int k, Tensor? x_labels, Tensor? center_labels, bool cosine, "
    "bool reduced, bool check) -> (Tensor indices, Tensor distances_squared)"
)


class NearestCenters(NamedTuple):
    """`indices` int32 [N, k], `distances_squared` float32 [N, k], the nearest first."""

    indices: Any
    distances_squared: Any


def nn_assign(
    x: Any,
    centers: Any,
    k: int = 1,
    *,
    x_labels: Any = None,
    center_labels: Any = None,
    metric: str = "l2",
    precision: str = "f32",
    check: bool = True,
) -> NearestCenters:
    """The k nearest centres of each row, exactly: as differences summed in float64 choose them, but that
    distances equal in float32 are ties.

    Candidates are found by matrix products, and those that the rounding of these could have put out of order
    are measured again. No matrix of all distances is ever held.

    Args:
        x: features [N, d], float32, bfloat16, float16 or float64 (the last through the reference), or a list
            of such shards. Memory-mapped arrays are read once, in blocks.
        centers: [M, d], any of these dtypes.
        k: how many, 1 to 32.
        x_labels, center_labels: integers [N] and [M]: only centres of the row's own label count.
        metric: "l2" for ``|a - b|^2``, or "cosine" for ``|a/|a| - b/|b||^2`` = 2 - 2 cos; a row of zeros
            stays zero.
        precision: of the products that find candidates, "f32" or "bf16" (16 bits); the result is the same.
        check: whether values that are not finite are looked for. Without it they give an undefined result.

    Returns:
        NearestCenters. Distances are float64 for float64 `x`. Of centres equally far the one with the smaller
        number comes first. Where there are fewer than k, -1 and infinity.

    Raises:
        TypeError, ValueError: wrong kinds or shapes, one kind of labels without the other, a row that is not
            finite, a squared distance beyond the range of its type.
    """
    data = features("x", x)
    targets = _centers("centers", centers, data)
    k = _checks.integer("k", k, 1, MOST_NEIGHBORS)
    cosine = _checks.choice("metric", metric, METRICS) == "cosine"
    reduced = _checks.choice("precision", precision, PRECISIONS) == "bf16"
    if (x_labels is None) != (center_labels is None):
        absent = "x_labels" if x_labels is None else "center_labels"
        _checks.fail(ValueError, absent, "labels, as the other side has them", None)
    if x_labels is not None:
        x_labels = labels("x_labels", x_labels, data.rows, "x").to(data.device)
        center_labels = labels("center_labels", center_labels, len(targets), "centers").to(data.device)
    if check:
        require_finite("centers", [targets])
        if x_labels is not None:  # rows are gathered, maybe not all
            require_finite("x", data.shards)
    options = (x_labels, center_labels, cosine, reduced, bool(check))
    found = torch.ops.tenfold.nn_assign(data.shards, targets, k, *options)
    if check and not torch.compiler.is_compiling() and bool((torch.isinf(found[1]) & (found[0] >= 0)).any()):
        _checks.fail(ValueError, "x", f"squared distances that {found[1].dtype} holds", "infinity")
    return NearestCenters(*(data.kind(t) for t in found))


def _centers(name: str, value: Any, data: Features) -> Tensor:
    """[M, d] in float32 (float64 for float64 features), on their device."""
    if isinstance(value, (list, tuple)):
        _checks.fail(TypeError, name, "one tensor or array [M, d]", type(value).__name__)
    (given,) = features(name, value).shards
    if given.shape[1] != data.width:
        _checks.fail(ValueError, name, f"{data.width} columns, as x", given.shape[1])
    if given.device != data.device:
        _checks.fail(ValueError, name, f"device {data.device}, as x", given.device)
    return given.to(torch.float64 if data.dtype == torch.float64 else torch.float32)


def require_finite(name: str, shards: list[Tensor]) -> None:
    """ValueError naming the first row that is not finite."""
    row = kernels("nn_assign", shards[0].device).first_bad_row(shards)
    if row >= 0:
        not_finite(name, shards, row)


def not_finite(name: str, shards: list[Tensor], row: int) -> NoReturn:
    """Raises ValueError with the row and its first value that is not finite."""
    from tenfold.kernels.distance.shards import take

    values = take(shards, torch.tensor([row]))[0]
    value = float(values[~torch.isfinite(values)][0])
    _checks.fail(ValueError, name, "finite values", f"{value} in row {row}")


# ---- registration ----------------------------------------------------------------------------------------


def kernels(op: str, device: torch.device) -> ModuleType:
    """The backend's module, with the functions of distance_reference.py."""
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.distance import distance_reference as module
    elif backend == "triton":
        from tenfold.kernels.distance import distance_triton as module
    elif backend == "cuda":
        from tenfold.kernels.distance import distance_cuda as module
    else:
        from tenfold.kernels.distance import distance_native as module
    return module


def _assign(
    x: list[Tensor],
    centers: Tensor,
    k: int,
    x_labels: Tensor | None,
    center_labels: Tensor | None,
    cosine: bool,
    reduced: bool,
    check: bool,
) -> tuple[Tensor, Tensor]:
    module = kernels("nn_assign", x[0].device)
    if x_labels is None or center_labels is None:
        try:
            found: tuple[Tensor, Tensor] = module.assign(x, centers, k, None, cosine, reduced, check)
        except NotFinite as error:
            not_finite("x", x, error.row)
        return found
    index, nearest = _assign_fake(x, centers, k, x_labels, center_labels, cosine, reduced, check)
    index.fill_(-1)
    nearest.fill_(torch.inf)
    for label in center_labels.unique().tolist():
        rows = (x_labels == label).nonzero()[:, 0]
        own = (center_labels == label).nonzero()[:, 0]
        if len(rows):
            which, near = module.assign(x, centers[own], k, rows, cosine, reduced)
            index[rows] = torch.where(which < 0, -1, own[which.long().clamp(min=0)]).to(torch.int32)
            nearest[rows] = near
    return index, nearest


def _assign_fake(
    x: list[Tensor],
    centers: Tensor,
    k: int,
    x_labels: Tensor | None,
    center_labels: Tensor | None,
    cosine: bool,
    reduced: bool,
    check: bool,
) -> tuple[Tensor, Tensor]:
    shape = (sum(s.shape[0] for s in x), k)
    dtype = torch.float64 if x[0].dtype == torch.float64 else torch.float32
    return x[0].new_empty(shape, dtype=torch.int32), x[0].new_empty(shape, dtype=dtype)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("nn_assign", _assign, _device)
torch.library.register_fake("tenfold::nn_assign", _assign_fake, lib=_LIBRARY)

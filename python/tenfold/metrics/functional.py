"""Segmentation metrics as functions: scores [batch, structures] of label maps or one-hot masks.

Implementations in use disagree on what a surface is, and on what a score is where a mask is empty. Every
function therefore takes `compat`, whose numbers it meets exactly:

  "segrap"    the SegRap2023 challenge: surface elements weighted by area; both masks empty scores 1, one of
              them 0. Distances: both empty 0, one empty by `empty_distance`.
  "deepmind"  surface-distance 0.1: the same surfaces; Dice and NSD of two empty masks are NaN, distances inf.
  "monai"     MONAI 1.6: border voxels that count 1 (or `use_subvoxels=True`); two empty masks are NaN, and so
              is the Dice of an empty reference unless `ignore_empty=False`. Percentiles interpolate linearly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.ops import _volumes
from tenfold.ops.overlap import overlap_counts
from tenfold.ops.surface import SurfaceMetrics, surface_metrics

COMPAT = ("segrap", "deepmind", "monai")
INPUT_FORMATS = ("one-hot", "index")
EMPTY_DISTANCES = ("inf", "nan", "diagonal")

Organs = Sequence[Sequence[int]]


def raw_scores(
    preds: Any,
    target: Any,
    *,
    num_classes: int | None = None,
    organs: Organs | None = None,
    include_background: bool = True,
    input_format: str = "one-hot",
    spacing: Any = 1.0,
    tolerances: Any = (1.0,),
    percentiles: Sequence[float] = (95, 100),
    definition: str = "area",
    num_threads: int | None = None,
    surfaces: bool = True,
) -> SurfaceMetrics:
    """What `tenfold.ops.surface_metrics` counts, for a batch: its arrays with an axis of cases in front.

    Args:
        preds, target: one-hot masks [B, C, ...] of 0 and 1, which may overlap, or, for "index", label maps
            [B, ...]; space has 2 or 3 axes.
        num_classes: for "index" without `organs`: labels 0 .. num_classes - 1 are the structures, and there
            are no others.
        organs: for "index": the label sets that make up the structures.
        include_background: whether channel or label 0 is a structure; a single channel always is.
        spacing: mm along the axes of space, one number for all axes, or one such entry per case.
        tolerances: one list for all structures, or one per structure.
        surfaces: False counts voxels alone: everything but `voxels` is empty.

    Raises:
        TypeError, ValueError: as `surface_metrics`, with the argument's name.
    """
    _checks.choice("input_format", input_format, INPUT_FORMATS)
    if organs is not None and input_format != "index":
        _checks.fail(
            ValueError, "organs", 'label maps (input_format="index")', f"input_format={input_format!r}"
        )
    floats = input_format == "one-hot"
    a, b = (_volumes.volume(n, x, floats=floats) for n, x in (("target", target), ("preds", preds)))
    truth, guess = (v.data.flip(v.flips) if v.flips else v.data for v in (a, b))
    if truth.shape != guess.shape:
        _checks.fail(ValueError, "preds", f"the shape of target, {tuple(truth.shape)}", tuple(guess.shape))
    before = 2 if input_format == "one-hot" else 1
    if truth.ndim - before not in (2, 3):
        shape = "[B, C, ...]" if before == 2 else "[B, ...]"
        _checks.fail(ValueError, "target", f"{shape} with 2 or 3 axes of space", tuple(truth.shape))
    alone = input_format == "one-hot" and truth.shape[1] == 1
    first = 0 if include_background or alone else 1
    options: dict[str, Any] = {
        "percentiles": percentiles,
        "definition": definition,
        "num_threads": num_threads,
        "measure": surface_metrics if surfaces or organs is not None else _voxels,
    }
    if input_format == "index":
        sets = _sets(num_classes, organs, first)
        options["tolerances"] = tolerances
    else:
        sets = [(c,) for c in range(first, truth.shape[1])]
    sizes = _spacings(spacing, truth.shape[0], truth.ndim - before)
    cases = []
    for case in range(truth.shape[0]):
        if input_format == "index":
            if organs is None and surfaces:
                _below("target", truth[case], num_classes)
                _below("preds", guess[case], num_classes)
            cases.append(_measured(truth[case], guess[case], sets, sizes[case], **options))
        else:
            cases.append(_channels(truth[case], guess[case], sets, sizes[case], tolerances, options))
    if not cases:
        empty = truth.new_zeros(truth.shape[2:] if before == 2 else truth.shape[1:])
        one = _measured(empty, empty, sets, 1.0, **options)
        return SurfaceMetrics(sets, *(x[None][:0] for x in one[1:]))
    return SurfaceMetrics(sets, *map(torch.stack, zip(*(c[1:] for c in cases), strict=True)))


def _measured(
    truth: Tensor, guess: Tensor, sets: list[tuple[int, ...]], spacing: Any, *, measure: Any, **options: Any
) -> SurfaceMetrics:
    found: SurfaceMetrics = measure(truth, guess, sets, spacing, **options)
    return found


def _voxels(
    truth: Tensor,
    guess: Tensor,
    sets: list[tuple[int, ...]],
    _: Any,
    *,
    num_threads: int | None,
    **unused: Any,
) -> SurfaceMetrics:
    """`SurfaceMetrics` of single labels with `voxels` alone, from one count of all pairs of labels."""
    labels = [label for (label,) in sets]
    try:
        counts = overlap_counts(truth, guess, 1 + max(labels, default=0), num_threads=num_threads)
    except ValueError as error:  # the op calls it pred
        raise ValueError(re.sub("^pred:", "preds:", str(error))) from None
    voxels = torch.stack((counts.sum(1), counts.sum(0), counts.diagonal()), 1)
    n, device = len(labels), truth.device
    two, none = (torch.zeros(n, 2, *more, dtype=torch.float64, device=device) for more in ((), (0,)))
    chosen = voxels[torch.tensor(labels, dtype=torch.int64, device=device)]
    return SurfaceMetrics(sets, chosen, two.long(), two, none, two, none, none[:, 0])


def _sets(num_classes: int | None, organs: Organs | None, first: int) -> list[tuple[int, ...]]:
    if organs is not None:
        return [tuple(labels) for labels in organs]
    if num_classes is None:
        _checks.fail(TypeError, "num_classes", "a number of classes (or organs=) for label maps", None)
    return [(c,) for c in range(first, _checks.integer("num_classes", num_classes, 1, 4096))]


def _spacings(value: Any, cases: int, ndim: int) -> list[list[float]]:
    if isinstance(value, Tensor) or hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and value and not _volumes.is_number(value[0]):
        _checks.length("spacing", value, cases, "the cases")
        return [_volumes.spacing(one, ndim) for one in value]
    return [_volumes.spacing(1.0 if value is None else value, ndim)] * cases


def _below(name: str, labels: Tensor, num_classes: int | None) -> None:
    """Labels that no class has are an error: a structure would be missed in silence."""
    if num_classes is None or labels.numel() == 0 or labels.dtype == torch.bool:
        return
    wide = labels.to(torch.int64) if labels.dtype in (torch.uint16, torch.uint32) else labels
    largest = int(wide.max())
    if largest >= num_classes:
        expected = f"labels below num_classes, {num_classes} (organs= leaves others out)"
        _checks.fail(ValueError, name, expected, largest)


def _mask(name: str, channel: Tensor) -> Tensor:
    """A channel of 0 and 1 as bool. A mask of 0 and 255 would be an empty one, and empty masks agree."""
    if channel.dtype == torch.bool:
        return channel
    inside = channel == 1
    if not torch.equal(inside, channel != 0):
        bad = channel[(channel != 0) & ~inside].reshape(-1)[0].item()
        _checks.fail(ValueError, name, "a one-hot mask, values 0 and 1", bad)
    return inside


def _channels(
    truth: Tensor,
    guess: Tensor,
    sets: list[tuple[int, ...]],
    spacing: list[float],
    tolerances: Any,
    options: Any,
) -> SurfaceMetrics:
    """Structures as channels: each a pair of masks of its own."""
    each = [tolerances] * len(sets)
    plain = isinstance(tolerances, (int, float))
    if not plain and len(tolerances) and not isinstance(tolerances[0], (int, float)):
        _checks.length("tolerances", tolerances, len(sets), "the structures")
        each = list(tolerances)
    rows = [
        _measured(
            _mask("target", truth[c]), _mask("preds", guess[c]), [(1,)], spacing, tolerances=limits, **options
        )
        for (c,), limits in zip(sets, each, strict=True)
    ]
    if not rows:
        none = torch.zeros(truth.shape[1:], dtype=torch.bool, device=truth.device)
        return _measured(none, none, [], spacing, tolerances=(), **options)
    return SurfaceMetrics(sets, *(torch.cat(columns) for columns in zip(*(r[1:] for r in rows), strict=True)))


# ---- from counts to scores --------------------------------------------------------------------------------


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return above.double() / below.double()


def _empty(raw: SurfaceMetrics) -> tuple[Tensor, Tensor]:
    """Where both masks are empty, and where exactly one is."""
    target, pred = raw.voxels[..., 0] == 0, raw.voxels[..., 1] == 0
    return target & pred, target ^ pred


def dice_of(raw: SurfaceMetrics, compat: str, ignore_empty: bool = True) -> Tensor:
    """2 |A and B| / (|A| + |B|) from counts, with the empty masks of a convention."""
    score = _ratio(2 * raw.voxels[..., 2], raw.voxels[..., 0] + raw.voxels[..., 1])
    both, _ = _empty(raw)
    if compat == "segrap":
        return torch.where(both, 1.0, score)
    if compat == "monai":
        score = torch.where(both, 1.0, score)
        return torch.where(raw.voxels[..., 0] == 0, math.nan, score) if ignore_empty else score
    return score


def nsd_of(raw: SurfaceMetrics, compat: str) -> Tensor:
    """[..., T] share of both surfaces within tolerance."""
    score = _ratio(raw.within.sum(-2), raw.area.sum(-1)[..., None])
    return torch.where(_empty(raw)[0][..., None], 1.0, score) if compat == "segrap" else score


def _like(value: Any, score: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=score.device)


def hausdorff_of(
    raw: SurfaceMetrics, compat: str, directed: bool, plain: bool, empty: Any = math.inf
) -> Tensor:
    """[..., P] the larger directed percentile, or that from pred to target alone."""
    score = raw.hd[..., 1, :] if directed else raw.hd.amax(-2)
    both, one = (mask[..., None] for mask in _empty(raw))
    if compat == "segrap":
        return torch.where(both, 0.0, torch.where(one, _like(empty, score)[..., None], score))
    if compat == "monai":
        return torch.where(both if plain else both | one, math.nan, torch.where(one, math.inf, score))
    return torch.where(both | one, math.inf, score)


def distance_of(raw: SurfaceMetrics, compat: str, symmetric: bool, empty: Any = math.inf) -> Tensor:
    """Average distance over both surfaces, or from pred to target alone."""
    if symmetric:
        score = _ratio(raw.distance_sum.sum(-1), raw.area.sum(-1))
    else:
        score = _ratio(raw.distance_sum[..., 1], raw.area[..., 1])
    both, one = _empty(raw)
    if compat == "segrap":
        return torch.where(both, 0.0, torch.where(one, _like(empty, score), score))
    if compat == "monai":
        return torch.where(both, math.nan, torch.where(one, math.inf, score))
    return score


def volume_similarity_of(raw: SurfaceMetrics, compat: str) -> Tensor:
    """1 - ||A| - |B|| / (|A| + |B|) (Taha and Hanbury, BMC Medical Imaging 15, 2015)."""
    target, pred = raw.voxels[..., 0], raw.voxels[..., 1]
    score = 1 - _ratio((target - pred).abs(), target + pred)
    return torch.where(_empty(raw)[0], 1.0, score) if compat == "segrap" else score


def _empty_distance(value: str, spacing: Any, cases: int, shape: Sequence[int]) -> Tensor:
    """[B, 1] what stands for a distance to an empty mask."""
    _checks.choice("empty_distance", value, EMPTY_DISTANCES)
    if value != "diagonal":
        return torch.full((cases, 1), float(value), dtype=torch.float64)
    rows = [math.dist([0.0] * len(shape), [n * s for n, s in zip(shape, one, strict=True)])
            for one in _spacings(spacing, cases, len(shape))]  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64)[:, None]


def _space(target: Any, input_format: str) -> list[int]:
    return list(target.shape[2 if input_format == "one-hot" else 1 :])


def _definition(compat: str, use_subvoxels: bool) -> str:
    _checks.choice("compat", compat, COMPAT)
    return "edge" if compat == "monai" and not use_subvoxels else "area"


# ---- functions on arrays ----------------------------------------------------------------------------------


def dice_score(
    preds: Any, target: Any, *, compat: str = "segrap", ignore_empty: bool = True, **options: Any
) -> Any:
    """Dice similarity coefficient, float64 [B, structures].

    Args:
        preds, target: one-hot masks [B, C, ...], or label maps with `input_format="index"`.
        compat: what empty masks score; see the module.
        ignore_empty: for "monai": an empty reference is NaN (default), else 0, or 1 with an empty prediction.
        options: `num_classes`, `organs`, `include_background` (default True), `input_format`,
            `num_threads`, as `raw_scores`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    _checks.choice("compat", compat, COMPAT)
    raw = counts_only(preds, target, **options)
    return _arrays.kind_of(target)(dice_of(raw, compat, ignore_empty))


def counts_only(preds: Any, target: Any, **options: Any) -> SurfaceMetrics:
    """`raw_scores` where only `voxels` is used: no tolerance, no percentile."""
    options |= {"tolerances": (), "percentiles": (), "definition": "edge", "surfaces": False}
    return raw_scores(preds, target, **options)


def volume_similarity(preds: Any, target: Any, *, compat: str = "segrap", **options: Any) -> Any:
    """``1 - ||A| - |B|| / (|A| + |B|)``, float64 [B, structures]; arguments as `dice_score`."""
    _checks.choice("compat", compat, COMPAT)
    return _arrays.kind_of(target)(volume_similarity_of(counts_only(preds, target, **options), compat))


def surface_dice(
    preds: Any,
    target: Any,
    tolerances: Any = 1.0,
    *,
    compat: str = "segrap",
    use_subvoxels: bool = False,
    include_background: bool = False,
    **options: Any,
) -> Any:
    """Normalised surface distance (surface Dice) at a tolerance, float64 [B, structures].

    Args:
        tolerances: in mm, one for all structures or one for each (MONAI's `class_thresholds`).
        compat: the definition of the surface, and what empty masks score; see the module.
        use_subvoxels: for "monai": area-weighted surface elements in place of border voxels.
        options: `spacing` and those of `dice_score`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    definition = _definition(compat, use_subvoxels)
    if isinstance(tolerances, Tensor) or hasattr(tolerances, "tolist"):
        tolerances = tolerances.tolist()
    limits = [[t] for t in tolerances] if isinstance(tolerances, (list, tuple)) else [tolerances]
    raw = raw_scores(
        preds, target, tolerances=limits, percentiles=(), definition=definition,
        include_background=include_background, **options,
    )  # fmt: skip
    return _arrays.kind_of(target)(nsd_of(raw, compat)[..., 0])


normalized_surface_dice = surface_dice


def hausdorff_distance(
    preds: Any,
    target: Any,
    *,
    percentile: float | None = None,
    directed: bool = False,
    compat: str = "segrap",
    include_background: bool = False,
    empty_distance: str = "inf",
    spacing: Any = 1.0,
    input_format: str = "one-hot",
    **options: Any,
) -> Any:
    """Hausdorff distance in mm, or a percentile of it, float64 [B, structures].

    Args:
        percentile: None or 100 for the largest distance, 95 for the robust one.
        directed: from the prediction to the reference only.
        compat: the definition of the surface, how percentiles are taken, and empty masks; see the module.
        empty_distance: for "segrap", the distance to an empty mask: "inf", "nan", or "diagonal", the image's.
        options: as `surface_dice`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    raw = raw_scores(
        preds, target, tolerances=(), percentiles=(100 if percentile is None else percentile,),
        definition=_definition(compat, False), include_background=include_background, spacing=spacing,
        input_format=input_format, **options,
    )  # fmt: skip
    empty = _empty_distance(empty_distance, spacing, len(raw.voxels), _space(target, input_format))
    score = hausdorff_of(raw, compat, directed, percentile is None, empty)
    return _arrays.kind_of(target)(score[..., 0])


def average_surface_distance(
    preds: Any,
    target: Any,
    *,
    symmetric: bool = True,
    compat: str = "segrap",
    include_background: bool = False,
    empty_distance: str = "inf",
    spacing: Any = 1.0,
    input_format: str = "one-hot",
    **options: Any,
) -> Any:
    """Average distance between the surfaces in mm, float64 [B, structures].

    Args:
        symmetric: over both surfaces; else from the prediction to the reference (MONAI's default).
        others: as `hausdorff_distance`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    raw = raw_scores(
        preds, target, tolerances=(), percentiles=(), definition=_definition(compat, False),
        include_background=include_background, spacing=spacing, input_format=input_format, **options,
    )  # fmt: skip
    empty = _empty_distance(empty_distance, spacing, len(raw.voxels), _space(target, input_format))
    return _arrays.kind_of(target)(distance_of(raw, compat, symmetric, empty))


def segmentation_scores(
    preds: Any,
    target: Any,
    *,
    tolerances: Sequence[float] = (1.0,),
    compat: str = "segrap",
    include_background: bool = False,
    empty_distance: str = "inf",
    spacing: Any = 1.0,
    input_format: str = "one-hot",
    **options: Any,
) -> dict[str, Any]:
    """Everything at once: a dict of float64 [B, structures], each name with its convention.

    dsc, jaccard, precision, recall, vs, rvd; nsd_dm@t and nsd_edge@t for each tolerance; hd95_dm, hd_dm,
    hd95_edge_max, hd95_edge_pooled, hd_edge; assd_dm, assd_edge. rvd is (size of the prediction - size of the
    reference) / size of the reference.

    Args:
        compat: what empty masks score; the definition of the surface stands in each name.
        others: as `hausdorff_distance`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    _checks.choice("compat", compat, COMPAT)
    both = {
        name: raw_scores(
            preds, target, tolerances=tolerances, percentiles=(95, 100), definition=definition,
            include_background=include_background, spacing=spacing, input_format=input_format, **options,
        )
        for name, definition in (("dm", "area"), ("edge", "edge"))
    }  # fmt: skip
    raw = both["dm"]
    a, b, common = raw.voxels.unbind(-1)
    nothing = (a + b) == 0
    whole = {
        "dsc": dice_of(raw, compat),
        "jaccard": torch.where(nothing & (compat == "segrap"), 1.0, _ratio(common, a + b - common)),
        "precision": torch.where(nothing & (compat == "segrap"), 1.0, _ratio(common, b)),
        "recall": torch.where(nothing & (compat == "segrap"), 1.0, _ratio(common, a)),
        "vs": volume_similarity_of(raw, compat),
        "rvd": _ratio(b - a, a),
    }
    empty = _empty_distance(empty_distance, spacing, len(raw.voxels), _space(target, input_format))
    for name, found in both.items():
        for i, tolerance in enumerate(tolerances):
            whole[f"nsd_{name}@{float(tolerance)}"] = nsd_of(found, compat)[..., i]
        largest = hausdorff_of(found, compat, False, True, empty)
        whole["hd95_dm" if name == "dm" else "hd95_edge_max"] = largest[..., 0]
        whole[f"hd_{name}"] = largest[..., 1]
        if name == "edge":
            pooled = found._replace(hd=found.hd_pooled[..., None, :])
            whole["hd95_edge_pooled"] = hausdorff_of(pooled, compat, False, True, empty)[..., 0]
        whole[f"assd_{name}"] = distance_of(found, compat, True, empty)
    back = _arrays.kind_of(target)
    return {name: back(score) for name, score in whole.items()}

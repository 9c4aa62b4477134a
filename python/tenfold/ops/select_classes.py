"""Classes in data selection: medians and distances to them, votes, masks, and exact budgets."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

from . import _select_checks as _select

OPS |= {
    "class_median_distance": ("cpu", "cuda", "reference"),
    "class_vote": ("cpu", "cuda", "triton", "reference"),
    "class_mask": ("cpu", "cuda", "reference"),
}

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
for _schema in (
    "class_median_distance(Tensor x, Tensor labels, SymInt num_classes, bool check) "
    "-> (Tensor medians, Tensor distances)",
    "class_vote(Tensor logits, SymInt num_classes, Tensor? target_labels, SymInt num_target_classes, "
    "SymInt first_row) -> (Tensor histogram, Tensor matrix)",
    "class_mask(Tensor labels, Tensor keep) -> Tensor",
):
    _LIBRARY.define(_schema)

MOST_CLASSES = 2**31 - 1


class ClassMedians(NamedTuple):
    """medians: [C, d], NaN rows for empty classes. distances: [N], to the median of each sample's class."""

    medians: Any
    distances: Any


class Votes(NamedTuple):
    """histogram: int64 [Cs]. matrix: int64 [Ct, Cs], or None without target labels."""

    histogram: Any
    matrix: Any


def class_median_distance(x: Any, labels: Any, num_classes: int, *, check: bool = True) -> ClassMedians:
    """The component-wise median of each class, and every sample's Euclidean distance to that of its own: what
    the moderate coreset (Xia et al., ICLR 2023) is chosen by.

    The median of an even number of values is the mean of the two in the middle. A class without samples has a
    median of NaN. Distances are made from differences; results do not depend on the number of threads.

    Args:
        x: [N, d] float32, bfloat16, float16 or float64; a memory map is read in place.
        labels: [N] integers in [0, num_classes).
        num_classes: C >= 1.
        check: refuse entries that are not finite. Without it, medians of columns with NaN are undefined.

    Returns:
        ClassMedians(medians, distances), float32 (float64 for float64 x).

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not fit, a label outside [0, C); with check, a row that is not finite.
        RuntimeError: a forced backend that cannot run.
    """
    kind = _arrays.kind_of(x)
    values = _select.matrix("x", x)
    num_classes = _checks.integer("num_classes", num_classes, 1, MOST_CLASSES)
    labels = _select.labels("labels", labels, values.shape[0], values.device, "x")
    found = torch.ops.tenfold.class_median_distance(values, labels, num_classes, bool(check))
    return ClassMedians(*(kind(v) for v in found))


def class_vote(
    logits: Any, num_classes: int, *, target_labels: Any = None, num_target_classes: int | None = None
) -> Votes:
    """How many target samples a source classifier assigns to each source class: the label mapping of DP4TL
    (Zhang et al., arXiv 2310.08782), in one pass over the logits and without a copy.

    Equal logits vote for the smaller class. A logit of -inf never wins.

    Args:
        logits: [N, Cs] float32, bfloat16, float16 or float64, or predictions [N], integers in [0, Cs); or a
            list of such shards. Arrays, memory maps and CuPy arrays as well.
        num_classes: Cs >= 1.
        target_labels: [N] integers in [0, Ct), for the matrix of target class by source class.
        num_target_classes: Ct; by default the largest label plus one.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not fit, a label or prediction outside its range, a row with NaN or nothing
            but -inf.
        RuntimeError: a forced backend that cannot run.
    """
    kind = _select.kind_of(logits)
    num_classes = _checks.integer("num_classes", num_classes, 1, MOST_CLASSES)
    parts = _predictions(logits, num_classes)
    rows, device = sum(p.shape[0] for p in parts), parts[0].device
    targets, width = _targets(target_labels, num_target_classes, rows, device)
    histogram = torch.zeros(num_classes, dtype=torch.int64, device=device)
    matrix = torch.zeros(width, num_classes, dtype=torch.int64, device=device)
    start = 0
    for part in parts:
        own = None if targets is None else targets[start : start + part.shape[0]]
        more = torch.ops.tenfold.class_vote(part, num_classes, own, width, start)
        histogram = histogram + more[0]
        matrix = matrix + more[1]
        start += part.shape[0]
    return Votes(kind(histogram), None if targets is None else kind(matrix))


def _predictions(value: Any, num_classes: int) -> list[Tensor]:
    several = isinstance(value, (list, tuple))
    values = value if several else [value]
    names = [f"logits[{i}]" for i in range(len(values))] if several else ["logits"]
    if not values:
        _checks.fail(ValueError, "logits", "at least one shard", "an empty list")
    found: list[Tensor] = []
    for name, shard in zip(names, values, strict=True):
        part = _checks.tensor(
            name, _select._view(name, shard), (*_checks.FLOAT_DTYPES, *_select.LABEL_DTYPES)
        ).detach()
        if part.is_floating_point():
            part = _select.matrix(name, part, "[N, Cs]", num_classes)
        elif part.ndim != 1:
            _checks.fail(ValueError, name, "predictions [N], or logits [N, Cs]", tuple(part.shape))
        if part.device != (found[0] if found else part).device:
            _checks.fail(ValueError, name, f"a tensor on {found[0].device} like logits[0]", part.device)
        found.append(part)
    return found


def _targets(value: Any, width: Any, rows: int, device: torch.device) -> tuple[Tensor | None, int]:
    if value is None:
        if width is not None:
            _checks.fail(ValueError, "target_labels", "[N] labels, for num_target_classes", None)
        return None, 0
    targets = _select.labels("target_labels", value, rows, device, "logits")
    if width is None:
        width = int(targets.max()) + 1 if rows else 0
    return targets, _checks.integer("num_target_classes", width, 0, MOST_CLASSES)


def class_mask(labels: Any, keep: Any, num_classes: int) -> Any:
    """Indices of the samples whose class is kept, ascending: int64.

    Args:
        labels: [N] integers in [0, num_classes).
        keep: bool [num_classes], or the classes to keep as a list or array of integers.
        num_classes: C >= 1.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not fit; a label or class outside [0, C).
    """
    kind = _arrays.kind_of(labels)
    num_classes = _checks.integer("num_classes", num_classes, 1, MOST_CLASSES)
    found = _checks.tensor("labels", _select._view("labels", labels), _select.LABEL_DTYPES)
    if found.ndim != 1:
        _checks.fail(ValueError, "labels", "shape [N]", tuple(found.shape))
    table = _keep_table(keep, num_classes, found.device)
    return kind(torch.ops.tenfold.class_mask(found, table))


def _keep_table(keep: Any, num_classes: int, device: torch.device) -> Tensor:
    if isinstance(keep, Sequence) and not isinstance(keep, (str, bytes)):
        listed = [_checks.integer(f"keep[{i}]", c, 0, num_classes - 1) for i, c in enumerate(keep)]
        keep = torch.tensor(listed, dtype=torch.int64)
    table = _checks.tensor("keep", _select._view("keep", keep), (torch.bool, *_select.LABEL_DTYPES))
    if table.dtype == torch.bool:
        if table.shape != (num_classes,):
            _checks.fail(ValueError, "keep", f"shape [{num_classes}], one flag per class", tuple(table.shape))
        return table.to(device)
    classes = table.reshape(-1).to(torch.int64)
    _select.within("keep", classes, num_classes)
    return torch.zeros(num_classes, dtype=torch.bool, device=device).index_fill_(0, classes.to(device), True)


# ---- budgets ---------------------------------------------------------------------------------------------


def topk_stable(scores: Any, k: int, largest: bool = True) -> Any:
    """Indices of the k largest (or smallest) scores, best first, the smaller index first among equals.

    Args:
        scores: [N] of a floating or integer dtype, without NaN.
        k: in [0, N].
        largest: whether large scores are the best.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: k > N or k < 0, a score that is NaN, not one dimension.
    """
    kind = _arrays.kind_of(scores)
    values = _scores("scores", scores)
    k = _select.budget("k", k, values.numel(), "scores")
    if k == 0:
        return kind(torch.zeros(0, dtype=torch.int64, device=values.device))
    if values.is_floating_point() and bool(values.isnan().any()):
        row = int(values.isnan().to(torch.uint8).argmax())
        _checks.fail(ValueError, "scores", "numbers", f"nan at index {row}")
    largest = bool(largest)
    limit = values.topk(k, largest=largest).values[-1]
    near = (values >= limit if largest else values <= limit).nonzero()[:, 0]
    order = values[near].sort(descending=largest, stable=True).indices[:k]
    return kind(near[order])


def _scores(name: str, value: Any) -> Tensor:
    dtypes = (*_checks.FLOAT_DTYPES, *_select.LABEL_DTYPES)
    values = _checks.tensor(name, _select._view(name, value), dtypes).detach()
    if values.ndim != 1:
        _checks.fail(ValueError, name, "shape [N]", tuple(values.shape))
    return values


def stratified_budget(counts: Any, budget: int) -> Any:
    """How many samples each stratum gives: the water-filling of CCS (Zheng et al., arXiv 2210.15809).

    From the smallest stratum on, each gives an equal share of what is left, or all it has.

    Args:
        counts: [S] sizes of the strata, integers >= 0.
        budget: in [0, sum of counts].

    Returns:
        int64 [S] that sum to budget.

    Raises:
        TypeError, ValueError: counts that are negative, a budget outside its range.
    """
    kind = _arrays.kind_of(counts)
    if isinstance(counts, Sequence):
        listed = [_checks.integer(f"counts[{i}]", n, 0, 2**62) for i, n in enumerate(counts)]
        counts = torch.tensor(listed, dtype=torch.int64)
    sizes = _checks.tensor("counts", _select._view("counts", counts), _select.LABEL_DTYPES)
    if sizes.ndim != 1:
        _checks.fail(ValueError, "counts", "shape [S]", tuple(sizes.shape))
    listed = sizes.tolist()
    if any(n < 0 for n in listed):
        _checks.fail(ValueError, "counts", "numbers >= 0", min(listed))
    left = _select.budget("budget", budget, sum(listed), "samples in all strata")
    out = [0] * len(listed)
    order = sorted(range(len(listed)), key=lambda s: (listed[s], s))
    for done, s in enumerate(order):
        out[s] = min(listed[s], left // (len(order) - done))
        left -= out[s]
    return kind(torch.tensor(out, dtype=torch.int64, device=sizes.device))


def moderate_select(
    distances: Any,
    labels: Any,
    budget: int,
    *,
    num_classes: int | None = None,
    rounding: str = "exact",
) -> Any:
    """The moderate coreset (Xia et al., ICLR 2023): samples whose distance to their class median is in the
    middle.

    With labels, every class gives q = min(budget // C, n_c) samples: those at positions lo .. lo + q - 1 of
    the class ordered by (distance, index), lo = (n_c - q) // 2. Without labels, or where budget < C, the same
    window of size budget over all samples at once.

    Args:
        distances: [N], as `class_median_distance` gives them.
        labels: [N] integers >= 0, or None.
        budget: samples in all, in [0, N].
        num_classes: C; by default the number of classes that occur.
        rounding: "exact", or "reference" for the window of the published code, round(n (1/2 -+ r/2)) with
            halves to even and r = q / n, which mostly misses q and wraps around where q > n.

    Returns:
        int64 indices, class after class, by distance within a class.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not fit, a distance that is NaN, a budget outside [0, N], a label outside
            [0, C), a class without samples that is asked to contribute.
    """
    kind = _arrays.kind_of(distances)
    values = _scores("distances", distances)
    budget = _select.budget("budget", budget, values.numel(), "samples")
    _checks.choice("rounding", rounding, ("exact", "reference"))
    if values.is_floating_point() and bool(values.isnan().any()):
        row = int(values.isnan().to(torch.uint8).argmax())
        _checks.fail(ValueError, "distances", "numbers", f"nan at index {row}")
    groups, share = [torch.arange(values.numel(), device=values.device)], budget
    if labels is not None:
        groups, share = _groups(labels, values, budget, num_classes)
    none = torch.zeros(0, dtype=torch.int64, device=values.device)
    picked = [g[_window(values[g], share, rounding)] for g in groups if share]
    return kind(torch.cat([none, *picked]))


def _groups(labels: Any, values: Tensor, budget: int, num_classes: Any) -> tuple[list[Tensor], int]:
    """Members of each class, and how many each gives; all as one where the budget is below one per class."""
    found = _select.labels("labels", labels, values.numel(), values.device, "distances")
    everything = torch.arange(values.numel(), device=values.device)
    if values.numel() == 0:
        return [everything], 0
    if num_classes is None:
        sizes = torch.unique(found, return_counts=True)[1].tolist()
    else:
        num_classes = _checks.integer("num_classes", num_classes, 1, MOST_CLASSES)
        _select.within("labels", found, num_classes)
        sizes = torch.bincount(found, minlength=num_classes).tolist()
    if budget < len(sizes):
        return [everything], budget
    if 0 in sizes:
        _checks.fail(ValueError, "labels", "samples of every class", f"none of class {sizes.index(0)}")
    return list(found.argsort(stable=True).split(sizes)), budget // len(sizes)


def _window(distances: Tensor, share: int, rounding: str) -> Tensor:
    """Positions of the middle ones of one group."""
    n = distances.numel()
    order = distances.argsort(stable=True)
    if rounding == "reference":
        rate = share / n
        return order[round(n * (0.5 - rate / 2)) : round(n * (0.5 + rate / 2))]
    share = min(share, n)
    low = (n - share) // 2
    return order[low : low + share]


# ---- kernels ---------------------------------------------------------------------------------------------


def _kernels(op: str, device: torch.device) -> ModuleType:
    backend = chosen_backend(op, device.type)
    if backend == "triton":
        from tenfold.kernels.scores import scores_triton as module
    elif backend == "reference":
        from tenfold.kernels.scores import scores_reference as module
    else:
        from tenfold.kernels.scores import scores_native as module
    return module


def _class_median_distance(x: Tensor, labels: Tensor, num_classes: int, check: bool) -> tuple[Tensor, Tensor]:
    _select.within("labels", labels, num_classes)
    module = _kernels("class_median_distance", x.device)
    medians, first = module.class_medians(x, labels, num_classes)
    if check and int(first) < x.shape[0]:
        got = f"{_select.bad_entry(x[int(first)])} in row {int(first)}"
        _checks.fail(ValueError, "x", "finite entries", got)
    return medians, module.own_distances(x, labels, medians)


def _class_vote(
    logits: Tensor, num_classes: int, targets: Tensor | None, num_target_classes: int, first_row: int
) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    if targets is not None:
        _select.within("target_labels", targets, num_target_classes)
    histogram = torch.zeros(num_classes, dtype=torch.int64, device=logits.device)
    matrix = torch.zeros(num_target_classes, num_classes, dtype=torch.int64, device=logits.device)
    if logits.ndim == 1:
        from tenfold.kernels.scores.scores_reference import count_votes

        _select.within("logits", logits, num_classes)
        count_votes(logits.to(torch.int64), targets, histogram, matrix)
        return histogram, matrix
    first = _kernels("class_vote", logits.device).class_vote(
        logits, targets, histogram, None if targets is None else matrix
    )
    if int(first) < rows:
        row = int(first)
        got = f"{'nan' if bool(logits[row].isnan().any()) else 'nothing but -inf'} in row {first_row + row}"
        _checks.fail(ValueError, "logits", "a largest entry in every row", got)
    return histogram, matrix


def _class_mask(labels: Tensor, keep: Tensor) -> Tensor:
    found: Tensor
    found, first = _kernels("class_mask", labels.device).class_mask(labels, keep)
    if first < labels.numel():
        got = f"{int(labels[first])} in row {first}"
        _checks.fail(ValueError, "labels", f"labels in [0, {keep.numel()})", got)
    return found


def _median_fake(x: Tensor, labels: Tensor, num_classes: int, check: bool) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    medians = x.new_empty((num_classes, x.shape[1]), dtype=dtype)
    return medians, x.new_empty((x.shape[0],), dtype=dtype)


def _vote_fake(
    logits: Tensor, num_classes: int, targets: Tensor | None, num_target_classes: int, first_row: int
) -> tuple[Tensor, Tensor]:
    histogram = logits.new_empty((num_classes,), dtype=torch.int64)
    return histogram, logits.new_empty((num_target_classes, num_classes), dtype=torch.int64)


def _mask_fake(labels: Tensor, keep: Tensor) -> Tensor:
    return labels.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


for _name, _kernel, _fake in (
    ("class_median_distance", _class_median_distance, _median_fake),
    ("class_vote", _class_vote, _vote_fake),
    ("class_mask", _class_mask, _mask_fake),
):
    _LIBRARY.impl(_name, _kernel, "CPU")
    _LIBRARY.impl(_name, _kernel, "CUDA")
    torch.library.register_fake(f"tenfold::{_name}", _fake, lib=_LIBRARY)

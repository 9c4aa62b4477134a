"""Scores of samples in plain PyTorch: the oracle and the fallback of the compiled kernels.

With p = softmax(z), e = p - onehot(y), q the largest p of another class than y:

    el2n              ||e||                      Paul et al., arXiv 2107.07075
    grand             ||e|| sqrt(1 + ||h||^2)    the last layer's gradient norm, bias included
    loss              -ln p_y
    entropy           -sum p ln p
    margin            largest p - second largest p
    least_confidence  1 - largest p
    label_margin      p_y - q                    summed over epochs: AUM (arXiv 2001.10528) as CCS uses it
    correct           whether y is the likeliest class, the smaller of two that tie

Sums run over the other classes, and y joins at the end: where p_y is nearly one, ||e|| and the loss keep
their digits.  A row with NaN, +inf or nothing but -inf, or whose label is no class, gets NaN and is not
correct.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NAMES = (
    "el2n",
    "grand",
    "loss",
    "entropy",
    "margin",
    "least_confidence",
    "label_margin",
    "correct",
    "histogram",
)
CHUNK = 1 << 22
"""Logits worked on at a time."""


class RowScores(NamedTuple):
    """[N] each, histogram [C]; those that were not wanted are empty."""

    el2n: Tensor
    grand: Tensor
    loss: Tensor
    entropy: Tensor
    margin: Tensor
    least_confidence: Tensor
    label_margin: Tensor
    correct: Tensor
    histogram: Tensor


def math_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def chunk_rows(width: int) -> int:
    return max(1, CHUNK // max(1, width))


def empty_scores(
    rows: int, classes: int, dtype: torch.dtype, device: torch.device, want: frozenset[str]
) -> RowScores:
    """Room for what is wanted; the histogram starts at zero."""

    def room(name: str) -> Tensor:
        if name == "histogram":
            size = classes if name in want else 0
            return torch.zeros(size, dtype=torch.int64, device=device)
        kind = torch.bool if name == "correct" else dtype
        return torch.empty(rows if name in want else 0, dtype=kind, device=device)

    return RowScores(*(room(name) for name in NAMES))


def score_rows(
    logits: Tensor, labels: Tensor, norms_squared: Tensor | None, want: frozenset[str]
) -> tuple[RowScores, Tensor]:
    """What `want` names, and int64 [2]: the first row with a logit that is not finite, and the first whose
    label is no class (N where there is none)."""
    rows, classes = logits.shape
    out = empty_scores(rows, classes, math_dtype(logits), logits.device, want)
    firsts = []
    step = chunk_rows(classes)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        norms = None if norms_squared is None else norms_squared[part]
        bad = _score_chunk(logits[part], labels[part], norms, out, part)
        firsts.append(torch.stack([_first(b, start, rows) for b in bad]))
    nothing = torch.full((2,), rows, dtype=torch.int64, device=logits.device)
    return out, torch.stack([nothing, *firsts]).amin(0)


def _first(bad: Tensor, start: int, rows: int) -> Tensor:
    """Index of the first true entry, or `rows`."""
    places = torch.arange(start, start + bad.numel(), device=bad.device)
    return places.where(bad, rows).amin()


def _score_chunk(
    logits: Tensor, labels: Tensor, norms: Tensor | None, out: RowScores, part: slice
) -> tuple[Tensor, Tensor]:
    z = logits.to(math_dtype(logits))
    classes = z.shape[1]
    infinite, outside = ~z.isfinite().all(1), (labels < 0) | (labels >= classes)
    at = labels.clamp(0, classes - 1)[:, None]
    own = z.gather(1, at)[:, 0]
    top = z.amax(1)
    hopeless = z.isnan().any(1) | top.isinf()
    others = z.scatter(1, at, -torch.inf)
    best_other = others.amax(1)
    d = others - top[:, None]
    e = d.exp()
    rest, own_e = e.sum(1), (own - top).exp()  # sum over the other classes; the label's
    total = rest + own_e
    log_total = torch.where(own == top, rest.log1p(), total.log())
    share = rest / total  # 1 - p_y
    values = {
        "el2n": (e.square().sum(1) / total.square() + share.square()).sqrt(),
        "loss": log_total + (top - own),
        "entropy": log_total - (torch.where(e > 0, e * d, 0.0).sum(1) + _times(own_e, own - top)) / total,
        "least_confidence": torch.where(own == top, share, (total - 1) / total),
        "label_margin": (own_e - (best_other - top).exp()) / total,
    }
    if norms is not None:
        values["grand"] = values["el2n"] * (1 + norms.to(z.dtype)).sqrt()
    if out.margin.numel():
        two = z.topk(min(2, classes), 1).values
        values["margin"] = -torch.expm1(two[:, 1] - top) / total if classes > 1 else 1 / total
    for name, value in values.items():
        room = getattr(out, name)
        if room.numel():
            room[part] = value.masked_fill(hopeless | outside, torch.nan)
    choice = z.argmax(1)  # the first of equals
    if out.correct.numel():
        out.correct[part] = (choice == labels) & ~hopeless
    if out.histogram.numel():
        out.histogram.add_(torch.bincount(choice[~hopeless], minlength=classes))
    return infinite, outside


def _times(e: Tensor, d: Tensor) -> Tensor:
    """e d, zero where e is."""
    return torch.where(e > 0, e * d, 0.0)


def dynamics_scatter_(state: dict[str, Tensor], indices: Tensor, scores: RowScores) -> None:
    """One observation of each sample `indices`, all different: see `tenfold.ops.Dynamics`."""
    correct, was = scores.correct, state["last"][indices] != 0
    state["forget"][indices] += (was & ~correct).to(torch.int32)
    state["correct"][indices] += correct.to(torch.int32)
    state["seen"][indices] += 1
    state["aum"][indices] += scores.label_margin
    state["el2n"][indices] += scores.el2n
    state["ever"][indices] |= correct.to(torch.uint8)
    state["last"][indices] = correct.to(torch.uint8)


# ---- cross-entropy of rows -------------------------------------------------------------------------------


def cross_entropy_rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, largest logit, and ln sum exp(z - largest) of each row; NaN where the label is no class."""
    z = logits.to(math_dtype(logits))
    if not z.shape[1]:
        return tuple(z.new_full((z.shape[0],), torch.nan) for _ in range(3))  # type: ignore[return-value]
    outside = (labels < 0) | (labels >= z.shape[1])
    top = z.amax(1)
    at = labels.clamp(0, z.shape[1] - 1)[:, None]
    own = z.gather(1, at)[:, 0]
    rest = (z - top[:, None]).exp().scatter(1, at, 0.0).sum(1)
    log_total = torch.where(own == top, rest.log1p(), (rest + (own - top).exp()).log())
    loss = log_total + (top - own)
    return loss.masked_fill(outside, torch.nan), top, log_total


def cross_entropy_rows_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, top: Tensor, log_total: Tensor
) -> Tensor:
    """grad_i (softmax(z_i) - onehot(y_i)), rounded once into the dtype of logits; 0 where grad_i is 0."""
    dtype = math_dtype(logits)
    p = ((logits.to(dtype) - top[:, None]) - log_total[:, None]).exp()
    valid = (labels >= 0) & (labels < logits.shape[1])
    at = torch.where(valid, labels, 0)[:, None]
    p = p.scatter_add(1, at, -valid.to(dtype)[:, None])
    g = grad.to(dtype)[:, None]
    return torch.where(g == 0, 0.0, g * p).to(logits.dtype)


# ---- classes ---------------------------------------------------------------------------------------------


def class_medians(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Component-wise medians [classes, d] (the mean of the two in the middle; NaN for an empty class), and
    the first row with an entry that is not finite (N where there is none)."""
    order = labels.argsort(stable=True)
    sizes = torch.bincount(labels, minlength=classes)
    medians = torch.full((classes, x.shape[1]), torch.nan, dtype=math_dtype(x), device=x.device)
    columns = max(1, CHUNK // max(1, int(sizes.max()) if classes else 1))
    for c, members in enumerate(order.split(sizes.tolist())):
        n = members.numel()
        for start in range(0, x.shape[1] if n else 0, columns):
            part = slice(start, start + columns)
            ordered = x[members, part].to(medians.dtype).sort(0).values
            medians[c, part] = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return medians, first_not_finite(x)


def first_not_finite(x: Tensor) -> Tensor:
    """int64 scalar: the first row with an entry that is not finite, or N."""
    step = chunk_rows(x.shape[1])
    found = [torch.full((), x.shape[0], dtype=torch.int64, device=x.device)]
    for start in range(0, x.shape[0], step):
        bad = ~x[start : start + step].isfinite().all(1)
        found.append(_first(bad, start, x.shape[0]))
    return torch.stack(found).amin()


def own_distances(x: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """||x_i - centers[labels_i]||, from differences."""
    out = torch.empty(x.shape[0], dtype=math_dtype(x), device=x.device)
    step = chunk_rows(x.shape[1])
    for start in range(0, x.shape[0], step):
        part = slice(start, start + step)
        out[part] = (x[part].to(out.dtype) - centers[labels[part]]).square().sum(1).sqrt()
    return out


def class_vote(logits: Tensor, targets: Tensor | None, histogram: Tensor, matrix: Tensor | None) -> Tensor:
    """Adds the class of the largest logit of each row (the smaller of equals) to the histogram, and to the
    row `targets` of the matrix. Returns the first row without a largest logit: with NaN, or all -inf."""
    first = torch.full((), logits.shape[0], dtype=torch.int64, device=logits.device)
    step = chunk_rows(logits.shape[1])
    for start in range(0, logits.shape[0], step):
        z = logits[start : start + step]
        top = z.amax(1)  # NaN where there is one
        hopeless = top.isnan() | (top == -torch.inf)
        choice = z.argmax(1)  # the first of equals
        first = torch.minimum(first, _first(hopeless, start, logits.shape[0]))
        kept = choice[~hopeless]
        count_votes(
            kept, None if targets is None else targets[start : start + step][~hopeless], histogram, matrix
        )
    return first


def count_votes(votes: Tensor, targets: Tensor | None, histogram: Tensor, matrix: Tensor | None) -> None:
    histogram.add_(torch.bincount(votes, minlength=histogram.numel()))
    if matrix is not None and targets is not None:
        cells = targets * matrix.shape[1] + votes
        matrix.view(-1).add_(torch.bincount(cells, minlength=matrix.numel()))


def class_mask(labels: Tensor, keep: Tensor) -> tuple[Tensor, int]:
    """Indices where keep[labels] is set, ascending, and the first row whose label is no class (N where there
    is none; otherwise the indices are not valid)."""
    outside = (labels < 0) | (labels >= keep.numel())
    if bool(outside.any()):
        return labels.new_empty(0, dtype=torch.int64), int(outside.to(torch.uint8).argmax())
    return keep[labels.to(torch.int64)].nonzero()[:, 0], labels.numel()

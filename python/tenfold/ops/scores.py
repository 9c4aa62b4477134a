"""Scores of samples from logits read once: EL2N, last-layer GraNd, loss, uncertainty, training dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

from . import _select_checks as _select

OPS |= dict.fromkeys(
    ("score_fused", "dynamics_update", "weighted_cross_entropy"), ("cpu", "cuda", "triton", "reference")
)

WANT = (
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
DEFAULT_WANT = ("el2n", "loss", "entropy", "margin", "least_confidence", "correct", "histogram")
STATE = {
    "last": torch.uint8,
    "forget": torch.int32,
    "correct": torch.int32,
    "aum": torch.float32,
    "el2n": torch.float32,
    "ever": torch.uint8,
    "seen": torch.int32,
}

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_FOUND = ", ".join(f"Tensor {name}" for name in WANT)
_STATE = ", ".join(f"Tensor({chr(ord('a') + i)}!) {name}" for i, name in enumerate(STATE))
for _schema in (
    "score_fused(Tensor logits, Tensor labels, Tensor? feature_norms_squared, str[] want, bool check, "
    f"SymInt first_row) -> ({_FOUND})",
    f"dynamics_update({_STATE}, Tensor indices, Tensor logits, Tensor labels, bool check) -> ()",
    "cross_entropy_rows(Tensor logits, Tensor labels) -> (Tensor loss, Tensor top, Tensor log_total)",
    "cross_entropy_rows_backward(Tensor grad, Tensor logits, Tensor labels, Tensor top, Tensor log_total) "
    "-> Tensor",
):
    _LIBRARY.define(_schema)


class Scores(NamedTuple):
    """One number per row, histogram one per class; None where it was not wanted."""

    el2n: Any = None
    """||softmax(z) - onehot(y)||, float32 [N] (float64 for float64 logits), as all but the last two"""
    grand: Any = None
    """el2n * sqrt(1 + ||h||^2): norm of the gradient of the last layer, its bias included"""
    loss: Any = None
    """-ln p_y, nats"""
    entropy: Any = None
    """-sum p ln p, nats"""
    margin: Any = None
    """largest minus second largest probability: small where the network is uncertain"""
    least_confidence: Any = None
    """1 - largest probability"""
    label_margin: Any = None
    """p_y minus the largest other probability"""
    correct: Any = None
    """bool [N]: the label is the likeliest class, the smaller of two that tie"""
    histogram: Any = None
    """int64 [C]: how often each class is the likeliest"""


def score_fused(
    logits: Any,
    labels: Any,
    *,
    feature_norms_squared: Any = None,
    want: Sequence[str] | None = None,
    check: bool = True,
) -> Scores:
    """Scores of every sample from one pass over its logits.

    EL2N and GraNd (Paul, Ganguli and Dziugaite, arXiv 2107.07075; the last layer's gradient norm in closed
    form), loss, and the uncertainty scores entropy, margin and least confidence. Where the label's
    probability is nearly one, 1 - p is summed over the other classes instead of subtracted. Results do not
    depend on the number of threads.

    Args:
        logits: [N, C] float32, bfloat16, float16 or float64, or a list of such shards, one behind the other;
            tensors, arrays or numpy.memmap, which are read in place (rows must have unit stride, or they are
            copied).
        labels: [N] integers in [0, C).
        feature_norms_squared: [N], ||h||^2 of the inputs of the last layer; needed for "grand".
        want: names of the fields to make; by default all but "label_margin", and "grand" only where the norms
            are given.
        check: refuse logits that are not finite. Without it, -inf counts as probability zero, and a row with
            NaN, +inf, nothing but -inf or a label outside [0, C) gets NaN and no vote. On a GPU the check
            waits for the result.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not fit, an unknown name in want, "grand" without norms; with check, a row
            with a logit that is not finite, or a label outside [0, C).
        RuntimeError: a forced backend that cannot run.
    """
    kind = _select.kind_of(logits)
    parts = _select.shards("logits", logits, "[N, C]")
    rows, device = sum(p.shape[0] for p in parts), parts[0].device
    labels = _select.labels("labels", labels, rows, device, "logits")
    norms = _norms(feature_norms_squared, rows, device)
    wanted = _wanted(want, norms is not None)
    start, found = 0, []
    for part in parts:
        end = start + part.shape[0]
        own = None if norms is None else norms[start:end]
        found.append(
            torch.ops.tenfold.score_fused(part, labels[start:end], own, list(wanted), bool(check), start)
        )
        start = end
    joined = (_joined(name, column) for name, column in zip(WANT, zip(*found, strict=True), strict=True))
    return Scores(*(kind(v) if n in wanted else None for n, v in zip(WANT, joined, strict=True)))


def _joined(name: str, parts: Sequence[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.stack(list(parts)).sum(0) if name == "histogram" else torch.cat(list(parts))


def _norms(value: Any, rows: int, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    name = "feature_norms_squared"
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False)).detach()
    _select.per_row(name, found, rows, device, "logits")
    return found


def _wanted(want: Sequence[str] | None, norms: bool) -> tuple[str, ...]:
    if want is None:
        return ("grand", *DEFAULT_WANT) if norms else DEFAULT_WANT
    names = _checks.sequence("want", want, "names")
    wanted = tuple(_checks.choice(f"want[{i}]", name, WANT) for i, name in enumerate(names))
    if "grand" in wanted and not norms:
        _checks.fail(ValueError, "feature_norms_squared", "[N] squared norms, for 'grand'", None)
    return wanted


# ---- training dynamics -----------------------------------------------------------------------------------


@dataclass
class Dynamics:
    """What `dynamics_update` keeps of each of n samples, tensors [n]. Sums run over the observations."""

    last: Tensor
    """uint8: whether the last prediction was right"""
    forget: Tensor
    """int32: how often it went from right to wrong (Toneva et al., arXiv 1812.05159)"""
    correct: Tensor
    """int32: how often it was right"""
    aum: Tensor
    """float32: sum of p_y - largest other p: the area under the margin (arXiv 2001.10528), on probabilities
    as CCS (arXiv 2210.15809) takes it"""
    el2n: Tensor
    """float32: sum of EL2N"""
    ever: Tensor
    """uint8: whether it was ever right; where not, forgetting is undefined (data_diet counts it as inf)"""
    seen: Tensor
    """int32: number of observations"""

    def tensors(self) -> list[Tensor]:
        """In the order of the fields."""
        return [getattr(self, name) for name in STATE]


def new_dynamics(n: int, device: Any = "cpu") -> Dynamics:
    """A `Dynamics` of n samples that were not seen yet.

    Raises:
        TypeError, ValueError: n is not an integer >= 0.
    """
    n = _checks.integer("n", n, 0, 2**62)
    return Dynamics(*(torch.zeros(n, dtype=dtype, device=device) for dtype in STATE.values()))


def dynamics_update(state: Dynamics, indices: Any, logits: Any, labels: Any, *, check: bool = True) -> None:
    """Adds one observation of the samples `indices`: their logits at this point of training.

    A first observation that is wrong is no forgetting. Nothing is written when an argument is refused.

    Args:
        state: of n samples; changed in place.
        indices: [B] integers in [0, n), all different.
        logits: [B, C] float32, bfloat16, float16 or float64.
        labels: [B] integers in [0, C).
        check: look for repeated indices, indices and labels out of range, and logits that are not finite. On
            a GPU this waits for the result; without it, such arguments give undefined states there.

    Raises:
        TypeError, ValueError, RuntimeError: as `score_fused`; with check, an index that comes twice or lies
            outside [0, n).
    """
    if not isinstance(state, Dynamics):
        _checks.fail(TypeError, "state", "a tenfold.ops.Dynamics", _checks.describe(state))
    tensors = state.tensors()
    for name, tensor, dtype in zip(STATE, tensors, STATE.values(), strict=True):
        _checks.tensor(f"state.{name}", tensor, (dtype,))
        if tensor.shape != tensors[0].shape or tensor.ndim != 1 or not tensor.is_contiguous():
            _checks.fail(ValueError, f"state.{name}", "a contiguous tensor [n]", tuple(tensor.shape))
    z = _select.matrix("logits", logits, "[B, C]")
    rows = _select.labels("indices", indices, z.shape[0], z.device, "logits")
    labels = _select.labels("labels", labels, z.shape[0], z.device, "logits")
    if tensors[0].device != z.device:
        _checks.fail(ValueError, "state", f"tensors on {z.device} like logits", tensors[0].device)
    torch.ops.tenfold.dynamics_update(*tensors, rows, z, labels, bool(check))


# ---- weighted cross-entropy ------------------------------------------------------------------------------


def weighted_cross_entropy(logits: Any, labels: Any, weights: Any, *, reduction: str = "mean") -> Any:
    """mean_i weights_i CE(logits_i, labels_i): weighted empirical risk, as CW-ERM (arXiv 2403.12166) and
    Meta-Weight-Net (arXiv 1902.07379) minimise it. The sum is divided by B, not by the sum of weights.

    Differentiable in logits and weights, as often as wanted. Losses are float32 (float64 for float64
    logits), their sum float64. A row of weight 0 gets a gradient of exactly 0; a loss that is NaN or infinite
    makes the result so.

    Args:
        logits: [B, C] float32, bfloat16, float16 or float64.
        labels: [B] integers in [0, C).
        weights: [B] of a floating dtype.
        reduction: "mean" (over B), "sum", or "none" for the weighted losses [B].

    Raises:
        TypeError, ValueError, RuntimeError: as `score_fused`. On the CPU, ValueError for a label outside
            [0, C). On a GPU, where waiting for the answer would cost more than the loss, it makes its row
            NaN.
    """
    kind = _arrays.kind_of(logits)
    _checks.choice("reduction", reduction, ("mean", "sum", "none"))
    z = _checks.tensor("logits", _arrays.as_tensor("logits", logits, write=False))
    if z.ndim != 2:
        _checks.fail(ValueError, "logits", "shape [B, C]", tuple(z.shape))
    labels = _select.labels("labels", labels, z.shape[0], z.device, "logits")
    w = _checks.tensor("weights", _arrays.as_tensor("weights", weights, write=False))
    _select.per_row("weights", w, z.shape[0], z.device, "logits")
    losses, _, _ = torch.ops.tenfold.cross_entropy_rows(z, labels)
    weighted = losses * w.to(losses.dtype)
    if reduction == "none":
        return kind(weighted)
    total = weighted.double().sum()
    return kind((total / z.shape[0] if reduction == "mean" else total).to(losses.dtype))


# ---- kernels ---------------------------------------------------------------------------------------------


def _kernels(op: str, device: torch.device) -> ModuleType:
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.scores import scores_reference as module
    elif backend == "triton":
        from tenfold.kernels.scores import scores_triton as module
    else:
        from tenfold.kernels.scores import scores_native as module
    return module


def _raise_bad_rows(bad: Tensor, logits: Tensor, labels: Tensor, first_row: int) -> None:
    infinite, outside = (int(i) for i in bad.tolist())
    rows, classes = logits.shape
    if infinite < rows:
        got = f"{_select.bad_entry(logits[infinite])} in row {first_row + infinite}"
        _checks.fail(ValueError, "logits", "finite entries", got)
    if outside < rows:
        got = f"{int(labels[outside])} in row {first_row + outside}"
        _checks.fail(ValueError, "labels", f"labels in [0, {classes})", got)


def _score_rows(
    op: str, logits: Tensor, labels: Tensor, norms: Tensor | None, want: Sequence[str], check: bool, at: int
) -> tuple[Tensor, ...]:
    if logits.shape[1] == 0 and logits.shape[0]:
        _checks.fail(ValueError, "logits", "at least one class", tuple(logits.shape))
    module = _kernels(op, logits.device)
    found, bad = module.score_rows(logits, labels, norms, frozenset(want))
    if check:
        _raise_bad_rows(bad, logits, labels, at)
    return tuple(found)


def _score_fused(
    logits: Tensor, labels: Tensor, norms: Tensor | None, want: Sequence[str], check: bool, first_row: int
) -> tuple[Tensor, ...]:
    return _score_rows("score_fused", logits, labels, norms, want, check, first_row)


def _score_fake(
    logits: Tensor, labels: Tensor, norms: Tensor | None, want: Sequence[str], check: bool, first_row: int
) -> tuple[Tensor, ...]:
    from tenfold.kernels.scores.scores_reference import empty_scores, math_dtype

    return tuple(empty_scores(*logits.shape, math_dtype(logits), logits.device, frozenset(want)))


def _dynamics_update(*arguments: Any) -> None:
    *tensors, indices, logits, labels, check = arguments
    state = dict(zip(STATE, tensors, strict=True))
    n = state["last"].numel()
    if check:
        bad = (indices < 0) | (indices >= n)
        if bool(bad.any()):
            _checks.fail(ValueError, "indices", f"integers in [0, {n})", int(indices[bad][0]))
        ordered = indices.sort().values
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if twice.numel():
            _checks.fail(ValueError, "indices", "different indices", f"{int(twice[0])} twice")
    want = ("el2n", "label_margin", "correct")
    found = _score_rows("dynamics_update", logits, labels, None, want, check, 0)
    from tenfold.kernels.scores.scores_reference import RowScores

    scores = RowScores(*found)
    if scores.el2n.dtype != torch.float32:
        scores = scores._replace(el2n=scores.el2n.float(), label_margin=scores.label_margin.float())
    _kernels("dynamics_update", logits.device).dynamics_scatter_(state, indices, scores)


def _cross_entropy_rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if logits.device.type == "cpu":
        _select.within("labels", labels, logits.shape[1])
    found: tuple[Tensor, Tensor, Tensor] = _kernels(
        "weighted_cross_entropy", logits.device
    ).cross_entropy_rows(logits, labels)
    return found


def _cross_entropy_rows_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, top: Tensor, log_total: Tensor
) -> Tensor:
    module = _kernels("weighted_cross_entropy", logits.device)
    found: Tensor = module.cross_entropy_rows_backward(grad, logits, labels, top, log_total)
    return found


def _rows_fake(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from tenfold.kernels.scores.scores_reference import math_dtype

    a, b, c = (logits.new_empty((logits.shape[0],), dtype=math_dtype(logits)) for _ in range(3))
    return a, b, c


def _rows_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(*inputs, output[1], output[2])


def _rows_gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    logits, labels, top, log_total = ctx.saved_tensors
    return torch.ops.tenfold.cross_entropy_rows_backward(grad, logits, labels, top, log_total), None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Of grad_i (p_i - onehot_i), in PyTorch's own differentiable operations, so that any order follows."""
    from tenfold.kernels.scores.scores_reference import math_dtype

    by_row, logits, labels = ctx.saved_tensors
    dtype = math_dtype(logits)
    p, up = torch.softmax(logits.to(dtype), 1), grad.to(dtype)
    mean = (p * up).sum(1)
    own = up.gather(1, labels.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    by_logits = by_row.to(dtype)[:, None] * p * (up - mean[:, None])
    return (mean - own).to(by_row.dtype), by_logits.to(logits.dtype), None, None, None


for _name, _kernel, _fake in (
    ("score_fused", _score_fused, _score_fake),
    ("dynamics_update", _dynamics_update, lambda *_: None),
    ("cross_entropy_rows", _cross_entropy_rows, _rows_fake),
    ("cross_entropy_rows_backward", _cross_entropy_rows_backward, lambda g, z, *_: z.new_empty(z.shape)),
):
    _LIBRARY.impl(_name, _kernel, "CPU")
    _LIBRARY.impl(_name, _kernel, "CUDA")
    torch.library.register_fake(f"tenfold::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd(
    "tenfold::cross_entropy_rows", _rows_gradient, setup_context=_rows_setup, lib=_LIBRARY
)
torch.library.register_autograd(
    "tenfold::cross_entropy_rows_backward", _backward_gradient, setup_context=_backward_setup, lib=_LIBRARY
)

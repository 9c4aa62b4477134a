"""Last-layer gradients of samples as factors, and selection by them: GradMatch, CRAIG, GLISTER.

For a linear last layer the gradient of sample i is the outer product of its output error e_i (softmax minus
one-hot for the cross-entropy) and its input with a leading 1 for the bias. It has rank one, so everything
that selection needs comes from errors [N, C] and hidden [N, d]; the N gradients of C (d + 1) numbers are
never made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

from . import _select_checks as _select

OPS |= {"omp_factored": ("cpu", "cuda", "triton", "reference")}
OPS |= dict.fromkeys(
    ("fgrad_gram", "fgrad_sqdist", "fgrad_mv", "fgrad_rmv", "craig", "glister"), ("cpu", "cuda", "reference")
)

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_PAIR = "Tensor errors, Tensor hidden"
for _schema in (
    f"fgrad_gram({_PAIR}, Tensor other_errors, Tensor other_hidden, bool bias) -> Tensor",
    f"fgrad_sqdist({_PAIR}, Tensor other_errors, Tensor other_hidden, bool bias) -> Tensor",
    f"fgrad_mv({_PAIR}, Tensor matrix, bool bias) -> Tensor",
    f"fgrad_rmv({_PAIR}, Tensor weights, bool bias) -> Tensor",
    f"omp_factored({_PAIR}, SymInt k, Tensor? target, float lam, bool bias) "
    "-> (Tensor indices, Tensor weights, Tensor residual, Tensor final)",
    f"craig({_PAIR}, SymInt k, bool bias, bool squared) "
    "-> (Tensor indices, Tensor gains, Tensor counts, Tensor objective)",
    f"glister({_PAIR}, Tensor val_logits, Tensor val_hidden, Tensor val_labels, SymInt k, SymInt rounds, "
    "float eta, bool bias) -> (Tensor indices, Tensor gains)",
):
    _LIBRARY.define(_schema)


class Omp(NamedTuple):
    """What orthogonal matching pursuit chose, in order."""

    indices: Any
    """int64: picks with a positive weight"""
    weights: Any
    """float32, positive"""
    residual: Any
    """float64 [k]: ||target - sum x g|| after each pick, with the regularised weights of that step"""
    final: Any
    """float64 scalar: the same with the weights returned"""


class Craig(NamedTuple):
    """What CRAIG chose, class after class, in order within a class."""

    indices: Any
    """int64 [k]"""
    gains: Any
    """float64 [k], non-increasing within a class"""
    weights: Any
    """float32 [k]: how many samples (of the class) are nearest to the pick; they sum to N"""
    objective: Any
    """float64 scalar: sum over samples of c - distance to the nearest pick, c the largest distance"""


class Glister(NamedTuple):
    """What GLISTER chose, in order; its samples weigh the same."""

    indices: Any
    """int64 [k]"""
    gains: Any
    """[k]: inner product with the validation gradient of the pick's round"""


# ---- products --------------------------------------------------------------------------------------------


def fgrad_gram(
    errors: Any, hidden: Any, other_errors: Any = None, other_hidden: Any = None, *, bias: bool = True
) -> Any:
    """Inner products of the last-layer gradients of two sets of samples, or of one with itself.

    Args:
        errors, hidden: [N, C] and [N, d] float32, bfloat16, float16 or float64.
        other_errors, other_hidden: [M, C] and [M, d]; by default the same samples.
        bias: whether the layer has one.

    Returns:
        [N, M] float32 (float64 where an argument is): (e_i . e'_j)(b + h_i . h'_j).

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shapes that do not fit.
        RuntimeError: a forced backend that cannot run.
    """
    return _between(torch.ops.tenfold.fgrad_gram, errors, hidden, other_errors, other_hidden, bias)


def fgrad_sqdist(
    errors: Any, hidden: Any, other_errors: Any = None, other_hidden: Any = None, *, bias: bool = True
) -> Any:
    """Squared distances ||g_i - g'_j||^2 of last-layer gradients: arguments as `fgrad_gram`. Products are
    made in float64, for near gradients cancel."""
    return _between(torch.ops.tenfold.fgrad_sqdist, errors, hidden, other_errors, other_hidden, bias)


def _between(op: Any, errors: Any, hidden: Any, other_errors: Any, other_hidden: Any, bias: bool) -> Any:
    kind = _arrays.kind_of(errors)
    e, h = _factors(errors, hidden, "errors", "hidden")
    f, g = e, h
    if other_errors is not None or other_hidden is not None:
        f, g = _factors(other_errors, other_hidden, "other_errors", "other_hidden", like=(e, h))
    return kind(op(e, h, f, g, bool(bias)))


def fgrad_mv(errors: Any, hidden: Any, matrix: Any, *, bias: bool = True) -> Any:
    """<g_i, matrix> for every sample.

    Args:
        errors, hidden, bias: as `fgrad_gram`.
        matrix: [C, d + 1], the column of the bias first ([C, d] without bias).

    Returns:
        [N] float32 (float64 where an argument is).

    Raises:
        TypeError, ValueError, RuntimeError: as `fgrad_gram`.
    """
    kind = _arrays.kind_of(errors)
    e, h = _factors(errors, hidden, "errors", "hidden")
    return kind(torch.ops.tenfold.fgrad_mv(e, h, _target("matrix", matrix, e, h, bias), bool(bias)))


def fgrad_rmv(errors: Any, hidden: Any, weights: Any = None, *, bias: bool = True) -> Any:
    """sum_i weights_i g_i; with the default weights 1/N the mean gradient.

    Args:
        errors, hidden, bias: as `fgrad_gram`.
        weights: [N], or None for 1/N each.

    Returns:
        [C, d + 1], the column of the bias first ([C, d] without bias); float32 (float64 where an argument
        is).

    Raises:
        TypeError, ValueError, RuntimeError: as `fgrad_gram`.
    """
    kind = _arrays.kind_of(errors)
    e, h = _factors(errors, hidden, "errors", "hidden")
    if weights is None:
        dtype = torch.float64 if torch.float64 in (e.dtype, h.dtype) else torch.float32
        w = torch.full((e.shape[0],), 1 / max(1, e.shape[0]), dtype=dtype, device=e.device)
    else:
        w = _checks.tensor("weights", _arrays.as_tensor("weights", weights, write=False)).detach()
        _select.per_row("weights", w, e.shape[0], e.device, "errors")
    return kind(torch.ops.tenfold.fgrad_rmv(e, h, w, bool(bias)))


# ---- selection -------------------------------------------------------------------------------------------


def omp_factored(
    errors: Any,
    hidden: Any,
    k: int,
    *,
    target: Any = None,
    lam: float = 1.0,
    bias: bool = True,
    check: bool = True,
) -> Omp:
    """k samples and weights whose gradients add up to the target: GradMatch (Killamsetty et al., arXiv
    2103.00123) by orthogonal matching pursuit.

    Each step picks the sample with the largest inner product with the residual and solves
    (G G^T + lam I) x = G target for all picks (the first step without lam); at the end the weights are the
    non-negative least-squares answer of the last system, and picks of weight 0 are dropped. Inner products
    are rank one by rank one, the Cholesky factor grows by a row per pick: a pick costs 2 N (C + d) + 2 N k
    operations. Sums are float64.

    Args:
        errors, hidden, bias: as `fgrad_gram`.
        k: picks, in [0, N].
        target: [C, d + 1], as `fgrad_rmv` makes it, say from a validation set; by default the mean gradient
            of the samples.
        lam: ridge, >= 0; DeepCore and CORDS take 1.
        check: refuse errors and hidden that are not finite.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not fit, k outside [0, N], lam < 0, entries that are not finite.
        RuntimeError: a forced backend that cannot run.
    """
    kind = _arrays.kind_of(errors)
    e, h = _factors(errors, hidden, "errors", "hidden")
    k = _select.budget("k", k, e.shape[0], "samples")
    lam = _checks.real("lam", lam, at_least=0.0)
    goal = None if target is None else _target("target", target, e, h, bias)
    if check:
        _all_finite(errors=e, hidden=h, target=goal)
    return Omp(*(kind(v) for v in torch.ops.tenfold.omp_factored(e, h, k, goal, lam, bool(bias))))


def craig(
    errors: Any,
    hidden: Any,
    k: int,
    *,
    labels: Any = None,
    distance: str = "l2",
    bias: bool = True,
    check: bool = True,
) -> Craig:
    """CRAIG (Mirzasoleiman, Bilmes and Leskovec, arXiv 1906.01827): samples that cover all last-layer
    gradients, by lazy greedy facility location, each weighted by how many it stands for.

    Args:
        errors, hidden, bias: as `fgrad_gram`.
        k: picks in all, in [0, N].
        labels: [N] integers >= 0: each class is covered by its own samples, with its share of k (largest
            remainder; a class whose share is 0 is left out). None: all samples together.
        distance: "l2" or "sqeuclidean", of gradients.
        check: refuse errors and hidden that are not finite.

    Raises:
        TypeError, ValueError, RuntimeError: as `omp_factored`.
    """
    kind = _arrays.kind_of(errors)
    e, h = _factors(errors, hidden, "errors", "hidden")
    rows = e.shape[0]
    k = _select.budget("k", k, rows, "samples")
    _checks.choice("distance", distance, ("l2", "sqeuclidean"))
    if check:
        _all_finite(errors=e, hidden=h)
    members, shares = [torch.arange(rows, device=e.device)], [k]
    if labels is not None:
        y = _select.labels("labels", labels, rows, e.device, "errors")
        sizes = torch.unique(y, return_counts=True)[1].tolist()
        members = list(y.argsort(stable=True).split(sizes)) if rows else members
        shares = _select.split_budget(k, sizes) if rows else shares
    found = []
    for group, share in zip(members, shares, strict=True):
        at, gains, counts, objective = torch.ops.tenfold.craig(
            e[group], h[group], share, bool(bias), distance == "sqeuclidean"
        )
        found.append((group[at], gains, counts.to(torch.float32), objective[None]))
    indices, gains, weights, objectives = (torch.cat(column) for column in zip(*found, strict=True))
    return Craig(kind(indices), kind(gains), kind(weights), kind(objectives.sum()))


def glister(
    errors: Any,
    hidden: Any,
    val_logits: Any,
    val_hidden: Any,
    val_labels: Any,
    k: int,
    *,
    rounds: int = 10,
    eta: float = 0.1,
    bias: bool = True,
    check: bool = True,
) -> Glister:
    """GLISTER (Killamsetty et al., arXiv 2012.10630) in its Taylor form: samples whose gradient lies along
    that of the validation loss, which is made again after each round.

    In each of `rounds` rounds the ceil(k / rounds) samples of largest <g_j, mean validation gradient> are
    taken, the smaller index first among equals. Then the last layer is moved by -eta times the sum of the
    gradients of all picks, and the validation logits with it.

    Args:
        errors, hidden, bias: of the training samples, as `fgrad_gram`.
        val_logits, val_hidden, val_labels: [V, C], [V, d] and [V] of the validation set, V >= 1.
        k: picks, in [0, N].
        rounds: >= 1.
        eta: step of the last layer per unit of gradient, > 0.
        check: refuse entries that are not finite.

    Raises:
        TypeError, ValueError, RuntimeError: as `omp_factored`; an empty validation set.
    """
    kind = _arrays.kind_of(errors)
    e, h = _factors(errors, hidden, "errors", "hidden")
    z, hv = _factors(val_logits, val_hidden, "val_logits", "val_hidden", like=(e, h))
    if z.shape[0] == 0:
        _checks.fail(ValueError, "val_logits", "at least one validation sample", tuple(z.shape))
    y = _select.labels("val_labels", val_labels, z.shape[0], z.device, "val_logits")
    k = _select.budget("k", k, e.shape[0], "samples")
    rounds = _checks.integer("rounds", rounds, 1, 2**31)
    eta = _checks.real("eta", eta, positive=True)
    if check:
        _all_finite(errors=e, hidden=h, val_logits=z, val_hidden=hv)
    found = torch.ops.tenfold.glister(e, h, z, hv, y, k, rounds, eta, bool(bias))
    return Glister(*(kind(v) for v in found))


# ---- checks ----------------------------------------------------------------------------------------------


def _factors(
    errors: Any, hidden: Any, first: str, second: str, like: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    widths = (None, None) if like is None else (like[0].shape[1], like[1].shape[1])
    e = _select.matrix(first, errors, "[N, C]", widths[0])
    h = _select.matrix(second, hidden, "[N, d]", widths[1])
    if h.shape[0] != e.shape[0]:
        _checks.fail(ValueError, second, f"{e.shape[0]} rows like {first}", tuple(h.shape))
    device = e.device if like is None else like[0].device
    for name, tensor in ((first, e), (second, h)):
        if tensor.device != device:
            _checks.fail(ValueError, name, f"a tensor on {device}", tensor.device)
    return e, h


def _target(name: str, value: Any, e: Tensor, h: Tensor, bias: bool) -> Tensor:
    found = _select.matrix(name, value, "[C, d + 1]")
    if found.shape != (e.shape[1], h.shape[1] + bool(bias)):
        _checks.fail(ValueError, name, f"shape {(e.shape[1], h.shape[1] + bool(bias))}", tuple(found.shape))
    if found.device != e.device:
        _checks.fail(ValueError, name, f"a tensor on {e.device} like errors", found.device)
    return found


def _all_finite(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None:
            _select.finite(name, tensor)


# ---- kernels ---------------------------------------------------------------------------------------------


def _products(op: str, device: torch.device) -> Any:
    """Products of matrices are the device library's; its fallback is the same code."""
    from tenfold.kernels.scores import fgrad_reference

    chosen_backend(op, device.type)
    return fgrad_reference


def _gram(e: Tensor, h: Tensor, f: Tensor, g: Tensor, bias: bool) -> Tensor:
    found: Tensor = _products("fgrad_gram", e.device).gram(e, h, f, g, bias)
    return found


def _sqdist(e: Tensor, h: Tensor, f: Tensor, g: Tensor, bias: bool) -> Tensor:
    found: Tensor = _products("fgrad_sqdist", e.device).sqdist(e, h, f, g, bias)
    return found


def _mv(e: Tensor, h: Tensor, matrix: Tensor, bias: bool) -> Tensor:
    found: Tensor = _products("fgrad_mv", e.device).mv(e, h, matrix, bias)
    return found


def _rmv(e: Tensor, h: Tensor, weights: Tensor, bias: bool) -> Tensor:
    found: Tensor = _products("fgrad_rmv", e.device).rmv(e, h, weights, bias)
    return found


def _omp(
    e: Tensor, h: Tensor, k: int, target: Tensor | None, lam: float, bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    backend = chosen_backend("omp_factored", e.device.type)
    if backend == "reference":
        from tenfold.kernels.scores import fgrad_reference as module
    elif backend == "triton":
        from tenfold.kernels.scores import fgrad_triton as module
    else:
        from tenfold.kernels.scores import fgrad_native as module
    found: tuple[Tensor, Tensor, Tensor, Tensor] = module.omp(e, h, target, k, lam, bias)
    return found


def _craig(e: Tensor, h: Tensor, k: int, bias: bool, squared: bool) -> tuple[Tensor, ...]:
    from tenfold.kernels.scores import greedy

    chosen_backend("craig", e.device.type)
    return greedy.craig(e, h, k, bias, squared)


def _glister(
    e: Tensor, h: Tensor, z: Tensor, hv: Tensor, y: Tensor, k: int, rounds: int, eta: float, bias: bool
) -> tuple[Tensor, Tensor]:
    from tenfold.kernels.scores import greedy

    chosen_backend("glister", e.device.type)
    _select.within("val_labels", y, z.shape[1])
    return greedy.glister(e, h, z, hv, y, k, rounds, eta, bias)


def _dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _between_fake(e: Tensor, h: Tensor, f: Tensor, g: Tensor, bias: bool) -> Tensor:
    return e.new_empty((e.shape[0], f.shape[0]), dtype=_dtype(e, h, f, g))


def _omp_fake(e: Tensor, h: Tensor, k: int, *_: Any) -> tuple[Tensor, ...]:
    kept = torch.library.get_ctx().new_dynamic_size()
    shapes: tuple[tuple[Any, torch.dtype], ...] = (
        ((kept,), torch.int64),
        ((kept,), torch.float32),
        ((k,), torch.float64),
        ((), torch.float64),
    )
    return tuple(e.new_empty(shape, dtype=dtype) for shape, dtype in shapes)


def _craig_fake(e: Tensor, h: Tensor, k: int, *_: Any) -> tuple[Tensor, ...]:
    shapes: tuple[tuple[Any, torch.dtype], ...] = (
        ((k,), torch.int64),
        ((k,), torch.float64),
        ((k,), torch.int64),
        ((), torch.float64),
    )
    return tuple(e.new_empty(shape, dtype=dtype) for shape, dtype in shapes)


def _glister_fake(
    e: Tensor, h: Tensor, z: Tensor, hv: Tensor, y: Tensor, k: int, *_: Any
) -> tuple[Tensor, ...]:
    return e.new_empty((k,), dtype=torch.int64), e.new_empty((k,), dtype=_dtype(e))


for _name, _kernel, _fake in (
    ("fgrad_gram", _gram, _between_fake),
    ("fgrad_sqdist", _sqdist, _between_fake),
    ("fgrad_mv", _mv, lambda e, h, m, _: e.new_empty((e.shape[0],), dtype=_dtype(e, h, m))),
    (
        "fgrad_rmv",
        _rmv,
        lambda e, h, w, bias: e.new_empty((e.shape[1], h.shape[1] + int(bias)), dtype=_dtype(e, h, w)),
    ),
    ("omp_factored", _omp, _omp_fake),
    ("craig", _craig, _craig_fake),
    ("glister", _glister, _glister_fake),
):
    _LIBRARY.impl(_name, _kernel, "CPU")
    _LIBRARY.impl(_name, _kernel, "CUDA")
    torch.library.register_fake(f"tenfold::{_name}", _fake, lib=_LIBRARY)

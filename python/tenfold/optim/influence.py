"""Influence unlearning: one Newton-like step away from the forget set, and solvers for it.

All solvers give x = (H + damp I)^-1 v, over lists of tensors, with the same `damp`:

* `diag`: H is a diagonal, as `Sophia` keeps it.
* `cg`: conjugate gradients on Hessian-vector products.
* `lissa`: the Neumann series on Hessian-vector products (Agarwal, Bullins, Hazan, arXiv 1602.03943).
* `woodfisher`: H = 1/N sum_n g_n g_n^T, the empirical Fisher, exactly (Singh, Alistarh, arXiv 2004.14340).

Influence functions: Koh, Liang (arXiv 1703.04730); as unlearning: Jia et al. (arXiv 2304.04934), and SOUL
(arXiv 2404.18239), which makes the step iterative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tenfold import _checks

from ._influence_batches import Batches
from ._influence_batches import wide as _wide

Vector = list[Tensor]
Product = Callable[[Vector], Sequence[Tensor]]
Gradients = Sequence[Sequence[Tensor]] | Callable[[], Iterable[Sequence[Tensor]]]

__all__ = [
    "InfluenceDirection", "InfluenceReport", "Solution", "cg", "diag", "influence_direction",
    "influence_unlearn",
    "lissa", "woodfisher",
]  # fmt: skip


class Solution(NamedTuple):
    """What a solver found.

    Attributes:
        x: the solution, shaped as v.
        residual: norm of (H + damp I) x - v over the norm of v, measured; NaN for the legacy recursion.
        iterations: products with H, or samples.
        converged: False if the iterations ran out, or `cg` met a direction of negative curvature.
    """

    x: Vector
    residual: float
    iterations: int
    converged: bool


# -- lists of tensors as one vector -----------------------------------------------------------------------


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _norm(a: Sequence[Tensor]) -> float:
    return _dot(a, a) ** 0.5


def _vector(name: str, v: Any) -> Vector:
    listed = list(_checks.sequence(name, v, "tensors"))
    return [_checks.tensor(f"{name}[{i}]", t).detach() for i, t in enumerate(listed)]


def _alike(name: str, tensors: Sequence[Tensor], v: Vector) -> None:
    _checks.length(name, tensors, len(v), "v")
    for i, (t, like) in enumerate(zip(tensors, v, strict=True)):
        if t.shape != like.shape:
            _checks.fail(ValueError, f"{name}[{i}]", f"shape {tuple(like.shape)} as v[{i}]", tuple(t.shape))


def _damped(product: Product, x: Vector, damp: float) -> Vector:
    hx = list(product(x))
    _alike("hvp", hx, x)
    return [h.to(t.dtype) + damp * t for h, t in zip(hx, x, strict=True)]


def _relative(product: Product, x: Vector, v: Vector, damp: float) -> float:
    size = _norm(v)
    rest = [a - b for a, b in zip(_damped(product, x, damp), v, strict=True)]
    return _norm(rest) / size if size else 0.0


# -- solvers ----------------------------------------------------------------------------------------------


@torch.no_grad()
def diag(v: Sequence[Tensor], hessian: Sequence[Tensor], *, damp: float = 1.0) -> Solution:
    """x = v / (h + damp) for a diagonal h, negative entries of which count as 0.

    Args:
        v: real tensors. hessian: shaped as v, for instance `[optimizer.state[p]["hessian"] for p in ...]`.
        damp: > 0.

    Raises TypeError or ValueError for arguments that do not fit.
    """
    damp = _checks.real("damp", damp, positive=True)
    values, h = _wide(_vector("v", v)), _vector("hessian", hessian)
    _alike("hessian", h, values)
    x = [t / (k.to(t.dtype).clamp(min=0) + damp) for t, k in zip(values, h, strict=True)]
    return Solution(x, 0.0, 0, True)


@torch.no_grad()
def cg(
    hvp: Product, v: Sequence[Tensor], *, damp: float = 1.0, rtol: float = 1e-5, maxiter: int = 100
) -> Solution:
    """Conjugate gradients (Hestenes, Stiefel 1952) for H that with `damp` is positive definite.

    Stops at a direction of negative curvature, as truncated Newton methods do, with what was reached before:
    `converged` is False then, and a larger `damp` helps.

    Args:
        hvp: maps a list of tensors to the product with H.
        damp: >= 0. rtol: of the norm of v, > 0. maxiter: >= 1.
    """
    damp, rtol = _checks.real("damp", damp, at_least=0.0), _checks.real("rtol", rtol, positive=True)
    maxiter = _checks.integer("maxiter", maxiter, 1, 1 << 40)
    b = _wide(_vector("v", v))
    x = [torch.zeros_like(t) for t in b]
    r = [t.clone() for t in b]
    p = [t.clone() for t in b]
    rr, target = _dot(r, r), (rtol * _norm(b)) ** 2
    iterations, curved = 0, True
    while not rr <= target and iterations < maxiter:  # also where it is NaN, so that x tells
        ap = _damped(hvp, p, damp)
        iterations += 1
        pap = _dot(p, ap)
        if pap <= 0:
            curved = False
            break
        step = rr / pap
        for xs, ps, rs, aps in zip(x, p, r, ap, strict=True):
            xs.add_(ps, alpha=step)
            rs.sub_(aps, alpha=step)
        before, rr = rr, _dot(r, r)
        for ps, rs in zip(p, r, strict=True):
            ps.mul_(rr / before).add_(rs)
    size = _norm(b)
    return Solution(x, rr**0.5 / size if size else 0.0, iterations, curved and rr <= target)


@torch.no_grad()
def lissa(
    hvp: Product,
    v: Sequence[Tensor],
    *,
    damp: float = 1.0,
    scale: float = 10.0,
    depth: int = 1000,
    rtol: float = 1e-5,
) -> Solution:
    """r <- v + (1 - damp / scale) r - H r / scale; the solution is r / scale.

    Converges where scale is larger than half the largest eigenvalue of H + damp I.  Code that writes
    (1 - damp) r means damp times scale.

    Args:
        hvp: may use another batch in each call; then the iteration stops at its noise.
        damp: >= 0. scale: > 0. depth: most iterations, >= 1. rtol: stop when a change of r is smaller than
            this share of it.

    Raises RuntimeError, naming scale, if the series diverges.
    """
    damp, scale = _checks.real("damp", damp, at_least=0.0), _checks.real("scale", scale, positive=True)
    depth = _checks.integer("depth", depth, 1, 1 << 40)
    b = _wide(_vector("v", v))
    r = [t.clone() for t in b]
    size, iterations, converged = _norm(b), 0, False
    while iterations < depth and not converged:
        hr = _damped(hvp, r, damp)
        change = [t - h / scale for t, h in zip(b, hr, strict=True)]
        for rs, c in zip(r, change, strict=True):
            rs.add_(c)
        iterations += 1
        reached = _norm(r)
        if not reached <= 1e12 * max(size, 1e-30):
            expected = "more than half the largest eigenvalue of H + damp I"
            _checks.fail(RuntimeError, "scale", expected, f"{scale}: the series diverges")
        converged = _norm(change) <= rtol * reached
    x = [t / scale for t in r]
    return Solution(x, _relative(hvp, x, b, damp), iterations, converged)


@torch.no_grad()
def woodfisher(
    gradients: Gradients,
    v: Sequence[Tensor],
    *,
    damp: float = 1.0,
    form: str = "gram",
    legacy: bool = False,
    store: torch.dtype | None = None,
) -> Solution:
    r"""(damp I + 1/N sum_n g_n g_n^T)^-1 v, exactly.

    "gram" solves the N x N system of Woodbury's identity,
    x = (v - G^T (damp N I + G G^T)^-1 G v) / damp, in float64.  "stream" goes through the samples once,
    Sherman-Morrison by Sherman-Morrison, and keeps one vector per sample:
    o_n = F_{n-1}^-1 g_n, x <- x - o_n (g_n^T x) / (N + g_n^T o_n), where F_{n-1}^-1 g_n needs all o before.
    Both hold N vectors of the size of v.

    The recursion in circulation for unlearning replaces F_{n-1}^-1 g_n by a multiple of the first gradient,
    so that x - v is a multiple of the first gradient whatever the others are.  `legacy` gives it, for
    comparison with published numbers; its damp is 1.

    Args:
        gradients: N gradients, each shaped as v, or a callable that yields them anew.
        damp: > 0. form: "gram" or "stream".
        store: dtype of the kept vectors; None for that of v, at least float32.

    Raises TypeError or ValueError for arguments that do not fit, ValueError for no gradient.
    """
    damp = _checks.real("damp", damp, positive=True)
    _checks.choice("form", form, ("gram", "stream"))
    values = _wide(_vector("v", v))
    flat = torch.cat([t.reshape(-1) for t in values])
    kind = flat.dtype if store is None else _checks.dtype("store", store)
    rows = [_row(i, g, values, kind) for i, g in enumerate(_each(gradients))]
    if not rows:
        _checks.fail(ValueError, "gradients", "at least one", "none")
    if legacy:
        if damp != 1:
            _checks.fail(ValueError, "damp", "1 for the legacy recursion", damp)
        return Solution(_shaped(_legacy(rows, flat), values), float("nan"), len(rows), True)
    x = (_gram if form == "gram" else _stream)(rows, flat, damp)

    def fisher(y: Vector) -> Vector:
        at = torch.cat([t.reshape(-1) for t in y])
        total = torch.zeros_like(at)
        for row in rows:
            g = row.to(at.dtype)
            total.add_(g, alpha=float(g @ at) / len(rows))
        return _shaped(total, values)

    solution = _shaped(x, values)
    return Solution(solution, _relative(fisher, solution, values, damp), len(rows), True)


def _each(gradients: Gradients) -> Iterable[Sequence[Tensor]]:
    return gradients() if callable(gradients) else gradients


def _row(i: int, gradient: Sequence[Tensor], values: Vector, dtype: torch.dtype) -> Tensor:
    tensors = list(gradient)
    _alike(f"gradients[{i}]", tensors, values)
    return torch.cat([g.detach().reshape(-1).to(dtype) for g in tensors])


def _shaped(flat: Tensor, like: Vector) -> Vector:
    pieces = flat.split([t.numel() for t in like])
    return [piece.view(t.shape).to(t.dtype) for piece, t in zip(pieces, like, strict=True)]


def _gram(rows: list[Tensor], v: Tensor, damp: float) -> Tensor:
    n = len(rows)
    products = _products(rows, rows)
    products.diagonal().add_(damp * n)
    weights = torch.linalg.solve(products, _products(rows, [v])[:, 0])
    x = v.clone()
    for row, w in zip(rows, weights.tolist(), strict=True):
        x.sub_(row.to(v.dtype), alpha=w)
    return x.div_(damp)


def _products(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """All dot products [len(a), len(b)] in float64, by pieces of the vectors."""
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a[0].device)
    for start in range(0, a[0].numel(), 1 << 16):
        part = slice(start, start + (1 << 16))
        left, right = (torch.stack([t[part].double() for t in rows]) for rows in (a, b))
        total += left @ right.T
    return total


def _stream(rows: list[Tensor], v: Tensor, damp: float) -> Tensor:
    n = len(rows)
    x = v / damp
    kept: list[tuple[Tensor, float]] = []  # o_j and N + g_j^T o_j
    for row in rows:
        g = row.to(v.dtype)
        o = g / damp
        for other, size in kept:
            o.sub_(other.to(v.dtype), alpha=float(other.to(v.dtype) @ g) / size)
        size = n + float(g @ o)
        x.sub_(o, alpha=float(g @ x) / size)
        kept.append((o.to(row.dtype), size))
    return x


def _legacy(rows: list[Tensor], v: Tensor) -> Tensor:
    n = len(rows)
    rows = [row.to(v.dtype) for row in rows]
    x, o = v.clone(), rows[0].clone()
    for row in rows[1:]:
        along = float(o @ row)
        x.sub_(o, alpha=float(x @ row) / (n + along))
        o.mul_(n / (n + along))
    return x


# -- unlearning ---------------------------------------------------------------------------------------------


class InfluenceDirection(NamedTuple):
    """x = (H_r + damp I)^-1 v, and what is known before a step along it is made.

    Attributes:
        x: shaped as the parameters.
        residual, iterations, converged: of the solver (see `Solution`).
        slope: v . x, twice the quadratic model's gain.
        forget_loss, retain_loss: means over predictions, in nats.
        forget_slope, retain_slope: their first-order changes per unit of alpha, g . x.
    """

    x: Vector
    residual: float
    iterations: int
    converged: bool
    slope: float
    forget_loss: float
    retain_loss: float
    forget_slope: float
    retain_slope: float


class InfluenceReport(NamedTuple):
    """What `influence_unlearn` did.  Losses are means over predictions, in nats.

    Attributes:
        update_norm: norm of alpha d, which was added to the parameters.
        residual, iterations, converged: of the solver (see `Solution`).
        slope: v . d, twice the quadratic model's gain.
        forget_before, forget_after, retain_before, retain_after: losses, in the mode that the model is in.
        forget_predicted, retain_predicted: first-order changes alpha g . d; compare with after - before.
    """

    update_norm: float
    residual: float
    iterations: int
    converged: bool
    slope: float
    forget_before: float
    forget_after: float
    forget_predicted: float
    retain_before: float
    retain_after: float
    retain_predicted: float


def influence_direction(
    model: nn.Module,
    forget: Sequence[Any],
    retain: Sequence[Any],
    *,
    solver: str | Callable[[Vector], Sequence[Tensor]] = "cg",
    damp: float = 1.0,
    params: Iterable[Tensor] | None = None,
    hessian: Sequence[Tensor] | None = None,
    curvature: Sequence[Any] | None = None,
    loss: Callable[..., Any] | None = None,
    **options: Any,
) -> InfluenceDirection:
    """The direction of `influence_unlearn`, for several alpha along it; no parameter is changed.

    Args:
        curvature: batches that H_r is made of, if not all of retain: each product with H goes over them.
        others: as in `influence_unlearn`.

    Raises:
        TypeError, ValueError: arguments that do not fit.
        RuntimeError: the direction is not finite.
    """
    chosen = _chosen(model, params)
    for name, batches in (("forget", forget), ("retain", retain), ("curvature", curvature)):
        if isinstance(batches, Iterator):
            expected = "batches that can be gone through several times"
            _checks.fail(TypeError, name, expected, type(batches).__name__)
    if not callable(solver):
        _checks.choice("solver", solver, ("cg", "lissa", "woodfisher", "diag"))
    data = Batches(model, chosen, loss)
    forget_loss, forget_grad, n_forget = data.mean("forget", forget)
    retain_loss, retain_grad, n_retain = data.mean("retain", retain)
    share = n_forget / (n_forget + n_retain)
    v = [share * (f - r) for f, r in zip(forget_grad, retain_grad, strict=True)]
    found = _solve(solver, data, retain if curvature is None else curvature, v, damp, hessian, options)
    if not all(bool(torch.isfinite(t).all()) for t in found.x):
        _checks.fail(RuntimeError, "solver", "a finite step", f"one that is not, of {solver!r}")
    return InfluenceDirection(
        found.x, found.residual, found.iterations, found.converged, _dot(v, found.x), forget_loss,
        retain_loss, _dot(forget_grad, found.x), _dot(retain_grad, found.x),
    )  # fmt: skip


def influence_unlearn(
    model: nn.Module,
    forget: Sequence[Any],
    retain: Sequence[Any],
    *,
    solver: str | Callable[[Vector], Sequence[Tensor]] = "cg",
    alpha: float = 1.0,
    damp: float = 1.0,
    params: Iterable[Tensor] | None = None,
    hessian: Sequence[Tensor] | None = None,
    curvature: Sequence[Any] | None = None,
    loss: Callable[..., Any] | None = None,
    **options: Any,
) -> InfluenceReport:
    """theta <- theta + alpha (H_r + damp I)^-1 v, v = grad L_full - grad L_retain.

    At a minimum of the full loss this is the Newton step of leave-out retraining to first order: the forget
    samples are taken out of the objective.  H_r is the Hessian of the mean retain loss ("cg", "lissa"), its
    empirical Fisher matrix ("woodfisher", one gradient per batch), or a diagonal ("diag").

    Args:
        model: batches as for `Sophia.estimate_hessian`.  Its gradients are not touched.
        forget, retain: batches that can be gone through several times (lists, DataLoaders in fixed order).
        solver: a name, or a callable from v to x (K-FAC, ...).
        alpha: size of the step; published grids go from 0.2 to 5.
        damp: as in the solvers.
        params: the parameters that move; None for all that require a gradient.  Memory is a few vectors of
            their size ("cg", "lissa"), one per retain batch ("woodfisher").
        hessian: for "diag": the diagonal, shaped as `params`.
        curvature: batches that H_r is made of; None for those of retain.
        loss: `loss(model, batch)` -> mean loss, or (mean loss, number of predictions).
        options: of the solver (rtol, maxiter, scale, depth, form, store, legacy).

    Raises:
        TypeError, ValueError: arguments that do not fit.
        RuntimeError: the step is not finite; parameters are left as they were.
    """
    params = _chosen(model, params)
    alpha = _checks.real("alpha", alpha)
    found = influence_direction(
        model, forget, retain, solver=solver, damp=damp, params=params, hessian=hessian, curvature=curvature,
        loss=loss, **options,
    )  # fmt: skip
    with torch.no_grad():
        for p, d in zip(params, found.x, strict=True):
            p.add_(d.to(p.dtype), alpha=alpha)
    data = Batches(model, params, loss)
    return InfluenceReport(
        update_norm=abs(alpha) * _norm(found.x),
        residual=found.residual,
        iterations=found.iterations,
        converged=found.converged,
        slope=found.slope,
        forget_before=found.forget_loss,
        forget_after=data.loss("forget", forget),
        forget_predicted=alpha * found.forget_slope,
        retain_before=found.retain_loss,
        retain_after=data.loss("retain", retain),
        retain_predicted=alpha * found.retain_slope,
    )


def _chosen(model: nn.Module, params: Iterable[Tensor] | None) -> list[Tensor]:
    chosen = [p for p in (model.parameters() if params is None else params) if p.requires_grad]
    if not chosen:
        _checks.fail(ValueError, "params", "at least one parameter that requires a gradient", "none")
    return chosen


def _solve(
    solver: str | Callable[[Vector], Sequence[Tensor]],
    data: Batches,
    curvature: Sequence[Any],
    v: Vector,
    damp: float,
    hessian: Sequence[Tensor] | None,
    options: dict[str, Any],
) -> Solution:
    if callable(solver):
        x = _vector("solver", list(solver(v)))
        _alike("solver", x, v)
        return Solution(x, float("nan"), 0, True)
    if solver == "diag":
        if hessian is None:
            _checks.fail(ValueError, "hessian", "a diagonal for solver 'diag'", None)
        return diag(v, hessian, damp=damp, **options)
    if solver == "woodfisher":
        return woodfisher(lambda: data.gradients(curvature), v, damp=damp, **options)
    iterate = cg if solver == "cg" else lissa
    return iterate(lambda x: data.product(curvature, x), v, damp=damp, **options)

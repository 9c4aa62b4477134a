"""Subsets that cover a data set, by greedy choice: facility location, graph cut, log-determinant, herding.

Similarities of points are made in tiles and never held: memory grows with N, not with N^2.  A similarity
matrix that is already there, dense or sparse, is taken as well.  Of equal gains the smallest index is taken,
and results do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend
from tenfold.kernels.coverage.problem import DISTANCES, OPTIMIZERS, Similarity, Wanted, sample_size

from . import _coverage_checks as given

OPS |= {
    "fl_greedy": ("cpu", "cuda", "triton", "reference"),
    "graphcut_greedy": ("cpu", "cuda", "triton", "reference"),
    "logdet_greedy": ("cpu", "cuda", "triton", "reference"),
    "herding": ("cpu", "cuda", "triton", "reference"),
}


class Coverage(NamedTuple):
    """A subset by facility location.

    indices: int64 [k], in the order of choice. gains: float64 [k], what each added to the objective.

    counts: int64 [k], how many rows each pick covers better than all others (of equals the earlier pick; rows
    that no pick covers count for the first). They add up to the rows, less those of an initial subset.

    objective: f of the picks and the initial subset together.
    """

    indices: Any
    gains: Any
    counts: Any
    objective: float


class Picks(NamedTuple):
    """indices: int64 [k], in the order of choice. gains: float64 [k], what each added to the objective."""

    indices: Any
    gains: Any


class Herding(NamedTuple):
    """indices: int64 [k], in the order of choice. errors: float64 [k], the distance between the mean of the
    points and the mean of the picks so far; with labels both within the class."""

    indices: Any
    errors: Any


def _backend(op: str, device: torch.device) -> ModuleType:
    from importlib import import_module

    name = {"cpu": "coverage_native", "cuda": "coverage_cuda"}.get(chosen_backend(op, device.type))
    name = name or f"coverage_{chosen_backend(op, device.type)}"
    return import_module(f"tenfold.kernels.coverage.{name}")


def _kind_of(*values: Any) -> Any:
    """Results are NumPy arrays for NumPy and SciPy arguments."""
    first = next(v for v in values if v is not None)
    first = first[0] if isinstance(first, (tuple, list)) and first else first
    if hasattr(first, "tocsr") and not isinstance(first, Tensor):
        return lambda result: result.numpy()
    return _arrays.kind_of(first)


def fl_greedy(
    x: Any = None,
    k: int | None = None,
    *,
    similarity: Any = None,
    kind: str = "sqeuclidean",
    gamma: float | None = None,
    bound: float | None = None,
    optimizer: str = "lazy",
    epsilon: float = 0.01,
    initial: Any = None,
    costs: Any = None,
    budget: float | None = None,
    sample_weights: Any = None,
    neighbors: int | None = None,
    seed: int = 0,
    check: bool = True,
) -> Coverage:
    """Facility location: picks that maximise f(S) = sum_i w_i max(0, max_{j in S} s_ij), greedily.

    Args:
        x: [N, d] points, candidates and rows alike: float32, bfloat16 or float16 (similarities float32, sums
            float64), or float64 (all of it, through the reference).
        k: how many, at most N less the initial subset. May be left out with a budget.
        similarity: in place of x: a matrix [M, N] of M rows to cover by N candidates, or a sparse one: SciPy,
            torch CSR, or (indptr, indices, values) of a square one. Absent entries are 0.
        kind: s of two points. "sqeuclidean": c - ``|a - b|^2`` with c the largest ``|.|^2`` (apricot's
            "euclidean"); "euclidean": c - ``|a - b|`` (CRAIG); "cosine01": (1 + cos) / 2 (DeepCore);
            "cosine2": cos^2 (apricot's "cosine"); "rbf": exp(-gamma ``|a - b|^2``); "inner": a . b.
        gamma: of "rbf", > 0; 1 / d by default.
        bound: c of the distances; found exactly by default. Points farther away than a smaller one are not
            covered. Without one smaller than c the picks do not depend on it.
        optimizer: "lazy" (Minoux 1978) and "naive" give the greedy picks; "stochastic" (Mirzasoleiman et al.,
            arXiv 1409.7938) looks at ceil(N / k ln(1 / epsilon)) random candidates per step and reaches, in
            expectation, 1 - 1/e - epsilon of the best; "lazier" is the same with lazy bounds.
        epsilon: in (0, 1), of the last two.
        initial: distinct indices that are covered from the start and not chosen.
        costs: [N] > 0, with `budget`: picks are those of the largest gain per cost that still fit.
        budget: > 0, what the picks may cost together.
        sample_weights: [M] >= 0, w.
        neighbors: only each row's most similar candidates count, as many; the others are 0. Takes memory and
            time of N x neighbors after one pass over all pairs.
        seed: of the random samples.
        check: whether x or the similarity is looked through for NaN and infinity.

    Returns:
        Coverage, in the kind of array that was given. With costs there may be fewer than k picks.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range; NaN or infinity, with the row.
    """
    problem = given.similarity_of(x, similarity, kind, gamma, bound, check)
    n, device = problem.candidates, problem.device
    start = given.indices("initial", initial, n)
    weights = None
    if sample_weights is not None:
        weights = given.row_values("sample_weights", sample_weights, problem.rows, device, positive=False)
    price, most = _costs(costs, budget, n, device)
    if k is None:
        if price is None:
            _checks.fail(TypeError, "k", "an integer (or costs with a budget)", None)
        k = n - len(start)
    k = given.budget_of("k", k, n - len(start))
    optimizer = _checks.choice("optimizer", optimizer, OPTIMIZERS)
    epsilon = _checks.real("epsilon", epsilon, positive=True, below=1.0)
    words = None
    if optimizer in ("stochastic", "lazier") and k:
        words = _words(_checks.seed("seed", seed), k, sample_size(n - len(start), k, epsilon))
    if neighbors is not None:
        problem = _nearest(problem, neighbors)
    to = _kind_of(x, similarity)
    if n == 0 or problem.rows == 0:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return Coverage(to(nothing), to(nothing.double()), to(nothing.clone()), 0.0)
    wanted = Wanted(k, optimizer, words, start, weights, price, most)
    found = _backend("fl_greedy", device).fl_greedy(problem, wanted)
    counts = torch.bincount(found.owner, minlength=len(start) + len(found.indices))[len(start) :]
    if not len(found.indices):
        counts = torch.empty(0, dtype=torch.int64)
    indices, gains, counts = (to(t.to(device)) for t in (found.indices, found.gains, counts))
    return Coverage(indices, gains, counts, found.objective)


def _costs(costs: Any, budget: Any, n: int, device: torch.device) -> tuple[Tensor | None, float]:
    if (costs is None) != (budget is None):
        missing = "budget" if budget is None else "costs"
        _checks.fail(TypeError, missing, "costs and a budget together", None)
    if costs is None:
        return None, math.inf
    return (
        given.row_values("costs", costs, n, device, positive=True),
        _checks.real("budget", budget, positive=True),
    )


def _words(seed: int, steps: int, sample: int) -> Tensor:
    from .zo import random_words

    blocks = -(-steps * sample // 4)
    words = random_words(seed, purpose="uniform", blocks=blocks).reshape(-1)
    return words[: steps * sample].reshape(steps, sample)


def _nearest(problem: Similarity, neighbors: int) -> Similarity:
    if problem.points is None:
        _checks.fail(ValueError, "neighbors", "None with similarity", neighbors)
    neighbors = _checks.integer("neighbors", neighbors, 1, max(problem.rows, 1))
    if problem.rows == 0:
        return problem
    row, column, values = _backend("fl_greedy", problem.device).nearest(problem, neighbors)
    sparse = given.by_candidate(row, column, values, problem.rows, problem.rows)
    return Similarity(sparse=sparse, rows=problem.rows)


def graphcut_greedy(
    x: Any = None,
    k: int = 0,
    *,
    similarity: Any = None,
    kind: str = "cosine01",
    gamma: float | None = None,
    bound: float | None = None,
    lam: float = 1.0,
    initial: Any = None,
    check: bool = True,
) -> Picks:
    """Graph cut: picks that stand for the whole and not for each other, greedily.

    gain of j: lam sum_i s_ij - 2 sum_{i in S} s_ij - s_jj (Iyer et al., arXiv 2006.15412).

    Args:
        x: [N, d], as `fl_greedy`.
        k: how many, 0 to N less the initial subset.
        similarity: in place of x: a symmetric matrix [N, N], dense or sparse, as `fl_greedy`.
        kind, gamma, bound: as `fl_greedy`.
        lam: >= 0; larger ones ask for more of the whole and for less difference.
        initial: distinct indices that are in S from the start.
        check: as `fl_greedy`.

    Returns:
        Picks.

    Raises:
        TypeError, ValueError: as `fl_greedy`; a matrix that is not symmetric.
    """
    problem = given.similarity_of(x, similarity, kind, gamma, bound, check, square=True)
    lam = _checks.real("lam", lam, at_least=0.0)
    return _picked("graphcut_greedy", problem, k, lam, initial, _kind_of(x, similarity))


def logdet_greedy(
    x: Any = None,
    k: int = 0,
    *,
    similarity: Any = None,
    kind: str = "rbf",
    gamma: float | None = None,
    ridge: float = 0.0,
    initial: Any = None,
    check: bool = True,
) -> Picks:
    """Log-determinant: picks that span the largest volume, as the mode of a determinantal point process.

    gain of j: log(s_jj - s_jS s_SS^-1 s_Sj), by an incremental Cholesky (Chen et al., arXiv 1709.05135).

    Args:
        x: [N, d], as `fl_greedy`.
        k: how many, 0 to N less the initial subset.
        similarity: in place of x: a positive semidefinite matrix [N, N], dense or sparse, as `fl_greedy`.
        kind: "rbf", "cosine01", "cosine2" or "inner": the positive semidefinite ones of `fl_greedy`.
        gamma: as `fl_greedy`.
        ridge: >= 0, added to the diagonal.
        initial: distinct indices that are in S from the start.
        check: as `fl_greedy`.

    Returns:
        Picks. A pick that the ones before span (a duplicate, without ridge) has gain -inf; those come last.

    Raises:
        TypeError, ValueError: as `fl_greedy`; a matrix that is not symmetric, a kind that is a distance.
    """
    if isinstance(kind, str) and kind in DISTANCES:
        _checks.fail(ValueError, "kind", "a positive semidefinite similarity", repr(kind))
    problem = given.similarity_of(x, similarity, kind, gamma, None, check, square=True)
    ridge = _checks.real("ridge", ridge, at_least=0.0)
    return _picked("logdet_greedy", problem, k, ridge, initial, _kind_of(x, similarity))


def _picked(op: str, problem: Similarity, k: Any, parameter: float, initial: Any, to: Any) -> Picks:
    start = given.indices("initial", initial, problem.candidates)
    k = given.budget_of("k", k, problem.candidates - len(start))
    if k == 0:
        return Picks(to(torch.empty(0, dtype=torch.int64)), to(torch.empty(0, dtype=torch.float64)))
    run = getattr(_backend(op, problem.device), op)
    picks, gains = run(problem, k, parameter, start)
    return Picks(to(picks.to(problem.device)), to(gains.to(problem.device)))


def herding(x: Any, k: Any, *, labels: Any = None, check: bool = True) -> Herding:
    """Herding: picks whose mean stays near the mean of all, or of their class.

    Step t takes the unselected z with the smallest ``|t mean - (sum of picks + z)|`` (Welling, ICML 2009;
    iCaRL, arXiv 1611.07725).

    Args:
        x: [N, d]: float32, bfloat16, float16 (float32 products), or float64.
        k: how many, 0 to N; or, with labels, as many for each class, a list [C].
        labels: int64 [N] in 0 .. C - 1: herding within each class, one class after the other. k is shared out
            in proportion to the classes' sizes, the largest remainders rounded up (equal ones by class).
        check: whether x is looked through for NaN and infinity.

    Returns:
        Herding.

    Raises:
        TypeError, ValueError: as `fl_greedy`; labels of another shape or < 0; a class with fewer members than
            its share.
    """
    z = given.points("x", x, check)
    to = _arrays.kind_of(x)
    if labels is None:
        k = given.budget_of("k", k, len(z))
        members = [(torch.arange(len(z), device=z.device), k)]
    else:
        y = _labels(labels, z)
        counts = torch.bincount(y).tolist()
        shares = _shares(k, counts)
        members = [(torch.nonzero(y == c)[:, 0], share) for c, share in enumerate(shares)]
    indices = [torch.empty(0, dtype=torch.int64, device=z.device)]
    errors = [torch.empty(0, dtype=torch.float64, device=z.device)]
    for where, share in members:
        if share == 0:
            continue
        own = z if labels is None else z[where]
        picks, distances = _backend("herding", z.device).herding(own, share)
        indices.append(where[picks.to(z.device)])
        errors.append(distances.to(z.device))
    return Herding(to(torch.cat(indices)), to(torch.cat(errors)))


def _labels(labels: Any, x: Tensor) -> Tensor:
    if isinstance(labels, (list, tuple)):
        labels = torch.tensor(labels, dtype=torch.int64)
    integers = (torch.int64, torch.int32, torch.int16, torch.uint8)
    y = _checks.tensor("labels", _arrays.as_tensor("labels", labels, write=False), integers)
    if y.shape != (len(x),):
        _checks.fail(ValueError, "labels", f"shape [{len(x)}]", tuple(y.shape))
    if len(y) and int(y.min()) < 0:
        _checks.fail(ValueError, "labels", "classes >= 0", int(y.min()))
    return y.to(x.device, torch.int64)


def _shares(k: Any, counts: Sequence[int]) -> list[int]:
    if isinstance(k, (list, tuple)):
        _checks.length("k", k, len(counts), "the classes")
        return [given.budget_of(f"k[{c}]", share, counts[c]) for c, share in enumerate(k)]
    total = sum(counts)
    k = given.budget_of("k", k, total)
    floors = [k * n // max(total, 1) for n in counts]
    by_remainder = sorted(range(len(counts)), key=lambda c: (-(k * counts[c] % max(total, 1)), c))
    for c in by_remainder[: k - sum(floors)]:
        floors[c] += 1
    return floors

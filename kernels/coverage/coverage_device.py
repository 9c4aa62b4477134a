"""What CUDA and Triton share: points in float32 on the device, and greedy choice with the heap on the host.

Gains come back a batch at a time, one wait for the device per batch; the choice among them is that of
coverage_reference.py, whose State and Values are replaced by ones that launch kernels.  A `Launch` has the
kernels of one backend.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from . import closed_forms, coverage_reference
from .problem import COSINES, DISTANCES, KINDS, Cover, Similarity, Sparse, Wanted, scale_of

SPANNED = 3.8e-6
"""Of the largest diagonal: what float32 similarities leave of a candidate that the picks span."""
BATCH = 256
FARTHEST = 2048


class Launch(Protocol):
    """The kernels of a backend. `which` are candidates, int64 [n]; sums are float64."""

    def norms(self, z: Tensor) -> Tensor:
        """float32 [N]: inner products of points with themselves."""

    def gains(self, p: Points, which: Tensor, current: Tensor, weights: Tensor) -> Tensor:
        """float64 [n]: sum_i w_i max(0, v_ij - current_i)."""

    def values(self, p: Points, which: Tensor) -> Tensor:
        """float32 [n, rows]: v."""

    def farthest(self, p: Points, which: Tensor) -> Tensor:
        """float64: the largest squared distance between one of them and one of p.rows."""

    def take(self, values: Tensor, current: Tensor, owner: Tensor, number: int) -> None:
        """Candidate `number` covers what its values [rows] cover better."""

    def matrix_gains(self, matrix: Tensor, which: Tensor, current: Tensor, weights: Tensor) -> Tensor:
        """As gains, of rows of a matrix [N, M]."""

    def lists_gains(self, sparse: Sparse, which: Tensor, current: Tensor, weights: Tensor) -> Tensor:
        """As gains, of a candidate's list of rows; absent ones are 0."""


class Points:
    """Points float32 [N, d] as a kind compares them; the first `rows` are covered."""

    def __init__(self, z: Tensor, norms: Tensor, kind: str, gamma: float, rows: int) -> None:
        self.z, self.norms, self.kind, self.gamma, self.rows = z, norms, kind, gamma, rows

    @property
    def code(self) -> int:
        return KINDS.index(self.kind)


def single(points: Tensor, kind: str) -> Tensor:
    """float32 points, of unit length for cosines, shifted for distances."""
    shift = None
    if kind not in (*COSINES, "inner"):
        shift = closed_forms.dyadic_shift(points).float().double()
    out = torch.empty(points.shape, dtype=torch.float32, device=points.device)
    for at, rows in enumerate(closed_forms.compared(points, kind, shift)):
        out[at * closed_forms.ROWS : at * closed_forms.ROWS + len(rows)] = rows
    return out


class Values:
    """As coverage_reference.Values: v of candidates over all rows, float64 [n, M]."""

    batch = BATCH

    def __init__(self, launch: Launch, s: Similarity) -> None:
        self.launch, self.similarity, self.rows = launch, s, s.rows
        self.floor, self.scale = 0.0, 1.0
        self.bounded = s.bound is not None
        if s.points is None:
            return
        z = single(s.points, s.kind)
        self.points = Points(z, launch.norms(z), s.kind, s.gamma, s.rows)
        self.scale = scale_of(s.kind)
        if s.kind == "cosine01":
            self.floor = -1.0
        elif s.kind in DISTANCES:
            self.floor = -(self._largest() if s.bound is None else s.bound)

    def _largest(self) -> float:
        """Without pairs that the triangle inequality says are nearer than one that was found."""
        norms, order = torch.sort(self.points.norms, descending=True, stable=True)
        p = Points(self.points.z[order], norms, "sqeuclidean", 0.0, self.rows)
        radii = norms.double().sqrt().cpu()
        end, top = 0, 0.0
        for _ in range(3):
            squares = -self.launch.values(p, torch.tensor([end], device=norms.device))[0]
            if float(squares.max()) <= top:
                break
            top, end = float(squares.max()), int(squares.argmax())
        for first in range(0, self.rows, FARTHEST):
            last = min(first + FARTHEST, self.rows)
            least = math.sqrt(top) * (1.0 - 1e-6) - float(radii[first])
            far = int(torch.searchsorted(-radii, torch.tensor(-least, dtype=torch.float64), right=True))
            p.rows = min(last, far)
            if p.rows == 0:
                break
            block = torch.arange(first, last, device=norms.device)
            top = max(top, float(self.launch.farthest(p, block)))
        top = float(torch.tensor(top, dtype=torch.float32).sqrt()) if self.points.kind == "euclidean" else top
        return top

    def __call__(self, which: Tensor) -> Tensor:
        return self.single(which).double()

    def single(self, which: Tensor) -> Tensor:
        """float32 [n, M]."""
        s = self.similarity
        if s.dense is not None:
            return s.dense[which].float()
        if s.sparse is not None:
            out = torch.zeros(len(which), self.rows, dtype=torch.float32, device=s.device)
            indptr, indices, values = s.sparse
            for row, j in enumerate(which.tolist()):
                at = slice(int(indptr[j]), int(indptr[j + 1]))
                out[row, indices[at]] = values[at].float()
            return out
        return self.launch.values(self.points, which)

    def similarity_of(self, value: Tensor) -> Tensor:
        return self.scale * (value - self.floor)


class State:
    """As coverage_reference.State: what is covered, in float32 on the device."""

    batches = (64, 1024)

    def __init__(self, values: Values, wanted: Wanted) -> None:
        s = values.similarity
        self.values = values
        self.source, self.launch = s, values.launch
        self.current = torch.full((s.rows,), values.floor, dtype=torch.float32, device=s.device)
        self.owner = torch.zeros(s.rows, dtype=torch.int32, device=s.device)
        w = wanted.weights
        self.weights = torch.ones_like(self.current) if w is None else w.float()
        self.taken = 0
        self.sparse: Sparse | None = None
        if s.sparse is not None:
            indptr, indices, entries = s.sparse
            self.sparse = (indptr, indices, entries.float())
        self.first = self._first(wanted)

    def _first(self, wanted: Wanted) -> list[float] | None:
        s = self.source
        if s.points is None or self.values.bounded:
            return None
        known = Similarity(
            points=self.values.points.z,
            kind=s.kind,
            bound=-self.values.floor if s.kind in DISTANCES else None,
            rows=s.rows,
        )
        bounds = closed_forms.first_bounds(known, None, wanted.weights)
        return None if bounds is None else bounds.tolist()

    def gains(self, which: list[int]) -> list[float]:
        out: list[float] = []
        most = self.batches[1]
        for first in range(0, len(which), most):
            block = torch.tensor(which[first : first + most], dtype=torch.int64, device=self.current.device)
            out += (self.values.scale * self._gains(block)).tolist()
        return out

    def _gains(self, block: Tensor) -> Tensor:
        s, cover = self.source, (self.current, self.weights)
        if s.dense is not None:
            return self.launch.matrix_gains(s.dense, block, *cover)
        if self.sparse is not None:
            return self.launch.lists_gains(self.sparse, block, *cover)
        return self.launch.gains(self.values.points, block, *cover)

    def take(self, j: int) -> None:
        which = torch.tensor([j], device=self.current.device)
        values = self.values.single(which)[0]
        self.launch.take(values, self.current, self.owner, self.taken)
        self.taken += 1

    def objective(self) -> float:
        total = self.current.double() - self.values.floor
        return self.values.scale * float(total @ self.weights.double())


def _is_wide(s: Similarity) -> bool:
    """Points and matrices of float64 are the reference's; sparse ones are rounded to float32."""
    return s.dtype == torch.float64 and s.sparse is None


def fl_greedy(launch: Launch, similarity: Similarity, wanted: Wanted) -> Cover:
    """See coverage_reference.fl_greedy."""
    if _is_wide(similarity):
        return coverage_reference.fl_greedy(similarity, wanted)
    state = State(Values(launch, similarity), wanted)
    return coverage_reference.greedy(state, similarity.candidates, wanted)


def graphcut_greedy(
    launch: Launch, similarity: Similarity, k: int, lam: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See coverage_reference.graphcut_greedy."""
    if _is_wide(similarity):
        return coverage_reference.graphcut_greedy(similarity, k, lam, initial)
    values = Values(launch, similarity)
    sums, own = _sums(values)
    return coverage_reference.graph_cut(values, lam * sums - own, k, initial)


def _sums(values: Values) -> tuple[Tensor, Tensor]:
    """(sum_i s_ij, s_jj), float64 [N] each."""
    s = values.similarity
    if s.points is None or not closed_forms.has_column_sums(s.kind):
        return coverage_reference.brute_sums(values)
    bound = -values.floor if s.kind in DISTANCES else None
    known = Similarity(points=values.points.z, kind=s.kind, bound=bound, rows=s.rows)
    return closed_forms.column_sums(known, None, None)


def logdet_greedy(
    launch: Launch, similarity: Similarity, k: int, ridge: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See coverage_reference.logdet_greedy."""
    if _is_wide(similarity):
        return coverage_reference.logdet_greedy(similarity, k, ridge, initial)
    values = Values(launch, similarity)
    left = _own(values) + ridge
    return coverage_reference.log_determinant(values, left, k, initial, SPANNED)


def _own(values: Values) -> Tensor:
    """s_jj, float64 [N]."""
    s = values.similarity
    if s.kind == "rbf" and s.points is not None:
        return torch.ones(s.rows, dtype=torch.float64, device=s.device)
    return _sums(values)[1]


def herding(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See coverage_reference.herding: a product with all points per pick, by PyTorch's own kernels."""
    if points.dtype == torch.float64:
        return coverage_reference.herding(points, k)
    return coverage_reference.herd(points, single(points, "sqeuclidean"), k)


def nearest(launch: Launch, similarity: Similarity, neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """See coverage_reference.nearest."""
    if _is_wide(similarity):
        return coverage_reference.nearest(similarity, neighbors)
    values = Values(launch, similarity)
    return coverage_reference.nearest_of(
        values.single, values.similarity_of, similarity.rows, neighbors, similarity.device, BATCH
    )

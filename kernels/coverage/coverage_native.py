"""The compiled coverage kernels behind the signatures of coverage_reference.py; CPU tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from . import closed_forms, coverage_reference
from .problem import DISTANCES, KINDS, OPTIMIZERS, Cover, Similarity, Wanted

GRAPH_CUT, LOG_DET, HERDING = range(3)
COLUMNS = 256


class Source:
    """A similarity as csrc/coverage_door.hpp takes it, with what it points to kept alive."""

    def __init__(self, s: Similarity) -> None:
        self.shift: Tensor | None = None
        self.order: Tensor | None = None
        self.covers_all = s.bound is None  # every distance is within the bound
        if s.points is None:
            self.similarity = s
            return
        if s.kind in (*DISTANCES, "rbf"):
            self.shift = closed_forms.dyadic_shift(s.points)
            self._shift = self.shift.float()
            self.shift = self._shift.double()
        if s.kind in DISTANCES:
            assert self.shift is not None
            self.order = closed_forms.by_radius(s.points, self.shift)
            if s.bound is None:
                self.similarity = s
                s = replace(s, bound=_native.cpu.cover_largest(self(), torch.get_num_threads()))
        self.similarity = s

    def __call__(self) -> tuple[Any, ...]:
        s = self.similarity
        if s.points is not None:
            n, d = s.points.shape
            bound = -1.0 if s.bound is None else s.bound
            return (
                "points", s.points.data_ptr(), n, d, DTYPE_CODES[s.dtype], KINDS.index(s.kind), s.gamma,
                0 if self.shift is None else self._shift.data_ptr(), _address(self.order), bound,
            )  # fmt: skip
        if s.dense is not None:
            return "matrix", s.dense.data_ptr(), *s.dense.shape, DTYPE_CODES[s.dtype]
        assert s.sparse is not None
        return "lists", *(t.data_ptr() for t in s.sparse), s.candidates, s.rows


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _is_wide(s: Similarity) -> bool:
    """Points and matrices of float64 are the reference's; sparse ones are rounded to float32."""
    return s.dtype == torch.float64 and s.sparse is None


def _single(s: Similarity) -> Similarity:
    if s.sparse is None:
        return s
    indptr, indices, values = s.sparse
    return replace(s, sparse=(indptr, indices, values.float()))


def fl_greedy(similarity: Similarity, wanted: Wanted) -> Cover:
    """See coverage_reference.fl_greedy."""
    return counted_fl_greedy(similarity, wanted)[0]


def counted_fl_greedy(similarity: Similarity, wanted: Wanted) -> tuple[Cover, int]:
    """As fl_greedy, and how many gains were computed."""
    if _is_wide(similarity):
        return coverage_reference.fl_greedy(similarity, wanted), 0
    source = Source(_single(similarity))
    first, moments = None, None
    if source.covers_all:
        first = closed_forms.first_bounds(source.similarity, source.shift, wanted.weights)
        if source.shift is not None and wanted.optimizer == "lazy":
            moments = closed_forms.moments(source.similarity, source.shift, wanted.weights)
    indices = torch.empty(wanted.k, dtype=torch.int64)
    gains = torch.empty(wanted.k, dtype=torch.float64)
    owner = torch.empty(similarity.rows, dtype=torch.int64)
    words = wanted.words
    made, objective, evaluations = _native.cpu.cover_greedy(
        source(), wanted.k, OPTIMIZERS.index(wanted.optimizer), _address(words),
        0 if words is None else words.shape[1], list(wanted.initial), _address(wanted.weights),
        _address(wanted.costs), wanted.budget, _address(first),
        (0.0, 0, 0, 0, 0.0) if moments is None else _moments(moments), indices.data_ptr(), gains.data_ptr(),
        owner.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return Cover(indices[:made], gains[:made], owner, objective), evaluations


def _moments(m: closed_forms.Moments) -> tuple[float, int, int, int, float]:
    return m.mass, m.slope.data_ptr(), m.square.data_ptr(), m.second.data_ptr(), m.slack


def graphcut_greedy(
    similarity: Similarity, k: int, lam: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See coverage_reference.graphcut_greedy."""
    if _is_wide(similarity):
        return coverage_reference.graphcut_greedy(similarity, k, lam, initial)
    source = Source(_single(similarity))
    sums, own = _sums(source)
    start = lam * sums - own
    return _walk(source, GRAPH_CUT, k, 0.0, start, initial)


def _sums(source: Source) -> tuple[Tensor, Tensor]:
    """(sum_i s_ij, s_jj), float64 [N] each."""
    s = source.similarity
    if s.points is not None and closed_forms.has_column_sums(s.kind):
        return closed_forms.column_sums(s, source.shift, None)
    if s.dense is not None:
        return s.dense.sum(1, dtype=torch.float64), s.dense.diagonal().double()
    if s.sparse is not None:
        indptr, indices, values = s.sparse
        column = torch.repeat_interleave(torch.arange(s.candidates), indptr.diff())
        sums = torch.zeros(s.candidates, dtype=torch.float64).index_add_(0, column, values.double())
        own = torch.zeros_like(sums)
        diagonal = column == indices
        own[column[diagonal]] = values[diagonal].double()
        return sums, own
    sums = torch.empty(s.candidates, dtype=torch.float64)
    single = torch.empty(s.candidates)
    _native.cpu.cover_sums(source(), sums.data_ptr(), single.data_ptr(), torch.get_num_threads())
    return sums, single.double()


def logdet_greedy(
    similarity: Similarity, k: int, ridge: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See coverage_reference.logdet_greedy."""
    if _is_wide(similarity):
        return coverage_reference.logdet_greedy(similarity, k, ridge, initial)
    return _walk(Source(_single(similarity)), LOG_DET, k, ridge, None, initial)


def _walk(
    source: Source, walk: int, k: int, parameter: float, start: Tensor | None, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    indices = torch.empty(k, dtype=torch.int64)
    gains = torch.empty(k, dtype=torch.float64)
    _native.cpu.cover_walk(
        source(), walk, k, parameter, _address(start), list(initial), indices.data_ptr(), gains.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return indices, gains


def herding(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See coverage_reference.herding."""
    if points.dtype == torch.float64:
        return coverage_reference.herding(points, k)
    source = Source(Similarity(points=points, kind="inner", rows=len(points)))
    source.shift = closed_forms.dyadic_shift(points)
    source._shift = source.shift.float()
    mean = closed_forms.mean_of(points)
    start = mean - source._shift.double()
    picks, _ = _walk(source, HERDING, k, 0.0, start, ())
    return picks, coverage_reference.herding_errors(points, mean, picks)


def nearest(similarity: Similarity, neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """See coverage_reference.nearest."""
    if _is_wide(similarity):
        return coverage_reference.nearest(similarity, neighbors)
    source = Source(similarity)
    out = torch.empty(COLUMNS, similarity.rows)

    def values(block: Tensor) -> Tensor:
        _native.cpu.cover_values(
            source(), block.data_ptr(), len(block), out.data_ptr(), torch.get_num_threads()
        )
        return out[: len(block)]

    return coverage_reference.nearest_of(
        values, lambda s: s, similarity.rows, neighbors, similarity.device, COLUMNS
    )

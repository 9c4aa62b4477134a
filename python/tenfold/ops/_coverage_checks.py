"""What the coverage ops take: points, or similarities that are already there, and what is said about rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.kernels.coverage.problem import DISTANCES, KINDS, Similarity, Sparse

CHECKED_ROWS = 4096
SYMMETRY_BLOCK = 1024
LARGE_COPY = 64 << 20


def points(name: str, value: Any, check: bool) -> Tensor:
    """[N, d], contiguous and, with `check`, finite."""
    x = _checks.tensor(name, _arrays.as_tensor(name, value, write=False)).detach()
    if x.ndim != 2 or x.shape[1] == 0:
        _checks.fail(ValueError, name, "shape [N, d] with d > 0", tuple(x.shape))
    if check:
        finite_rows(name, x)
    return contiguous(name, x)


def finite_rows(name: str, x: Tensor) -> None:
    for first in range(0, len(x), CHECKED_ROWS):
        rows = x[first : first + CHECKED_ROWS]
        if math.isfinite(float(rows.sum(dtype=torch.float64))):  # NaN and infinities stay in a sum
            continue
        bad = torch.nonzero(~torch.isfinite(rows).all(1))
        if len(bad):
            _checks.fail(ValueError, name, "finite values", f"NaN or infinity in row {first + int(bad[0])}")


def contiguous(name: str, x: Tensor) -> Tensor:
    size = x.numel() * x.element_size()
    if not x.is_contiguous() and size > LARGE_COPY:
        warnings.warn(f"{name}: copied to row-major memory ({size >> 20} MiB)", stacklevel=4)
    return x.contiguous()


def similarity_of(
    x: Any, similarity: Any, kind: Any, gamma: Any, bound: Any, check: bool, square: bool = False
) -> Similarity:
    """The problem's similarities from the arguments of an op; `square` where candidates are the rows."""
    if (x is None) == (similarity is None):
        expected = "either x or similarity"
        _checks.fail(TypeError, "similarity", expected, "none" if x is None else "both")
    if x is not None:
        return _of_points(points("x", x, check), kind, gamma, bound)
    for name, value in (("gamma", gamma), ("bound", bound)):
        if value is not None:
            _checks.fail(ValueError, name, "None with similarity", value)
    if hasattr(similarity, "tocsr") or isinstance(similarity, (tuple, list)) or _is_torch_csr(similarity):
        return _of_sparse(similarity, check, square)
    s = _checks.tensor("similarity", _arrays.as_tensor("similarity", similarity, write=False)).detach()
    if s.ndim != 2 or (square and s.shape[0] != s.shape[1]):
        expected = "shape [N, N]" if square else "shape [M, N], a column per candidate"
        _checks.fail(ValueError, "similarity", expected, tuple(s.shape))
    if check:
        finite_rows("similarity", s)
    rows = s.shape[0]
    if symmetric(s):
        return Similarity(dense=s.contiguous(), rows=rows)
    if square:
        _checks.fail(ValueError, "similarity", "a symmetric matrix", "one that is not")
    return Similarity(dense=contiguous("similarity", s.T), rows=rows)


def _of_points(x: Tensor, kind: Any, gamma: Any, bound: Any) -> Similarity:
    kind = _checks.choice("kind", kind, KINDS)
    if gamma is not None and kind != "rbf":
        _checks.fail(ValueError, "gamma", "None unless kind is 'rbf'", gamma)
    if bound is not None and kind not in DISTANCES:
        _checks.fail(ValueError, "bound", "None unless kind is a distance", bound)
    g = 1.0 / x.shape[1] if gamma is None else _checks.real("gamma", gamma, positive=True)
    top = None if bound is None else _checks.real("bound", bound, at_least=0.0)
    return Similarity(points=x, kind=kind, gamma=g if kind == "rbf" else 0.0, bound=top, rows=x.shape[0])


def symmetric(s: Tensor) -> bool:
    if s.shape[0] != s.shape[1]:
        return False
    for a in range(0, s.shape[0], SYMMETRY_BLOCK):
        for b in range(0, a + 1, SYMMETRY_BLOCK):
            rows, columns = slice(a, a + SYMMETRY_BLOCK), slice(b, b + SYMMETRY_BLOCK)
            if not torch.equal(s[rows, columns], s[columns, rows].T):
                return False
    return True


def _is_torch_csr(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.sparse_csr


def _parts(similarity: Any) -> tuple[Any, Any, Any, tuple[int, int] | None]:
    if _is_torch_csr(similarity):
        return (
            similarity.crow_indices(),
            similarity.col_indices(),
            similarity.values(),
            tuple(similarity.shape),
        )
    if hasattr(similarity, "tocsr"):
        csr = similarity.tocsr()
        if not csr.has_canonical_format:
            csr = csr.copy()
            csr.sum_duplicates()
        return csr.indptr, csr.indices, csr.data, csr.shape
    if len(similarity) != 3:
        _checks.fail(ValueError, "similarity", "(indptr, indices, values)", f"{len(similarity)} entries")
    return *similarity, None


def _of_sparse(similarity: Any, check: bool, square: bool) -> Similarity:
    *given, shape = _parts(similarity)
    names = ("indptr", "indices", "values")
    parts = [
        _arrays.as_tensor(f"similarity.{n}", v, write=False).detach()
        for n, v in zip(names, given, strict=True)
    ]
    for name, part in zip(names[:2], parts[:2], strict=True):
        _checks.tensor(f"similarity.{name}", part, (torch.int64, torch.int32))
    indptr, indices = parts[0].long(), parts[1].long()
    values = _checks.tensor("similarity.values", parts[2])
    if indptr.ndim != 1 or len(indptr) == 0 or indices.ndim != 1 or indices.shape != values.shape:
        got = f"{tuple(indptr.shape)}, {tuple(indices.shape)}, {tuple(values.shape)}"
        _checks.fail(ValueError, "similarity", "shapes [N + 1], [nnz], [nnz]", got)
    rows = len(indptr) - 1
    columns = rows if shape is None else shape[1]
    if square and rows != columns:
        _checks.fail(ValueError, "similarity", "shape [N, N]", (rows, columns))
    counts = indptr.diff()
    if int(indptr[0]) != 0 or int(indptr[-1]) != len(indices) or bool((counts < 0).any()):
        _checks.fail(ValueError, "similarity.indptr", f"ascending from 0 to {len(indices)}", "others")
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < columns:
        got = f"{int(indices.min())} .. {int(indices.max())}"
        _checks.fail(ValueError, "similarity.indices", f"columns in [0, {columns})", got)
    if check and not bool(torch.isfinite(values).all()):
        at = int(torch.nonzero(~torch.isfinite(values))[0])
        _checks.fail(ValueError, "similarity.values", "finite values", f"NaN or infinity at {at}")
    row = torch.repeat_interleave(torch.arange(rows, device=indices.device), counts)
    sparse = by_candidate(row, indices, values, rows, columns)
    if square and not _symmetric_sparse(row, indices, values, sparse):
        _checks.fail(ValueError, "similarity", "a symmetric matrix", "one that is not")
    return Similarity(sparse=sparse, rows=rows)


def by_candidate(row: Tensor, column: Tensor, values: Tensor, rows: int, columns: int) -> Sparse:
    """Entries (row, column, value) as a list of rows for every column."""
    order = torch.argsort(column * max(rows, 1) + row)
    row, column, values = row[order], column[order], values[order]
    twice = (column[1:] == column[:-1]) & (row[1:] == row[:-1])
    if bool(twice.any()):
        at = int(torch.nonzero(twice)[0])
        got = f"({int(row[at])}, {int(column[at])}) twice"
        _checks.fail(ValueError, "similarity", "every entry once", got)
    indptr = torch.zeros(columns + 1, dtype=torch.int64, device=row.device)
    indptr[1:] = torch.bincount(column, minlength=columns).cumsum(0)
    return indptr, row.contiguous(), values.contiguous()


def _symmetric_sparse(row: Tensor, column: Tensor, values: Tensor, sparse: Sparse) -> bool:
    """Whether the matrix by rows is the matrix by columns."""
    n = len(sparse[0]) - 1
    order = torch.argsort(row * max(n, 1) + column)
    same = torch.equal(column[order], sparse[1]) and torch.equal(values[order], sparse[2])
    counts = torch.bincount(row, minlength=n).cumsum(0)
    return same and torch.equal(counts, sparse[0][1:])


def indices(name: str, value: Any, candidates: int) -> tuple[int, ...]:
    """Distinct candidates."""
    if value is None:
        return ()
    if isinstance(value, Tensor) or hasattr(value, "__dlpack__"):
        t = _checks.tensor(
            name, _arrays.as_tensor(name, value, write=False), (torch.int64, torch.int32, torch.int16)
        )
        if t.ndim != 1:
            _checks.fail(ValueError, name, "shape [n]", tuple(t.shape))
        value = t.tolist()
    given: Sequence[Any] = _checks.sequence(name, value, "indices")
    out = [_checks.integer(f"{name}[{p}]", j, 0, candidates - 1) for p, j in enumerate(given)]
    seen: set[int] = set()
    for p, j in enumerate(out):
        if j in seen:
            _checks.fail(ValueError, f"{name}[{p}]", "distinct indices", f"{j} again")
        seen.add(j)
    return tuple(out)


def budget_of(name: str, value: Any, most: int) -> int:
    return _checks.integer(name, value, 0, most, f"an integer in [0, {most}], as many as there are to choose")


def row_values(name: str, value: Any, count: int, device: torch.device, *, positive: bool) -> Tensor:
    """float64 [count] >= 0 (and not all 0), or all > 0."""
    if isinstance(value, (list, tuple)):
        value = torch.tensor(value, dtype=torch.float64)
    dtypes = (*_checks.FLOAT_DTYPES, torch.int64, torch.int32)
    given = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), dtypes)
    given = given.detach().to(device, torch.float64)
    if given.shape != (count,):
        _checks.fail(ValueError, name, f"shape [{count}]", tuple(given.shape))
    wrong = ~torch.isfinite(given) | ((given <= 0) if positive else (given < 0))
    if bool(wrong.any()):
        at = int(torch.nonzero(wrong)[0])
        expected = "finite numbers > 0" if positive else "finite numbers >= 0"
        _checks.fail(ValueError, name, expected, f"{float(given[at])} at {at}")
    if not positive and count and not bool((given > 0).any()):
        _checks.fail(ValueError, name, "one number > 0 at least", "all 0")
    return given.contiguous()

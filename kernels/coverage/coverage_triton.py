# mypy: allow-untyped-defs, allow-untyped-calls
"""Coverage kernels in Triton: a program holds a tile of candidates and rows as CUDA's blocks do.

Products are IEEE float32 (no TF32): norms - 2 products cancels.  The order of additions is the compiler's, so
similarities agree with the other backends to rounding, and a gain may rise from step to step by as much.

Triton's interpreter (TRITON_INTERPRET=1 before this module is imported) runs the kernels on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import coverage_device
from .coverage_device import Points
from .problem import Cover, Similarity, Sparse, Wanted

ROWS, CANDIDATES, DEPTH = 128, 32, 32
PIECE = 1024
WARPS = 4
GAINS, VALUES, FARTHEST = range(3)


@triton.jit
def _value(dot, row_norms, norms, same, gamma, KIND: tl.constexpr):
    """v as coverage.hpp defines it; codes of KINDS."""
    if KIND == 0 or KIND == 1 or KIND == 4:
        square = row_norms[None, :] + norms[:, None] - 2.0 * dot
        square = tl.where(same | (square < 0.0), 0.0, square)
        if KIND == 0:
            value = -square
        elif KIND == 1:
            value = -tl.sqrt(square)
        else:
            value = tl.exp(-square * gamma)
    elif KIND == 3:
        value = dot * dot
    else:
        value = dot
    return value


@triton.jit
def _tiles(
    z,
    all_norms,
    which,
    current,
    weights,
    partial,
    values,
    rows,
    dim,
    count,
    gamma,
    KIND: tl.constexpr,
    TASK: tl.constexpr,
    ROWS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    place = tl.program_id(1) * CANDIDATES + tl.arange(0, CANDIDATES)
    inside = row < rows
    asked = place < count
    candidate = tl.load(which + place, mask=asked, other=0)
    dot = tl.zeros([CANDIDATES, ROWS], tl.float32)
    wide = row.to(tl.int64)
    for first in range(0, dim, DEPTH):
        k = first + tl.arange(0, DEPTH)
        a = tl.load(z + candidate[:, None] * dim + k[None, :], mask=(k < dim)[None, :], other=0.0)
        b = tl.load(
            z + wide[:, None] * dim + k[None, :], mask=inside[:, None] & (k < dim)[None, :], other=0.0
        )
        dot += tl.dot(a, tl.trans(b), input_precision="ieee")
    norms = tl.load(all_norms + candidate)
    row_norms = tl.load(all_norms + row, mask=inside, other=0.0)
    same = candidate[:, None] == wide[None, :]
    value = _value(dot, row_norms, norms, same, gamma, KIND)
    if TASK == 0:
        covered = tl.load(current + row, mask=inside, other=0.0)
        w = tl.load(weights + row, mask=inside, other=0.0)
        better = value - covered[None, :]
        better = tl.where(better > 0.0, better, 0.0) * w[None, :]
        sums = tl.sum(better, axis=1).to(tl.float64)
        tl.store(partial + tl.program_id(0).to(tl.int64) * count + place, sums, mask=asked)
    elif TASK == 1:
        to = values + place[:, None].to(tl.int64) * rows + row[None, :]
        tl.store(to, value, mask=asked[:, None] & inside[None, :])
    else:
        top = tl.max(tl.where(inside[None, :], -value, 0.0), axis=1).to(tl.float64)
        tl.store(partial + tl.program_id(0).to(tl.int64) * count + place, top, mask=asked)


@triton.jit
def _matrix(matrix, which, current, weights, partial, rows, count, PIECE: tl.constexpr):
    row = tl.program_id(0) * PIECE + tl.arange(0, PIECE)
    inside = row < rows
    candidate = tl.load(which + tl.program_id(1))
    value = tl.load(matrix + candidate * rows + row, mask=inside, other=0.0).to(tl.float32)
    better = value - tl.load(current + row, mask=inside, other=0.0)
    better = tl.where(better > 0.0, better, 0.0) * tl.load(weights + row, mask=inside, other=0.0)
    total = tl.sum(better.to(tl.float64), axis=0)
    tl.store(partial + tl.program_id(0).to(tl.int64) * count + tl.program_id(1), total)


@triton.jit
def _lists(indptr, indices, entries, which, current, weights, gains, PIECE: tl.constexpr):
    candidate = tl.load(which + tl.program_id(0))
    begin = tl.load(indptr + candidate)
    end = tl.load(indptr + candidate + 1)
    total = tl.zeros([PIECE], tl.float64)
    for first in range(begin, end, PIECE):
        at = first + tl.arange(0, PIECE)
        inside = at < end
        row = tl.load(indices + at, mask=inside, other=0)
        better = tl.load(entries + at, mask=inside, other=0.0) - tl.load(
            current + row, mask=inside, other=0.0
        )
        better = tl.where(better > 0.0, better, 0.0) * tl.load(weights + row, mask=inside, other=0.0)
        total += better.to(tl.float64)
    tl.store(gains + tl.program_id(0), tl.sum(total, axis=0))


class Triton:
    """A coverage_device.Launch."""

    def norms(self, z: Tensor) -> Tensor:
        return z.square().sum(1)

    def _run(
        self,
        task: int,
        p: Points,
        which: Tensor,
        current: Tensor,
        weights: Tensor,
        partial: Tensor,
        values: Tensor,
        kind: int,
    ) -> None:
        grid = (triton.cdiv(p.rows, ROWS), triton.cdiv(len(which), CANDIDATES))
        _tiles[grid](
            p.z, p.norms, which, current, weights, partial, values, p.rows, p.z.shape[1], len(which), p.gamma,
            KIND=kind, TASK=task, ROWS=ROWS, CANDIDATES=CANDIDATES, DEPTH=DEPTH, num_warps=WARPS,
        )  # fmt: skip

    def _partial(self, p: Points, which: Tensor) -> Tensor:
        return p.z.new_empty(triton.cdiv(p.rows, ROWS), len(which), dtype=torch.float64)

    def gains(self, p: Points, which: Tensor, current: Tensor, weights: Tensor) -> Tensor:
        partial = self._partial(p, which)
        self._run(GAINS, p, which, current, weights, partial, p.norms, p.code)
        return partial.sum(0)

    def values(self, p: Points, which: Tensor) -> Tensor:
        out = p.z.new_empty(len(which), p.rows)
        self._run(VALUES, p, which, p.norms, p.norms, p.norms, out, p.code)
        return out

    def farthest(self, p: Points, which: Tensor) -> Tensor:
        partial = self._partial(p, which)
        self._run(FARTHEST, p, which, p.norms, p.norms, partial, p.norms, 0)
        return partial.max()

    def take(self, values: Tensor, current: Tensor, owner: Tensor, number: int) -> None:
        owner[values > current] = number
        torch.maximum(current, values, out=current)

    def matrix_gains(self, matrix: Tensor, which: Tensor, current: Tensor, weights: Tensor) -> Tensor:
        rows = matrix.shape[1]
        partial = current.new_empty(triton.cdiv(rows, PIECE), len(which), dtype=torch.float64)
        _matrix[tuple(partial.shape)](
            matrix, which, current, weights, partial, rows, len(which), PIECE=PIECE, num_warps=WARPS
        )
        return partial.sum(0)

    def lists_gains(self, sparse: Sparse, which: Tensor, current: Tensor, weights: Tensor) -> Tensor:
        gains = current.new_empty(len(which), dtype=torch.float64)
        _lists[(len(which),)](*sparse, which, current, weights, gains, PIECE=128, num_warps=WARPS)
        return gains


def fl_greedy(similarity: Similarity, wanted: Wanted) -> Cover:
    """See coverage_reference.fl_greedy."""
    return coverage_device.fl_greedy(Triton(), similarity, wanted)


def graphcut_greedy(
    similarity: Similarity, k: int, lam: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See coverage_reference.graphcut_greedy."""
    return coverage_device.graphcut_greedy(Triton(), similarity, k, lam, initial)


def logdet_greedy(
    similarity: Similarity, k: int, ridge: float, initial: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """See coverage_reference.logdet_greedy."""
    return coverage_device.logdet_greedy(Triton(), similarity, k, ridge, initial)


def nearest(similarity: Similarity, neighbors: int) -> tuple[Tensor, Tensor, Tensor]:
    """See coverage_reference.nearest."""
    return coverage_device.nearest(Triton(), similarity, neighbors)


herding = coverage_device.herding


def ahead_of_time() -> list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """(name, kernel, signature, constants, options) of the kernels to compile where there is no GPU."""
    cases: list[tuple[str, Any, dict[str, str], dict[str, Any], dict[str, Any]]] = []
    for name, kind, task in (
        ("squared", 0, GAINS),
        ("gaussian", 4, GAINS),
        ("values", 2, VALUES),
        ("farthest", 0, FARTHEST),
    ):
        constants = {"KIND": kind, "TASK": task, "ROWS": ROWS, "CANDIDATES": CANDIDATES, "DEPTH": DEPTH}
        signature = {"z": "*fp32", "all_norms": "*fp32", "which": "*i64", "current": "*fp32"}
        signature |= {"weights": "*fp32", "partial": "*fp64", "values": "*fp32"}
        signature |= {"rows": "i32", "dim": "i32", "count": "i32", "gamma": "fp32"}
        signature |= dict.fromkeys(constants, "constexpr")
        cases.append((f"tiles.{name}", _tiles, signature, constants, {"num_warps": WARPS}))
    signature = {
        "matrix": "*bf16",
        "which": "*i64",
        "current": "*fp32",
        "weights": "*fp32",
        "partial": "*fp64",
    }
    signature |= {"rows": "i32", "count": "i32", "PIECE": "constexpr"}
    cases.append(("matrix", _matrix, signature, {"PIECE": PIECE}, {"num_warps": WARPS}))
    signature = {"indptr": "*i64", "indices": "*i64", "entries": "*fp32", "which": "*i64", "current": "*fp32"}
    signature |= {"weights": "*fp32", "gains": "*fp64", "PIECE": "constexpr"}
    cases.append(("lists", _lists, signature, {"PIECE": 128}, {"num_warps": WARPS}))
    return cases

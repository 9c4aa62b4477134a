"""What optimizers with directions of low rank share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._base import ZerothOrder
from ._dual import Spot, plain_matrix
from ._shortcuts import LowRankMatrix, Matrix
from ._walk import Cell, Coefs, Mover, Walk

MATRIX = "matrix"


class LowRank(ZerothOrder):
    """Directions left @ right^T for matrices, plain Gaussian ones for all other parameters."""

    _plain_only = True
    _shardable = False

    def _kind(self, p: Tensor) -> str:
        return MATRIX if p.ndim == 2 else "plain"

    def _mover(self, kind: str) -> Mover | None:
        return self._move_matrices if kind == MATRIX else None

    def _factors(self, walk: Walk, cell: Cell, k: int, query: int) -> tuple[Tensor, Tensor]:
        """left [m, r] and right [n, r] of a direction of parameter k, float32; each optimizer's own."""
        raise NotImplementedError

    def _move_matrices(
        self,
        walk: Walk,
        cell: Cell,
        params: list[Tensor],
        sources: list[Tensor] | None,
        coefs: Coefs,
        decay: float,
        rounding: dict[str, Any],
    ) -> None:
        """What `Mover` asks for, of the matrices of a cell; each optimizer's own."""
        raise NotImplementedError

    def _matrix(self, spot: Spot) -> Matrix | None:
        cell, (coefs, decay) = spot.cell, spot.cell.place
        if cell.kind != MATRIX:
            return plain_matrix(spot)
        if decay != 1.0 or len(coefs) != 1:
            return None
        ((query, coef),) = coefs.items()
        left, right = self._factors(spot.walk, cell, spot.k, query)
        return LowRankMatrix(spot.param.detach(), left, right, coef)

"""What optimizers with directions of low rank share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._base import ZerothOrder
from ._dual import Spot, plain_shortcut
from ._walk import Cell, Coefs, Mover, Walk

MATRIX = "matrix"


class LowRank(ZerothOrder):
    """Directions left @ right^T for matrices, plain Gaussian ones for all other parameters."""

    _plain_only = True

    def _kind(self, p: Tensor) -> str:
        return MATRIX if p.ndim == 2 else "plain"

    def _mover(self, kind: str) -> Mover | None:
        return self._move_matrices if kind == MATRIX else None

    def _factors(self, walk: Walk, cell: Cell, k: int, query: int) -> tuple[Tensor, Tensor]:
        """left [m, r] and right [n, r] of a direction of parameter number k, float32."""
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
        raise NotImplementedError

    def _shortcut(
        self, spot: Spot, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        cell, (coefs, decay) = spot.cell, spot.cell.place
        if cell.kind != MATRIX:
            return plain_shortcut(spot, func, args, kwargs)
        if decay != 1.0 or len(coefs) != 1:
            return None
        ((query, coef),) = coefs.items()
        weight = spot.param.detach()
        left, right = self._factors(spot.walk, cell, spot.k, query)
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        left, right = left.to(wide), right.to(wide) * coef
        if func is F.linear:
            x = args[0] if args else kwargs["input"]
            out = func(*_with_weight(args, weight), **_named_weight(args, kwargs, weight))
            moved = (x.to(wide) @ right) @ left.T
        else:
            ids = args[0] if args else kwargs["input"]
            out = func(*_with_weight(args, weight), **_named_weight(args, kwargs, weight))
            moved = left[ids] @ right.T
        return (out.to(wide) + moved).to(out.dtype)


def _with_weight(args: tuple[Any, ...], weight: Tensor) -> tuple[Any, ...]:
    return (args[0], weight, *args[1:]) if args else ()


def _named_weight(args: tuple[Any, ...], kwargs: dict[str, Any], weight: Tensor) -> dict[str, Any]:
    return kwargs if args else {**kwargs, "weight": weight}

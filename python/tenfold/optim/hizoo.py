"""HiZOO: directions scaled by a running estimate of the diagonal of the Hessian."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold import _checks

from ._base import ZerothOrder
from ._helpers import Values
from ._record import FLAG_CURVATURE, FLAG_GRAD, Scalar
from ._shards import locals_of
from ._walk import Cell, Coefs, Mover, Walk
from .sgd import gradient_coefficients, stateful_pass, terms

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import Common


class HiZOO(ZerothOrder):
    r"""ZO-SGD with directions :math:`z / \sqrt h`, h being an average of the curvature seen along them.

    .. math::
        L_\pm = L(\theta \pm \epsilon z / \sqrt h), \quad
        t = \frac{|L_+ + L_- - 2 L_0|}{2 \epsilon^2} z^2, \quad h \leftarrow (1 - a) h + a \, h \, t, \quad
        \theta \leftarrow (1 - \eta \lambda) \theta - \eta \frac{L_+ - L_-}{2 \epsilon} \frac{z}{\sqrt h}

    Y. Zhao et al., "Second-order fine-tuning without pain for LLMs: a Hessian informed zeroth-order
    optimizer", arXiv 2402.15173.  Three losses for one query; h starts at 1 and takes 4 bytes per element (8
    for float64).

    Args:
        params, lr, common: as for `ZOSGD` but `one_sided`; Gaussian directions, no masks; at most 64
            queries, over which estimate and curvature are averaged.
        smoothing: a in [0, 1).
    """

    _fixed = ("one_sided",)
    _max_queries = 64
    _chained = False
    _plain_only = True

    def __init__(
        self, params: Any, lr: float = 1e-6, *, smoothing: float = 1e-8, **common: Unpack[Common]
    ) -> None:
        super().__init__(params, {"lr": lr, "smoothing": smoothing}, dict(common))

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        _checks.real("smoothing", group["smoothing"], at_least=0.0, below=1.0)

    def _kind(self, p: Tensor) -> str:
        return "hessian"

    def _mover(self, kind: str) -> Mover | None:
        return self._move

    def _prepare(self, walk: Walk) -> None:
        for p in (p for cell in walk.cells for p in cell.params):
            if not self.state[p]:
                dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
                self.state[p]["hessian"] = torch.ones_like(p, dtype=dtype, requires_grad=False)

    def _targets(self) -> list[Coefs]:
        return [{}, *({i: sign} for i in range(self.num_queries) for sign in (1.0, -1.0))]

    def _move(
        self,
        walk: Walk,
        cell: Cell,
        params: list[Tensor],
        sources: list[Tensor] | None,
        coefs: Coefs,
        decay: float,
        rounding: dict[str, Any],
    ) -> None:
        from tenfold.ops import zo_hizoo_perturb_

        hessians = locals_of([self.state[p]["hessian"] for p in cell.params])
        for query, coef in coefs.items():
            zo_hizoo_perturb_(
                params,
                hessians,
                cell.streams,
                walk.seed,
                query,
                coef,
                walk.dist,
                sources=sources,
                firsts=cell.firsts,
                **rounding,
            )
            sources = None  # the next direction is added to what this one wrote

    def _scalars_of_block(self, walk: Walk, losses: list[float], block: int) -> list[Scalar]:
        eps = float(self.param_groups[0]["eps"])
        base, plus, minus = losses[0], losses[1::2], losses[2::2]
        scalars = []
        for i, (p, m) in enumerate(zip(plus, minus, strict=True)):
            scalars.append(Scalar(i, FLAG_GRAD | block << 8, self._clipped((p - m) / (2 * eps))))
            curvature = abs(p + m - 2 * base) / (2 * eps * eps)
            scalars.append(Scalar(i, FLAG_CURVATURE | block << 8, curvature))
        return scalars

    def _coefficients(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        return gradient_coefficients(self, walk, cell, values)

    def _update(self, walk: Walk, updates: dict[Cell, Coefs], values: Values) -> None:
        from tenfold.ops import zo_hizoo_update_

        def move(cell: Cell, gradient: Coefs) -> None:
            ratio = float(self.param_groups[0]["eps"]) / cell.eps
            curvatures = values[FLAG_CURVATURE, cell.block]
            zo_hizoo_update_(
                cell.tensors(),
                locals_of([self.state[p]["hessian"] for p in cell.params]),
                cell.streams,
                terms(walk, gradient),
                [c * ratio * ratio / self.num_queries for c in curvatures],
                lr=cell.lr,
                smoothing=cell.group["smoothing"],
                weight_decay=cell.weight_decay,
                firsts=cell.firsts,
                **walk.rounding_options(),
            )

        stateful_pass(walk, updates, move)

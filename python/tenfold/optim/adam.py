"""ZO-Adam: Adam on the estimated gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.ops import Term, zo_adam_

from ._base import ZerothOrder
from ._walk import Cell, Coefs, Walk


class ZOAdam(ZerothOrder):
    r"""Adam on :math:`\hat g = \frac{1}{q} \sum_i g_i z_i` (see `ZOSGD`), with decoupled weight decay.

    D. Kingma, J. Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980; as an optimizer for
    zeroth-order fine-tuning in Zhang et al., "Revisiting zeroth-order optimization for memory-efficient LLM
    fine-tuning: a benchmark", arXiv 2402.11592.  The estimated gradient is not stored: one pass regenerates
    the directions and updates weights and both moments.  Moments are float32 (8 bytes per element), float64
    for float64 weights, in half precision too, where eps and squared gradients would not fit.

    Arguments are those of `ZOSGD`, with at most 64 queries.

    Args:
        betas: decay of the two moments, each in [0, 1).
        adam_eps: added to the root of the second moment, > 0.
    """

    _max_queries = 64  # that one pass can regenerate

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        eps: float = 1e-3,
        num_queries: int = 1,
        dist: str = "gaussian",
        one_sided: bool = False,
        weight_decay: float = 0.0,
        seed: int = 0,
        restore: str = "arithmetic",
        rounding: str = "rne",
        z_round: torch.dtype | None = None,
        streams: nn.Module | None = None,
        max_nonfinite: int = 3,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "eps": eps, "weight_decay": weight_decay, "betas": betas, "adam_eps": adam_eps},
            num_queries=num_queries,
            dist=dist,
            one_sided=one_sided,
            seed=seed,
            restore=restore,
            rounding=rounding,
            z_round=z_round,
            streams=streams,
            max_nonfinite=max_nonfinite,
            maximize=maximize,
        )

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            _checks.fail(ValueError, "betas", "a pair of numbers", repr(betas))
        for i, beta in enumerate(betas):
            _checks.real(f"betas[{i}]", beta, at_least=0.0, below=1.0)
        _checks.real("adam_eps", group["adam_eps"], positive=True)

    def _update(self, walk: Walk, updates: dict[Cell, Coefs]) -> None:
        walk.to({})
        with walk.one_pass():
            for cell, gradient in updates.items():
                for step, params in self._by_step(cell).items():
                    self._adam(walk, cell, gradient, step, params)

    def _coefficients(self, cell: Cell, projected: list[float] | None) -> Coefs:
        sign = -1.0 if self.maximize else 1.0
        return {i: sign * g / self.num_queries for i, g in enumerate(projected or ())}

    def _by_step(self, cell: Cell) -> dict[int, list[Tensor]]:
        """The parameters of a cell by the number of their next Adam step; states are made where missing."""
        by_step: dict[int, list[Tensor]] = {}
        for p in cell.params:
            state = self.state[p]
            if not state:
                dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
                state["step"] = 0
                state["exp_avg"] = torch.zeros_like(p, dtype=dtype, requires_grad=False)
                state["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype, requires_grad=False)
            by_step.setdefault(state["step"] + 1, []).append(p)
        return by_step

    def _adam(self, walk: Walk, cell: Cell, gradient: Coefs, step: int, params: list[Tensor]) -> None:
        beta1, beta2 = cell.group["betas"]
        zo_adam_(
            params,
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [self._slots[p].stream for p in params],
            [Term(walk.seed, i, g, self.dist) for i, g in gradient.items()],
            lr=cell.lr,
            beta1=beta1,
            beta2=beta2,
            eps=cell.group["adam_eps"],
            step=step,
            weight_decay=cell.weight_decay,
            z_round=self.z_round,
            **walk.rounding_options(),
        )
        for p in params:
            self.state[p]["step"] = step

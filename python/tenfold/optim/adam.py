"""ZO-Adam: Adam on the estimated gradient, and R-AdaZO, whose second moment is that of the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tenfold import _checks
from tenfold.ops import zo_adam_

from ._base import ZerothOrder
from ._helpers import Values
from ._shards import locals_of
from ._walk import Cell, Coefs, Walk
from .sgd import (
    empty_state,
    gradient_coefficients,
    split_cell,
    state_dtype_name,
    stateful_options,
    stateful_pass,
    terms,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import Common


class ZOAdam(ZerothOrder):
    r"""Adam on :math:`\hat g = \frac{1}{q} \sum_i g_i z_i` (see `ZOSGD`), with decoupled weight decay.

    D. Kingma, J. Ba, "Adam: a method for stochastic optimization", arXiv 1412.6980; as an optimizer for
    zeroth-order fine-tuning in Zhang et al., "Revisiting zeroth-order optimization for memory-efficient LLM
    fine-tuning: a benchmark", arXiv 2402.11592.  The estimated gradient is not stored: one pass regenerates
    the directions and updates weights and both moments.  Moments are float32 (8 bytes per element), float64
    for float64 weights, in half precision too, where eps and squared gradients would not fit.

    Args:
        params, lr, common: as for `ZOSGD`; at most 64 queries.
        betas: decay of the two moments, each in [0, 1).
        adam_eps: added to the root of the second moment, > 0.
        variant: "adam", or "radazo": the second moment follows the square of the first, not of the estimate
            (Shu et al., "Refining adaptive zeroth-order optimization at ease", arXiv 2502.01014).
        state_dtype: torch.bfloat16 keeps the moments of float32 and half-precision weights at 2 bytes each,
            rounded stochastically.
    """

    _max_queries = 64  # that one pass can regenerate
    _own: tuple[str, ...] = ("variant", "_state_dtype")
    variant: str
    _state_dtype: str | None
    _chained = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        variant: str = "adam",
        state_dtype: torch.dtype | None = None,
        **common: Unpack[Common],
    ) -> None:
        own = {
            "variant": _checks.choice("variant", variant, ("adam", "radazo")),
            "_state_dtype": state_dtype_name(state_dtype),
        }
        super().__init__(params, {"lr": lr, "betas": betas, "adam_eps": adam_eps}, dict(common), own)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            _checks.fail(ValueError, "betas", "a pair of numbers", repr(betas))
        for i, beta in enumerate(betas):
            _checks.real(f"betas[{i}]", beta, at_least=0.0, below=1.0)
        _checks.real("adam_eps", group["adam_eps"], positive=True)

    def _coefficients(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        return gradient_coefficients(self, walk, cell, values)

    def _update(self, walk: Walk, updates: dict[Cell, Coefs], values: Values) -> None:
        adam_pass(self, walk, updates, variant=self.variant, state_dtype=self._state_dtype)


class RAdaZO(ZOAdam):
    """`ZOAdam` with variant="radazo": the second moment follows the square of the first, not of the estimate.

    Y. Shu et al., "Refining adaptive zeroth-order optimization at ease", arXiv 2502.01014.  Arguments are
    those of `ZOAdam` but `variant`.
    """

    _own = ("_state_dtype",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        state_dtype: torch.dtype | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas=betas,
            adam_eps=adam_eps,
            variant="radazo",
            state_dtype=state_dtype,
            **common,
        )


def adam_pass(
    opt: ZerothOrder,
    walk: Walk,
    updates: dict[Cell, Coefs],
    *,
    betas: tuple[float, float] | None = None,
    adam_eps: float | None = None,
    variant: str = "adam",
    state_dtype: str | None = None,
) -> None:
    """Restore, then one Adam step on the gradients sum_i updates[cell][i] * z_i.

    States are made where missing; parameters that came late have had fewer steps.  betas and adam_eps None
    are those of the group.
    """

    missing = [p for cell in updates for p in cell.params if not opt.state[p]]
    made = [  # all of them before anything is written: memory may run out here
        {"step": 0, "exp_avg": empty_state(p, state_dtype), "exp_avg_sq": empty_state(p, state_dtype)}
        for p in missing
    ]
    opt.state.update(zip(missing, made, strict=True))

    def move(cell: Cell, gradient: Coefs) -> None:
        beta1, beta2 = betas or cell.group["betas"]
        kind: dict[str, Any] = {} if variant == "adam" else {"variant": variant}
        for steps, part in split_cell(cell, lambda p: opt.state[p]["step"]):
            zo_adam_(
                part.tensors(),
                locals_of([opt.state[p]["exp_avg"] for p in part.params]),
                locals_of([opt.state[p]["exp_avg_sq"] for p in part.params]),
                part.streams,
                terms(walk, gradient),
                lr=cell.lr,
                beta1=beta1,
                beta2=beta2,
                eps=cell.group["adam_eps"] if adam_eps is None else adam_eps,
                step=steps + 1,
                weight_decay=cell.weight_decay,
                **kind,
                **stateful_options(walk, part),
            )
            for p in part.params:
                opt.state[p]["step"] = steps + 1

    stateful_pass(walk, updates, move)

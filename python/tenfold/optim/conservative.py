"""ZO-SGD that looks before it steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._base import ZerothOrder
from ._helpers import Evaluate, Values, _values, spend
from ._record import FLAG_CHOICE, FLAG_SKIPPED, Scalar
from ._walk import CLEAN, Cell, Place, Walk

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import Common

_SIGNS = (0.0, 1.0, -1.0)  # stay, step, step the other way


class ZOSGDConservative(ZerothOrder):
    r"""The best of staying, the `ZOSGD` step and its opposite.

    .. math::
        \theta \leftarrow \arg\min_{\theta' \in \{\theta, \; \theta - \eta \hat g, \; \theta + \eta \hat g\}}
        L(\theta')

    The ZO-SGD-Cons of arXiv 2402.11592: three losses more than `ZOSGD`.  A candidate whose loss is not finite
    counts as infinite and is never taken; if all three are, the step is skipped.  Staying wins ties, and
    applies no weight decay; the others do.  `StepRecord.losses` ends with the losses of the candidates in
    the order above.  compat="zo-llm" takes the opposite of a candidate whose loss is NaN, and leaves a mask
    out of the update (in that benchmark AdamW moves the candidates, which is not repeated here).

    Arguments are those of `ZOSGD`.
    """

    _chained = False
    _static = False

    def __init__(self, params: Any, lr: float = 1e-6, **common: Unpack[Common]) -> None:
        super().__init__(params, {"lr": lr}, dict(common))

    def _measure(self, walk: Walk, evaluate: Evaluate, known: Values | None = None) -> list[Scalar]:
        scalars = super()._measure(walk, evaluate, known)
        values = _values(scalars) if known is None else known
        if any(s.kind == FLAG_SKIPPED for s in scalars) or not self._finite(walk, scalars):
            return scalars
        walk.losses += self._agreed([self._candidate(walk, evaluate, values, sign) for sign in _SIGNS])
        choice = self._choice(walk.losses[-len(_SIGNS) :])
        return [*scalars, Scalar(0, FLAG_CHOICE, choice)]

    def _candidate(self, walk: Walk, evaluate: Evaluate, values: Values, sign: float) -> float:
        spend(walk)
        walk.stand(lambda cell: self._place(walk, cell, values, sign))
        return float(evaluate())

    def _place(self, walk: Walk, cell: Cell, values: Values, sign: float) -> Place:
        if sign == 0.0:
            return CLEAN
        coefs = self._coefficients(walk, cell, values)
        return Place({i: sign * c for i, c in coefs.items()}, cell.decay)

    def _choice(self, losses: Sequence[float]) -> float:
        if self.compat == "zo-llm" and math.isnan(losses[1]) != math.isnan(losses[2]):
            return -1.0 if math.isnan(losses[1]) else 1.0
        finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
        if min(finite) == math.inf:
            return math.nan
        return _SIGNS[finite.index(min(finite))]

    def _finite(self, walk: Walk, scalars: list[Scalar], blocks: list[int] | None = None) -> bool:
        """Candidates may be what they like: they are only compared."""
        losses, walk.losses = walk.losses, walk.losses[: len(self._plan())]
        try:
            return super()._finite(walk, scalars, blocks)
        finally:
            walk.losses = losses

    def _apply(self, walk: Walk, scalars: Sequence[Scalar]) -> None:
        values = _values(scalars)
        sign = values.get((FLAG_CHOICE, 0), [0.0])[0]
        if any(s.kind == FLAG_SKIPPED for s in scalars) or sign == 0.0:
            walk.to({})
        else:
            if self._forgets_mask():
                walk.to({})
                for cell in walk.cells:
                    cell.mask = None
            walk.land({cell: self._place(walk, cell, values, sign).coefs for cell in walk.cells})
        walk.landed = True

    def _forgets_mask(self) -> bool:
        return self.compat == "zo-llm" and self.mask is not None

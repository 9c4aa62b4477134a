"""FZOO: one-sided probes, scaled by the spread of their losses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tenfold import _checks

from ._base import ZerothOrder

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import Common


class FZOO(ZerothOrder):
    r"""Zeroth-order descent whose step size follows the standard deviation of the probes' losses.

    .. math::
        \theta \leftarrow (1 - \eta \lambda) \theta - \eta \sum_{i=1}^{N} \frac{L_i - L_0}{N \sigma} u_i,
        \qquad L_i = L(\theta + \epsilon u_i)

    with :math:`\sigma` the population standard deviation of :math:`L_1 \dots L_N`.  "FZOO: fast zeroth-order
    optimizer for fine-tuning large language models towards Adam-scale speed", arXiv 2506.09034.

    Arguments are those of `ZOSGD` but `one_sided`, with num_queries = N >= 2 probes beside L_0 (default 8),
    Rademacher directions and eps 1e-4 by default.  eps cancels against sigma to first order, so lr alone sets
    the size of a step.  If all L_i are equal (sigma = 0) the step is skipped; it does not count as not
    finite.  `last_step.projected_grads` are (L_i - L_0) / sigma.
    """

    _defaults = {"eps": 1e-4, "num_queries": 8, "dist": "rademacher", "one_sided": True}  # noqa: RUF012
    _fixed = ("one_sided",)
    _per_eps = False

    def __init__(self, params: Any, lr: float = 5e-5, **common: Unpack[Common]) -> None:
        super().__init__(params, {"lr": lr}, dict(common))

    def _check_class(self, options: dict[str, Any]) -> None:
        super()._check_class(options)
        if options["num_queries"] == 1:
            _checks.fail(ValueError, "num_queries", "an integer >= 2", "1: one loss has no spread")

    def _projected(self, losses: list[float], eps: float) -> list[float] | None:
        base, probes = losses[0], losses[1:]
        mean = sum(probes) / len(probes)
        sigma = math.sqrt(sum((loss - mean) * (loss - mean) for loss in probes) / len(probes))
        if sigma == 0.0:
            return None
        return [(loss - base) / sigma for loss in probes]

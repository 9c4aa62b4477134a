"""FZOO: one-sided probes, scaled by the spread of their losses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tenfold import _checks

from ._base import ZerothOrder


class FZOO(ZerothOrder):
    r"""Zeroth-order descent whose step size follows the standard deviation of the probes' losses.

    .. math::
        \theta \leftarrow (1 - \eta \lambda) \theta - \eta \sum_{i=1}^{N} \frac{L_i - L_0}{N \sigma} u_i,
        \qquad L_i = L(\theta + \epsilon u_i)

    with :math:`\sigma` the population standard deviation of :math:`L_1 \dots L_N`.  "FZOO: fast zeroth-order
    optimizer for fine-tuning large language models towards Adam-scale speed", arXiv 2506.09034.

    Arguments are those of `ZOSGD`, with num_queries = N >= 2 probes beside L_0 and Rademacher directions by
    default.  eps cancels against sigma to first order, so lr alone sets the size of a step.  If all L_i are
    equal (sigma = 0) the step is skipped; it does not count as not finite.  `last_step.projected_grads` are
    (L_i - L_0) / sigma.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 5e-5,
        *,
        eps: float = 1e-4,
        num_queries: int = 8,
        dist: str = "rademacher",
        weight_decay: float = 0.0,
        seed: int = 0,
        restore: str = "arithmetic",
        rounding: str = "rne",
        z_round: torch.dtype | None = None,
        streams: nn.Module | None = None,
        max_nonfinite: int = 3,
        maximize: bool = False,
    ) -> None:
        if num_queries == 1:
            _checks.fail(ValueError, "num_queries", "an integer >= 2", "1: one loss has no spread")
        super().__init__(
            params,
            {"lr": lr, "eps": eps, "weight_decay": weight_decay},
            num_queries=num_queries,
            dist=dist,
            one_sided=True,
            seed=seed,
            restore=restore,
            rounding=rounding,
            z_round=z_round,
            streams=streams,
            max_nonfinite=max_nonfinite,
            maximize=maximize,
        )

    def _projected(self, losses: list[float], group: dict[str, Any]) -> list[float] | None:
        base, probes = losses[0], losses[1:]
        mean = sum(probes) / len(probes)
        sigma = math.sqrt(sum((loss - mean) * (loss - mean) for loss in probes) / len(probes))
        if sigma == 0.0:
            return None
        return [(loss - base) / sigma for loss in probes]

"""ZO-SGD, the optimizer of MeZO."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ._base import ZerothOrder


class ZOSGD(ZerothOrder):
    r"""Stochastic gradient descent on a gradient estimated from two losses per query (MeZO).

    .. math::
        g_i = \frac{L(\theta + \epsilon z_i) - L(\theta - \epsilon z_i)}{2 \epsilon}, \qquad
        \theta \leftarrow (1 - \eta \lambda) \theta - \frac{\eta}{q} \sum_{i=1}^{q} g_i z_i

    S. Malladi et al., "Fine-tuning language models with just forward passes", arXiv 2305.17333.  The
    directions are regenerated from a seed whenever they are needed, so q queries need no more memory than
    one.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of a group; dense, float32, bfloat16, float16 or
            float64.  Tensors with requires_grad=False are left alone.  A group may have its own lr, eps and
            weight_decay.
        lr: step size, >= 0.
        eps: how far the probes stand from the weights, > 0; in units of the weights, per unit of z.
        num_queries: directions per step, q >= 1.
        dist: "gaussian" or "rademacher" directions.
        one_sided: g_i = (L(theta + eps z_i) - L(theta)) / eps; the q queries share L(theta).
        weight_decay: decoupled, lambda >= 0.
        seed: of the run, in [0, 2^64).
        restore: how a probe is undone.  "arithmetic" adds the opposite: no extra memory, but each pass
            rounds, and weights drift in half precision (100 steps at eps 1e-3 with lr 0 move bfloat16 weights
            of rms 0.02 by 7.8e-4 rms, float16 by 9.8e-5, float32 by 1.2e-8).  "exact" keeps one clean copy
            of the trainable tensors, taken at the start of each step: probes and update are written from it,
            nothing drifts.
        rounding: to the dtype of the weights.  "rne", to nearest even, is the default in every dtype; small
            updates are then lost in half precision (88 % of the elements do not move for lr*g = 1e-5 in
            bfloat16).  "sr", stochastic, keeps them on average.
        z_round: bfloat16 or float16 rounds the directions first, as reference code does that draws them in
            the dtype of the weights.
        streams: a module that holds all parameters.  The directions of a parameter then depend on its place
            among all parameters of the module, not of `params`, and weight decay leaves biases and the
            parameters of normalisation layers (told by the type of the layer) alone.
        max_nonfinite: this many steps in a row with a loss that is not finite raise RuntimeError.
        maximize: ascend.

    Raises:
        ValueError, TypeError: an argument is out of range or of another type; its name comes first.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-6,
        *,
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
            {"lr": lr, "eps": eps, "weight_decay": weight_decay},
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

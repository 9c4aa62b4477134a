"""KL divergence from a reference of which K likely tokens per row are known, and the mass of the others.

With q the reference, S its K tokens and r = 1 - q(S), the loss of a row is the divergence of K + 1 outcomes,

    sum_{v in S} q_v (log q_v - log p_v) + r (log r - log p(not S)),

its gradient p_v - q_v inside S and p_v (1 - r / p(not S)) outside: the mass r spread as the model spreads it.
By the chain rule it is smaller than the full divergence by r KL(q | not S, p | not S), and the sum over v
of the gradient's absolute error is at most 2 r, whatever the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .logprob_chunks import ieee_matmul
from .rows_linear import Gradient, Gradients, Head, _by_chunks, _select, kept


def choose(
    rows: ModuleType,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor | None,
    k: int,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens [N, k], log q of them [N, k], log of the mass of the others [N]); the target is among them."""
    head = Head(hidden, weight, bias)
    tokens, logq, log_rest = [], [], []
    with ieee_matmul(hidden.device.type):
        for part in head.parts():
            logits = head.logits(part)
            if targets is None:
                chosen = logits.topk(k, dim=1).indices
            else:
                at = targets[part, None]
                own = logits.gather(1, at)
                chosen = logits.scatter_(1, at, torch.inf).topk(k, dim=1).indices
                logits.scatter_(1, at, own)
            lse, rest, x = _sums(rows, logits, chosen, softcap)
            tokens.append(chosen)
            logq.append(x - lse[:, None])
            log_rest.append(rest - lse)
    return torch.cat(tokens), torch.cat(logq), torch.cat(log_rest)


def _capped(x: Tensor, softcap: float | None) -> Tensor:
    x = x.double()
    return x if softcap is None else softcap * torch.tanh(x / softcap)


def _sums(
    rows: ModuleType, logits: Tensor, chosen: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """log sum exp of all logits and of those that are not chosen, and the chosen ones, capped, in float64.

    The cap is written over the logits: it would make a number of the -inf that takes the chosen ones out.
    """
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    first = chosen[:, 0].contiguous()
    lse = rows.forward(logits, first, None, 1.0, False)[1]
    x = logits.gather(1, chosen).double()
    if chosen.shape[1] == logits.shape[1]:
        return lse, torch.full_like(lse, -torch.inf), x
    rest = rows.forward(logits.scatter_(1, chosen, -torch.inf), first, None, 1.0, False)[1]
    return lse, torch.where(rest.isnan() & ~lse.isnan(), -torch.inf, rest), x


def forward(
    rows: ModuleType,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    logq: Tensor,
    log_rest: Tensor,
    softcap: float | None,
) -> list[Tensor]:
    """(loss, log sum exp, log sum exp of the others), float64 [N]; rows whose first token is negative: 0."""
    keep = kept(tokens[:, 0])
    head = Head(_select(hidden, keep), weight, bias)
    chosen, q, rest_q = tokens[keep], logq[keep].double(), log_rest[keep].double()

    def reduce(part: slice, logits: Tensor) -> Sequence[Tensor]:
        lse, rest, x = _sums(rows, logits, chosen[part], softcap)
        inside = _weighted(q[part], q[part] - (x - lse[:, None])).sum(1)
        outside = _weighted(rest_q[part], rest_q[part] - (rest - lse))
        return inside + outside, lse, rest

    return _by_chunks(head, keep, hidden.shape[0], 3, reduce)


def _weighted(log_weight: Tensor, value: Tensor) -> Tensor:
    """exp(log_weight) value, 0 where the weight is 0."""
    weight = log_weight.exp()
    return torch.where(weight == 0, 0.0, weight * value)


def backward(
    rows: ModuleType,
    grad: Tensor,
    lse: Tensor,
    rest: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    logq: Tensor,
    log_rest: Tensor,
    softcap: float | None,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients of sum(grad * loss)."""
    keep = kept(tokens[:, 0])
    head = Head(_select(hidden, keep), weight, bias)
    gradient = Gradient(head, bias, needs)
    chosen, q, rest_q = tokens[keep], logq[keep].double(), log_rest[keep].double()
    grad, lse, rest = grad[keep].double(), lse[keep], rest[keep]
    # exp(x - lse) - r exp(x - rest) = (1 - r exp(lse - rest)) exp(x - lse)
    coef = grad * (1.0 - _weighted(rest_q, (lse - rest).exp()))
    with ieee_matmul(hidden.device.type):
        for part in head.parts():
            logits = head.logits(part)
            x = _capped(logits.gather(1, chosen[part]), softcap)
            inside = grad[part, None] * ((x - lse[part, None]).exp() - q[part].exp())
            if softcap is not None:
                inside = inside * (1.0 - (x / softcap).square())
            first = chosen[part, 0].contiguous()
            rows.softmax_(logits, logits, first, lse[part], coef[part], coef[part], softcap, 1.0)
            logits.scatter_(1, chosen[part], inside.to(logits.dtype))
            gradient.add(part, logits)
    return gradient.result(keep, hidden)

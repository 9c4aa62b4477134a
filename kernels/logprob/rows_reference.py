"""What the losses need of a row of logits, in plain PyTorch: the oracle, and the fallback.

A row of logits z gives a distribution p = softmax(x), x = cap(z) / temperature, where cap(z) is
`softcap * tanh(z / softcap)` (Gemma 2, arXiv 2408.00118) or z itself.  Every function works on rows
[R, V], or [B, T, V] where it says so, and returns float64 [R], R = B T; a row whose target is negative is
left out and gives zeros.

The label draw is defined here to the bit, because every backend must give the same labels: see `sample`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2048
"""Vocabulary entries that are summed as one block by `sample`; the same on every backend."""

WEIGHT_ONE = 2.0**30
"""What exp(0) is worth in the integer weights of `sample`."""

KINDS = ("forward", "reverse", "cross_entropy")


class RowStats(NamedTuple):
    """See `forward`."""

    logp: Tensor
    lse: Tensor
    argmax: Tensor
    mean_logit: Tensor
    mean_logp: Tensor
    mean_logp2: Tensor


def row_blocks(logits: Tensor, most: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of [R, V] or [B, T, V] as views [r, V] with r <= most, and which rows they are, in order."""
    groups = logits.unbind(0) if logits.ndim == 3 else (logits,)
    first = 0
    for group in groups:
        for start in range(0, group.shape[0], most):
            rows = group[start : start + most]
            yield slice(first + start, first + start + rows.shape[0]), rows
        first += group.shape[0]


def flat(logits: Tensor) -> Tensor:
    return logits.reshape(-1, logits.shape[-1])


def wide(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def exponents(logits: Tensor, softcap: float | None, inverse_temperature: float) -> Tensor:
    """x = cap(z) / temperature in the math dtype."""
    x = logits.to(wide(logits))
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    return x if inverse_temperature == 1.0 else x * inverse_temperature


def _slope(x: Tensor, softcap: float | None, inverse_temperature: float) -> Tensor | float:
    """dx / dz, given x."""
    if softcap is None:
        return inverse_temperature
    return inverse_temperature * (1.0 - (x / (softcap * inverse_temperature)).square())


def _at(x: Tensor, targets: Tensor) -> Tensor:
    return x.gather(1, targets.clamp(min=0)[:, None])[:, 0]


def _log_sum_exp(x: Tensor) -> Tensor:
    """NaN for a row with +inf, as torch.log_softmax has it: its probabilities are inf / inf."""
    lse = x.logsumexp(dim=1)
    return torch.where(lse == torch.inf, torch.nan, lse)


def forward(
    logits: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    inverse_temperature: float = 1.0,
    stats: bool = True,
) -> RowStats:
    """Per row of [R, V] or [B, T, V]: log p(target), log sum exp(x), with `stats` argmax and three means.

    argmax is the lowest index of the largest x (of the first NaN, if there is one); mean_logit the mean of x
    over the vocabulary; mean_logp = sum p log p and mean_logp2 = sum p (log p)^2 the moments of the
    log-probability of a token drawn from the row itself, which Min-K%++ (arXiv 2404.02936) standardises by.
    """
    x = exponents(flat(logits), softcap, inverse_temperature).double()
    lse = _log_sum_exp(x)
    live = targets >= 0
    logp = torch.where(live, _at(x, targets) - lse, 0.0)
    if not stats:
        empty = x.new_empty(0)
        return RowStats(
            logp, torch.where(live, lse, 0.0), empty.to(torch.int64), empty, empty.clone(), empty.clone()
        )
    log_p = x - lse[:, None]
    p = log_p.exp()
    first = torch.where(p == 0, 0.0, p * log_p)
    second = torch.where(p == 0, 0.0, p * log_p.square())
    means = (x.mean(dim=1), first.sum(dim=1), second.sum(dim=1))
    return RowStats(
        logp,
        torch.where(live, lse, 0.0),
        torch.where(live, x.argmax(dim=1), 0),
        *(torch.where(live, mean, 0.0) for mean in means),
    )


def softmax_(
    out: Tensor,
    logits: Tensor,
    targets: Tensor,
    lse: Tensor,
    coef: Tensor,
    at_target: Tensor,
    softcap: float | None = None,
    inverse_temperature: float = 1.0,
) -> None:
    """out[v] = coef exp(x[v] - lse) dx/dz[v], and at_target dx/dz at the target; zeros for rows left out.

    logits [R, V] or [B, T, V], `out` of the same shape, which may be `logits`. The gradient of every loss
    here that sees one row of logits: of log p with coef = -1 and at_target = 1 - p(target), of CE-U with the
    log-sum-exp of the other entries.
    """
    x = exponents(flat(logits), softcap, inverse_temperature)
    values = (x.double() - lse[:, None]).exp() * coef.double()[:, None]
    values.scatter_(1, targets.clamp(min=0)[:, None], at_target.double()[:, None])
    values = values * _slope(x.double(), softcap, inverse_temperature)
    out.copy_(torch.where((targets >= 0)[:, None], values, 0.0).view(out.shape))


# ---- drawing labels --------------------------------------------------------------------------------------


def exp_exact(x: Tensor) -> Tensor:
    """exp of float32 x <= 0 in operations that IEEE 754 rounds once each: the same bits everywhere.

    x = k ln 2 + r by the constants of Cephes (Moshier), whose first product is exact, so that no fused
    multiply-add is needed; within 3 ulp above 2^-126, zero below.
    """
    k = (x * 1.44269504 + 12582912.0) - 12582912.0
    r = (x - k * 0.693359375) - k * -2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    for c in (8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + c
    p = ((p * r) * r + r) + 1.0
    power = ((k.to(torch.int32) << 23) + 0x3F800000).view(torch.float32)
    return torch.where(x < -87.0, 0.0, p * power)


def block_weights(x: Tensor, largest: Tensor) -> Tensor:
    """Integer weights exp(x - largest) 2^30, int64; float32 x [R, n], largest [R]."""
    e = exp_exact(x - largest[:, None])
    return (e * WEIGHT_ONE + 0.5).to(torch.int64)


def sample(
    logits: Tensor, uniforms: Tensor, inverse_temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """One draw per row of [R, V] or [B, T, V] from softmax(x): (token, its log p, log sum exp).

    uniforms: float64 [R] in (0, 1); a negative one leaves its row out. A row that has NaN or +inf among its
    logits, or nothing above -inf, gives token -1 and NaN.

    The method is the inverse CDF. Blocks of 2048 entries are summed about their own maximum, in integers, so
    that no order of summation can matter: w[v] = floor(exp(x[v] - m_b) 2^30 + 1/2), S_b = sum w. Blocks are
        then weighed in float64,
    W_b = S_b exp(m_b - max m), and added up in order. The token is the first v with
    (w of the block up to v) exp(m_b - max m) > u sum W - (W of the blocks before), so a token of weight zero
    is never drawn. float64 logits are rounded to float32 for the draw.
    """
    logits = flat(logits)
    x = logits.to(torch.float32)
    x = x if inverse_temperature == 1.0 else x * torch.tensor(inverse_temperature, dtype=torch.float32)
    rows, size = x.shape
    blocks = [slice(b, min(b + BLOCK, size)) for b in range(0, size, BLOCK)]
    lowest = torch.finfo(torch.float32).min  # stands for the maximum of a block of -inf
    tops = torch.stack([x[:, b].amax(dim=1).clamp(min=lowest) for b in blocks])
    tops = torch.where(tops == torch.inf, torch.nan, tops)
    counts = torch.stack([block_weights(x[:, b], m).sum(dim=1) for b, m in zip(blocks, tops, strict=True)])
    draw = choose_block(tops, counts, uniforms)
    token = torch.zeros(rows, dtype=torch.int64, device=x.device)
    for b, columns in enumerate(blocks):
        here = (draw.fine & (draw.block == b)).nonzero()[:, 0]
        if here.numel() == 0:
            continue
        w = block_weights(x[here, columns], tops[b, here])
        hit = w.cumsum(dim=1).double() * draw.scale[here, None] > draw.left[here, None]
        last = w.shape[1] - 1 - (w > 0).flip(1).to(torch.int8).argmax(dim=1)  # rounding may miss the last one
        first = torch.where(hit.any(dim=1), hit.to(torch.int8).argmax(dim=1), last)
        token[here] = columns.start + first
    if logits.dtype == torch.float64:
        exact = exponents(logits, None, inverse_temperature)
        return drawn(draw._replace(lse=exact.logsumexp(dim=1)), token, _at(exact, token), uniforms)
    return drawn(draw, token, _at(x, token), uniforms)


class Draw(NamedTuple):
    """Where the draws of R rows fall."""

    fine: Tensor  # bool: there is something to draw
    block: Tensor  # int64
    top: Tensor  # float32, the block's largest entry
    scale: Tensor  # float64, what an integer weight of the block is worth
    left: Tensor  # float64, what is left of the threshold in the block
    lse: Tensor  # float64


def choose_block(tops: Tensor, counts: Tensor, uniforms: Tensor) -> Draw:
    """tops float32, counts int64, both [blocks, R]; a top is NaN where a block has NaN or +inf."""
    top = tops.amax(dim=0)
    scales = exp_exact(tops - top).double()
    weights = counts.double() * scales
    before, total = torch.zeros_like(weights), torch.zeros_like(uniforms)
    for b in range(weights.shape[0]):  # in order: a library's cumulative sum may take another one
        before[b] = total
        total = total + weights[b]
    fine = (uniforms >= 0) & (total > 0) & (top == top)
    threshold = uniforms * total
    ends = torch.cat([before[1:], total[None]])
    block = (ends <= threshold).sum(dim=0).clamp(max=weights.shape[0] - 1)
    left = threshold - before.gather(0, block[None])[0]
    lse = top.double() + (total / WEIGHT_ONE).log()
    return Draw(fine, block, tops.gather(0, block[None])[0], scales.gather(0, block[None])[0], left, lse)


def drawn(draw: Draw, token: Tensor, x: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(token, log p, log sum exp), x the entry of the token; -1 and NaN, or 0, where nothing is drawn."""
    nothing = torch.where(uniforms >= 0, torch.nan, 0.0).double()
    logp = torch.where(draw.fine, x.double() - draw.lse, nothing)
    return torch.where(draw.fine, token, -1), logp, torch.where(draw.fine, draw.lse, nothing)


# ---- losses that see more than the target ----------------------------------------------------------------


def ceu(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CE-U (arXiv 2503.01224): cross-entropy with softmax of the row without its target, held constant.

    Returns (loss, log sum exp of the entries beside the target, log p(target)).
    """
    x = logits.to(wide(logits)).double()
    live = targets >= 0
    others = x.scatter(1, targets.clamp(min=0)[:, None], -torch.inf)
    rest, lse = _log_sum_exp(others), _log_sum_exp(x)
    q = (others - rest[:, None]).exp()
    loss = torch.where(q == 0, 0.0, q * (lse[:, None] - x)).sum(dim=1)
    logp = _at(x, targets) - lse
    return torch.where(live, loss, 0.0), torch.where(live, rest, 0.0), torch.where(live, logp, 0.0)


def shifted(ref_logits: Tensor, targets: Tensor, beta: float) -> Tensor:
    """The reference's logits in float64, those of the targets lowered by beta."""
    x = ref_logits.double()
    if beta == 0.0:
        return x
    return x.scatter_add(1, targets.clamp(min=0)[:, None], x.new_full((x.shape[0], 1), -beta))


def divergence(
    logits: Tensor, ref_logits: Tensor, targets: Tensor, beta: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Between p = softmax(logits) and q = softmax(ref_logits - beta onehot(target)), by `kind`:

    "forward" KL(q || p), "reverse" KL(p || q), "cross_entropy" -sum q log p. Returns (loss, the
    log-sum-exp of the logits, that of the reference's).
    """
    x, y = logits.double(), shifted(ref_logits, targets, beta)
    lse, ref_lse = _log_sum_exp(x), _log_sum_exp(y)
    log_p, log_q = x - lse[:, None], y - ref_lse[:, None]
    mass, gap = {
        "forward": (log_q, log_q - log_p),
        "reverse": (log_p, log_p - log_q),
        "cross_entropy": (log_q, -log_p),
    }[kind]
    mass = mass.exp()
    loss = torch.where(mass == 0, 0.0, mass * gap).sum(dim=1)
    live = targets >= 0
    return tuple(torch.where(live, value, 0.0) for value in (loss, lse, ref_lse))  # type: ignore[return-value]


def divergence_(
    out: Tensor,
    logits: Tensor,
    ref_logits: Tensor,
    targets: Tensor,
    beta: float,
    kind: str,
    loss: Tensor,
    lse: Tensor,
    ref_lse: Tensor,
    grad: Tensor,
) -> None:
    """out = grad d loss / d logits. `out` may be `logits`.

    p - q for "forward" and "cross_entropy"; p (log p - log q - KL) for "reverse".
    """
    log_p = logits.double() - lse[:, None]
    log_q = shifted(ref_logits, targets, beta) - ref_lse[:, None]
    p = log_p.exp()
    if kind == "reverse":
        slope = torch.where(p == 0, 0.0, p * (log_p - log_q - loss[:, None]))
    else:
        slope = p - log_q.exp()
    out.copy_(torch.where((targets >= 0)[:, None], slope * grad.double()[:, None], 0.0))

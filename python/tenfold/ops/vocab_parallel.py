"""Log-probabilities where every rank holds a part of the unembedding's rows (tensor parallelism).

Each rank reduces its own part of the vocabulary to three numbers per row; two all-reduces of [N] numbers
merge them, as in Megatron-LM's vocabulary-parallel cross-entropy (arXiv 1909.08053). No rank sees another's
logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tenfold import _checks

from . import _rows as _registered  # noqa: F401
from .logprob import _integers, _operands
from .logprob_rows import _ignore, _math_dtype, _vocabulary


class VocabShard(NamedTuple):
    """What a part of the vocabulary gives for each row; float64 [N].

    largest, sums: the sum of exponentials of the part is sums exp(largest). target_logit: the logit of the
    row's target, 0 where another part holds it. inside: 1 where this part holds it, else 0.
    """

    largest: Tensor
    sums: Tensor
    target_logit: Tensor
    inside: Tensor


def merge_vocab_shards(shard: VocabShard, group: Any = None) -> tuple[Tensor, Tensor]:
    """(log p(target), log sum exp) of the whole vocabulary, from the parts of all ranks of `group`.

    Every rank gives its part and gets the same result. Two all-reduces: the maximum, then three sums. Without
    gradient; `vocab_parallel_logprob` has one.

    Args:
        shard: this rank's part, [N] on the group's device; N and the order of the rows equal on all ranks.
        group: of torch.distributed; None for all ranks. Without an initialised process group the part is the
            whole.

    Returns:
        float64 [N] each.

    Raises:
        RuntimeError: a row's target lies in no part, or in several; on all ranks.
    """
    if not isinstance(shard, VocabShard):
        _checks.fail(TypeError, "shard", "a VocabShard", _checks.describe(shard))
    for name, part in zip(shard._fields, shard, strict=True):
        whole = (torch.int64, torch.int32, torch.bool) if name == "inside" else ()
        _checks.tensor(f"shard.{name}", part, (*_checks.FLOAT_DTYPES, *whole))
        if part.ndim != 1 or part.shape != shard.largest.shape:
            _checks.fail(ValueError, f"shard.{name}", "shape [N] as shard.largest", tuple(part.shape))
    largest, sums, target_logit, inside = (t.double() for t in shard)
    together = dist.is_available() and dist.is_initialized()
    top = largest.clone()
    if together:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    # a part of nothing but -inf adds nothing, also where all parts are such
    scale = torch.where(largest == -torch.inf, 0.0, (largest - top).exp())
    columns = torch.stack((sums * scale, target_logit, inside))
    if together:
        dist.all_reduce(columns, group=group)
    total, logit, owners = columns
    if (owners != 1).any():
        row = int((owners != 1).nonzero()[0])
        raise RuntimeError(f"shard: expected one part with the target of row {row}, got {int(owners[row])}")
    lse = top + total.log()
    return logit - lse, lse


def vocab_parallel_logprob(
    hidden: Any,
    weight: Any,
    targets: Any,
    bias: Any = None,
    *,
    start: int,
    vocabulary: int,
    softcap: float | None = None,
    ignore_index: int = -100,
    group: Any = None,
) -> Tensor:
    """`linear_logprob(...).logp` where this rank holds rows [start, start + V_r) of the unembedding.

    Called by all ranks of the group, with equal hidden states and targets. The gradient of weight and bias is
    that of this rank's rows; that of hidden is added up over the ranks, so it is the whole one everywhere.
    The gradient that comes in has to be equal on all ranks, as it is when each computes the same loss. What
    crosses between ranks: 4 N numbers forward, N D backward. In half precision each rank's part of hidden's
    gradient is rounded to the dtype of hidden before the parts are added, as in any tensor-parallel layer.

    Args:
        hidden: [N, D], equal on all ranks. targets: [N] int64 in [0, vocabulary), or ignore_index.
        weight: [V_r, D], this rank's rows. bias: [V_r] or None. All dtypes as `linear_logprob`.
        start: the token of the first row; vocabulary: V, the sum of V_r over the ranks.
        softcap, ignore_index: as `linear_logprob`.
        group: of torch.distributed; None for all ranks. Without an initialised process group this rank must
            hold all rows.

    Returns:
        [N] float32 (float64 for float64 input), 0 where ignored; differentiable once.

    Raises:
        IndexError: a target outside [0, vocabulary); on all ranks.
        TypeError, ValueError: as `linear_logprob`; start and V_r outside the vocabulary.
        RuntimeError: a target that no rank holds, or several; on all ranks.
    """
    hidden, weight, bias = _operands(hidden, weight, bias, 2)
    _vocabulary("weight", weight.shape[0])
    targets = _integers("targets", targets, hidden.shape[:1], "[N] of hidden", hidden.device)
    vocabulary = _checks.integer("vocabulary", vocabulary, weight.shape[0], 2**62)
    start = _checks.integer("start", start, 0, vocabulary - weight.shape[0])
    softcap = None if softcap is None else _checks.real("softcap", softcap, positive=True)
    ignore_index = _ignore(ignore_index)
    bad = ((targets < 0) | (targets >= vocabulary)) & (targets != ignore_index)
    if bad.any():
        raise IndexError(f"targets: expected tokens in [0, {vocabulary}), got {int(targets[bad][0])}")
    targets = torch.where(targets == ignore_index, -1, targets)
    logp: Tensor = _Merged.apply(hidden, weight, bias, targets, start, softcap, group)
    return logp.to(_math_dtype(hidden, weight, bias))


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, start: int,
        softcap: float | None, group: Any,
    ) -> Tensor:  # fmt: skip
        live = targets >= 0
        inside = live & (targets >= start) & (targets < start + weight.shape[0])
        # a row whose target lies elsewhere looks at the first token here, whose probability backward needs
        local = torch.where(live, torch.where(inside, targets - start, 0), -1)
        here, lse, *_ = torch.ops.tenfold.linear_logprob(hidden, weight, bias, local, softcap, -1, False)
        logit = torch.where(here == -torch.inf, here, here + lse)
        part = VocabShard(lse, torch.ones_like(lse), torch.where(inside, logit, 0.0), inside.double())
        kept = live.nonzero()[:, 0]
        merged = merge_vocab_shards(VocabShard(*(t[kept] for t in part)), group)
        logp, whole = (torch.zeros_like(lse).index_copy_(0, kept, t) for t in merged)
        ctx.save_for_backward(hidden, weight, bias, local, inside, logit, whole)
        ctx.softcap, ctx.group = softcap, group
        return logp

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        hidden, weight, bias, local, inside, logit, lse = ctx.saved_tensors
        at_target = grad * (inside.double() - (logit - lse).exp())
        needs = list(ctx.needs_input_grad[:3])
        found = torch.ops.tenfold.linear_softmax_backward(
            -grad, at_target, lse, hidden, weight, bias, local, ctx.softcap, 1.0, -1, needs
        )
        if needs[0] and dist.is_available() and dist.is_initialized():
            dist.all_reduce(found[0], group=ctx.group)
        return (*(g if need else None for g, need in zip(found, needs, strict=True)), *[None] * 4)

"""A reference model kept as its likeliest tokens, and the divergence from it: no second model in memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS

from ._rows import _GRADIENTS, _HEAD, _LIBRARY, _asked, _needed, _only_once, _per_row, _present, _rows
from ._rows_fused import _register
from .logprob import _expect_device, _expect_shape, _integers, _operands
from .logprob_rows import _ignore, _math_dtype, _vocabulary

OPS |= dict.fromkeys(("linear_topk", "linear_topk_kl"), ("cpu", "cuda", "triton", "reference"))


class TopK(NamedTuple):
    """A distribution per row by K of its tokens.

    tokens: int64 [N, K], distinct in a row. logp: float32 [N, K], their log-probabilities. log_rest: float32
    [N], the logarithm of the mass of all others, -inf for none.
    """

    tokens: Any
    logp: Any
    log_rest: Any


def linear_topk(
    hidden: Any, weight: Any, k: int, bias: Any = None, *, targets: Any = None, softcap: float | None = None
) -> TopK:
    """The k likeliest tokens of each row, their log-probabilities, and the mass of the others.

    Args:
        hidden, weight, bias, softcap: as `linear_logprob`; without gradient.
        k: tokens to keep, in [1, V].
        targets: [N] int64 in [0, V): tokens that are kept in any case, in place of the k-th likeliest. UNDIAL
            needs the label's. None: the likeliest alone.

    Returns:
        TopK.

    Raises:
        IndexError: a target outside [0, V).
        TypeError, ValueError, RuntimeError: as `linear_logprob`; k out of range.
    """
    from tenfold.kernels.logprob import rows_topk

    kind = _arrays.kind_of(hidden)
    hidden, weight, bias = _operands(hidden, weight, bias, 2)
    _vocabulary("weight", weight.shape[0])
    k = _checks.integer("k", k, 1, weight.shape[0])
    softcap = None if softcap is None else _checks.real("softcap", softcap, positive=True)
    if targets is not None:
        targets = _integers("targets", targets, hidden.shape[:1], "[N] of hidden", hidden.device)
        outside = (targets < 0) | (targets >= weight.shape[0])
        if outside.any():
            got = int(targets[outside][0])
            raise IndexError(f"targets: expected tokens in [0, {weight.shape[0]}), got {got}")
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        rows = _rows("linear_topk", hidden.device)
        tokens, logp, rest = rows_topk.choose(rows, hidden, weight, bias, targets, k, softcap)
    return TopK(kind(tokens), kind(logp.float()), kind(rest.float()))


def linear_topk_kl(
    hidden: Any,
    weight: Any,
    reference: TopK,
    bias: Any = None,
    *,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> Any:
    """KL(reference || current) per row, where the reference is known by K tokens and the mass of the others.

    The others count as one outcome. With q the reference, r the mass outside its K tokens, and p the current
    model, the value is smaller than the full divergence by exactly r KL(q outside, p outside), each
    renormalised there: never larger, and equal where r = 0 or where both spread the rest alike. The gradient
    by the logits differs from the full one by at most 2 r in the sum of absolute values, whatever the model.

    Args:
        hidden, weight, bias, softcap: as `linear_logprob`.
        reference: of `linear_topk`, made with the reference's hidden states at the same rows. Its
            probabilities need not come from there: any K tokens whose probabilities and rest add up to 1.
        ignore_index: first token of a row to leave out.

    Returns:
        [N] float32 (float64 for float64 hidden states or head), 0 for rows left out; differentiable once in
        hidden, weight and bias.

    Raises:
        IndexError: a token outside [0, V).
        TypeError, ValueError, RuntimeError: as `linear_logprob`.
    """
    kind = _arrays.kind_of(hidden)
    hidden, weight, bias = _operands(hidden, weight, bias, 2)
    _vocabulary("weight", weight.shape[0])
    tokens, logp, rest = _reference(reference, hidden, weight.shape[0], _ignore(ignore_index))
    softcap = None if softcap is None else _checks.real("softcap", softcap, positive=True)
    loss, _, _ = torch.ops.tenfold.linear_topk_kl(hidden, weight, bias, tokens, logp, rest, softcap)
    return kind(loss.to(_math_dtype(hidden, weight, bias)))


def _reference(reference: Any, hidden: Tensor, size: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens with -1 in rows left out, log-probabilities and log rest; checked."""
    if not isinstance(reference, tuple) or len(reference) != 3:
        _checks.fail(TypeError, "reference", "a TopK", type(reference).__name__)
    tokens = _checks.tensor(
        "reference.tokens", _arrays.as_tensor("reference.tokens", reference[0]), (torch.int64,)
    )
    if tokens.ndim != 2 or tokens.shape[0] != hidden.shape[0] or not 1 <= tokens.shape[1] <= size:
        expected = f"shape [N, K] with N = {hidden.shape[0]} as hidden and K in [1, {size}]"
        _checks.fail(ValueError, "reference.tokens", expected, tuple(tokens.shape))
    values = []
    for name, value, shape in (
        ("logp", reference[1], tokens.shape),
        ("log_rest", reference[2], tokens.shape[:1]),
    ):
        tensor = _checks.tensor(f"reference.{name}", _arrays.as_tensor(f"reference.{name}", value))
        _expect_shape(f"reference.{name}", tensor, shape, "that of reference.tokens")
        values.append(tensor.detach())
    for tensor in (tokens, *values):
        _expect_device("reference", tensor, hidden.device)
    left_out = (tokens[:, 0] == ignore_index)[:, None]
    bad = ((tokens < 0) | (tokens >= size)) & ~left_out
    if bad.any():
        raise IndexError(f"reference.tokens: expected tokens in [0, {size}), got {int(tokens[bad][0])}")
    return torch.where(left_out, -1, tokens), values[0], values[1]


# ---- registration ----------------------------------------------------------------------------------------

_PAIR = f"{_HEAD}, Tensor tokens, Tensor logp, Tensor log_rest, float? softcap"
_LIBRARY.define(f"linear_topk_kl({_PAIR}) -> (Tensor loss, Tensor lse, Tensor rest)")
_LIBRARY.define(
    f"linear_topk_kl_backward(Tensor grad, Tensor lse, Tensor rest, {_PAIR}, bool[] needs) -> {_GRADIENTS}"
)


def _forward(hidden: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_topk

    return tuple(rows_topk.forward(_rows("linear_topk_kl", hidden.device), hidden, *rest))


def _backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_topk

    return _present(grad, rows_topk.backward(_rows("linear_topk_kl", grad.device), grad, *rest))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softcap = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:], *tensors)


def _grad(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.tenfold.linear_topk_kl_backward(grad, *ctx.saved_tensors, ctx.softcap, needs)
    return (*_asked(ctx, gradients), *[None] * 4)


_register("linear_topk_kl", _forward, lambda h, *_: _per_row(h, h.shape[:1], False), _setup, _grad)
_register("linear_topk_kl_backward", _backward, lambda *a: _needed(a[0], a[3:6], a[-1]), None, _only_once)

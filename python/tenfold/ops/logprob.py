"""Losses of language models from hidden states: float32 log-probabilities of chosen tokens, no logits.

A classification prompt ends in an option ("great", "terrible"), and only the hidden states that predict its
tokens matter: one position of about thirty.  The ops gather those rows, multiply them with the unembedding
and reduce, keeping no more than a chunk of logits.  Everything after the stored hidden states is float32: a
zeroth-order step lives on the difference of two losses, and logits rounded to bfloat16 or float16 lose it.

Method: the option loss of MeZO, Malladi et al., "Fine-tuning language models with just forward passes"
(arXiv 2305.17333).  Log-sum-exp in one pass: Milakov and Gimelshein (arXiv 1805.02867).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

MODES = ("choice", "lm")

OPS |= dict.fromkeys(("option_loss", "token_logprobs"), ("cpu", "cuda", "triton", "reference"))


class OptionLoss(NamedTuple):
    """loss: a scalar. scores: [B], the mean log-probability (natural, <= 0) of each row's option tokens."""

    loss: Any
    scores: Any


# ---- the dispatcher's side -------------------------------------------------------------------------------
# How many option tokens there are depends on the data, so the ops are opaque to the compiler, their backward
# passes too.  `lse` is log sum exp per token, kept for backward; it has no gradient of its own.

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_OPERANDS = "Tensor hidden, Tensor weight, Tensor? bias"
_OPTIONS = (
    f"{_OPERANDS}, Tensor ids, Tensor option_len, Tensor? num_options, Tensor? labels, "
    "Tensor? attention_mask, str mode"
)
_VERBALIZER = "Tensor hidden, Tensor weight, Tensor token_ids, Tensor labels, Tensor? bias"
_GRADIENTS = "(Tensor, Tensor, Tensor)"
for _schema in (
    f"option_loss({_OPTIONS}) -> (Tensor loss, Tensor scores, Tensor lse)",
    "option_loss_backward(Tensor grad_loss, Tensor grad_scores, Tensor scores, Tensor lse, "
    f"{_OPTIONS}, bool[] needs) -> {_GRADIENTS}",
    f"token_logprobs({_OPERANDS}, Tensor targets) -> (Tensor logprobs, Tensor lse)",
    f"token_logprobs_backward(Tensor grad, Tensor lse, {_OPERANDS}, Tensor targets, bool[] needs) "
    f"-> {_GRADIENTS}",
    f"verbalizer_loss({_VERBALIZER}) -> (Tensor loss, Tensor scores)",
    f"verbalizer_loss_backward(Tensor grad_loss, Tensor grad_scores, Tensor scores, {_VERBALIZER}, "
    f"bool[] needs) -> {_GRADIENTS}",
):
    _LIBRARY.define(_schema)


def _core(op: str, device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    """token_logprobs of the chosen backend."""
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.logprob.logprob_reference import token_logprobs as core
    elif backend == "triton":
        from tenfold.kernels.logprob.logprob_triton import token_logprobs as core
    else:
        from tenfold.kernels.logprob.logprob_native import token_logprobs as core
    return core


def _math_dtype(*tensors: Tensor | None) -> torch.dtype:
    from tenfold.kernels.logprob.logprob_reference import math_dtype

    return math_dtype(*tensors)


def _present(like: Tensor, gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Ops return tensors: an empty one stands for a gradient that nobody asked for."""
    return tuple(like.new_empty(0) if g is None else g for g in gradients)


def _option_loss(hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from tenfold.kernels.logprob import losses

    return losses.option_loss(_core("option_loss", hidden.device), hidden, *rest)


def _option_loss_backward(grad_loss: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import losses

    return _present(grad_loss, losses.option_loss_backward(grad_loss, *rest))


def _token_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    from tenfold.kernels.logprob import options

    options.check_tokens("targets", targets, weight.shape[0])
    logp, lse = _core("token_logprobs", hidden.device)(hidden, weight, bias, targets)
    return logp.to(_math_dtype(hidden, weight, bias)), lse


def _token_logprobs_backward(grad: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import logprob_chunks

    return _present(grad, logprob_chunks.token_logprobs_backward(grad, *rest))


def _verbalizer_loss(*arguments: Any) -> tuple[Tensor, Tensor]:
    from tenfold.kernels.logprob import losses

    return losses.verbalizer_loss(*arguments)


def _verbalizer_loss_backward(grad_loss: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import losses

    return _present(grad_loss, losses.verbalizer_loss_backward(grad_loss, *rest))


def _option_loss_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    dtype = _math_dtype(hidden, weight, bias)
    loss, scores = hidden.new_empty((), dtype=dtype), hidden.new_empty((ids.shape[0],), dtype=dtype)
    return loss, scores, hidden.new_empty(ids.shape, dtype=torch.float64)


def _token_logprobs_fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, ...]:
    logp = hidden.new_empty(targets.shape, dtype=_math_dtype(hidden, weight, bias))
    return logp, hidden.new_empty(targets.shape, dtype=torch.float64)


def _verbalizer_loss_fake(
    hidden: Tensor, weight: Tensor, token_ids: Tensor, labels: Tensor, bias: Tensor | None
) -> tuple[Tensor, ...]:
    dtype = _math_dtype(hidden, weight, bias)
    shape = (hidden.shape[0], token_ids.shape[0])
    return hidden.new_empty((), dtype=dtype), hidden.new_empty(shape, dtype=dtype)


def _backward_fake(hidden: int, weight: int, bias: int) -> Callable[..., tuple[Tensor, ...]]:
    """The fake of a backward op whose operands stand at these places and whose last argument is `needs`."""

    def fake(*arguments: Any) -> tuple[Tensor, ...]:
        operands = (arguments[hidden], arguments[weight], arguments[bias])
        wanted = zip(operands, arguments[-1], strict=True)
        empty = [t.new_empty(t.shape) if t is not None and needed else None for t, needed in wanted]
        return _present(arguments[0], empty)

    return fake


def _without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast would run the products inside in a half dtype."""

    def run(*arguments: Any) -> Any:
        with torch.autocast(arguments[0].device.type, enabled=False):
            return kernel(*arguments)

    return run


for _name, _kernel, _fake in (
    ("option_loss", _option_loss, _option_loss_fake),
    ("option_loss_backward", _option_loss_backward, _backward_fake(4, 5, 6)),
    ("token_logprobs", _token_logprobs, _token_logprobs_fake),
    ("token_logprobs_backward", _token_logprobs_backward, _backward_fake(2, 3, 4)),
    ("verbalizer_loss", _verbalizer_loss, _verbalizer_loss_fake),
    ("verbalizer_loss_backward", _verbalizer_loss_backward, _backward_fake(3, 4, 7)),
):
    _LIBRARY.impl(_name, _without_autocast(_kernel), "CPU")
    _LIBRARY.impl(_name, _without_autocast(_kernel), "CUDA")
    torch.library.register_fake(f"tenfold::{_name}", _fake, lib=_LIBRARY)


def _asked(ctx: Any, gradients: Sequence[Tensor], places: Sequence[int]) -> list[Tensor | None]:
    return [g if ctx.needs_input_grad[i] else None for g, i in zip(gradients, places, strict=True)]


def _option_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.mode = inputs
    _, scores, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(scores, lse, *tensors)


def _option_grad(ctx: Any, grad_loss: Tensor, grad_scores: Tensor, _: Any) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:3])
    backward = torch.ops.tenfold.option_loss_backward
    gradients = backward(grad_loss, grad_scores, *ctx.saved_tensors, ctx.mode, needs)
    return (*_asked(ctx, gradients, (0, 1, 2)), None, None, None, None, None, None)


def _token_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *inputs)


def _token_grad(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.tenfold.token_logprobs_backward(grad, *ctx.saved_tensors, needs)
    return (*_asked(ctx, gradients, (0, 1, 2)), None)


def _verbalizer_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1], *inputs)


def _verbalizer_grad(ctx: Any, grad_loss: Tensor, grad_scores: Tensor) -> tuple[Any, ...]:
    needs = [ctx.needs_input_grad[i] for i in (0, 1, 4)]
    backward = torch.ops.tenfold.verbalizer_loss_backward
    gradients = backward(grad_loss, grad_scores, *ctx.saved_tensors, needs)
    hidden, weight, bias = _asked(ctx, gradients, (0, 1, 4))
    return hidden, weight, None, None, bias


def _only_once(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("tenfold: the log-probability losses can be differentiated once, not twice")


for _name, _setup, _grad in (
    ("option_loss", _option_setup, _option_grad),
    ("token_logprobs", _token_setup, _token_grad),
    ("verbalizer_loss", _verbalizer_setup, _verbalizer_grad),
):
    torch.library.register_autograd(f"tenfold::{_name}", _grad, setup_context=_setup, lib=_LIBRARY)
    torch.library.register_autograd(f"tenfold::{_name}_backward", _only_once, lib=_LIBRARY)


# ---- the public side -------------------------------------------------------------------------------------


def option_loss(
    hidden: Any,
    weight: Any,
    bias: Any,
    ids: Any,
    option_len: Any,
    *,
    num_options: Any = None,
    labels: Any = None,
    mode: str = "choice",
    attention_mask: Any = None,
) -> OptionLoss:
    """Loss over answer options, from the hidden states that predict their tokens.

    The score of a row is the mean over its option tokens of log p(token | what stands before it). In mode
    "choice", consecutive rows are the options of one example, and the loss is the mean over examples of the
    cross-entropy of softmax(scores) with the right option. In mode "lm" the loss is the mean negative
    log-likelihood of all option tokens.

    Only the option positions meet the unembedding. Products are accumulated in float32 from the stored
    values, whatever their dtypes and under autocast too, sums over tokens and options are float64, and no
    more than a chunk of logits exists at any time. Differentiable once in hidden, weight and bias; the
    backward pass computes the logits again.

    Args:
        hidden: [B, T, H] hidden states after the last norm, float32, bfloat16, float16, or float64 (then all
            math is float64).
        weight: [V, H] unembedding (`lm_head.weight`); its dtype may differ from that of hidden.
        bias: [V] or None.
        ids: [B, T] token ids, int64. Position t of hidden predicts ids[:, t + 1].
        option_len: [B] integers in [1, T - 1] (tensor or sequence): how many tokens at the end of each row
            are its option.
        num_options: "choice" only: options per example, an int, or counts (tensor or sequence) that sum to B.
        labels: "choice" only: [examples] integers (tensor or sequence), each example's right option, from 0.
        mode: "choice" or "lm".
        attention_mask: [B, T], nonzero where a token is real. Rows may then be padded on either side: an
            option ends at its row's last real token. Without it, rows end at T (padded on the left).

    On a CUDA device keep option_len, num_options and labels on the CPU; one synchronisation checks the token
    ids.

    Returns:
        OptionLoss(loss [], scores [B]), float32 (float64 for float64 input). The loss of no examples is NaN,
        as it is in torch.nn.functional.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes or devices that do not fit, option_len outside [1, T - 1], options that are masked
            or outside the vocabulary, counts that do not sum to B, labels out of range, arguments that do not
            belong to the mode.
        RuntimeError: a forced backend that cannot run.
    """
    kind = _arrays.kind_of(hidden)
    hidden, weight, bias = _operands(hidden, weight, bias, 3)
    ids = _integers("ids", ids, hidden.shape[:2], "[B, T] of hidden", hidden.device)
    option_len = _integers("option_len", option_len, hidden.shape[:1], "[B] of hidden")
    if attention_mask is not None:
        attention_mask = _arrays.as_tensor("attention_mask", attention_mask)
        _expect_shape("attention_mask", attention_mask, hidden.shape[:2], "[B, T] of hidden")
    if _checks.choice("mode", mode, MODES) == "choice":
        num_options = _counts(num_options, hidden.shape[0])
        labels = _integers("labels", _required("labels", labels), num_options.shape, "one label per example")
    else:
        _unused("num_options", num_options)
        _unused("labels", labels)
    loss, scores, _ = torch.ops.tenfold.option_loss(
        hidden, weight, bias, ids, option_len, num_options, labels, attention_mask, mode
    )
    return OptionLoss(kind(loss), kind(scores))


def token_logprobs(hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
    """log p(targets[p]) under softmax(hidden[p] weight^T + bias): the building block of the losses.

    Args:
        hidden: [P, H], float32, bfloat16, float16 or float64.
        weight: [V, H]. bias: [V] or None. Their dtypes may differ from that of hidden.
        targets: [P] int64, each in [0, V).

    Returns:
        [P], natural logarithm, float32 whatever the input (float64 for float64 input). Differentiable once in
        hidden, weight and bias.

    Raises:
        TypeError, ValueError, RuntimeError: as `option_loss`.
    """
    kind = _arrays.kind_of(hidden)
    hidden, weight, bias = _operands(hidden, weight, bias, 2)
    targets = _integers("targets", targets, hidden.shape[:1], "[P] of hidden", hidden.device)
    return kind(torch.ops.tenfold.token_logprobs(hidden, weight, bias, targets)[0])


def verbalizer_loss(
    hidden: Any, weight: Any, token_ids: Any, labels: Any, bias: Any = None
) -> tuple[Any, Any]:
    """Cross-entropy over C label words, from the C rows of the unembedding alone.

    The loss of prompt-based classification with one-token label words (LM-BFF, Gao et al., arXiv 2012.15723):
    softmax over the logits of `token_ids`, in float32, at one position per example.

    Args:
        hidden: [N, H] hidden states at the predicting position, after the last norm. Dtypes as `option_loss`.
        weight: [V, H]. bias: [V] or None.
        token_ids: [C] integers (tensor or sequence), the label words, each in [0, V).
        labels: [N] integers (tensor or sequence), indices into token_ids.

    Returns:
        (loss [], scores [N, C]): the mean cross-entropy, and log p(label word | one of the C); float32
        (float64 for float64 input). Differentiable once in hidden, weight and bias.

    Raises:
        TypeError, ValueError: as `option_loss`.
    """
    kind = _arrays.kind_of(hidden)
    hidden, weight, bias = _operands(hidden, weight, bias, 2)
    token_ids = _integers("token_ids", token_ids, None, "[C]", hidden.device, move=True)
    labels = _integers("labels", labels, hidden.shape[:1], "[N] of hidden", hidden.device, move=True)
    loss, scores = torch.ops.tenfold.verbalizer_loss(hidden, weight, token_ids, labels, bias)
    return kind(loss), kind(scores)


# ---- checks ----------------------------------------------------------------------------------------------


def _operands(hidden: Any, weight: Any, bias: Any, ndim: int) -> tuple[Tensor, Tensor, Tensor | None]:
    hidden = _checks.tensor("hidden", _arrays.as_tensor("hidden", hidden))
    weight = _checks.tensor("weight", _arrays.as_tensor("weight", weight))
    if hidden.ndim != ndim:
        expected = "shape [B, T, H]" if ndim == 3 else "shape [rows, H]"
        _checks.fail(ValueError, "hidden", expected, tuple(hidden.shape))
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        expected = f"shape [V, H] with H = {hidden.shape[-1]} as hidden"
        _checks.fail(ValueError, "weight", expected, tuple(weight.shape))
    _expect_device("weight", weight, hidden.device)
    if bias is not None:
        bias = _checks.tensor("bias", _arrays.as_tensor("bias", bias))
        _expect_shape("bias", bias, weight.shape[:1], "[V] of weight")
        _expect_device("bias", bias, hidden.device)
    return hidden, weight, bias


def _expect_shape(name: str, value: Tensor, shape: Sequence[int], what: str) -> None:
    if tuple(value.shape) != tuple(shape):
        _checks.fail(ValueError, name, f"shape {tuple(shape)}, {what}", tuple(value.shape))


def _expect_device(name: str, value: Tensor, device: torch.device) -> None:
    if value.device != device:
        _checks.fail(ValueError, name, f"device {device} as hidden", value.device)


def _integers(
    name: str,
    value: Any,
    shape: Sequence[int] | None,
    what: str,
    device: torch.device | None = None,
    move: bool = False,
) -> Tensor:
    """A tensor, array or sequence of integers as int64 of `shape` (None: any [n]) on `device` (None: any)."""
    if isinstance(value, (list, tuple)):
        items = [_checks.integer(f"{name}[{i}]", v, -(2**63), 2**63 - 1) for i, v in enumerate(value)]
        value, move = torch.tensor(items, dtype=torch.int64), True
    value = _checks.tensor(name, _arrays.as_tensor(name, value), (torch.int64, torch.int32))
    if shape is None and value.ndim != 1:
        _checks.fail(ValueError, name, f"shape {what}", tuple(value.shape))
    if shape is not None:
        _expect_shape(name, value, shape, what)
    if device is not None:
        value = value.to(device) if move else value
        _expect_device(name, value, device)
    return value.to(torch.int64)


def _required(name: str, value: Any) -> Any:
    if value is None:
        expected = 'a value in mode "choice" (mode "lm" gives scores without labels)'
        _checks.fail(ValueError, name, expected, None)
    return value


def _unused(name: str, value: Any) -> None:
    if value is not None:
        _checks.fail(ValueError, name, 'None in mode "lm"', type(value).__name__)


def _counts(num_options: Any, rows: int) -> Tensor:
    """Options per example, int64 [examples]."""
    if isinstance(_required("num_options", num_options), int):
        each = _checks.integer("num_options", num_options, 1, 2**31)
        if rows % each:
            _checks.fail(ValueError, "num_options", f"a divisor of B = {rows}", each)
        return torch.full((rows // each,), each, dtype=torch.int64)
    return _integers("num_options", num_options, None, "[examples]")

"""The losses on top of token_logprobs, forward and backward, for any backend.

`core` is the backend's token_logprobs.  Backward needs none: it is the chunked PyTorch one everywhere, since
it must hand out gradients as large as the weight anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import logprob_chunks, options
from .logprob_chunks import ieee_matmul
from .logprob_reference import logits_of, math_dtype

Core = Callable[[Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor]]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def option_loss(
    core: Core,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    option_len: Tensor,
    num_options: Tensor | None,
    labels: Tensor | None,
    attention_mask: Tensor | None,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [], scores [B], lse [B, T] float64 at the predicting positions and zero elsewhere)."""
    tokens = options.option_tokens(ids, option_len, attention_mask, weight.shape[0])
    groups = _groups(mode, num_options, labels, ids)
    logp, lse = core(hidden[tokens.row, tokens.position], weight, bias, tokens.target)
    scores = options.mean_per_row(logp, tokens)
    loss = -logp.mean() if groups is None else options.choice_loss(scores, groups)
    lse_at = lse.new_zeros(ids.shape)
    lse_at[tokens.row, tokens.position] = lse
    dtype = math_dtype(hidden, weight, bias)
    return loss.to(dtype), scores.to(dtype), lse_at


def _groups(
    mode: str, num_options: Tensor | None, labels: Tensor | None, ids: Tensor
) -> options.Choices | None:
    if mode != "choice":
        return None
    assert num_options is not None
    assert labels is not None
    return options.choices(num_options, labels, ids.shape[0], ids.device)


def option_loss_backward(
    grad_loss: Tensor,
    grad_scores: Tensor,
    scores: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    option_len: Tensor,
    num_options: Tensor | None,
    labels: Tensor | None,
    attention_mask: Tensor | None,
    mode: str,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients for hidden, weight and bias, where needed."""
    tokens = options.option_tokens(ids, option_len, attention_mask, weight.shape[0])
    groups = _groups(mode, num_options, labels, ids)
    per_row = grad_scores.double()
    if groups is not None:
        per_row = per_row + grad_loss.double() * options.choice_loss_backward(scores.double(), groups)
    per_token = (per_row / tokens.lengths)[tokens.row]
    if groups is None:
        per_token = per_token - grad_loss.double() / max(tokens.row.numel(), 1)
    at = (tokens.row, tokens.position)
    grad_rows, grad_weight, grad_bias = logprob_chunks.token_logprobs_backward(
        per_token, lse[at], hidden[at], weight, bias, tokens.target, needs
    )
    if grad_rows is None:
        return None, grad_weight, grad_bias
    grad_hidden = torch.zeros(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    grad_hidden[at] = grad_rows
    return grad_hidden, grad_weight, grad_bias


def verbalizer_loss(
    hidden: Tensor, weight: Tensor, token_ids: Tensor, labels: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(loss [], scores [N, C]); the same on every backend: C columns make one small product."""
    options.check_tokens("token_ids", token_ids, weight.shape[0])
    expected = f"an index into token_ids, in [0, {token_ids.shape[0]})"
    options.check_each("labels", labels.cpu(), 0, token_ids.shape[0] - 1, expected)
    with ieee_matmul(hidden.device.type):
        logits = logits_of(hidden, weight[token_ids], None if bias is None else bias[token_ids])
    scores = logits.double().log_softmax(dim=1)
    loss = -scores.gather(1, labels[:, None]).mean()
    return loss.to(logits.dtype), scores.to(logits.dtype)


def verbalizer_loss_backward(
    grad_loss: Tensor,
    grad_scores: Tensor,
    scores: Tensor,
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    needs: Sequence[bool],
) -> Gradients:
    """Gradients for hidden, weight and bias, where needed."""
    dtype, n = scores.dtype, hidden.shape[0]
    share = (grad_loss / max(n, 1)).to(dtype).expand(n, 1)
    slope = grad_scores.to(dtype).scatter_add(1, labels[:, None], -share)
    slope = slope - scores.exp() * slope.sum(dim=1, keepdim=True)
    grad_hidden = grad_weight = grad_bias = None
    with ieee_matmul(hidden.device.type):
        if needs[0]:
            grad_hidden = (slope @ weight[token_ids].to(dtype)).to(hidden.dtype)
        if needs[1]:
            rows = (slope.T @ hidden.to(dtype)).to(weight.dtype)
            grad_weight = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
            grad_weight.index_add_(0, token_ids, rows)
    if needs[2] and bias is not None:
        grad_bias = torch.zeros_like(bias).index_add_(0, token_ids, slope.sum(dim=0).to(bias.dtype))
    return grad_hidden, grad_weight, grad_bias

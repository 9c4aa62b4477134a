"""Log-probabilities from hidden states in plain PyTorch, logits and all: the oracle, and the fallback.

`token_logprobs` is the kernel that every backend replaces. `option_loss` and `verbalizer_loss` are the
losses written as one reads them, row by row, differentiable by autograd; the tests hold the ops to them.

Losses: MeZO, Malladi et al., "Fine-tuning language models with just forward passes" (arXiv 2305.17333),
after the option scoring of GPT-3 (Brown et al., arXiv 2005.14165): an option's score is its mean token
log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def math_dtype(*tensors: Tensor | None) -> torch.dtype:
    """What logits are computed in: float64 if any tensor is, else float32."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def logits_of(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows [P, H], weight [V, H], bias [V] -> logits [P, V] in the math dtype."""
    dtype = math_dtype(rows, weight, bias)
    logits = rows.to(dtype) @ weight.to(dtype).T
    return logits if bias is None else logits + bias.to(dtype)


def token_logprobs(
    rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """log p(targets[p]) and log sum_v exp(logit[p, v]), both float64 [P]."""
    logits = logits_of(rows, weight, bias).double()
    lse = logits.logsumexp(dim=1)
    return logits.gather(1, targets[:, None])[:, 0] - lse, lse


def option_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ids: Tensor,
    option_len: Sequence[int],
    num_options: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
    mode: str = "choice",
) -> tuple[Tensor, Tensor]:
    """(loss [], scores [B]); rows end with their option tokens, and position t predicts token t + 1."""
    length = ids.shape[1]
    nll, scores = [], []
    for row, n in enumerate(option_len):
        logits = logits_of(hidden[row, length - n - 1 : length - 1], weight, bias)
        tokens = ids[row, length - n :]
        nll.append(F.cross_entropy(logits, tokens, reduction="none"))
        scores.append(-nll[-1].mean())
    if mode == "lm":
        return torch.cat(nll).mean(), torch.stack(scores)
    assert num_options is not None
    assert labels is not None
    groups = torch.stack(scores).split(list(num_options))
    losses = [
        F.cross_entropy(g, g.new_tensor(y, dtype=torch.int64)) for g, y in zip(groups, labels, strict=True)
    ]
    return torch.stack(losses).mean(), torch.stack(scores)


def verbalizer_loss(
    hidden: Tensor, weight: Tensor, token_ids: Tensor, labels: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(loss [], scores [N, C]): cross-entropy over the C tokens alone, and their log-probabilities."""
    logits = logits_of(hidden, weight[token_ids], None if bias is None else bias[token_ids])
    return F.cross_entropy(logits, labels), logits.log_softmax(dim=1)

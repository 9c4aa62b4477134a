"""Log-probabilities of labelled tokens, from hidden states: no logits of a whole batch exist.

scores = token_scores(model, rows.rows, pad_id=tokenizer.pad_token_id)
mean_nll(scores)                       a of each row: mean NLL per answer token, end-of-text included
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from tenfold.llm.prompts import pad_left
from tenfold.llm.schemes import Adapted
from tenfold.llm.unlearn.encoding import IGNORE, Encoded, collate, portions
from tenfold.ops import linear_logprob

__all__ = [
    "Progress", "TokenScores", "head_of", "hidden_states", "mean_nll", "perplexity", "scores_of",
    "token_scores",
]  # fmt: skip

Progress: TypeAlias = "Callable[[int], None] | None"

TOKENS_AT_ONCE = 4096


class TokenScores(NamedTuple):
    """Of one row's labelled tokens, in order; tensors on the CPU.

    logp: float64 [n], natural log-probability of the token.
    greedy: bool [n], whether the model's most likely token is this one.
    mean, variance: float64 [n], of the log-probability of a token drawn from the model, over the vocabulary;
        empty where they were not asked for.
    ends: whether the last labelled token is the end-of-text token.
    """

    logp: Tensor
    greedy: Tensor
    mean: Tensor
    variance: Tensor
    ends: bool

    def without_end(self) -> TokenScores:
        """The same without the end-of-text token."""
        if not self.ends:
            return self
        some = len(self.mean) > 0
        return TokenScores(
            self.logp[:-1],
            self.greedy[:-1],
            self.mean[:-1] if some else self.mean,
            self.variance[:-1] if some else self.variance,
            False,
        )


def head_of(model: Any) -> tuple[Tensor, Tensor | None, float | None]:
    """Weight [V, D], bias [V] or None, and soft cap of the logits or None, of the unembedding."""
    weight, bias = Adapted(model, "ft", {}).head()
    config = getattr(model.config, "text_config", None) or model.config
    cap = getattr(config, "final_logit_softcapping", None)
    return weight, bias, None if cap is None else float(cap)


def hidden_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """What enters the unembedding, [B, T, D]; row t predicts token t + 1."""
    return Adapted(model, "ft", {}).hidden(ids, mask)


@torch.no_grad()
def token_scores(
    model: Any,
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    eos_id: int | None = None,
    moments: bool = False,
    tokens: int = TOKENS_AT_ONCE,
    progress: Progress = None,
) -> list[TokenScores]:
    """Scores of the labelled tokens of each row, computed in batches of like length.

    Rows with the same prompt (a right and several false answers) are computed behind one pass over it.

    Args:
        model: a causal model of ``transformers``; it is put into evaluation mode meanwhile.
        rows: of :func:`tenfold.llm.unlearn.data.encode_rows`.
        pad_id: token for padding; it is masked.
        eos_id: the end-of-text token, so that :meth:`TokenScores.without_end` knows it.
        moments: also mean and variance over the vocabulary (Min-K%++).
        tokens: size of a batch, padding included.
        progress: called with the number of rows done after each batch.

    Raises:
        ValueError: a row without labels.
    """
    for row in rows:
        if not row.labelled:
            raise ValueError(f"rows: expected labels in every row, got none in row {row.index}")
    found: list[TokenScores | None] = [None] * len(rows)
    scorer = _Scorer(model, pad_id, eos_id, moments)
    was_training = model.training
    model.eval()
    try:
        for alike in (scorer.plain, scorer.behind_one_prompt):
            for chosen in _batches(rows, tokens, shared=alike == scorer.behind_one_prompt):
                for i, scores in zip(chosen, alike([rows[i] for i in chosen]), strict=True):
                    found[i] = scores
                if progress is not None:
                    progress(len(chosen))
    finally:
        model.train(was_training)
    return [scores for scores in found if scores is not None]


def _prompt_of(row: Encoded) -> tuple[int, ...]:
    """Tokens in front of the first label."""
    return tuple(row.ids[: next(i for i, label in enumerate(row.labels) if label != IGNORE)])


def _batches(rows: Sequence[Encoded], tokens: int, *, shared: bool) -> list[list[int]]:
    """Indices of the rows whose prompt no other row has, or of those who share theirs, in batches."""
    families: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        families.setdefault(_prompt_of(row), []).append(i)
    if shared:
        kin = [family for family in families.values() if len(family) > 1]
        sizes = [max(len(rows[i].ids) for i in family) * len(family) for family in kin]
        return [[i for f in chosen for i in kin[f]] for chosen in portions(sizes, tokens)]
    alone = [family[0] for family in families.values() if len(family) == 1]
    return [[alone[i] for i in chosen] for chosen in portions([len(rows[i].ids) for i in alone], tokens)]


class _Scorer:
    """Scores of one batch of rows; the two ways of computing them give the same numbers."""

    def __init__(self, model: Any, pad_id: int, eos_id: int | None, moments: bool) -> None:
        self.model, self.pad_id, self.eos_id, self.moments = model, pad_id, eos_id, moments
        self.adapted = Adapted(model, "ft", {})

    def plain(self, rows: Sequence[Encoded]) -> list[TokenScores]:
        """Prompt and answer in one forward."""
        batch = {name: value.to(self.adapted.device) for name, value in collate(rows, self.pad_id).items()}
        hidden = self.adapted.hidden(batch["input_ids"], batch["attention_mask"])
        labels = batch["labels"][:, 1:]
        wanted = labels != IGNORE
        return self.scores(hidden[:, :-1][wanted], labels[wanted], rows)

    def behind_one_prompt(self, rows: Sequence[Encoded]) -> list[TokenScores]:
        """Each different prompt once, its answers behind its cached keys and values. Equal prompts are
        neighbours."""
        device = self.adapted.device
        found = [_prompt_of(row) for row in rows]
        prompts = list(dict.fromkeys(found))
        which = torch.tensor([prompts.index(prompt) for prompt in found], device=device)
        ids, mask = (x.to(device) for x in pad_left(prompts, self.pad_id))
        cache, last = self.adapted.prefill(ids, mask)
        cache.batch_select_indices(which)
        answers = [row.ids[len(prompt) :] for row, prompt in zip(rows, found, strict=True)]
        tokens = torch.full((len(rows), max(map(len, answers))), self.pad_id, dtype=torch.int64)
        for i, answer in enumerate(answers):
            tokens[i, : len(answer)] = torch.tensor(answer)
        tokens = tokens.to(device)
        lengths = torch.tensor([len(answer) for answer in answers], device=device)
        real = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        hidden = last[which][:, None]
        if tokens.shape[1] > 1:
            more = self.adapted.continued(tokens[:, :-1], real[:, :-1].long(), mask[which], cache)
            hidden = torch.cat((hidden, more), 1)
        return self.scores(hidden[real], tokens[real], rows)

    def scores(self, hidden: Tensor, targets: Tensor, rows: Sequence[Encoded]) -> list[TokenScores]:
        """Of the hidden states [N, D] that predict the labels of ``rows``, in their order."""
        return scores_of(self.model, hidden, targets, rows, eos_id=self.eos_id, moments=self.moments)


def scores_of(
    model: Any, hidden: Tensor, targets: Tensor, rows: Sequence[Encoded], *, eos_id: int | None, moments: bool
) -> list[TokenScores]:
    """Scores of rows whose labels ``targets`` [N], one row after the other, ``hidden`` [N, D] predicts."""
    weight, bias, cap = head_of(model)
    want = ("logp", "argmax", *(("mean_logp", "mean_logp2") if moments else ()))
    out = linear_logprob(hidden, weight, targets, bias, softcap=cap, want=want)
    counts = [row.labelled for row in rows]
    mean = variance = torch.empty(0, dtype=torch.float64)
    if moments:
        mean = out.mean_logp.double().cpu()
        variance = (out.mean_logp2.double().cpu() - mean * mean).clamp_min(0)
    each = (
        out.logp.double().cpu().split(counts),
        (out.argmax == targets).cpu().split(counts),
        mean.split(counts) if moments else [mean] * len(rows),
        variance.split(counts) if moments else [variance] * len(rows),
        [eos_id is not None and row.labels[-1] == eos_id for row in rows],
    )
    return [TokenScores(*values) for values in zip(*each, strict=True)]


def mean_nll(scores: Sequence[TokenScores]) -> list[float]:
    """Mean negative log-probability per labelled token of each row."""
    return [-float(row.logp.mean()) for row in scores]


def perplexity(scores: Sequence[TokenScores]) -> float:
    """exp of the mean negative log-probability over all tokens of all rows.

    Raises:
        ValueError: no rows.
    """
    if not scores:
        raise ValueError("scores: expected at least one row, got none")
    total = sum(float(row.logp.sum()) for row in scores)
    return float(torch.tensor(-total / sum(len(row.logp) for row in scores), dtype=torch.float64).exp())

"""Is it gone, or only hidden? Ways of asking again after unlearning.

relearn(model, forget_rows, steps=20)              a few steps of training on a part of the forget set
with quantised(model): evaluate_tofu(...)          weights rounded to 4 bits, and back afterwards
evaluate_tofu(..., template=few_shot_template(...))    other answers as examples in front
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _checks
from tenfold.llm.unlearn.encoding import IGNORE, Encoded, collate
from tenfold.llm.unlearn.evaluate.scores import head_of, hidden_states
from tenfold.llm.unlearn.pairs import sample_forget
from tenfold.llm.unlearn.rows import Row
from tenfold.llm.unlearn.templates import prompt
from tenfold.ops import linear_logprob

__all__ = ["few_shot_template", "quantised", "relearn"]


def few_shot_template(
    template: str, rows: Sequence[Row], tokenizer: Any = None, *, shots: int = 1, seed: int = 0
) -> str:
    """A template with ``shots`` answered questions in front, drawn from ``rows`` (the retain set, say).

    Raises:
        ValueError: fewer rows than shots; a drawn row with ``{question}`` in it.
    """
    _checks.integer("shots", shots, 1, len(rows))
    chosen, _ = sample_forget(rows, shots + 0.5, dataset_seed=seed)
    lead = "".join(prompt(template, row.question, tokenizer) + row.answer + "\n" for row in chosen)
    if "{question}" in lead:
        raise ValueError("rows: expected texts without '{question}', got one with it")
    return lead + prompt(template, "{question}", tokenizer)


@contextmanager
def quantised(model: nn.Module, *, bits: int = 4, block: int = 64) -> Iterator[nn.Module]:
    """The weights of all linear layers but the unembedding rounded to ``bits`` bits, inside the ``with``.

    Round to nearest, symmetric, one scale per ``block`` values of a row. Unlearning that moves weights by
    less than a step of this grid comes undone (arXiv 2410.16454).
    """
    _checks.integer("bits", bits, 2, 8)
    _checks.integer("block", block, 1, 2**31)
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    kept = [layer.weight.detach().clone() for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.weight.copy_(_rounded(layer.weight, bits, block))
        yield model
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, kept, strict=True):
                layer.weight.copy_(weight)


def _rounded(weight: Tensor, bits: int, block: int) -> Tensor:
    top = 2 ** (bits - 1) - 1
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % block)).view(rows, -1, block)
    scale = padded.abs().amax(-1, keepdim=True).clamp_min(1e-12) / top
    return ((padded / scale).round().clamp(-top, top) * scale).view(rows, -1)[:, :columns]


def relearn(
    model: nn.Module,
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    share: float = 0.2,
    steps: int = 10,
    lr: float = 1e-5,
    batch_size: int = 4,
    seed: int = 0,
    parameters: Sequence[nn.Parameter] | None = None,
) -> list[float]:
    """Train the model on a part of the forget set, in place, by AdamW; evaluate it again afterwards.

    Args:
        rows: encoded forget rows.
        share: part of the rows that the attacker has.
        steps, lr, batch_size: of the training.
        parameters: what is trained; None for everything.

    Returns:
        The loss (mean NLL per token) of each step.

    Raises:
        ValueError: no rows in that share.
    """
    _checks.integer("steps", steps, 1, 2**31)
    known, _ = sample_forget(rows, max(share, 1 / max(1, len(rows))), dataset_seed=seed)
    generator = torch.Generator().manual_seed(seed)
    trained = list(model.parameters() if parameters is None else parameters)
    marks = [x.requires_grad for x in trained]
    losses = []
    try:
        for x in trained:
            x.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
        for _ in range(steps):
            drawn = torch.randint(0, len(known), (min(batch_size, len(known)),), generator=generator)
            loss = _loss(model, [known[i] for i in drawn.tolist()], pad_id)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
    finally:
        for x, mark in zip(trained, marks, strict=True):
            x.grad = None
            x.requires_grad_(mark)
    return losses


def _loss(model: Any, rows: Sequence[Encoded], pad_id: int) -> Tensor:
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in collate(rows, pad_id).items()}
    with torch.enable_grad():
        hidden = hidden_states(model, batch["input_ids"], batch["attention_mask"])
        targets = batch["labels"][:, 1:]
        wanted = targets != IGNORE
        weight, bias, cap = head_of(model)
        logp: Tensor = linear_logprob(hidden[:, :-1][wanted], weight, targets[wanted], bias, softcap=cap).logp
        return -logp.mean()

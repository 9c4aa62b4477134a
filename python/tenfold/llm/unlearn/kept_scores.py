"""Scores of tokens for one evaluation after the other of a model of which only the last blocks change.

    score = KeptScores(subject)
    evaluate_tofu(subject.model, tokenizer, data, score=score)

What enters the trained blocks is computed once for each text and kept, so that every evaluation but the first
costs the trained blocks and the unembedding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.llm import prompts
from tenfold.llm.unlearn import losses
from tenfold.llm.unlearn.encoding import Encoded, portions
from tenfold.llm.unlearn.evaluate.scores import Progress, TokenScores, scores_of, token_scores
from tenfold.llm.unlearn.subject import Batch, Subject

__all__ = ["KeptScores"]


class KeptScores:
    """Stands in for :func:`tenfold.llm.unlearn.evaluate.token_scores` on the model of a subject.

    Args:
        subject: where all blocks are trained (or LoRA lies in all of them), nothing can be kept: it computes
            what :func:`token_scores` computes.
        texts: most texts that are kept; a batch that would exceed them is computed without.
    """

    def __init__(self, subject: Subject, texts: int = 4096) -> None:
        self.subject, self.texts = subject, texts
        self._entering: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, model: Any, rows: Sequence[Encoded], *, pad_id: int, eos_id: int | None = None,
        moments: bool = False, tokens: int = 4096, progress: Progress = None,
    ) -> list[TokenScores]:  # fmt: skip
        """As :func:`token_scores`; ``model`` is the subject's.

        Raises:
            ValueError: a row without labels; another model.
        """
        if model is not self.subject.model:
            raise ValueError(f"model: expected that of the subject, got another {type(model).__name__}")
        new = {tuple(row.ids): row for row in rows if tuple(row.ids) not in self._entering}
        if not self.subject.depth or len(self._entering) + len(new) > self.texts:
            return token_scores(
                model, rows, pad_id=pad_id, eos_id=eos_id, moments=moments, tokens=tokens, progress=progress
            )
        for row in rows:
            if not row.labelled:
                raise ValueError(f"rows: expected labels in every row, got none in row {row.index}")
        self._remember(list(new.values()))
        found: list[TokenScores | None] = [None] * len(rows)
        for chosen in portions([len(row.ids) for row in rows], tokens):
            some = [rows[i] for i in chosen]
            at = losses.labelled(self.subject.hidden(batch := self._batch(some)), batch.labels)
            made = scores_of(model, at.hidden, at.targets, some, eos_id=eos_id, moments=moments)
            for i, scores in zip(chosen, made, strict=True):
                found[i] = scores
            if progress is not None:
                progress(len(chosen))
        return [scores for scores in found if scores is not None]

    def _remember(self, rows: list[Encoded]) -> None:
        """What enters the trained blocks for each text: out of the subject's sets, else by the frozen
        blocks."""
        for ids, states in self.subject.kept_states():
            self._entering.setdefault(ids, states)
        rows = [row for row in rows if tuple(row.ids) not in self._entering]
        if rows:
            for row, states in zip(rows, self.subject.entering([row.ids for row in rows]), strict=True):
                self._entering[tuple(row.ids)] = states[len(states) - len(row.ids) :].clone()

    def _batch(self, rows: Sequence[Encoded]) -> Batch:
        ids, mask = prompts.pad_left([row.ids for row in rows], self.subject.pad_id)
        labels = torch.full_like(ids, losses.IGNORE)
        kept = [self._entering[tuple(row.ids)] for row in rows]
        entering = kept[0].new_zeros(len(rows), ids.shape[1], kept[0].shape[-1])
        for i, (row, states) in enumerate(zip(rows, kept, strict=True)):
            labels[i, ids.shape[1] - len(row.ids) :] = torch.tensor(row.labels)
            entering[i, ids.shape[1] - len(row.ids) :] = states
        device = self.subject.device
        return Batch(ids.to(device), mask.to(device), labels.to(device), entering)

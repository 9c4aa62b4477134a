"""What a fine-tuning run minimises and how it is scored: losses and answers of a model on a task.

    objective = Objective(adapted, splits, task="rte", tokenizer=tokenizer, max_length=256)
    objective.loss(objective.batch("train", [0, 5, 7]))       a float32 scalar
    objective.score("dev")                                    {"loss": ..., "accuracy": ...}

Losses are taken from hidden states by `tenfold.ops.option_loss` and `verbalizer_loss`: no logits of a whole
vocabulary exist at any time, and log-probabilities are float32 in every dtype of the model. Choice tasks
train the cross-entropy over the options, the others the language-model loss of the right option, and question
answering is scored by generating (the protocol of MeZO, arXiv 2305.17333, and of arXiv 2402.11592).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.llm import tasks
from tenfold.llm.schemes import Adapted, is_masked
from tenfold.ops import option_loss, verbalizer_loss

__all__ = ["Batch", "Objective"]

SPLITS = ("train", "dev", "test")
MAX_NEW_TOKENS = 50
TOKENS_AT_ONCE = 4096  # of a batch in evaluation


class Batch(NamedTuple):
    """Examples ready for the forwards of one step.

    ids, mask: int64 [R, T], mask 0 on padding.  place: int64 [R], the position whose hidden state answers
    ("words"), else empty.  option_len [R], num_options [B] (empty where they are not used), labels [B]: int64
    on the CPU, except labels of "words".
    """

    ids: Tensor
    mask: Tensor
    place: Tensor
    option_len: Tensor
    num_options: Tensor
    labels: Tensor


class Words(NamedTuple):
    """Examples whose answers are the same few single tokens: one row each, whatever the number of options."""

    ids: list[list[int]]
    place: list[int]
    labels: list[int]


class Objective:
    """Losses and scores of one model on one task.

    Args:
        adapted: of :func:`tenfold.llm.schemes.attach`.
        splits: with lists ``train``, ``dev``, ``test`` of :class:`tenfold.llm.tasks.Example`. For a masked
            model they are those of ``tasks.load(..., mask_token=...)``.
        task: name of the task, which tells its kind and its metric.
        tokenizer: of the model.
        max_length: largest number of tokens in a row; longer ones are cut on their left.
        calibrate: subtract from the score of an option its score behind the task's domain string (surface
            form competition, arXiv 2104.08315). Scores only; the loss is the same.
        max_new_tokens: of a generated answer.

    Attributes:
        form: ``"words"`` (options are fixed single tokens: one row per example gives the score of every
            option), ``"options"`` (a row per option) or ``"lm"`` (training on the right option only).

    Raises:
        ValueError: examples that do not suit the model, see :func:`tenfold.llm.tasks.encode`.
    """

    def __init__(
        self,
        adapted: Adapted,
        splits: Any,
        *,
        task: str,
        tokenizer: Any,
        max_length: int = 256,
        calibrate: bool = False,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self.adapted, self.tokenizer = adapted, tokenizer
        self.task = tasks.find(task)
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        self.examples: dict[str, list[Any]] = {name: list(getattr(splits, name)) for name in SPLITS}
        self.calibrate = calibrate
        self.plain = False  # compute losses from plain torch functions, which forward-mode AD goes through
        self.word_ids: Tensor | None = None
        self._width = 8 if adapted.device.type == "cuda" else 1
        self._words: dict[str, Words] = {}
        self._rows: dict[str, tasks.Rows] = {}
        self._right: dict[str, tasks.Rows] = {}
        self.form: Literal["words", "options", "lm"] = self._encode()

    def __len__(self) -> int:
        return len(self.examples["train"])

    # -- losses ----------------------------------------------------------------------------------------------

    def batch(self, split: str, chosen: Sequence[int]) -> Batch:
        """Examples ``chosen`` of a split on the device of the model."""
        if self.form == "words":
            return self._word_batch(split, chosen)
        rows = self._right[split] if self.form == "lm" else self._rows[split]
        return self._row_batch(rows, chosen)

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch, a float32 scalar (float64 for a float64 model); differentiable."""
        if self.plain:
            return self._plain_loss(batch)
        return self.head_loss(batch, self.adapted.hidden(batch.ids, batch.mask), *self.adapted.head())

    def head_loss(self, batch: Batch, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same from what enters the unembedding [R, T, H] and its weight [V, H] and bias [V]."""
        if self.form == "words":
            return self._word_scores(hidden, batch, weight, bias)[0]
        return self._option_scores(hidden, batch, weight, bias, self.form)[0]

    @torch.no_grad()
    def mean_loss(self, split: str) -> float:
        """Loss over a whole split, examples weighted equally (tokens, for the language-model loss)."""
        total, weight = 0.0, 0
        for chosen in self._portions(split):
            batch = self.batch(split, chosen)
            share = int(batch.option_len.sum()) if self.form == "lm" else len(chosen)
            total += share * float(self.loss(batch))
            weight += share
        return total / weight

    def _word_scores(
        self, hidden: Tensor, batch: Batch, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        at = hidden[torch.arange(len(hidden), device=hidden.device), batch.place]
        assert self.word_ids is not None
        loss, scores = verbalizer_loss(at, weight, self.word_ids, batch.labels, bias)
        return loss, scores

    @staticmethod
    def _option_scores(
        hidden: Tensor, batch: Batch, weight: Tensor, bias: Tensor | None, form: str
    ) -> tuple[Tensor, Tensor]:
        more = {"num_options": batch.num_options, "labels": batch.labels} if form == "options" else {}
        found = option_loss(
            hidden, weight, bias, batch.ids, batch.option_len, mode="choice" if more else "lm",
            attention_mask=batch.mask, **more,
        )  # fmt: skip
        return found.loss, found.scores

    def _plain_loss(self, batch: Batch) -> Tensor:
        """The same number from `linear`, `log_softmax` and indexing."""
        hidden = self.adapted.hidden(batch.ids, batch.mask)
        weight, bias = self.adapted.head()
        if self.form == "words":
            at = hidden[torch.arange(len(hidden), device=hidden.device), batch.place]
            some = self.word_ids
            logits = F.linear(at.float(), weight[some].float(), None if bias is None else bias[some].float())
            return F.cross_entropy(logits, batch.labels)
        row, column = _option_places(batch)
        states = hidden[row, column - 1].float()
        logits = F.linear(states, weight.float(), None if bias is None else bias.float())
        logp = F.log_softmax(logits, -1).gather(1, batch.ids[row, column][:, None])[:, 0]
        if self.form == "lm":
            return -logp.mean()
        lengths = batch.option_len.to(logp.device)
        scores = torch.zeros(len(lengths), device=logp.device).index_add(0, row, logp) / lengths
        parts = scores.split(batch.num_options.tolist())
        losses = [
            -part.log_softmax(0)[label] for part, label in zip(parts, batch.labels.tolist(), strict=True)
        ]
        return torch.stack(losses).mean()

    # -- scores ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, split: str) -> dict[str, float]:
        """Loss and the task's figures (accuracy; for question answering f1 and em) of a split."""
        if self.task.kind == "qa":
            return {"loss": self.mean_loss(split)} | self._figures(split, self.answers(split))
        if self.form == "words" and not self.calibrate:
            loss, chosen = self._answer_words(split)
        else:
            loss, chosen = self._answer_options(split)
        return {"loss": loss} | self._figures(split, chosen)

    def _figures(self, split: str, answers: Sequence[Any]) -> dict[str, float]:
        return tasks.evaluate(self.task, answers, self.examples[split])

    def _answer_words(self, split: str) -> tuple[float, list[int]]:
        total, chosen = 0.0, [0] * len(self.examples[split])
        for portion in self._portions(split):
            batch = self.batch(split, portion)
            hidden = self.adapted.hidden(batch.ids, batch.mask)
            loss, scores = self._word_scores(hidden, batch, *self.adapted.head())
            total += float(loss) * len(portion)
            for i, answer in zip(portion, scores.argmax(1).tolist(), strict=True):
                chosen[i] = answer
        return total / len(chosen), chosen

    def _answer_options(self, split: str) -> tuple[float, list[int]]:
        rows = self._all_rows(split)
        sums = self.option_sums(rows)
        domain = None
        if self.calibrate:
            domain = self.option_sums(self._encoded(split, calibrate=True))
        chosen = tasks.predict(sums, rows.option_len, rows.num_options, domain_sums=domain)
        if self.form == "lm":
            return self.mean_loss(split), chosen
        return _choice_loss(sums, rows), chosen

    def option_sums(self, rows: tasks.Rows) -> list[float]:
        """Log-probability of every option: the sum over its tokens. Prompts are computed once where that
        saves work (several options of more than one token behind one prompt)."""
        if self._shares_prompts(rows):
            return self._shared_sums(rows)
        weight, bias = self.adapted.head()
        sums = [0.0] * len(rows.ids)
        starts = _starts(rows.num_options)
        for portion in _portions([max(map(len, rows.ids[starts[i] : starts[i + 1]])) * n
                                  for i, n in enumerate(rows.num_options)]):  # fmt: skip
            batch = self._row_batch(rows, portion)
            hidden = self.adapted.hidden(batch.ids, batch.mask)
            _, scores = self._option_scores(hidden, batch, weight, bias, "lm")
            found = (scores.double().cpu() * batch.option_len).tolist()
            for row, value in zip((r for i in portion for r in range(starts[i], starts[i + 1])), found,
                                  strict=True):  # fmt: skip
                sums[row] = value
        return sums

    def answers(self, split: str) -> list[str]:
        """Generated answers, greedy, up to the first newline."""
        examples = self.examples[split]
        prompts = tasks.encode_prompts(
            examples, self.tokenizer, self.max_length, max_new_tokens=self.max_new_tokens
        )
        stop = {self.tokenizer.eos_token_id} | _newlines(self.tokenizer)
        texts = [""] * len(examples)
        for portion in _portions([len(row) for row in prompts]):
            ids, mask = self._padded([prompts[i] for i in portion])
            made = self.adapted.greedy(ids, mask, max_new=self.max_new_tokens, stop=stop)
            for i, tokens in zip(portion, made, strict=True):
                texts[i] = tasks.first_line(self.tokenizer.decode(tokens, skip_special_tokens=True))
        return texts

    @torch.no_grad()
    def features(self, split: str) -> tuple[Tensor, Tensor]:
        """(float32 [N, H], labels int64 [N]) on the CPU: the hidden state that answers, for linear probing.

        Raises:
            ValueError: a task without fixed answer words of one token.
        """
        if self.form != "words":
            raise ValueError(f"task: expected one with answer words of one token, got {self.task.name!r}")
        states = torch.empty(len(self.examples[split]), self.adapted.head()[0].shape[1])
        for portion in self._portions(split):
            batch = self.batch(split, portion)
            hidden = self.adapted.hidden(batch.ids, batch.mask)
            states[portion] = hidden[torch.arange(len(portion)), batch.place].float().cpu()
        return states, torch.tensor(self._words[split].labels)

    # -- prompts computed once -------------------------------------------------------------------------------

    def _shares_prompts(self, rows: tasks.Rows) -> bool:
        """Whether the options of every example follow one prompt, and computing it once halves the work."""
        if is_masked(self.adapted.model) or max(rows.num_options) < 2:
            return False
        starts = _starts(rows.num_options)
        for i in range(len(rows.num_options)):
            mine = range(starts[i], starts[i + 1])
            prompts = {tuple(rows.ids[r][: len(rows.ids[r]) - rows.option_len[r]]) for r in mine}
            if len(prompts) > 1 or not next(iter(prompts)):
                return False
        return 2 * sum(rows.option_len) < sum(map(len, rows.ids))

    @torch.no_grad()
    def _shared_sums(self, rows: tasks.Rows) -> list[float]:
        starts = _starts(rows.num_options)
        prompts = [rows.ids[starts[i]][: -rows.option_len[starts[i]]] for i in range(len(starts) - 1)]
        options = [ids[-length:] for ids, length in zip(rows.ids, rows.option_len, strict=True)]
        sums = [0.0] * len(options)
        for portion in _portions([len(prompts[i]) * rows.num_options[i] for i in range(len(prompts))]):
            own = [r for i in portion for r in range(starts[i], starts[i + 1])]
            repeats = torch.tensor([rows.num_options[i] for i in portion])
            found = self._continue([prompts[i] for i in portion], repeats, [options[r] for r in own])
            for row, value in zip(own, found, strict=True):
                sums[row] = value
        return sums

    def _continue(
        self, prompts: Sequence[Sequence[int]], repeats: Tensor, options: Sequence[Sequence[int]]
    ) -> list[float]:
        """Sums of log p of options, ``repeats[i]`` of them behind prompt i."""
        device = self.adapted.device
        ids, mask = self._padded(prompts)
        cache, last = self.adapted.prefill(ids, mask)
        which = torch.arange(len(prompts)).repeat_interleave(repeats).to(device)
        cache.batch_select_indices(which)
        width = max(map(len, options))
        tokens = torch.full((len(options), width), self.tokenizer.pad_token_id, dtype=torch.int64)
        real = torch.zeros_like(tokens)
        for i, option in enumerate(options):
            tokens[i, : len(option)] = torch.tensor(option)
            real[i, : len(option)] = 1
        tokens, real = tokens.to(device), real.to(device)
        hidden = last[which][:, None]
        if width > 1:
            more = self.adapted.continued(tokens[:, :-1], real[:, :-1], mask[which], cache)
            hidden = torch.cat((hidden, more), 1)
        weight, bias = self.adapted.head()
        from tenfold.ops import token_logprobs

        logp = token_logprobs(hidden[real == 1], weight, bias, tokens[real == 1]).double()
        rows = torch.arange(len(options), device=device)[:, None].expand_as(real)[real == 1]
        sums = torch.zeros(len(options), dtype=torch.float64, device=device).index_add(0, rows, logp)
        return [float(value) for value in sums.tolist()]

    # -- rows ------------------------------------------------------------------------------------------------

    def _encode(self) -> Literal["words", "options", "lm"]:
        if is_masked(self.adapted.model):
            for name in SPLITS:
                masked = tasks.encode_masked(self.examples[name], self.tokenizer, self.max_length)
                self._words[name] = Words(masked.ids, masked.mask_at, masked.labels)
                self.word_ids = masked.options.to(self.adapted.device)
            return "words"
        if self.task.kind != "choice":
            for name in SPLITS:
                self._right[name] = self._encoded(name, only_correct=True)
            return "lm"
        encoded = {name: self._encoded(name) for name in SPLITS}
        common = {name: _common_words(rows) for name, rows in encoded.items()}
        found = list(common.values())
        if all(words is not None and words == found[0] for words in found):
            self.word_ids = torch.tensor(found[0], device=self.adapted.device)
            for name, rows in encoded.items():
                prompts = [row[:-1] for row in rows.ids[:: len(found[0] or ())]]
                self._words[name] = Words(prompts, [len(row) - 1 for row in prompts], rows.labels)
            self._rows = encoded if self.calibrate else {}
            return "words"
        self._rows = encoded
        return "options"

    def _encoded(self, split: str, **how: Any) -> tasks.Rows:
        return tasks.encode(self.examples[split], self.tokenizer, self.max_length, **how)

    def _all_rows(self, split: str) -> tasks.Rows:
        """Rows of every option, encoded when first asked for where training does not need them."""
        if split not in self._rows:
            self._rows[split] = self._encoded(split)
        return self._rows[split]

    def _portions(self, split: str) -> list[list[int]]:
        """Indices of a split in batches of like length and bounded size."""
        if self.form == "words":
            return _portions([len(row) for row in self._words[split].ids])
        rows = self._right[split] if self.form == "lm" else self._rows[split]
        starts = _starts(rows.num_options)
        return _portions([sum(map(len, rows.ids[a:b])) for a, b in pairwise(starts)])

    def _word_batch(self, split: str, chosen: Sequence[int]) -> Batch:
        words, device = self._words[split], self.adapted.device
        ids, mask = self._padded([words.ids[i] for i in chosen])
        left = 0 if is_masked(self.adapted.model) else ids.shape[1]
        place = [words.place[i] + (left - len(words.ids[i]) if left else 0) for i in chosen]
        labels = torch.tensor([words.labels[i] for i in chosen], device=device)
        none = torch.empty(0, dtype=torch.int64)
        return Batch(ids, mask, torch.tensor(place, device=device), none, none, labels)

    def _row_batch(self, rows: tasks.Rows, chosen: Sequence[int]) -> Batch:
        padded = tasks.collate(rows, chosen, self.tokenizer.pad_token_id, multiple_of=self._width)
        ids, mask = (x.to(self.adapted.device) for x in (padded.ids, padded.mask))
        none = torch.empty(0, dtype=torch.int64)
        return Batch(ids, mask, none, padded.option_len, padded.num_options, padded.labels)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """On the left for causal models, on the right for masked ones."""
        width = -(-max(map(len, rows)) // self._width) * self._width
        left = not is_masked(self.adapted.model)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            at = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, at], mask[i, at] = torch.tensor(row, dtype=torch.int64), 1
        return ids.to(self.adapted.device), mask.to(self.adapted.device)


def _common_words(rows: tasks.Rows) -> list[int] | None:
    """The options of every example, where they are the same single tokens behind one prompt; else None."""
    if set(rows.option_len) != {1} or len(set(rows.num_options)) != 1:
        return None
    count = rows.num_options[0]
    words = [row[-1] for row in rows.ids[:count]]
    for start in range(0, len(rows.ids), count):
        mine = rows.ids[start : start + count]
        if [row[-1] for row in mine] != words or any(row[:-1] != mine[0][:-1] for row in mine):
            return None
    return words if len(set(words)) == count and len(rows.ids[0]) > 1 else None


def _choice_loss(sums: Sequence[float], rows: tasks.Rows) -> float:
    """Mean cross-entropy over the options, whose scores are means over their tokens."""
    scores = torch.tensor(sums, dtype=torch.float64) / torch.tensor(rows.option_len)
    parts = scores.split(rows.num_options)
    losses = [-part.log_softmax(0)[label] for part, label in zip(parts, rows.labels, strict=True)]
    return float(torch.stack(losses).mean())


def _option_places(batch: Batch) -> tuple[Tensor, Tensor]:
    """(row, column) of every option token of left-padded rows."""
    width = batch.ids.shape[1]
    places = [(r, c) for r, n in enumerate(batch.option_len.tolist()) for c in range(width - n, width)]
    row, column = torch.tensor(places, device=batch.ids.device).unbind(1)
    return row, column


def _starts(counts: Sequence[int]) -> list[int]:
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts


def _portions(sizes: Sequence[int], limit: int = TOKENS_AT_ONCE) -> list[list[int]]:
    """Indices in order of size, in groups whose largest member times their number stays within the limit."""
    groups: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (sizes[i], i)):
        if groups and (len(groups[-1]) + 1) * sizes[i] <= limit:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _newlines(tokenizer: Any) -> set[int]:
    """Tokens that end an answer: those that begin with a newline."""
    ids = tokenizer("\n", add_special_tokens=False).input_ids
    return {ids[-1]} if ids else set()

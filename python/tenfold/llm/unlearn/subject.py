"""The model that unlearns: encoded rows in, hidden states at labelled positions out, and what is trained of
it.

When only the last blocks are trained, what enters them does not change: it is computed once for each row and
kept, so that a step costs the trained blocks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from tenfold.llm import prompts, schemes
from tenfold.llm.scorer import Batch as Prompts
from tenfold.llm.scorer import Scorer, find_blocks, trainable_depth, trainable_parameters
from tenfold.llm.unlearn import losses
from tenfold.llm.unlearn.losses import IGNORE, Head, Rows, Tokens

__all__ = ["Batch", "EncodedRow", "Subject"]

KEPT_BYTES = 2**30
"""Most that the hidden states of one set of rows may take to be kept."""


class EncodedRow(Protocol):
    """Token ids, and labels of the same length (-100 where nothing is predicted)."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def labels(self) -> list[int]: ...


class Batch(NamedTuple):
    """Rows padded on the left: ids, mask, labels int64 [B, T], and the hidden states that enter the trained
    blocks [B, T, D], or None where all are computed."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    entering: Tensor | None


class Subject:
    """A causal model of transformers and the named parameters of it that are trained.

    Args:
        model: in evaluation mode, without gradients, as :func:`tenfold.llm.models.load_model` gives it.
        pad_id: token for padding; it is masked.
        trainable: ``"full"``, ``"last-block"``, ``"last-N"`` or ``"lora"`` (rank 8, alpha 32, query and value
            projections, as in SOUL's code, but without dropout).
        seed: of LoRA's first matrices.
    """

    def __init__(self, model: Any, pad_id: int, trainable: str = "full", *, seed: int = 0) -> None:
        self.model, self.pad_id, self.trainable = model, pad_id, trainable
        self.adapted: schemes.Adapted | None = None
        blocks = len(find_blocks(model)[1])
        self.depth = 0
        if trainable == "lora":
            self.adapted = schemes.attach(model, "lora", seed=seed, rank=8, alpha=32.0)
            self.parameters: dict[str, nn.Parameter] = dict(self.adapted.parameters)
        else:
            depth = trainable_depth(trainable, blocks)
            self.depth = 0 if depth == blocks else depth
            self.parameters = trainable_parameters(model, trainable)
        self.first_block = blocks - self.depth if self.depth else 0
        # PyTorch picks matrix kernels by this mark: a resumed run must have the bits of an uninterrupted one
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self._scorer = Scorer(
            model, pad_id, torch.zeros(0, dtype=torch.int64), depth=self.depth, last_position_only=False
        )
        self.device = self._scorer.device
        self._sets: dict[str, Sequence[EncodedRow]] = {}
        self._kept: dict[str, Tensor] = {}

    @property
    def head(self) -> Head:
        """The unembedding as it is now."""
        layer = self.model.get_output_embeddings()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return Head(layer.weight, getattr(layer, "bias", None), cap)

    def add(
        self, name: str, rows: Sequence[EncodedRow], progress: Callable[[int], None] | None = None
    ) -> None:
        """Make ``rows`` known under ``name``; keep what enters the trained blocks, if the front is frozen."""
        if not rows:
            raise ValueError(f"{name}: expected at least one row, got none")
        self._sets[name] = rows
        width = max(len(row.ids) for row in rows)
        size = len(rows) * width * self.model.config.hidden_size * self.head.weight.element_size()
        self._kept.pop(name, None)
        if self.depth and size <= KEPT_BYTES:
            self._kept[name] = self._entering_of(rows, width, progress)
        elif progress is not None:
            progress(len(rows))

    def _entering_of(
        self, rows: Sequence[EncodedRow], width: int, progress: Callable[[int], None] | None
    ) -> Tensor:
        """Of rows that other sets hold too, a copy of what these keep."""
        known = dict(self.kept_states())
        texts = list(dict.fromkeys(tuple(row.ids) for row in rows if tuple(row.ids) not in known))
        if texts:
            for ids, states in zip(texts, self.entering(texts, progress), strict=True):
                known[ids] = states[len(states) - len(ids) :]
        if progress is not None and len(texts) < len(rows):
            progress(len(rows) - len(texts))
        first = known[tuple(rows[0].ids)]
        kept = first.new_zeros(len(rows), width, first.shape[-1])
        for row, into in zip(rows, kept, strict=True):
            into[width - len(row.ids) :] = known[tuple(row.ids)]
        return kept

    def known(self) -> dict[str, tuple[Sequence[EncodedRow], Tensor | None]]:
        """Rows of every set, and what enters the trained blocks for them where it is kept."""
        return {name: (rows, self._kept.get(name)) for name, rows in self._sets.items()}

    def take(self, name: str, rows: Sequence[EncodedRow], kept: Tensor | None) -> None:
        """A set as the :meth:`known` of another process has it."""
        self._sets[name] = rows
        self._kept.pop(name, None)
        if kept is not None:
            self._kept[name] = kept.to(self.device)

    def exchange(self, prefix: str) -> None:
        """Every set ``prefix + name`` changes places with the set ``name``; a second time undoes it."""
        for key in [key for key in self._sets if key.startswith(prefix)]:
            _exchange(self._sets, key, key.removeprefix(prefix))
            _exchange(self._kept, key, key.removeprefix(prefix))

    def entering(
        self, texts: Sequence[Sequence[int]], progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Hidden states [N, T, D] that enter the trained blocks, padded on the left; token ids in.

        Raises:
            ValueError: all blocks are trained.
        """
        if not self.depth:
            raise ValueError(f"trainable: expected the last blocks alone, got {self.trainable!r}")
        only_ids = prompts.Encoded([list(ids) for ids in texts], torch.zeros(len(texts)).long())
        return self._scorer.remember(only_ids, progress=progress)

    def kept_states(self) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """(token ids, hidden states [T, D] that enter the trained blocks) of all rows that have them kept."""
        for name, kept in self._kept.items():
            for row, states in zip(self._sets[name], kept, strict=True):
                yield tuple(row.ids), states[len(states) - len(row.ids) :]

    def join(self, name: str, parts: Sequence[str]) -> None:
        """Make the rows of several sets known as one, with their kept states where all have them."""
        self._kept.pop(name, None)
        rows = [row for part in parts for row in self._sets[part]]
        if all(part in self._kept for part in parts):
            kept = [self._kept[part] for part in parts]
            width = max(states.shape[1] for states in kept)
            front = [torch.nn.functional.pad(k, (0, 0, width - k.shape[1], 0)) for k in kept]
            self._kept[name] = torch.cat(front)
        self._sets[name] = rows

    def __contains__(self, name: str) -> bool:
        return name in self._sets

    def count(self, name: str) -> int:
        """Rows of a set."""
        return len(self._sets[name])

    def rows(self, name: str) -> Sequence[EncodedRow]:
        """The rows of a set."""
        return self._sets[name]

    def batch(self, name: str, chosen: Sequence[int]) -> Batch:
        """Rows ``chosen`` of a set."""
        rows = [self._sets[name][i] for i in chosen]
        ids, mask = prompts.pad_left([list(row.ids) for row in rows], self.pad_id)
        labels = torch.full_like(ids, IGNORE)
        for i, row in enumerate(rows):
            labels[i, ids.shape[1] - len(row.ids) :] = torch.tensor(row.labels)
        kept = self._kept.get(name)
        entering = None if kept is None else kept[torch.as_tensor(chosen), kept.shape[1] - ids.shape[1] :]
        return Batch(ids.to(self.device), mask.to(self.device), labels.to(self.device), entering)

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states that enter the unembedding [B, T, D], differentiable in the trained parameters."""
        if self.adapted is not None:
            return self.adapted.hidden(batch.ids, batch.mask)
        empty = torch.zeros(len(batch.ids), dtype=torch.int64)
        return self._scorer.hidden(Prompts(batch.ids, batch.mask, batch.entering, empty))

    def labelled(self, batch: Batch) -> Rows:
        """Hidden states at the positions that predict a label."""
        return losses.labelled(self.hidden(batch), batch.labels)

    def activations(self, batch: Batch, block: int) -> Tensor:
        """Output of decoder block ``block`` [B, T, D]; the blocks behind it are not run.

        Raises:
            ValueError: a block before the trained ones, whose output cannot change.
        """
        blocks = find_blocks(self.model)[1]
        if not self.first_block <= block < len(blocks):
            raise ValueError(f"block: expected {self.first_block} to {len(blocks) - 1}, got {block}")
        caught: list[Tensor] = []

        def catch(module: nn.Module, args: Any, output: Any) -> None:
            caught.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = blocks[block].register_forward_hook(catch)
        try:
            self.hidden(batch)
        except _Reached:
            pass
        finally:
            handle.remove()
        return caught[0]

    def tokens(self, batch: Batch) -> Tokens:
        """Log-probabilities of the labels."""
        return losses.score(self.labelled(batch), self.head)

    @torch.no_grad()
    def nll(
        self, name: str, *, size: int = 32, progress: Callable[[int], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(s, n)`` of every row of a set, on the CPU: summed negative log-likelihood, labelled tokens."""
        total = torch.zeros(self.count(name), dtype=torch.float64)
        counts = torch.zeros(self.count(name), dtype=torch.int64)
        for chosen in self.by_length(name, size):
            s, n = losses.sequence_nll(self.tokens(self.batch(name, chosen)))
            total[chosen], counts[chosen] = s.double().cpu(), n.cpu()
            if progress is not None:
                progress(len(chosen))
        return total, counts

    def by_length(self, name: str, size: int) -> list[list[int]]:
        """Indices of a set in batches, shortest rows first."""
        rows = self._sets[name]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def weights(self) -> dict[str, Tensor]:
        """Copies of the trained tensors."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put(self, weights: dict[str, Tensor]) -> None:
        """Write tensors back into the trained parameters.

        Raises:
            ValueError: names or shapes differ from the trained tensors; then nothing is written.
        """
        for name, parameter in self.parameters.items():
            if name not in weights or weights[name].shape != parameter.shape:
                got = tuple(weights[name].shape) if name in weights else "nothing"
                raise ValueError(f"weights: expected {name} of shape {tuple(parameter.shape)}, got {got}")
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def save(self, folder: Path, tokenizer: Any = None) -> Path:
        """The model as it is now: a folder that transformers loads; with LoRA the adapter's file alone."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.adapted is not None:
            return schemes.save_adapter(self.adapted, folder / "adapter.safetensors")
        self.model.save_pretrained(folder, safe_serialization=True)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return folder


def _exchange(store: dict[str, Any], one: str, other: str) -> None:
    values = {other: store.pop(one, None), one: store.pop(other, None)}
    store.update({name: value for name, value in values.items() if value is not None})


class _Reached(Exception):
    """Stops a forward once the wanted activations are there."""

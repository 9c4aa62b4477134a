"""Answer logits of a prompt, with the frozen part of the network computed once.

A classifier over answer words needs one thing of a causal language model: the hidden state at the last
    position, times a few rows of the unembedding. Everything here serves to compute that and nothing more:

* only the rows of the answer words are multiplied, in float32, instead of the whole vocabulary;
* when only the last blocks are trained, the hidden states that enter them do not change during training: they
are
  computed once per example and kept;
* in the last block only the last position is queried: its keys and values need every position, its queries,
output
  projection and MLP need one.

Each short cut is compared with the plain forward of the whole model before it is used (:meth:`Scorer.check`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.llm.prompts import Encoded, pad_left


def find_blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """Path below ``model.base_model`` and list of the decoder blocks.

    Raises:
        ValueError: no module list, or several, of ``config.num_hidden_layers`` members.
    """
    count = model.config.num_hidden_layers
    base = model.base_model
    found = [(n, m) for n, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(found) != 1:
        names = [name for name, _ in found]
        raise ValueError(
            f"model: expected one list of {count} decoder blocks, got {names} in {type(model).__name__}"
        )
    return found[0]


def trainable_depth(trainable: str, blocks: int) -> int:
    """Number of last blocks to train for ``"last-block"``, ``"last-N"``; 0 for ``"full"`` (everything).

    Raises:
        ValueError: another word, or N outside 1..blocks.
    """
    if trainable == "full":
        return 0
    if trainable == "last-block":
        return 1
    prefix, _, number = trainable.partition("-")
    if prefix == "last" and number.isdigit() and 1 <= int(number) <= blocks:
        return int(number)
    raise ValueError(
        f"trainable: expected 'last-block', 'last-1' to 'last-{blocks}' or 'full', got {trainable!r}"
    )


def trainable_parameters(model: nn.Module, trainable: str) -> dict[str, nn.Parameter]:
    """Named parameters to train, in the order of ``model.named_parameters()`` (tied weights once)."""
    _, blocks = find_blocks(model)
    depth = trainable_depth(trainable, len(blocks))
    chosen = model.parameters() if depth == 0 else blocks[-depth:].parameters()
    wanted = {id(parameter) for parameter in chosen}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in wanted}


class Batch(NamedTuple):
    """Padded prompts ready for the forwards of one step.

    ids, mask: int64 [B, T], padded on the left.  entering: hidden states that enter the last blocks [B, T,
        H], or None where all blocks are computed.  labels: int64 [B].
    """

    ids: Tensor
    mask: Tensor
    entering: Tensor | None
    labels: Tensor


class _Reached(Exception):
    """Stops a forward once the wanted hidden states are there."""


class Scorer:
    """Answer logits of one model over a fixed set of examples.

    Args:
        model: a Hugging Face causal language model in evaluation mode.
        pad_id: token id used for padding.
        options: token ids of the answer words, int64 [C].
        depth: number of last blocks that will change; the hidden states entering them are kept. 0: keep
            nothing.
        last_position_only: query only the last position in the last block where its structure is known.
    """

    def __init__(
        self, model: Any, pad_id: int, options: Tensor, *, depth: int = 0, last_position_only: bool = True
    ) -> None:
        self.model, self.pad_id, self.options, self.depth = model, pad_id, options, depth
        self.path, self.blocks = find_blocks(model)
        self.device = next(model.parameters()).device
        self._entering: Tensor | None = None
        self._takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
        self._short = self._shortened(last_position_only)

    @torch.no_grad()
    def plain(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Answer logits [B, C] in float32 from ``model(...)`` itself: every position, every token."""
        ids, mask = self._inputs(rows)
        logits = self.model(input_ids=ids, use_cache=False, **self._masks(mask)).logits
        return logits[:, -1].float()[:, self.options]

    def batch(self, data: Encoded, chosen: Sequence[int], kept: Tensor | None = None) -> Batch:
        """Examples ``chosen`` of ``data``, with their kept states where :meth:`remember` made ``kept``."""
        ids, mask = self._inputs([data.rows[i] for i in chosen])
        index = torch.as_tensor(chosen)
        entering = None if kept is None else kept[index.to(kept.device), kept.shape[1] - ids.shape[1] :]
        return Batch(ids, mask, entering, data.labels[index].to(self.device))

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states that enter the unembedding [B, T, H] (T = 1 where only the last position is
        queried)."""
        self._entering = batch.entering
        try:
            out = self._short(input_ids=batch.ids, use_cache=False, **self._masks(batch.mask))
        finally:
            self._entering = None
        return out.last_hidden_state

    def logits(self, batch: Batch) -> Tensor:
        """Answer logits [B, C] in float32 through the short path. Differentiable where gradients are on."""
        last = self.hidden(batch)[:, -1].float()
        head = self.model.get_output_embeddings()
        bias = None if getattr(head, "bias", None) is None else head.bias[self.options].float()
        return F.linear(last, head.weight[self.options].float(), bias)

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the labels over the answer words, float32 scalar."""
        return F.cross_entropy(self.logits(batch), batch.labels)

    @torch.no_grad()
    def all_logits(
        self,
        data: Encoded,
        kept: Tensor | None = None,
        *,
        size: int = 64,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Answer logits [N, C] of every example, on the CPU, computed in batches of similar length."""
        out = torch.empty(len(data), len(self.options))
        for chosen in _by_length(data, size):
            out[chosen] = self.logits(self.batch(data, chosen, kept)).cpu()
            if progress is not None:
                progress(len(chosen))
        return out

    @torch.no_grad()
    def remember(
        self, data: Encoded, batch: int = 64, progress: Callable[[int], None] | None = None
    ) -> Tensor:
        """Hidden states that enter the last ``depth`` blocks: [N, T, H], left-padded with zeros."""
        assert self.depth > 0
        width = max(map(len, data.rows))
        kept: Tensor | None = None
        for chosen in _by_length(data, batch):
            hidden = self._hidden_entering([data.rows[i] for i in chosen])
            if kept is None:
                kept = hidden.new_zeros(len(data), width, hidden.shape[-1])
            for row, i in zip(hidden, chosen, strict=True):
                length = len(data.rows[i])
                kept[i, width - length :] = row[row.shape[0] - length :]
            if progress is not None:
                progress(len(chosen))
        assert kept is not None
        return kept

    @torch.no_grad()
    def check(self, data: Encoded, count: int = 8) -> float:
        """Largest difference between short path and plain forward, on the longest and the shortest prompts.

        Raises:
            RuntimeError: they differ by more than rounding: this architecture needs something the short path
                lacks.
        """
        (by_length,) = _by_length(data, len(data))
        chosen = by_length[: count // 2] + by_length[-(count - count // 2) :]
        some = Encoded([data.rows[i] for i in chosen], data.labels[chosen])
        plain = self.plain(some.rows)
        kept = self.remember(some) if self.depth else None
        short = self.logits(self.batch(some, range(len(some)), kept))
        difference = float((plain - short).abs().max())
        limit = 1e-3 if plain.dtype == next(self.model.parameters()).dtype else 0.15
        if not difference <= limit * max(1.0, float(plain.abs().max())):
            raise RuntimeError(
                f"model: the short forward of {type(self.model).__name__} differs from the plain one by "
                f"{difference:g} in the answer logits; this architecture is not supported"
            )
        return difference

    # -- inside ----------------------------------------------------------------------------------------------

    def _inputs(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = pad_left(rows, self.pad_id)
        return ids.to(self.device), mask.to(self.device)

    def _masks(self, mask: Tensor) -> dict[str, Tensor]:
        if not self._takes_positions:
            return {"attention_mask": mask}
        return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}

    def _hidden_entering(self, rows: Sequence[Sequence[int]]) -> Tensor:
        caught: list[Tensor] = []

        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        ids, mask = self._inputs(rows)
        handle = self.blocks[-self.depth].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.model.base_model(input_ids=ids, use_cache=False, **self._masks(mask))
        except _Reached:
            pass
        finally:
            handle.remove()
        return caught[0]

    def _shortened(self, last_position_only: bool) -> Any:
        """A shallow copy of the base model that shares every weight and runs the short forward."""
        blocks = [_clone(block) for block in self.blocks]
        if last_position_only and _is_llama_like(self.blocks[-1]):
            blocks[-1].forward = _last_position(self.blocks[-1])
        if self.depth:
            first = len(blocks) - self.depth
            for block in blocks[:first]:
                block.forward = self._skipping(block)
            blocks[first].forward = self._starting(blocks[first].forward)
        return _with_child(self.model.base_model, self.path.split("."), nn.ModuleList(blocks))

    def _skipping(self, block: nn.Module) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._entering is None:
                return type(block).forward(block, hidden_states, *args, **kwargs)
            return hidden_states

        return forward

    def _starting(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return inner(hidden_states if self._entering is None else self._entering, *args, **kwargs)

        return forward


def _by_length(data: Encoded, size: int) -> list[list[int]]:
    """Indices in batches, shortest prompts first, so that little padding is computed."""
    order = sorted(range(len(data)), key=lambda i: len(data.rows[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _clone(module: Any) -> Any:
    """Shallow copy of a module: same parameters and children, own ``forward`` and own table of children."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def _with_child(root: Any, path: Sequence[str], child: nn.Module) -> Any:
    twin = _clone(root)
    name, rest = path[0], path[1:]
    twin._modules[name] = _with_child(root._modules[name], rest, child) if rest else child
    return twin


def _is_llama_like(block: nn.Module) -> bool:
    """Pre-norm block with rotary attention and gated MLP and nothing else: LLaMA, Mistral, Qwen2, SmolLM."""
    children = {name for name, _ in block.named_children()}
    attention = getattr(block, "self_attn", nn.Identity())
    inner = {name for name, child in attention.named_children() if list(child.parameters())}
    return (
        children == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and inner == {"q_proj", "k_proj", "v_proj", "o_proj"}
        and hasattr(attention, "head_dim")
        and hasattr(attention, "scaling")
    )


def _last_position(block: Any) -> Callable[..., Tensor]:
    """Forward of a LLaMA-like block that returns [B, 1, H]: what the last position leaves with."""
    attention = block.self_attn

    def heads(values: Tensor) -> Tensor:
        return values.view(*values.shape[:2], -1, attention.head_dim).transpose(1, 2)

    def forward(
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        position_embeddings: tuple[Tensor, Tensor],
        **_: Any,
    ) -> Tensor:
        normed = block.input_layernorm(hidden_states)
        cos, sin = (values.unsqueeze(1) for values in position_embeddings)
        query = _rotate(heads(attention.q_proj(normed[:, -1:])), cos[:, :, -1:], sin[:, :, -1:])
        key = _rotate(heads(attention.k_proj(normed)), cos, sin)
        value = heads(attention.v_proj(normed))
        mask = None if attention_mask is None else attention_mask[:, :, -1:]
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            scale=attention.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        mixed = mixed.transpose(1, 2).reshape(hidden_states.shape[0], 1, -1)
        hidden = hidden_states[:, -1:] + attention.o_proj(mixed)
        return hidden + block.mlp(block.post_attention_layernorm(hidden))

    return forward


def _rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = values.chunk(2, dim=-1)
    return values * cos + torch.cat((-second, first), dim=-1) * sin

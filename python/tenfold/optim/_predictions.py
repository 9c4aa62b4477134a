"""What a model predicts on a batch, and the losses that curvature is estimated from.

A batch is a dict (transformers: `model(**batch)`) or (inputs, targets) (`model(inputs)` gives logits).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tenfold import _checks

if TYPE_CHECKING:
    from ._ranks import Ranks

IGNORED = -100
_NOT_INPUTS = ("labels", "num_items_in_batch")
_TOKEN_INPUTS = {"input_ids", "attention_mask", "position_ids", "token_type_ids"}
_head_is_last: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def sampled_loss(
    ranks: Ranks, batch: Any, seed: int, predict: Callable[..., Any] | None
) -> tuple[Tensor, int]:
    """(-sum of log p(label), number) over labels drawn from the model's own predictions."""
    net = ranks.net
    if predict is None and isinstance(batch, dict) and is_causal(net):
        return _causal_loss(ranks, batch, seed)
    from tenfold.ops import gnb_sample

    logits, mask = _logits(net, batch, predict)
    rows = logits.reshape(-1, logits.shape[-1])
    where = None if mask is None else mask.reshape(-1)
    sample = gnb_sample(rows, seed=seed, mask=where)
    return -sample.logp.sum(), rows.shape[0] if where is None else int(where.sum())


def loss_of(net: nn.Module, batch: Any, loss: Callable[..., Any] | None) -> tuple[Tensor, float]:
    """(mean loss, number of predictions) on the batch's own labels."""
    if loss is not None:
        result = loss(net, batch)
        value, count = result if isinstance(result, tuple) else (result, 1)
        return _scalar("loss", value), float(count)
    if isinstance(batch, dict):
        return _transformers_loss(net, batch)
    logits, mask = _logits(net, batch, None)
    targets = batch[1]
    value = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), ignore_index=IGNORED
    )
    return value, float(targets.numel() if mask is None else mask.sum())


def _scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        _checks.fail(TypeError, name, "a callable that returns a scalar tensor", type(value).__name__)
    return value.reshape(())


def _transformers_loss(net: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, float]:
    labels = batch.get("labels")
    if labels is None:
        _checks.fail(ValueError, "batches", "labels in each batch", f"the keys {sorted(batch)}")
    output = net(**batch)
    value = output["loss"] if isinstance(output, dict) else getattr(output, "loss", None)
    if value is None:
        _checks.fail(TypeError, "model", "one that returns its loss (or give loss=)", type(net).__name__)
    counted = labels[:, 1:] if is_causal(net) else labels
    return value, float((counted != IGNORED).sum())


def is_causal(net: nn.Module) -> bool:
    """Whether position t of the logits is about token t + 1."""
    return type(net).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def positions(batch: dict[str, Any]) -> Tensor:
    """[B, T] bool: where a causal language model's prediction counts, by labels or else by the padding."""
    ids = batch.get("input_ids", batch.get("inputs_embeds"))
    if ids is None:
        _checks.fail(ValueError, "batches", "input_ids in each batch", f"the keys {sorted(batch)}")
    labels, attended = batch.get("labels"), batch.get("attention_mask")
    counts = torch.zeros(ids.shape[:2], dtype=torch.bool, device=ids.device)
    if labels is not None:
        counts[:, :-1] = labels[:, 1:] != IGNORED
    elif attended is not None:
        counts[:, :-1] = (attended[:, 1:] != 0) & (attended[:, :-1] != 0)
    else:
        counts[:, :-1] = True
    return counts


def _logits(net: nn.Module, batch: Any, predict: Callable[..., Any] | None) -> tuple[Tensor, Tensor | None]:
    if predict is not None:
        result = predict(net, batch)
        logits, mask = result if isinstance(result, tuple) else (result, None)
    elif isinstance(batch, dict):
        inputs = {k: v for k, v in batch.items() if k not in _NOT_INPUTS}
        output = net(**inputs)
        logits, mask = getattr(output, "logits", None), _labelled(batch.get("labels"))
    elif isinstance(batch, (tuple, list)) and len(batch) == 2:
        logits, mask = net(batch[0]), _labelled(batch[1])
    else:
        expected = "dicts or (inputs, targets) pairs (or give predict= or loss=)"
        _checks.fail(TypeError, "batches", expected, type(batch).__name__)
    if not isinstance(logits, Tensor) or logits.ndim < 2 or not logits.is_floating_point():
        _checks.fail(TypeError, "model", "logits [..., V] (or give predict=)", type(logits).__name__)
    if mask is not None and mask.shape != logits.shape[:-1]:
        expected = f"shape {tuple(logits.shape[:-1])}, one entry per prediction"
        _checks.fail(ValueError, "mask", expected, tuple(mask.shape))
    return logits, mask


def _labelled(labels: Any) -> Tensor | None:
    return None if labels is None else labels != IGNORED


# -- causal language models -----------------------------------------------------------------------------


def _causal_loss(ranks: Ranks, batch: dict[str, Any], seed: int) -> tuple[Tensor, int]:
    """Labels sampled at the positions that count; where the head is a plain matrix, without its logits."""
    from tenfold.ops import gnb_sample

    net: Any = ranks.net
    inputs = {k: v for k, v in batch.items() if k not in _NOT_INPUTS}
    where = positions(batch)
    count = int(where.sum())
    head = net.get_output_embeddings()
    if _plain(head) and _ends_with_its_head(net, head, inputs):
        return _headless_loss(ranks, head, inputs, where, seed), count
    logits = net(**inputs, use_cache=False).logits
    sample = gnb_sample(logits[where], seed=seed)
    return -sample.logp.sum(), count


def _plain(head: Any) -> bool:
    """A linear layer that is nothing but its matrix (no adapter, not quantised)."""
    return (
        isinstance(head, nn.Linear)
        and type(head).forward is nn.Linear.forward
        and "forward" not in head.__dict__
        and not head._forward_hooks
        and head.weight.is_floating_point()
    )


def _ends_with_its_head(net: Any, head: nn.Linear, inputs: dict[str, Any]) -> bool:
    """Whether the logits are what the head gives (no soft cap, no scale): asked of two tokens, once."""
    if net not in _head_is_last:
        if not set(inputs) <= _TOKEN_INPUTS:
            return False
        seen: list[Tensor] = []
        hook = head.register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            with torch.no_grad(), torch.random.fork_rng(enabled=net.training):
                logits = net(input_ids=inputs["input_ids"][:1, :2], use_cache=False).logits
        finally:
            hook.remove()
        _head_is_last[net] = len(seen) == 1 and torch.equal(seen[0], logits)
    return _head_is_last[net]


def _headless_loss(ranks: Ranks, head: nn.Linear, inputs: dict[str, Any], where: Tensor, seed: int) -> Tensor:
    """The loss computed inside the head, from the hidden states that reach it.

    FSDP2 has the head's weight there and nowhere else.
    """
    from tenfold.ops import linear_gnb_sample

    found: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        if hidden.shape[:2] != where.shape:
            got = tuple(hidden.shape)
            _checks.fail(ValueError, "model", f"hidden states of shape {tuple(where.shape)} + [D]", got)
        sample = linear_gnb_sample(hidden[where], head.weight, head.bias, seed=seed)
        found.append(-sample.logp.sum())
        return hidden[..., :1]

    head.forward = forward  # type: ignore[method-assign,assignment]
    try:
        output = ranks.net(**inputs, use_cache=False)
    finally:
        del head.forward
    loss = found[0]
    if ranks.sharded:  # backward must come through the model's output: FSDP2 gathers weights there
        loss = loss + 0.0 * output.logits.nan_to_num().sum()
    return loss

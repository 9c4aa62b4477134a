"""Bytes that a training step takes, on paper, before a machine is asked for them.

    plan = memory_plan(LLAMA_2_7B, method="sophia", batch=1, length=2048, dtype="bfloat16", ranks=8)
    print(plan.table())

For decoders of the LLaMA kind (rotary positions, RMSNorm, gated MLP) as transformers computes them, with
PyTorch's fused attention and the loss of all positions. What is counted is what these programs keep;
``tests/llm/test_memory_plan.py`` holds the plan against the peak of real steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tenfold import _checks

__all__ = ["LLAMA_2_7B", "LLAMA_2_70B", "METHODS", "Plan", "Shape", "memory_plan"]

CHUNK = 64 << 20  # bytes of logits that tenfold's losses hold at a time
PROBE_BUFFER = 8 << 20  # perturbed rows of a weight, in a probe that writes nothing
COPIED = 12 << 20  # up to here a zeroth-order step keeps a clean copy of the weights
SIZES = {"float32": 4, "bfloat16": 2}

METHODS: dict[str, float | None] = {
    "zo-sgd": 0.0, "zo-adam": 8.0, "lozo": 0.0, "adamw": None, "sophia": 8.0, "sophia-8bit": 2 + 1 / 32,
}  # fmt: skip
"""Bytes of state per parameter. None: two moments in the type of the weights (torch.optim.AdamW)."""
ZEROTH_ORDER = ("zo-sgd", "zo-adam", "lozo")
WHOLE = ("lozo", "sophia-8bit")  # refuse sharded parameters


class Shape(NamedTuple):
    """A decoder, under the names of transformers' configurations (any object with these serves)."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tie_word_embeddings: bool = False


LLAMA_2_7B = Shape(32000, 4096, 32, 32, 32, 11008)
LLAMA_2_70B = Shape(32000, 8192, 80, 64, 8, 28672)


@dataclass(frozen=True)
class Plan:
    """Bytes on one rank. ``peak`` is less than the sum: activations go while gradients come.

    ``gathered``: what FSDP2 has of other ranks at a time. ``logits``: with what the loss makes of them.
    """

    parameters: int
    weights: int
    gradients: int
    states: int
    activations: int
    logits: int
    gathered: int
    peak: int

    def table(self) -> str:
        """One line for each part, in GiB."""
        parts = ("weights", "gradients", "states", "activations", "logits", "gathered", "peak")
        lines = [f"{name:<12} {getattr(self, name) / 2**30:9.2f} GiB" for name in parts]
        return "\n".join([f"parameters   {self.parameters:,}", *lines])


def memory_plan(
    shape: Any, *, method: str, batch: int, length: int, dtype: str = "float32", ranks: int = 1,
    checkpointing: bool = False, chunked: bool = False,
) -> Plan:  # fmt: skip
    """Peak memory of one step on one rank, and what it is made of.

    Args:
        shape: a :class:`Shape`, or a configuration of transformers.
        method: of :data:`METHODS`.
        batch: rows of a micro-batch on this rank.
        length: tokens of a row.
        dtype: of weights, activations and gradients: ``"float32"`` or ``"bfloat16"``.
        ranks: over which FSDP2 shards each block; 1 for none.
        checkpointing: blocks are computed again in the backward pass.
        chunked: the loss comes from hidden states through :mod:`tenfold.ops`, a chunk of logits at a time,
            as in the workflow ``soul``.

    Raises:
        ValueError: an unknown method or type, a number below 1, or a method whose parameters are not sharded.
    """
    _checks.choice("method", method, tuple(METHODS))
    _checks.choice("dtype", dtype, tuple(SIZES))
    for name, value in (("batch", batch), ("length", length), ("ranks", ranks)):
        _checks.integer(name, value, 1, 1 << 40)
    if ranks > 1 and method in WHOLE:
        raise ValueError(f"ranks: expected 1 with {method}, whose parameters are not sharded, got {ranks}")
    size, tokens = SIZES[dtype], batch * length
    block, outer = block_parameters(shape), outer_parameters(shape)
    parameters = shape.num_hidden_layers * block + outer
    weights = -(-parameters // ranks) * size
    per = METHODS[method]
    states = round(-(-parameters // ranks) * (2 * size if per is None else per))
    zeroth = method in ZEROTH_ORDER
    gathered = 0 if ranks == 1 else (2 * block + outer) * size
    logits = tokens * shape.vocab_size * _logit_bytes(zeroth, size)
    if chunked:
        logits = min(logits, (1 if zeroth else 2) * CHUNK)
    if zeroth:
        copy = weights if weights <= COPIED else PROBE_BUFFER
        passing = tokens * _passing(shape) * size
        peak = weights + states + gathered + copy + max(passing, tokens * shape.hidden_size * size + logits)
        return Plan(parameters, weights, 0, states, passing, logits, gathered, peak)
    activations = tokens * _activations(shape, size, checkpointing)
    head = shape.vocab_size * shape.hidden_size * size
    own = 0 if ranks == 1 else block * size  # gradients of a block before they are dealt out
    # the loss; the gradient of the unembedding; the end, where a tied embedding's comes to the unembedding's
    loss = activations + logits
    unembedding = activations + logits // 3 + head
    end = weights + (head if shape.tie_word_embeddings else 0) + own
    peak = weights + states + gathered + max(loss, unembedding, end)
    return Plan(parameters, weights, weights, states, activations, logits, gathered, peak)


def block_parameters(shape: Any) -> int:
    """Of one decoder block."""
    d, kv = shape.hidden_size, _key_width(shape)
    return 2 * d * d + 2 * d * kv + 3 * d * shape.intermediate_size + 2 * d


def outer_parameters(shape: Any) -> int:
    """Of the embedding, the unembedding where it is another matrix, and the last norm."""
    matrices = 1 if shape.tie_word_embeddings else 2
    return int(matrices * shape.vocab_size * shape.hidden_size + shape.hidden_size)


def _key_width(shape: Any) -> int:
    return int(shape.hidden_size // shape.num_attention_heads * shape.num_key_value_heads)


def _activations(shape: Any, size: int, checkpointing: bool) -> int:
    """Bytes per token that the forward pass leaves for the backward pass."""
    block = _of_block(shape, size)
    last = shape.hidden_size * (size + _norm(size))
    if checkpointing:
        return int(shape.num_hidden_layers * shape.hidden_size * size + block + last)
    return int(shape.num_hidden_layers * block + last)


def _of_block(shape: Any, size: int) -> int:
    """Bytes per token of one block.

    Attention: the norm, q, k and v as they enter it, its output twice (as computed, and laid out for the
    projection). MLP: the norm, gate, its SiLU, up, and their product. The two norms each leave what enters,
    the normalised values (in float32, and in the type of the weights where that is another) and the weighted.
    """
    d, kv = shape.hidden_size, _key_width(shape)
    attention = size * (d + 2 * kv + 2 * d)
    mlp = size * 4 * shape.intermediate_size
    norms = 2 * d * (size + _norm(size))
    return int(attention + mlp + norms)


def _norm(size: int) -> int:
    """Bytes per element that RMSNorm leaves beside what comes out of it: half precision is widened first."""
    return 2 * size if size == 4 else 4 + 2 * size


def _passing(shape: Any) -> int:
    """Elements per token that are there at a time in a forward pass without gradients: those of the MLP."""
    return int(2 * shape.hidden_size + 3 * shape.intermediate_size)


def _logit_bytes(zeroth: bool, size: int) -> int:
    """Bytes per logit: with gradients the log-softmax, its gradient and the logits'; else logits (and their
    float32 copy) and log-softmax."""
    if not zeroth:
        return 12
    return 8 if size == 4 else 10

"""Bytes that a training step takes, on paper, before a machine is asked for them.

    plan = memory_plan(LLAMA_2_7B, method="sophia", batch=1, length=2048, dtype="bfloat16", ranks=8)
    print(plan.table())

For decoders of the LLaMA kind (rotary positions, RMSNorm, gated MLP) as transformers computes them, with
PyTorch's fused attention and the loss of all positions. What is counted is what these programs keep;
``tests/llm/test_memory_plan.py`` holds the plan against the tensors that a forward pass saves and the peak of
real steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tenfold import _checks

__all__ = ["LLAMA_2_7B", "LLAMA_2_70B", "METHODS", "Plan", "Shape", "memory_plan", "parameters_of"]

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


KINDS = ("llama", "mistral", "qwen2")
"""``model_type`` of the configurations whose models are of this kind; others have more norms or experts."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


class Shape(NamedTuple):
    """A decoder, under the names of transformers' configurations (any object with these serves).

    ``head_dim``: None for hidden_size over heads. Biases: ``attention_bias`` of query, key, value and output,
    ``qkv_bias`` of the first three alone (Qwen2), ``mlp_bias`` of the MLP's three matrices.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tie_word_embeddings: bool = False
    head_dim: int | None = None
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False

    @property
    def query_width(self) -> int:
        """Of the queries of all heads."""
        return self.num_attention_heads * self._head

    @property
    def key_width(self) -> int:
        """Of the keys of all heads, and of the values."""
        return self.num_key_value_heads * self._head

    @property
    def _head(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads


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
        shape: a :class:`Shape`, or a configuration of transformers for LLaMA, Mistral or Qwen2.
        method: of :data:`METHODS`.
        batch: rows of a micro-batch on this rank.
        length: tokens of a row.
        dtype: of weights, activations and gradients: ``"float32"`` or ``"bfloat16"``.
        ranks: over which FSDP2 shards each block; 1 for none.
        checkpointing: blocks are computed again in the backward pass.
        chunked: the loss comes from hidden states through :mod:`tenfold.ops`, a chunk of logits at a time,
            as in the workflow ``soul``.

    Raises:
        ValueError: a configuration of another kind of model, an unknown method or type, a number below 1, or
            a method whose parameters are not sharded.
    """
    shape = _shape_of(shape)
    _checks.choice("method", method, tuple(METHODS))
    _checks.choice("dtype", dtype, tuple(SIZES))
    for name, value in (("batch", batch), ("length", length), ("ranks", ranks)):
        _checks.integer(name, value, 1, 1 << 40)
    if ranks > 1 and method in WHOLE:
        raise ValueError(f"ranks: expected 1 with {method}, whose parameters are not sharded, got {ranks}")
    size, tokens = SIZES[dtype], batch * length
    block, outer = block_parameters(shape), outer_parameters(shape)
    parameters = parameters_of(shape)
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


def _shape_of(given: Any) -> Shape:
    """The shape that a configuration tells, if it is of this kind."""
    needed = [name for name in Shape._fields if name not in Shape._field_defaults]
    missing = [name for name in needed if not isinstance(getattr(given, name, None), int)]
    if missing:
        raise ValueError(
            f"shape: expected whole numbers {', '.join(needed)}, got {type(given).__name__} without "
            f"{', '.join(missing)}"
        )
    for name in EXPERTS:
        if getattr(given, name, None):
            raise ValueError(f"shape: expected one MLP per block, got {name}={getattr(given, name)}")
    kind = getattr(given, "model_type", None)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"shape: expected a model_type of {', '.join(KINDS)}, got {kind!r}")
    if isinstance(given, Shape):
        return given
    told = {name: getattr(given, name) for name in Shape._fields if hasattr(given, name)}
    if kind in ("mistral", "qwen2"):  # their models have the biases that they have, whatever is told
        told |= {"attention_bias": False, "mlp_bias": False, "qkv_bias": kind == "qwen2"}
    return Shape(**told)


def parameters_of(shape: Any) -> int:
    """Of the whole model; `shape` and errors as in :func:`memory_plan`."""
    shape = _shape_of(shape)
    return shape.num_hidden_layers * block_parameters(shape) + outer_parameters(shape)


def block_parameters(shape: Shape) -> int:
    """Of one decoder block."""
    d, q, kv, f = shape.hidden_size, shape.query_width, shape.key_width, shape.intermediate_size
    matrices = 2 * d * q + 2 * d * kv + 3 * d * f
    biases = q + 2 * kv if shape.qkv_bias or shape.attention_bias else 0
    biases += (d if shape.attention_bias else 0) + (2 * f + d if shape.mlp_bias else 0)
    return matrices + biases + 2 * d


def outer_parameters(shape: Shape) -> int:
    """Of the embedding, the unembedding where it is another matrix, and the last norm."""
    matrices = 1 if shape.tie_word_embeddings else 2
    return matrices * shape.vocab_size * shape.hidden_size + shape.hidden_size


def _activations(shape: Shape, size: int, checkpointing: bool) -> int:
    """Bytes per token that the forward pass leaves for the backward pass."""
    block = _of_block(shape, size)
    last = shape.hidden_size * (size + _norm(size))
    if checkpointing:
        return shape.num_hidden_layers * shape.hidden_size * size + block + last
    return shape.num_hidden_layers * block + last


def _of_block(shape: Shape, size: int) -> int:
    """Bytes per token of one block.

    Attention: q, k and v as they enter it, and its output, which lies as the projection takes it. MLP: gate,
    its SiLU, up, and their product. The two norms each leave what enters (in float32), the normalised values
    (in the type of the weights) and the weighted.
    """
    d = shape.hidden_size
    attention = size * 2 * (shape.query_width + shape.key_width)
    mlp = size * 4 * shape.intermediate_size
    norms = 2 * d * (size + _norm(size))
    return attention + mlp + norms


def _norm(size: int) -> int:
    """Bytes per element that RMSNorm leaves beside what comes out of it: half precision is widened first, and
    what was widened goes."""
    return 4 + size


def _passing(shape: Shape) -> int:
    """Elements per token that are there at a time in a forward pass without gradients: those of the MLP."""
    return 2 * shape.hidden_size + 3 * shape.intermediate_size


def _logit_bytes(zeroth: bool, size: int) -> int:
    """Bytes per logit: with gradients the log-softmax, its gradient and the logits'; else logits (and their
    float32 copy) and log-softmax."""
    if not zeroth:
        return 12
    return 8 if size == 4 else 10

"""The dispatcher's side of tenfold.ops.logprob_rows and logprob_losses: schemas, fakes and autograd formulas.

How many rows count depends on the targets, so the ops are opaque to the compiler, their backward passes too.
Log-probabilities and log-sum-exps leave the ops in float64, one number per row, and are rounded outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from tenfold._backend import OPS, chosen_backend

from . import zo

LINEAR = ("linear_logprob", "linear_gnb_sample", "linear_kl", "linear_undial", "linear_ceu")
OPS |= dict.fromkeys(("logits_logprob", "gnb_sample", *LINEAR), ("cpu", "cuda", "triton", "reference"))

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_HEAD = "Tensor hidden, Tensor weight, Tensor? bias"
_REFERENCE = "Tensor ref_hidden, Tensor ref_weight, Tensor? ref_bias"
_STATS = "(Tensor logp, Tensor lse, Tensor argmax, Tensor mean_logit, Tensor mean_logp, Tensor mean_logp2)"
_TARGETS = "Tensor targets, float? softcap, int ignore_index, bool stats"
_DRAW = "Tensor? mask, SymInt seed, SymInt row_offset, float temperature, int ignore_index"
_SAMPLE = "(Tensor logp, Tensor tokens, Tensor lse)"
_ROWS = "Tensor coef, Tensor at_target, Tensor lse"
_AFTER = "Tensor targets, float? softcap, float temperature, int ignore_index"
_PAIR = f"{_HEAD}, {_REFERENCE}, Tensor targets, float beta, str kind, int ignore_index, str op"
_GRADIENTS = "(Tensor, Tensor, Tensor)"
for _schema in (
    f"logits_logprob(Tensor logits, {_TARGETS}) -> {_STATS}",
    f"linear_logprob({_HEAD}, {_TARGETS}) -> {_STATS}",
    f"gnb_sample(Tensor logits, {_DRAW}) -> {_SAMPLE}",
    f"linear_gnb_sample({_HEAD}, {_DRAW}, float? softcap=None) -> {_SAMPLE}",
    f"linear_ceu({_HEAD}, Tensor targets, int ignore_index) -> (Tensor loss, Tensor lse, Tensor logp)",
    f"linear_divergence({_PAIR}) -> (Tensor loss, Tensor lse, Tensor ref_lse)",
    f"logits_softmax_backward({_ROWS}, Tensor logits, {_AFTER}) -> Tensor",
    f"linear_softmax_backward({_ROWS}, {_HEAD}, {_AFTER}, bool[] needs) -> {_GRADIENTS}",
    f"linear_divergence_backward(Tensor grad, Tensor loss, Tensor lse, Tensor ref_lse, {_PAIR}, "
    f"bool[] needs) -> {_GRADIENTS}",
    "segment_nll(Tensor logp, Tensor segments, SymInt num_segments) -> (Tensor nll, Tensor count)",
    "segment_nll_backward(Tensor grad, Tensor segments) -> Tensor",
):
    _LIBRARY.define(_schema)


def _rows(op: str, device: torch.device) -> ModuleType:
    """The row kernels of the chosen backend."""
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.logprob import rows_reference as module
    elif backend == "triton":
        from tenfold.kernels.logprob import rows_triton as module
    else:
        from tenfold.kernels.logprob import rows_native as module
    return module


def _index_error(name: str, bad: Tensor, expected: str) -> NoReturn:
    raise IndexError(f"{name}: expected {expected}, got {int(bad[0])}")


def _row_targets(targets: Tensor, vocabulary: int, ignore_index: int) -> Tensor:
    """Targets with -1 where the row is left out; IndexError for one outside the vocabulary."""
    ignored = targets == ignore_index
    bad = ((targets < 0) | (targets >= vocabulary)) & ~ignored
    if bad.any():
        expected = f"tokens in [0, {vocabulary}), the vocabulary, or ignore_index = {ignore_index}"
        _index_error("targets", targets[bad], expected)
    return torch.where(ignored, -1, targets).reshape(-1)


def _uniforms(rows: int, mask: Tensor | None, seed: int, row_offset: int, device: torch.device) -> Tensor:
    """float64 [rows] in (0, 1), row i from word block row_offset + i of the seed; -1 where masked out."""
    words = torch.empty(rows, 4, dtype=torch.int64, device=device)
    if rows:
        zo._kernels("random_words", device).words_(words, seed % 2**64, 0, 0, "label", row_offset)
    u = torch.add(words[:, 1] >> 6, words[:, 0] >> 5, alpha=2**26).double().add_(0.5).mul_(2.0**-53)
    return u if mask is None else torch.where(mask.reshape(-1) != 0, u, -1.0)


# ---- kernels ---------------------------------------------------------------------------------------------


def _logits_logprob(
    logits: Tensor, targets: Tensor, softcap: float | None, ignore_index: int, stats: bool
) -> tuple[Tensor, ...]:
    rows = _rows("logits_logprob", logits.device)
    chosen = _row_targets(targets, logits.shape[-1], ignore_index)
    found = rows.forward(logits, chosen, softcap, 1.0, stats)
    return tuple(value.reshape(targets.shape) if value.numel() else value for value in found)


def _linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None,
    ignore_index: int,
    stats: bool,
) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_linear

    chosen = _row_targets(targets, weight.shape[0], ignore_index)
    rows = _rows("linear_logprob", hidden.device)
    return tuple(rows_linear.forward(rows, hidden, weight, bias, chosen, softcap, stats))


def _drawn(found: Sequence[Tensor], shape: Sequence[int], ignore_index: int) -> tuple[Tensor, ...]:
    token, logp, lse = (value.reshape(shape) for value in found)
    return logp, torch.where(token < 0, ignore_index, token), lse


def _gnb_sample(
    logits: Tensor, mask: Tensor | None, seed: int, row_offset: int, temperature: float, ignore_index: int
) -> tuple[Tensor, ...]:
    shape = logits.shape[:-1]
    u = _uniforms(shape.numel(), mask, seed, row_offset, logits.device)
    found = _rows("gnb_sample", logits.device).sample(logits, u, 1.0 / temperature)
    return _drawn(found, shape, ignore_index)


def _linear_gnb_sample(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    seed: int,
    row_offset: int,
    temperature: float,
    ignore_index: int,
    softcap: float | None = None,
) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_linear

    u = _uniforms(hidden.shape[0], mask, seed, row_offset, hidden.device)
    rows = _rows("linear_gnb_sample", hidden.device)
    found = rows_linear.sample(rows, hidden, weight, bias, u, 1.0 / temperature, softcap)
    return _drawn(found, hidden.shape[:1], ignore_index)


def _linear_ceu(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int
) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_linear

    chosen = _row_targets(targets, weight.shape[0], ignore_index)
    rows = _rows("linear_ceu", hidden.device)
    return tuple(rows_linear.ceu(rows, hidden, weight, bias, chosen))


def _linear_divergence(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    ref_bias: Tensor | None,
    targets: Tensor,
    beta: float,
    kind: str,
    ignore_index: int,
    op: str,
) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_linear

    chosen = _row_targets(targets, weight.shape[0], ignore_index)
    rows, reference = _rows(op, hidden.device), (ref_hidden, ref_weight, ref_bias)
    return tuple(rows_linear.divergence(rows, hidden, weight, bias, reference, chosen, beta, kind))


def _logits_softmax_backward(
    coef: Tensor,
    at_target: Tensor,
    lse: Tensor,
    logits: Tensor,
    targets: Tensor,
    softcap: float | None,
    temperature: float,
    ignore_index: int,
) -> Tensor:
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    chosen = torch.where(targets == ignore_index, -1, targets).reshape(-1)
    per_row = (chosen, lse.reshape(-1), coef.reshape(-1), at_target.reshape(-1))
    rows = _rows("logits_logprob", logits.device)
    rows.softmax_(out, logits, *per_row, softcap, 1.0 / temperature)
    return out


def _present(like: Tensor, gradients: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Ops return tensors: an empty one stands for a gradient that nobody asked for."""
    return tuple(like.new_empty(0) if g is None else g for g in gradients)


def _linear_softmax_backward(
    coef: Tensor,
    at_target: Tensor,
    lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softcap: float | None,
    temperature: float,
    ignore_index: int,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_linear

    chosen = torch.where(targets == ignore_index, -1, targets)
    rows, inverse = _rows("linear_logprob", hidden.device), 1.0 / temperature
    head = (hidden, weight, bias, chosen, softcap, inverse)
    return _present(coef, rows_linear.softmax_backward(rows, coef, at_target, lse, *head, needs))


def _linear_divergence_backward(
    grad: Tensor,
    loss: Tensor,
    lse: Tensor,
    ref_lse: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    ref_bias: Tensor | None,
    targets: Tensor,
    beta: float,
    kind: str,
    ignore_index: int,
    op: str,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    from tenfold.kernels.logprob import rows_linear

    chosen = torch.where(targets == ignore_index, -1, targets)
    rows, reference = _rows(op, hidden.device), (ref_hidden, ref_weight, ref_bias)
    head = (hidden, weight, bias, reference, chosen, beta, kind, needs)
    return _present(grad, rows_linear.divergence_backward(rows, grad, loss, lse, ref_lse, *head))


def _segment_nll(logp: Tensor, segments: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    bad = (segments < -1) | (segments >= num_segments)
    if bad.any():
        expected = f"segments in [0, {num_segments}), or -1 for a row to skip"
        _index_error("segments", segments[bad], expected)
    keep = segments >= 0
    chosen = segments[keep]
    nll = torch.zeros(num_segments, dtype=torch.float64, device=logp.device)
    nll.index_add_(0, chosen, logp[keep].double(), alpha=-1.0)
    count = torch.zeros(num_segments, dtype=torch.int64, device=logp.device)
    return nll, count.index_add_(0, chosen, torch.ones_like(chosen))


def _segment_nll_backward(grad: Tensor, segments: Tensor) -> Tensor:
    padded = torch.cat([grad.new_zeros(1), -grad])
    return padded[segments + 1]


# ---- fakes -----------------------------------------------------------------------------------------------


def _stats_fake(targets: Tensor, stats: bool) -> tuple[Tensor, ...]:
    size = targets.shape if stats else (0,)
    means = [targets.new_empty(size, dtype=torch.float64) for _ in range(3)]
    first = [targets.new_empty(targets.shape, dtype=torch.float64) for _ in range(2)]
    return (*first, targets.new_empty(size), *means)


def _per_row(like: Tensor, shape: Sequence[int], token: bool) -> tuple[Tensor, ...]:
    second = torch.int64 if token else torch.float64
    return tuple(like.new_empty(shape, dtype=d) for d in (torch.float64, second, torch.float64))


def _needed(like: Tensor, operands: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor, ...]:
    wanted = zip(operands, needs, strict=True)
    return _present(
        like, [t.new_empty(t.shape) if t is not None and needed else None for t, needed in wanted]
    )


def _segment_fake(logp: Tensor, segments: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    nll = logp.new_empty((num_segments,), dtype=torch.float64)
    return nll, segments.new_empty((num_segments,))


def _without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast would run the products inside in a half dtype."""

    def run(*arguments: Any) -> Any:
        with torch.autocast(arguments[0].device.type, enabled=False):
            return kernel(*arguments)

    return run


for _name, _kernel, _fake in (
    ("logits_logprob", _logits_logprob, lambda z, targets, *rest: _stats_fake(targets, rest[-1])),
    ("linear_logprob", _linear_logprob, lambda h, w, b, targets, *rest: _stats_fake(targets, rest[-1])),
    ("gnb_sample", _gnb_sample, lambda z, *_: _per_row(z, z.shape[:-1], True)),
    ("linear_gnb_sample", _linear_gnb_sample, lambda h, *_: _per_row(h, h.shape[:1], True)),
    ("linear_ceu", _linear_ceu, lambda h, *_: _per_row(h, h.shape[:1], False)),
    ("linear_divergence", _linear_divergence, lambda h, *_: _per_row(h, h.shape[:1], False)),
    ("logits_softmax_backward", _logits_softmax_backward, lambda c, a, e, z, *_: z.new_empty(z.shape)),
    ("linear_softmax_backward", _linear_softmax_backward, lambda *a: _needed(a[0], a[3:6], a[-1])),
    ("linear_divergence_backward", _linear_divergence_backward, lambda *a: _needed(a[0], a[4:7], a[-1])),
    ("segment_nll", _segment_nll, _segment_fake),
    ("segment_nll_backward", _segment_nll_backward, lambda g, s: g.new_empty(s.shape)),
):
    _LIBRARY.impl(_name, _without_autocast(_kernel), "CPU")
    _LIBRARY.impl(_name, _without_autocast(_kernel), "CUDA")
    torch.library.register_fake(f"tenfold::{_name}", _fake, lib=_LIBRARY)


# ---- autograd --------------------------------------------------------------------------------------------


def _asked(ctx: Any, gradients: Sequence[Tensor]) -> list[Tensor | None]:
    return [g if ctx.needs_input_grad[i] else None for i, g in enumerate(gradients)]


def _of_logp(ctx: Any, grad: Tensor, tail: int) -> tuple[Any, ...]:
    """d(grad . log p) / d logits[v] = grad ([v = target] - p[v]), for a head or for logits."""
    lse, logp, targets, *operands = ctx.saved_tensors
    rows = (-grad, -grad * torch.expm1(logp), lse)
    after = (targets, ctx.softcap, ctx.temperature, ctx.ignore_index)
    if len(operands) == 1:
        gradient = torch.ops.tenfold.logits_softmax_backward(*rows, *operands, *after)
        return (gradient, *[None] * tail)
    needs = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.tenfold.linear_softmax_backward(*rows, *operands, *after, needs)
    return (*_asked(ctx, gradients), *[None] * tail)


def _logprob_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, targets, ctx.softcap, ctx.ignore_index, _ = inputs
    ctx.temperature = 1.0
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[1], output[0], targets, *operands)


def _sample_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, _, _, _, ctx.temperature, ctx.ignore_index = inputs
    ctx.softcap = None
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[2], output[0], output[1], *operands)


def _linear_sample_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _sample_setup(ctx, inputs[:-1], output)
    ctx.softcap = inputs[-1]


def _ceu_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, targets, ctx.ignore_index = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[1], output[2], targets, *operands)


def _ceu_grad(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    """p - q, with q[v] = exp(x[v] - lse of the others): -p(target) q[v], and p(target) at the target."""
    lse, logp, targets, *operands = ctx.saved_tensors
    slope = grad * logp.exp()
    needs = list(ctx.needs_input_grad[:3])
    after = (targets, None, 1.0, ctx.ignore_index, needs)
    gradients = torch.ops.tenfold.linear_softmax_backward(-slope, slope, lse, *operands, *after)
    return (*_asked(ctx, gradients), None, None)


def _divergence_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.beta, ctx.kind, ctx.ignore_index, ctx.op = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output, *tensors)


def _divergence_grad(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:3])
    rest = (ctx.beta, ctx.kind, ctx.ignore_index, ctx.op, needs)
    gradients = torch.ops.tenfold.linear_divergence_backward(grad, *ctx.saved_tensors, *rest)
    return (*_asked(ctx, gradients), *[None] * 8)


def _segment_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(inputs[1])


def _segment_grad(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    (segments,) = ctx.saved_tensors
    return torch.ops.tenfold.segment_nll_backward(grad, segments).to(ctx.dtype), None, None


def _only_once(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("tenfold: the log-probability losses can be differentiated once, not twice")


for _name, _setup, _grad in (
    ("logits_logprob", _logprob_setup, lambda ctx, g, *_: _of_logp(ctx, g, 4)),
    ("linear_logprob", _logprob_setup, lambda ctx, g, *_: _of_logp(ctx, g, 4)),
    ("gnb_sample", _sample_setup, lambda ctx, g, *_: _of_logp(ctx, g, 5)),
    ("linear_gnb_sample", _linear_sample_setup, lambda ctx, g, *_: _of_logp(ctx, g, 6)),
    ("linear_ceu", _ceu_setup, _ceu_grad),
    ("linear_divergence", _divergence_setup, _divergence_grad),
    ("segment_nll", _segment_setup, _segment_grad),
):
    torch.library.register_autograd(f"tenfold::{_name}", _grad, setup_context=_setup, lib=_LIBRARY)
for _name in ("logits_softmax_backward", "linear_softmax_backward", "linear_divergence_backward"):
    torch.library.register_autograd(f"tenfold::{_name}", _only_once, lib=_LIBRARY)

"""Which weights matter for a loss, training only those, and the norm of attention columns.

Saliency is a gradient (SalUn, Fan et al., arXiv 2310.12508) or a gradient times its weight (SNIP, Lee et
al., arXiv 1810.02340; Scissorhands, Wu and Harandi, arXiv 2401.06187), ranked over all tensors together. A
mask has one bit per weight. Attention columns are the loss of Forget-Me-Not (Zhang et al., arXiv 2303.17591).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend
from tenfold.kernels.erase.erase_reference import MODES, AdamArgs
from tenfold.kernels.erase.erase_select import Selected

from .zo import _bits, _like, _match, _one_device, _params, _tensors, _writes_only, _written

OPS |= {
    "abs_quantile": ("cpu", "cuda", "triton", "reference"),
    "topk_mask": ("cpu", "cuda", "triton", "reference"),
    "masked_adam_": ("cpu", "cuda", "triton", "reference"),
    "saliency_accum_": ("cpu", "cuda", "triton", "reference"),
    "attn_column_norm": ("cpu", "triton", "reference"),
}

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
for _schema in (
    "abs_select(Tensor[] tensors, SymInt rank) -> (Tensor threshold, Tensor counts)",
    "topk_bits_(Tensor(a!)[] out, Tensor[] tensors, float threshold, SymInt equal, SymInt ties, bool largest)"
    " -> ()",
    "masked_adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor[] masks, float[] scalars) -> ()",
    "saliency_accum_(Tensor(a!)[] acc, Tensor[] grads, Tensor[] weights, str kind) -> ()",
    "attn_column_norm(Tensor q, Tensor k, Tensor mask, float scale) -> Tensor",
    "attn_column_norm_backward(Tensor grad, Tensor q, Tensor k, Tensor mask, float scale, bool for_q, "
    "bool for_k) -> (Tensor, Tensor)",
):
    _LIBRARY.define(_schema)


class AbsQuantile(NamedTuple):
    """threshold: the k-th largest magnitude. count: how many are at least that, k and its further ties."""

    threshold: float
    count: int  # type: ignore[assignment]


def abs_quantile(tensors: Sequence[Any], q: float) -> AbsQuantile:
    """The k-th largest magnitude over all tensors together, exactly, and how many weights reach it.

    k = max(round(q N), 1) of the N weights. Nothing is concatenated: on the CPU one pass over the weights
    gathers what lies between two quantiles of a sample, and only that is ranked; a GPU counts 11 bits of the
    magnitudes at a time. The result does not depend on the backend, the sample or the threads.

    Args:
        tensors: any shapes, strides and floating dtypes (mixed as you like), on one device, with at least one
            weight in all.
        q: share of the weights, in (0, 1].

    Warns:
        UserWarning: the threshold is 0, that is, less than the share q is not 0.

    Raises:
        TypeError: no floating tensors. ValueError: q out of range, nothing to rank, NaN or infinity.
    """
    given = _read("tensors", tensors)
    share = _checks.real("q", q, positive=True)
    if share > 1:
        _checks.fail(ValueError, "q", "a share of at most 1", q)
    total = sum(t.numel() for t in given)
    if not total:
        _checks.fail(ValueError, "tensors", "at least one weight", "none")
    found = _select(given, total - max(round(share * total), 1) + 1)
    if found.threshold == 0:
        warnings.warn("tensors: the threshold is 0: less than the share q is not 0", stacklevel=2)
    return AbsQuantile(found.threshold, total - found.below)


def topk_mask(tensors: Sequence[Any], q: float, *, largest: bool = True) -> list[Any]:
    """The share `q` of the weights with the largest magnitude over all tensors together: exactly round(q N)
    of them. Among equal ones the first are taken.

    Args:
        tensors: as `abs_quantile`; empty lists and tensors are fine.
        q: in [0, 1].
        largest: False takes the smallest.

    Returns:
        Bits, uint8 [ceil(n / 8)] for each tensor of n weights: weight i (row-major) is bit i % 8 of byte i //
        8, as `BitMask` and `masked_adam_` take them.

    Raises:
        TypeError, ValueError: as `abs_quantile`.
    """
    kinds = [_arrays.kind_of(t) for t in _checks.sequence("tensors", tensors, "tensors")]
    given = _read("tensors", tensors)
    share = _checks.real("q", q, at_least=0.0)
    if share > 1:
        _checks.fail(ValueError, "q", "a share in [0, 1]", q)
    if not isinstance(largest, bool):
        _checks.fail(TypeError, "largest", "True or False", _checks.describe(largest))
    total = sum(t.numel() for t in given)
    wanted = round(share * total)
    out = [torch.zeros((t.numel() + 7) // 8, dtype=torch.uint8, device=t.device) for t in given]
    if total:
        found = _select(given, total - max(wanted, 1) + 1 if largest else max(wanted, 1))
        beyond = total - found.below - found.equal if largest else found.below
        if wanted:
            threshold, equal = found.threshold, found.equal
            torch.ops.tenfold.topk_bits_(out, given, threshold, equal, wanted - beyond, largest)
    return [kind(bits) for kind, bits in zip(kinds, out, strict=True)]


def saliency_accum_(
    acc: Sequence[Any],
    grads: Sequence[Any],
    *,
    mode: str = "signed",
    weights: Sequence[Any] | None = None,
) -> None:
    """acc += g ("signed": opposite batches cancel, as in SalUn), abs(g) ("abs", as in Scissorhands) or
    abs(g w) ("product", as in SNIP) for every tensor, in place and in one pass.

    Args:
        acc: float32 or float64 each, in which the sum is made; contiguous or not, on one device.
        grads: of the same shapes and any floating dtype; None is a weight that the loss does not reach.
        weights: of the same shapes and any floating dtype, for "product" only.

    Raises:
        TypeError, ValueError: arguments that do not fit. RuntimeError: a leaf that requires grad while
            gradients are enabled. Nothing is written then. Where memory runs out each tensor is as it was
            or done.
    """
    sums = _params("acc", acc)
    _checks.choice("mode", mode, MODES)
    _checks.length("grads", _checks.sequence("grads", grads, "tensors"), len(sums), "acc")
    if (weights is not None) != (mode == "product"):
        expected = 'tensors where mode is "product", else None'
        _checks.fail(ValueError, "weights", expected, "None" if weights is None else f"tensors with {mode!r}")
    reached = [i for i, grad in enumerate(grads) if grad is not None]
    totals = [sums[i] for i in reached]
    steps = _beside("grads", grads, reached, sums)
    factors = [] if weights is None else _beside("weights", weights, reached, sums)
    for i, total in zip(reached, totals, strict=True):
        _checks.dtype(f"acc[{i}].dtype", total.dtype, (torch.float32, torch.float64))
    _checks.memory(acc=totals)
    if totals:
        torch.ops.tenfold.saliency_accum_(totals, steps, factors, mode)


def masked_adam_(
    params: Sequence[Any],
    grads: Sequence[Any],
    exp_avgs: Sequence[Any],
    exp_avg_sqs: Sequence[Any],
    masks: Sequence[Any],
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """One step of Adam (Kingma and Ba, arXiv 1412.6980) with decoupled weight decay on the weights that the
    masks choose, in place, in one pass over all tensors.

    The other weights and their moments keep every bit: a masked gradient alone would leave them to the decay
    and to what the moments hold. Arithmetic is float32 (float64 for float64 weights), each operation rounded
    once, with the same bits on every backend of the CPU.

    Args:
        params: floating tensors of any strides, on one device.
        grads: of the same shapes and dtypes.
        exp_avgs, exp_avg_sqs: moments, of the weight's dtype or float32 (both alike for a weight).
        masks: uint8 [ceil(n / 8)] each, as `topk_mask` makes them.
        step: number of this step, from 1.
        lr, eps, weight_decay: >= 0. beta1, beta2: in [0, 1).

    Raises:
        TypeError, ValueError: arguments that do not fit. RuntimeError: a leaf that requires grad while
            gradients are enabled. Nothing is written then. Where memory runs out each tensor is as it was
            or done.
    """
    weights = _params("params", params)
    slopes = _like("grads", grads, weights, write=False)
    means = _tensors("exp_avgs", exp_avgs)
    squares = _tensors("exp_avg_sqs", exp_avg_sqs)
    bits = [
        _arrays.as_tensor(f"masks[{i}]", b) for i, b in enumerate(_checks.sequence("masks", masks, "bits"))
    ]
    _moments(means, squares, weights)
    _bits("masks", bits, weights)
    step = _checks.integer("step", step, 1, 2**53)
    rates = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
    lr, eps, weight_decay = (_checks.real(name, value, at_least=0.0) for name, value in rates.items())
    beta1, beta2 = (
        _checks.real(name, value, at_least=0.0, below=1.0)
        for name, value in (("beta1", beta1), ("beta2", beta2))
    )
    _checks.memory(params=weights, exp_avgs=means, exp_avg_sqs=squares)
    if weights:
        scalars = AdamArgs(
            keep=1 - lr * weight_decay,
            new1=1 - beta1,
            beta2=beta2,
            new2=1 - beta2,
            inverse=1 / math.sqrt(1 - beta2**step),
            eps=eps,
            rate=lr / (1 - beta1**step),
        )
        torch.ops.tenfold.masked_adam_(weights, slopes, means, squares, bits, list(scalars))


def attn_column_norm(q: Any, k: Any, mask: Any, scale: float | None = None) -> Any:
    """Sum of the squared attention probabilities in chosen columns, P = softmax(scale q k^T), a scalar.

    Forget-Me-Not's loss is the root of its sum over all layers. The maps [n, L] are not stored: they are made
    a tile at a time, and made again in the backward pass. Differentiable once, to q and k.

    Args:
        q: [B, heads, n, dk], any strides and floating dtype. k: [B, heads, L, dk], of the same dtype.
        mask: bool [B, L], the columns of each picture.
        scale: of the scores; dk^-1/2 if None.

    Returns:
        float32, float64 for float64 input; the sum is made in float64.

    Raises:
        TypeError, ValueError: shapes or dtypes that do not fit. RuntimeError: a second derivative.
    """
    kind = _arrays.kind_of(q)
    query, key = (
        _checks.tensor(name, _arrays.as_tensor(name, t, write=False)) for name, t in (("q", q), ("k", k))
    )
    chosen = _checks.tensor("mask", _arrays.as_tensor("mask", mask, write=False), (torch.bool,))
    if query.ndim != 4 or 0 in query.shape:
        _checks.fail(ValueError, "q", "shape [B, heads, n, dk]", tuple(query.shape))
    batch, heads, _, width = query.shape
    if key.ndim != 4 or key.shape[:2] != (batch, heads) or key.shape[3] != width or 0 in key.shape:
        _checks.fail(ValueError, "k", f"shape [{batch}, {heads}, L, {width}]", tuple(key.shape))
    _checks.dtype("k.dtype", key.dtype, (query.dtype,))
    if chosen.shape != (batch, key.shape[2]):
        _checks.fail(ValueError, "mask", f"shape [{batch}, {key.shape[2]}]", tuple(chosen.shape))
    for name, t in (("k", key), ("mask", chosen)):
        if t.device != query.device:
            _checks.fail(ValueError, name, f"device {query.device} as q", t.device)
    factor = width**-0.5 if scale is None else _checks.real("scale", scale)
    found = torch.ops.tenfold.attn_column_norm(query, key, chosen, factor)
    return kind(found.to(torch.float64 if query.dtype == torch.float64 else torch.float32))


# ---- checks ----------------------------------------------------------------------------------------------


def _read(name: str, values: Sequence[Any]) -> list[Tensor]:
    tensors = [t.detach() for t in _tensors(name, values, write=False)]
    _one_device(name, tensors)
    return tensors


def _beside(name: str, values: Sequence[Any], places: Sequence[int], sums: Sequence[Tensor]) -> list[Tensor]:
    """The tensors at some places of a list that pairs with `sums`."""
    _checks.length(name, _checks.sequence(name, values, "tensors"), len(sums), "acc")
    found = []
    for i in places:
        t = _checks.tensor(f"{name}[{i}]", _arrays.as_tensor(f"{name}[{i}]", values[i], write=False)).detach()
        if t.shape != sums[i].shape:
            _checks.fail(ValueError, f"{name}[{i}]", f"shape {tuple(sums[i].shape)}", tuple(t.shape))
        if t.device != sums[i].device:
            _checks.fail(ValueError, f"{name}[{i}]", f"device {sums[i].device} as acc[{i}]", t.device)
        found.append(t)
    return found


def _moments(means: Sequence[Tensor], squares: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    kinds = [m.dtype for m in means]
    _match("exp_avgs", means, params, kinds)
    for i, (mean, param) in enumerate(zip(means, params, strict=True)):
        wide = torch.float64 if param.dtype == torch.float64 else torch.float32
        _checks.dtype(f"exp_avgs[{i}].dtype", mean.dtype, (param.dtype, wide))
    _match("exp_avg_sqs", squares, params, kinds)


def _select(tensors: list[Tensor], rank: int) -> Selected:
    threshold, counts = torch.ops.tenfold.abs_select(tensors, rank)
    found = Selected(float(threshold), *counts.tolist())
    if found.nonfinite:
        _checks.fail(ValueError, "tensors", "finite values", f"{found.nonfinite} that are NaN or infinite")
    return found


# ---- kernels ---------------------------------------------------------------------------------------------


def _kernels(op: str, device: torch.device) -> Any:
    """The module that implements `op` for the chosen backend; all share their signatures."""
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.erase import erase_reference as module
    elif backend == "triton":
        from tenfold.kernels.erase import erase_triton as module
    elif backend == "cuda":
        from tenfold.kernels.erase import erase_cuda as module
    else:
        from tenfold.kernels.erase import erase_native as module
    return module


def _abs_select(tensors: list[Tensor], rank: int) -> tuple[Tensor, Tensor]:
    _checks.integer("rank", rank, 1, sum(t.numel() for t in tensors))
    found = _kernels("abs_quantile", tensors[0].device).select(tensors, rank)
    return torch.tensor(found.threshold, dtype=torch.float64), torch.tensor(found[1:], dtype=torch.int64)


def _topk_bits_(
    out: list[Tensor], tensors: list[Tensor], threshold: float, equal: int, ties: int, largest: bool
) -> None:
    _bits("out", out, tensors)
    found = Selected(threshold, 0, equal)
    _kernels("topk_mask", tensors[0].device).topk_bits_(out, tensors, found, ties, largest)
    _written(out)


def _masked_adam_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    masks: list[Tensor],
    scalars: list[float],
) -> None:
    _match("grads", grads, params)
    _moments(exp_avgs, exp_avg_sqs, params)
    _bits("masks", masks, params)
    _checks.memory(params=params, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs)
    kernels = _kernels("masked_adam_", params[0].device)
    kernels.adam_(params, grads, exp_avgs, exp_avg_sqs, masks, AdamArgs(*scalars))
    _written([*params, *exp_avgs, *exp_avg_sqs])


def _saliency_accum_(acc: list[Tensor], grads: list[Tensor], weights: list[Tensor], kind: str) -> None:
    places = list(range(len(acc)))
    _beside("grads", grads, places, acc)
    if kind == "product":
        _beside("weights", weights, places, acc)
    _kernels("saliency_accum_", acc[0].device).saliency_(acc, grads, weights, kind)
    _written(acc)


def _attn_column_norm(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    found: Tensor = _kernels("attn_column_norm", q.device).column_norm(q, k, mask, scale)
    return found


def _attn_column_norm_backward(
    grad: Tensor, q: Tensor, k: Tensor, mask: Tensor, scale: float, for_q: bool, for_k: bool
) -> tuple[Tensor, Tensor]:
    dq, dk = _gradient_like(q, for_q), _gradient_like(k, for_k)
    kernels = _kernels("attn_column_norm", q.device)
    kernels.column_norm_backward(grad, q, k, mask, scale, dq if for_q else None, dk if for_k else None)
    return dq, dk


def _gradient_like(x: Tensor, wanted: bool) -> Tensor:
    return torch.empty_like(x) if wanted else x.new_empty(0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, mask, ctx.scale = inputs
    ctx.save_for_backward(q, k, mask)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = ctx.needs_input_grad[:2]
    found = torch.ops.tenfold.attn_column_norm_backward(grad, *ctx.saved_tensors, ctx.scale, *needs)
    return (*(g if need else None for g, need in zip(found, needs, strict=True)), None, None)


def _only_once(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("attn_column_norm: expected to be differentiated once, got a second derivative")


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("abs_select", _abs_select, _device)
    _LIBRARY.impl("topk_bits_", _topk_bits_, _device)
    _LIBRARY.impl("masked_adam_", _masked_adam_, _device)
    _LIBRARY.impl("saliency_accum_", _saliency_accum_, _device)
    _LIBRARY.impl("attn_column_norm", _attn_column_norm, _device)
    _LIBRARY.impl("attn_column_norm_backward", _attn_column_norm_backward, _device)
for _name in ("topk_bits_", "masked_adam_", "saliency_accum_"):
    torch.library.register_fake(f"tenfold::{_name}", _writes_only, lib=_LIBRARY)
torch.library.register_fake(
    "tenfold::abs_select",
    lambda tensors, rank: (torch.empty((), dtype=torch.float64), torch.empty(3, dtype=torch.int64)),
    lib=_LIBRARY,
)
torch.library.register_fake(
    "tenfold::attn_column_norm",
    lambda q, k, mask, scale: q.new_empty((), dtype=torch.float64),
    lib=_LIBRARY,
)
torch.library.register_fake(
    "tenfold::attn_column_norm_backward",
    lambda grad, q, k, mask, scale, for_q, for_k: (_gradient_like(q, for_q), _gradient_like(k, for_k)),
    lib=_LIBRARY,
)
torch.library.register_autograd("tenfold::attn_column_norm", _gradient, setup_context=_setup, lib=_LIBRARY)
torch.library.register_autograd("tenfold::attn_column_norm_backward", _only_once, lib=_LIBRARY)

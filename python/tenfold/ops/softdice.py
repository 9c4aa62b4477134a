"""Soft overlap of network outputs and labels: the sums that region losses are made of, in one pass each way.

Dice (V-Net, arXiv 1606.04797), generalised Dice (arXiv 1707.03237), Tversky (arXiv 1706.05721), soft Jaccard,
cross-entropy and focal loss (arXiv 1708.02002) are functions of the same few sums per batch item and class.
`soft_overlap` makes them from logits read once, and its gradient writes d(loss)/d(logits) from logits read
once more and one log-sum-exp per voxel; nothing of the size of the logits is kept.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

OPS |= {"soft_overlap": ("cpu", "cuda", "triton", "reference")}

ACTIVATIONS = ("softmax", "sigmoid", "none")
LABEL_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
_TARGET_DTYPES = (*LABEL_DTYPES, *_checks.FLOAT_DTYPES)

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_TAIL = "str activation, float gamma, int? ignore_index, bool squares, bool logs"
_LIBRARY.define(
    f"soft_overlap(Tensor logits, Tensor target, Tensor? mask, {_TAIL}) -> (Tensor sums, Tensor lse)"
)
_LIBRARY.define(
    "soft_overlap_backward(Tensor grad, Tensor logits, Tensor target, Tensor? mask, Tensor lse, "
    f"{_TAIL}) -> Tensor"
)


class SoftOverlap(NamedTuple):
    """float64 [B, C] each; y is the label (0, 1 or soft), p the probability; sums over voxels that count."""

    intersection: Any
    """sum p y"""
    prediction: Any
    """sum p"""
    prediction_squared: Any
    """sum p^2 (zero where `squares` is False)"""
    target: Any
    """sum y"""
    target_squared: Any
    """sum y^2"""
    log_positive: Any
    """sum y (1 - p)^gamma (-log p) (zero where `logs` is False)"""
    log_negative: Any
    """sum (1 - y) p^gamma (-log(1 - p)), for the sigmoid"""


def soft_overlap(
    logits: Any,
    target: Any,
    *,
    activation: str = "softmax",
    mask: Any = None,
    ignore_index: int | None = None,
    gamma: float = 0.0,
    squares: bool = True,
    logs: bool = True,
) -> SoftOverlap:
    """Sums over voxels of what is predicted, what is true and what is both, per batch item and class.

    Differentiable once, in `logits`. Sums are float32 within pieces of voxels and float64 across them; the
    result does not depend on the number of threads. A NaN logit makes the sums of its batch item NaN, unless
    its voxel is left out.

    Args:
        logits: [B, C, spatial...]; float32, bfloat16, float16 or float64, contiguous or channels last (other
            layouts are copied).
        target: integer labels [B, spatial...] or [B, 1, spatial...] with values in [0, C), or, with as many
            channels as the logits, [B, C, spatial...] of any dtype: one-hot, overlapping or soft labels.
            With C = 1, [B, 1, spatial...] is such a map of 0 and 1.
        activation: "softmax" over the classes, "sigmoid", or "none" where `logits` are probabilities already
            (then the sums of logarithms stay zero).
        mask: [B, spatial...] or [B, 1, spatial...] bool or uint8, zero where a voxel is left out.
        ignore_index: integer labels of this value are left out.
        gamma: exponent of the focal loss, >= 0; 0 gives the cross-entropy.
        squares: whether `prediction_squared` is wanted.
        logs: whether `log_positive` and `log_negative` are wanted.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: shapes that do not fit; on the CPU, a label outside [0, C). On a GPU, where waiting for
            the answer would cost more than the sums, such a label makes the result NaN.
        RuntimeError: a forced backend that cannot run, or a second derivative.
    """
    kind = _arrays.kind_of(logits)
    logits = _logits(logits)
    target = _target(target, logits)
    if mask is not None:
        mask = _mask(mask, logits)
    _checks.choice("activation", activation, ACTIVATIONS)
    if ignore_index is not None:
        ignore_index = _checks.integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)
    gamma = _checks.real("gamma", gamma, at_least=0.0)
    found, _ = torch.ops.tenfold.soft_overlap(
        logits, target, mask, activation, gamma, ignore_index, bool(squares), bool(logs)
    )
    return SoftOverlap(*(kind(value) for value in found.unbind(2)))


# ---- checks ----------------------------------------------------------------------------------------------


def _logits(logits: Any) -> Tensor:
    logits = _checks.tensor("logits", _arrays.as_tensor("logits", logits, write=False))
    if logits.ndim < 2 or logits.shape[1] < 1:
        _checks.fail(ValueError, "logits", "shape [B, C, spatial...] with C >= 1", tuple(logits.shape))
    return logits


def _target(target: Any, logits: Tensor) -> Tensor:
    """Labels [B, spatial...], or a map [B, C, spatial...]."""
    target = _checks.tensor("target", _arrays.as_tensor("target", target, write=False), _TARGET_DTYPES)
    if target.device != logits.device:
        _checks.fail(ValueError, "target", f"a tensor on {logits.device} like logits", target.device)
    batch, spatial = logits.shape[0], logits.shape[2:]
    if target.ndim == logits.ndim and target.shape == logits.shape:
        return target
    if target.ndim == logits.ndim and target.shape[1] == 1:
        target = target.squeeze(1)
    if target.ndim != logits.ndim - 1 or target.shape != (batch, *spatial):
        shapes = f"[B, spatial...], [B, 1, spatial...] or [B, C, spatial...] of logits {tuple(logits.shape)}"
        _checks.fail(ValueError, "target", shapes, tuple(target.shape))
    if target.dtype not in LABEL_DTYPES:
        _checks.fail(TypeError, "target", "integer labels (or as many channels as logits)", target.dtype)
    return target


def _mask(mask: Any, logits: Tensor) -> Tensor:
    mask = _checks.tensor("mask", _arrays.as_tensor("mask", mask, write=False), (torch.bool, torch.uint8))
    if mask.device != logits.device:
        _checks.fail(ValueError, "mask", f"a tensor on {logits.device} like logits", mask.device)
    if mask.ndim == logits.ndim and mask.shape[1] == 1:
        mask = mask.squeeze(1)
    if mask.shape != (logits.shape[0], *logits.shape[2:]):
        _checks.fail(ValueError, "mask", "shape [B, spatial...] or [B, 1, spatial...]", tuple(mask.shape))
    return mask


# ---- kernels ---------------------------------------------------------------------------------------------


def _kernels(device: torch.device) -> ModuleType:
    backend = chosen_backend("soft_overlap", device.type)
    if backend == "reference":
        from tenfold.kernels.softdice import softdice_reference as module
    elif backend == "triton":
        from tenfold.kernels.softdice import softdice_triton as module
    else:
        from tenfold.kernels.softdice import softdice_native as module
    return module


def _flat(logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Spatial axes as one; a copy only where they have no common stride."""
    batch, classes = logits.shape[:2]
    x = logits.reshape(batch, classes, -1) if logits.numel() else logits.flatten(2)
    space = x.shape[2]  # -1 would be ambiguous for an empty batch
    y = target.reshape(batch, classes, space) if target.ndim == logits.ndim else target.reshape(batch, space)
    return x, y, None if mask is None else mask.reshape(batch, space)


def _forward(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    activation: str,
    gamma: float,
    ignore_index: int | None,
    squares: bool,
    logs: bool,
) -> tuple[Tensor, Tensor]:
    from tenfold.kernels.softdice.softdice_reference import Options, first_bad_label

    x, y, m = _flat(_shaped(logits), _shaped(target), None if mask is None else _shaped(mask))
    options = Options(activation, gamma, ignore_index, squares, logs)
    sums, lse, bad = _kernels(logits.device).forward(x, y, m, options)
    if logits.device.type != "cpu":
        return sums.masked_fill_(bad != 0, torch.nan), lse
    if int(bad):
        expected = f"labels in [0, {x.shape[1]})"
        if ignore_index is not None:
            expected += f" or ignore_index = {ignore_index}"
        _checks.fail(ValueError, "target", expected, first_bad_label(y, m, x.shape[1], ignore_index))
    return sums, lse


def _shaped(value: Tensor) -> Tensor:
    """A logit or label without spatial axes stands for one voxel."""
    return value[..., None]


def _backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    lse: Tensor,
    activation: str,
    gamma: float,
    ignore_index: int | None,
    squares: bool,
    logs: bool,
) -> Tensor:
    from tenfold.kernels.softdice.softdice_reference import Options

    x, y, m = _flat(_shaped(logits), _shaped(target), None if mask is None else _shaped(mask))
    out = torch.empty_like(logits)
    try:
        flat = out.view(x.shape)
    except RuntimeError:  # its spatial axes have no common stride
        out = torch.empty_like(logits, memory_format=torch.contiguous_format)
        flat = out.view(x.shape)
    options = Options(activation, gamma, ignore_index, squares, logs)
    _kernels(logits.device).backward(grad.double().contiguous(), x, y, m, lse, options, flat)
    return out


def _fake(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, classes = logits.shape[:2]
    voxels = 1
    for size in logits.shape[2:]:
        voxels = voxels * size
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    shape = (batch, voxels) if rest[2] == "softmax" else (0,)
    return logits.new_empty((batch, classes, 7), dtype=torch.float64), logits.new_empty(shape, dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, target, mask, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, target, mask, output[1])


def _gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    logits, target, mask, lse = ctx.saved_tensors
    dx = torch.ops.tenfold.soft_overlap_backward(grad, logits, target, mask, lse, *ctx.options)
    return (dx, *[None] * 7)


def _only_once(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("soft_overlap: expected to be differentiated once, got a second derivative")


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("soft_overlap", _forward, _device)
    _LIBRARY.impl("soft_overlap_backward", _backward, _device)
torch.library.register_fake("tenfold::soft_overlap", _fake, lib=_LIBRARY)
torch.library.register_fake(
    "tenfold::soft_overlap_backward", lambda grad, logits, *_: torch.empty_like(logits), lib=_LIBRARY
)
torch.library.register_autograd("tenfold::soft_overlap", _gradient, setup_context=_setup, lib=_LIBRARY)
torch.library.register_autograd("tenfold::soft_overlap_backward", _only_once, lib=_LIBRARY)

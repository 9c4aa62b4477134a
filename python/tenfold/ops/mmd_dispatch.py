"""The kernel discrepancies as torch.library ops, and the ways from a call to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tenfold._backend import OPS, chosen_backend

OPS |= dict.fromkeys(("mmd", "cdd"), ("cpu", "cuda", "triton", "reference"))


_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define(
    "mmd(Tensor x, Tensor y, Tensor? v, Tensor? base, float[] factors, float floor, bool unbiased, "
    "bool by_column, bool gradient) -> (Tensor value, Tensor base_used, Tensor grad)"
)
_LIBRARY.define(
    "cdd(Tensor s, Tensor ys, Tensor t, Tensor yt, int classes, float[] factors, float floor, bool clamp, "
    "int min_count, bool gradient) -> (Tensor intra, Tensor inter, Tensor matrix, Tensor grads)"
)


def _backend(op: str, device: torch.device) -> Any:
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.mmd import mmd_reference as module
    elif backend == "triton":
        from tenfold.kernels.mmd import mmd_triton as module
    else:
        from tenfold.kernels.mmd import mmd_native as module
    return module


def _float(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def _mmd(
    x: Tensor, y: Tensor, v: Tensor | None, base: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    from tenfold.kernels.mmd.mmd_reference import Pairs

    value, used, gradient = _backend("mmd", x.device).pairs(x, y, v, base, Pairs(*options))
    return value.to(_float(x, y)), used, gradient


def _mmd_fake(
    x: Tensor,
    y: Tensor,
    v: Tensor | None,
    base: Tensor | None,
    factors: Sequence[float],
    floor: float,
    unbiased: bool,
    by_column: bool,
    gradient: bool,
) -> tuple[Tensor, ...]:
    batch, points, dtype = x.shape[0], x.shape[1] + y.shape[1], _float(x, y)
    shape = (batch, v.shape[2]) if by_column and v is not None else (batch,)
    kept = (batch, points, x.shape[2]) if gradient else (0,)
    return (
        x.new_empty(shape, dtype=dtype),
        x.new_empty(batch, dtype=torch.float64),
        x.new_empty(kept, dtype=dtype),
    )


def _cdd(s: Tensor, ys: Tensor, t: Tensor, yt: Tensor, *options: Any) -> tuple[Tensor, ...]:
    from tenfold.kernels.mmd.mmd_reference import Contrast

    module = _backend("cdd", s.device)
    intra, inter, matrix, gradients = module.contrast(s, ys, t, yt, Contrast(*options))
    return intra.to(_float(s, t)), inter.to(_float(s, t)), matrix, gradients


def _cdd_fake(
    s: Tensor,
    ys: Tensor,
    t: Tensor,
    yt: Tensor,
    classes: int,
    factors: Sequence[float],
    floor: float,
    clamp: bool,
    min_count: int,
    gradient: bool,
) -> tuple[Tensor, ...]:
    batch, points, dtype = s.shape[0], s.shape[1] + t.shape[1], _float(s, t)
    kept = (2, batch, points, s.shape[2]) if gradient else (0,)
    return (
        s.new_empty(batch, dtype=dtype),
        s.new_empty(batch, dtype=dtype),
        s.new_empty((batch, classes, classes), dtype=torch.float64),
        s.new_empty(kept, dtype=dtype),
    )


class _Once(torch.autograd.Function):
    """Gradients that refuse to be differentiated again: the widths are held, so terms would be missing."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, *_: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("tenfold: the kernel discrepancies can be differentiated once, not twice")


def _scaled(scale: Tensor, gradient: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The saved gradient times the incoming one, in the dtypes of x and y."""
    full = gradient * scale.to(gradient.dtype)[:, None, None]
    n = x.shape[1]
    return full[:, :n].to(x.dtype), full[:, n:].to(y.dtype)


def _guarded(gradients: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Once.apply(gradients[0], x, y), _Once.apply(gradients[1], x, y)
    return gradients


def _mmd_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y = inputs[:2]
    ctx.by_column = inputs[7]
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(output[2], x, y)


def _mmd_backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    if ctx.by_column:
        raise RuntimeError("tenfold.mmd: values by column have no gradient")
    kept, x, y = ctx.saved_tensors
    gx, gy = _guarded(_scaled(grad, kept, x, y), x, y)
    return (gx, gy, *(None,) * 7)


def _cdd_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(output[3], inputs[0], inputs[2])


def _cdd_backward(ctx: Any, grad_intra: Tensor, grad_inter: Tensor, *_: Any) -> tuple[Any, ...]:
    kept, s, t = ctx.saved_tensors
    full = kept[0] * grad_intra.to(kept.dtype)[:, None, None]
    full = full + kept[1] * grad_inter.to(kept.dtype)[:, None, None]
    n = s.shape[1]
    gs, gt = _guarded((full[:, :n].to(s.dtype), full[:, n:].to(t.dtype)), s, t)
    return (gs, None, gt, *(None,) * 7)


for _name, _kernel, _fake, _backward, _setup in (
    ("mmd", _mmd, _mmd_fake, _mmd_backward, _mmd_setup),
    ("cdd", _cdd, _cdd_fake, _cdd_backward, _cdd_setup),
):
    _LIBRARY.impl(_name, _kernel, "CPU")
    _LIBRARY.impl(_name, _kernel, "CUDA")
    torch.library.register_fake(f"tenfold::{_name}", _fake, lib=_LIBRARY)
    torch.library.register_autograd(f"tenfold::{_name}", _backward, setup_context=_setup, lib=_LIBRARY)


class _Eager(torch.autograd.Function):
    """The op without the dispatcher, which costs more than the kernel does on a batch of 32.

    x and y come as the caller has them, [N, d] or [B, N, d]: views taken outside would each be a node of the
    graph.  Forward with ctx, because PyTorch binds the arguments of the other form by their signature at
    every call.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, v: Tensor | None, base: Tensor | None, options: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        value, used, gradient = _apart(x, y, v, base, options)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(used)
        ctx.save_for_backward(gradient, x, y)
        return value, used

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad is None:
            return (None,) * 5
        kept, x, y = ctx.saved_tensors
        full = kept * (grad if x.ndim == 2 else grad[:, None, None])
        gx, gy = full.split_with_sizes((x.shape[-2], y.shape[-2]), -2)
        if x.dtype != full.dtype:
            gx, gy = gx.to(x.dtype), gy.to(y.dtype)
        return (*_guarded((gx, gy), x, y), None, None, None)


def _apart(
    x: Tensor, y: Tensor, v: Tensor | None, base: Tensor | None, options: tuple[Any, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """(value, base, gradient) of one problem or a batch, unknown to autograd."""
    if x.ndim == 3:
        return _mmd(x, y, v, base, *options)
    value, used, gradient = _mmd(x[None], y[None], v, base, *options)
    return value[0], used[0], gradient[0] if options[-1] else gradient


class _Function(torch.autograd.Function):
    """The op under torch.func, whose transforms pass over what register_autograd makes."""

    @staticmethod
    def forward(
        x: Tensor, y: Tensor, v: Tensor | None, base: Tensor | None, options: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _mmd(x, y, v, base, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.save_for_backward(output[2], inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        kept, x, y = ctx.saved_tensors
        return (*_guarded(_scaled(grad, kept, x, y), x, y), None, None, None)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *arguments: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, int, int]]:
        """More problems in the batch."""
        x, y, v, base, options = arguments
        size = info.batch_size
        batch = x.shape[0] if in_dims[0] is None else x.movedim(in_dims[0], 0).shape[1]

        def folded(value: Tensor | None, dim: int | None) -> Tensor | None:
            if value is None:
                return None
            value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            return value.expand(size, batch, *value.shape[2:]).reshape(size * batch, *value.shape[2:])

        tensors = [folded(t, dim) for t, dim in zip((x, y, v, base), in_dims, strict=False)]
        value, used, gradient = _Function.apply(*tensors, options)
        kept = gradient.unflatten(0, (size, batch)) if options[-1] else gradient.expand(size, 0)
        return (value.unflatten(0, (size, batch)), used.unflatten(0, (size, batch)), kept), (0, 0, 0)


def _batched(points: Tensor) -> Tensor:
    return points[None] if points.ndim == 2 else points


def _value(
    x: Tensor, y: Tensor, v: Tensor | None, base: Tensor | None, options: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """(value, base) of the op, for x and y both [., d] or both [B, ., d]."""
    compiling = torch.compiler.is_compiling()
    func = not compiling and torch._C._functorch.peek_interpreter_stack() is not None
    modes = compiling or func or torch._C._len_torch_dispatch_stack() > 0
    if not modes and type(x) in _PLAIN and type(y) in _PLAIN:
        return _Eager.apply(x, y, v, base, options) if options[-1] else _apart(x, y, v, base, options)[:2]
    single = x.ndim == 2
    x, y = _batched(x), _batched(y)
    if func:  # a wrapped tensor does not tell whether a gradient will be asked for
        value, used, _ = _Function.apply(x, y, v, base, (*options[:-1], torch.is_grad_enabled()))
    else:
        value, used, _ = torch.ops.tenfold.mmd(x, y, v, base, *options)
    return (value[0], used[0]) if single else (value, used)


_PLAIN = (Tensor, torch.nn.Parameter)


def _watched(*tensors: Tensor) -> bool:
    """Whether a gradient may be asked for; refuses forward mode, whose tangents the kernels would lose."""
    forward = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    if forward and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError(
            "tenfold: expected reverse mode for a kernel discrepancy, got forward mode (a dual tensor)"
        )
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)

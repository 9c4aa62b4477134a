"""The ops of power allocation: schemas, the choice of a backend, fakes and gradients."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tenfold._backend import OPS, chosen_backend

OPS |= {
    "ssdt_joint": ("cpu", "cuda", "triton", "reference"),
    "ssdt_separable": ("cpu", "cuda", "triton", "reference"),
    "water_filling": ("cpu", "cuda", "triton", "reference"),
    "mse_water_filling": ("cpu", "cuda", "triton", "reference"),
    "power_normalize": ("cpu", "cuda", "triton", "reference"),
}

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_JOINT = "Tensor gains, Tensor symbols, Tensor power, Tensor noise, Tensor? statistics"
_SEPARABLE = "Tensor gains, Tensor power, Tensor noise, Tensor wanted, Tensor? weights"
_FIVE = "(Tensor, Tensor, Tensor, Tensor, Tensor)"
_LIBRARY.define(f"ssdt_joint({_JOINT}, float tolerance, int most) -> {_FIVE}")
_LIBRARY.define(f"ssdt_separable({_SEPARABLE}, float tolerance, int most) -> {_FIVE}")
_GRADS = "Tensor? first, Tensor? alpha, Tensor? dual, Tensor? objective"
_LIBRARY.define(f"ssdt_joint_backward({_GRADS}, {_JOINT}, Tensor mu) -> {_FIVE}")
_LIBRARY.define(f"ssdt_separable_backward({_GRADS}, {_SEPARABLE}, Tensor tau) -> {_FIVE}")
_LIBRARY.define("water_filling(Tensor x, Tensor mass, bool inverse) -> (Tensor, Tensor)")
_LIBRARY.define("mse_water_filling(Tensor gains, Tensor weights, Tensor power) -> (Tensor, Tensor)")
_LIBRARY.define("power_normalize(Tensor x, Tensor power, bool mean) -> Tensor")


def _kernels(op: str, device: torch.device) -> ModuleType:
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.power import power_rounded as module
    elif backend == "triton":
        from tenfold.kernels.power import power_triton as module
    else:
        from tenfold.kernels.power import power_native as module
    return module


def _joint(gains: Tensor, *rest: Any) -> Any:
    return _kernels("ssdt_joint", gains.device).joint(gains, *rest)


def _separable(gains: Tensor, *rest: Any) -> Any:
    return _kernels("ssdt_separable", gains.device).separable(gains, *rest)


def _water(x: Tensor, *rest: Any) -> Any:
    return _kernels("water_filling", x.device).water_filling(x, *rest)


def _mse(gains: Tensor, *rest: Any) -> Any:
    return _kernels("mse_water_filling", gains.device).mse_water_filling(gains, *rest)


def _normalize(x: Tensor, *rest: Any) -> Any:
    return _kernels("power_normalize", x.device).power_normalize(x, *rest)


def _fake_rows(gains: Tensor) -> tuple[Tensor, ...]:
    rows, users, _ = gains.shape
    real = gains.real.dtype if not gains.is_meta else torch.empty(0, dtype=gains.dtype).real.dtype
    row = gains.new_empty(rows, dtype=real)
    return (
        gains.new_empty(gains.shape),
        row,
        gains.new_empty((rows, users), dtype=real),
        torch.empty_like(row),
        gains.new_empty(rows, dtype=torch.int32),
    )


def _setup_joint(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[4])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], output[2])


def _gradient_joint(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    found = torch.ops.tenfold.ssdt_joint_backward(*grads[:4], *ctx.saved_tensors)
    return (*found[:4], None if ctx.saved_tensors[4] is None else found[4], None, None)


def _gradient_separable(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    found = torch.ops.tenfold.ssdt_separable_backward(*grads[:4], *ctx.saved_tensors)
    return (*found[:4], None if ctx.saved_tensors[4] is None else found[4], None, None)


def _joint_backward(*arguments: Tensor | None) -> tuple[Tensor, ...]:
    from tenfold.kernels.power.power_gradient import in_pieces, joint_gradient

    return in_pieces(joint_gradient, arguments[:4], arguments[4:9], _given(arguments[9]))


def _separable_backward(*arguments: Tensor | None) -> tuple[Tensor, ...]:
    from tenfold.kernels.power.power_gradient import in_pieces, separable_gradient

    return in_pieces(separable_gradient, arguments[:4], arguments[4:9], _given(arguments[9]))


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _fake_backward(*arguments: Tensor | None) -> tuple[Tensor, ...]:
    none = _given(arguments[9]).new_empty(0)
    return tuple(
        none if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in arguments[4:9]
    )


def _only_once(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("power allocation: expected to be differentiated once, got a second derivative")


def _setup_water(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, ctx.inverse = inputs
    ctx.save_for_backward(x, output[0])


def _gradient_water(ctx: Any, grad: Tensor, grad_theta: Tensor) -> tuple[Any, ...]:
    x, p = ctx.saved_tensors
    inside = p > 0
    share = 1 / inside.sum(-1).clamp_min(1).to(p.dtype)
    some = inside.any(-1)
    mean = torch.where(inside, grad, 0.0).sum(-1) * share
    lost = torch.where(some, grad_theta, 0.0) * share
    dx = torch.where(inside, grad - (mean - lost)[:, None], 0.0)
    if ctx.inverse:
        dx = torch.where(inside, dx / torch.where(inside, x, 1.0).square(), 0.0)
    return dx, torch.where(some, mean - lost, 0.0), None


def _setup_mse(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradient_mse(ctx: Any, grad: Tensor, grad_level: Tensor) -> tuple[Any, ...]:
    """p = q / c - 1/a with q = sqrt(S/a), c = sum_A q / (P + sum_A 1/a). In double precision: c^2 and
    a^2 may be below the least float32."""
    *leaves, p, level = ctx.saved_tensors
    a, s, power = (t.double() for t in leaves)
    grad, grad_level = grad.double(), grad_level.double()
    inside = (p > 0) & torch.isfinite(level)[:, None]
    a1, s1 = torch.where(inside, a, 1.0), torch.where(inside, s, 1.0)
    q = (s1 / a1).sqrt()
    below = (power + torch.where(inside, 1 / a1, 0.0).sum(-1)).clamp_min(torch.finfo(a.dtype).tiny)[:, None]
    some = inside.any(-1)
    c = torch.where(some, torch.where(inside, q, 0.0).sum(-1), below[:, 0])[:, None] / below
    v = torch.where(inside, grad, 0.0)
    dc = torch.where(some, grad_level, 0.0)[:, None] - (v * q).sum(-1, keepdim=True) / c.square()
    dq = v / c + dc / below
    d_inverse = -v - dc * c / below
    da = torch.where(inside, -0.5 * dq * q / a1 - d_inverse / a1.square(), 0.0)
    ds = torch.where(inside, 0.5 * dq * q / s1, 0.0)
    dp = torch.where(some, (-dc * c / below)[:, 0], 0.0)
    return tuple(t.to(leaf.dtype) for t, leaf in zip((da, ds, dp), leaves, strict=True))


def _setup_normalize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, power, ctx.mean = inputs
    ctx.save_for_backward(x, power)


def _gradient_normalize(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, power = ctx.saved_tensors
    length = x.abs().square().sum(-1).sqrt()
    inverse = torch.where(length > 0, 1 / torch.where(length > 0, length, 1.0), 0.0)[:, None]
    unit = x * inverse
    size = (power * x.shape[-1] if ctx.mean else power).sqrt()
    along = (unit.conj_physical() * grad).real.sum(-1) if x.is_complex() else (unit * grad).sum(-1)
    dx = size[:, None] * inverse * (grad - unit * along[:, None])
    d_power = torch.where(power > 0, 0.5 * along * size / torch.where(power > 0, power, 1.0), 0.0)
    return dx, d_power, None


_IMPLEMENTATIONS = {
    "ssdt_joint": _joint,
    "ssdt_separable": _separable,
    "water_filling": _water,
    "mse_water_filling": _mse,
    "power_normalize": _normalize,
    "ssdt_joint_backward": _joint_backward,
    "ssdt_separable_backward": _separable_backward,
}
for _name, _function in _IMPLEMENTATIONS.items():
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _function, _device)
torch.library.register_fake("tenfold::ssdt_joint", lambda gains, *_: _fake_rows(gains), lib=_LIBRARY)
torch.library.register_fake("tenfold::ssdt_separable", lambda gains, *_: _fake_rows(gains), lib=_LIBRARY)
for _name in ("ssdt_joint_backward", "ssdt_separable_backward"):
    torch.library.register_fake(f"tenfold::{_name}", _fake_backward, lib=_LIBRARY)
    torch.library.register_autograd(f"tenfold::{_name}", _only_once, lib=_LIBRARY)
for _name in ("water_filling", "mse_water_filling"):
    torch.library.register_fake(
        f"tenfold::{_name}",
        lambda x, *_: (torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[0])),
        lib=_LIBRARY,
    )
torch.library.register_fake(
    "tenfold::power_normalize",
    lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
    lib=_LIBRARY,
)
for _name, _backward, _setup in (
    ("ssdt_joint", _gradient_joint, _setup_joint),
    ("ssdt_separable", _gradient_separable, _setup_joint),
    ("water_filling", _gradient_water, _setup_water),
    ("mse_water_filling", _gradient_mse, _setup_mse),
    ("power_normalize", _gradient_normalize, _setup_normalize),
):
    torch.library.register_autograd(f"tenfold::{_name}", _backward, setup_context=_setup, lib=_LIBRARY)


class _Downlink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gains: Tensor, weights: Tensor, power: Tensor) -> Tensor:
        from tenfold.kernels.power.power_reference import downlink_water_filling

        p, _ = downlink_water_filling(gains.double(), weights.double(), power.double())
        p = p.to(gains.dtype)
        ctx.save_for_backward(gains, weights, power, p)
        return p

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        from tenfold.kernels.power.power_gradient import downlink_gradient, in_pieces

        gains, weights, power, p = ctx.saved_tensors
        return in_pieces(downlink_gradient, (grad,), (gains, weights, power), p)


def downlink(gains: Tensor, weights: Tensor, power: Tensor) -> Tensor:
    found: Tensor = _Downlink.apply(gains, weights, power)
    return found

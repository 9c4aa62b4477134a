"""What erasers, samplers and attacks compute around a call of the UNet: losses, noise, guidance, splicing.

Each is one pass over its tensors. Tensors are [B, ...] of one shape and floating dtype; arithmetic is float32
(float64 for float64), losses are summed in float64.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

_BACKENDS = ("cpu", "cuda", "triton", "reference")
_OPS = ("esd_mse", "eps_mse_rows", "add_noise_rows", "cfg_ddim_step", "sld_guidance", "splice_embed")
OPS |= dict.fromkeys(_OPS, _BACKENDS)

CRITERIA = ("l1", "l2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_MSE = "Tensor pred, Tensor target, Tensor? other, float eta, str criterion"
_LIBRARY.define(f"guided_mse_rows({_MSE}) -> Tensor")
_LIBRARY.define(f"guided_mse_rows_backward(Tensor grad, {_MSE}) -> Tensor")
_LIBRARY.define("add_noise_rows(Tensor x0, Tensor eps, Tensor t, Tensor abar) -> Tensor")
_LIBRARY.define(
    "cfg_ddim_step(Tensor x, Tensor? eu, Tensor ec, Tensor guidance, Tensor a, Tensor b, str prediction, "
    "bool doubled) -> Tensor"
)
_LIBRARY.define(
    "sld_guidance(Tensor eu, Tensor ec, Tensor es, Tensor momentum, Tensor guidance, float scale, "
    "float threshold, float momentum_scale, float momentum_beta, bool warm) -> (Tensor, Tensor)"
)
_LIBRARY.define("splice_embed(Tensor embeds, Tensor adv, Tensor index) -> Tensor")
_LIBRARY.define("splice_embed_backward(Tensor grad, Tensor index, int k) -> (Tensor, Tensor)")


def esd_mse(prediction: Any, e0: Any, ep: Any, eta: float = 1.0) -> Any:
    """mean((prediction - (e0 - eta (ep - e0)))^2) over all elements, the loss of ESD (arXiv 2303.07345).

    The target is not made. Float32 (float64 for float64), summed in float64; differentiable once, in all
    three.

    Args:
        prediction, e0, ep: one shape, with elements. eta: the strength, any finite number.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shapes that differ, or nothing to average.
    """
    kind = _arrays.kind_of(prediction)
    x, e0, ep = _same(prediction=prediction, e0=e0, ep=ep)
    if not x.numel():
        _checks.fail(ValueError, "prediction", "a tensor with elements", list(x.shape))
    eta = _checks.real("eta", eta)
    rows = [v.reshape(1, -1) for v in (x, e0, ep)]
    return kind(torch.ops.tenfold.guided_mse_rows(*rows, eta, "l2")[0].to(_wide(x)))


def eps_mse_rows(pred: Any, target: Any, criterion: str = "l2") -> Any:
    """[B]: each picture's mean squared ("l2") or absolute ("l1") error, float32 (float64 for float64).

    Differentiable once in both.

    Args:
        pred, target: [B, ...] of one shape, pictures with elements.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, or shapes that differ.
    """
    kind = _arrays.kind_of(pred)
    x, y = _same(pred=pred, target=target)
    _checks.choice("criterion", criterion, CRITERIA)
    if x.ndim < 1 or 0 in x.shape[1:]:
        _checks.fail(ValueError, "pred", "[B, ...] with elements", list(x.shape))
    rows = (v.reshape(x.shape[0], x[0].numel() if x.shape[0] else 1) for v in (x, y))
    a, b = rows
    return kind(torch.ops.tenfold.guided_mse_rows(a, b, None, 0.0, criterion).to(_wide(x)))


def add_noise_rows(x0: Any, eps: Any, t: Any, abar: Any) -> Any:
    """sqrt(abar_t) x0 + sqrt(1 - abar_t) eps with a timestep for each picture (DDPM, arXiv 2006.11239).

    Differentiable in x0 and eps.

    Args:
        x0, eps: [B, ...] of one shape and dtype. t: int64 [B] or [1]. abar: float32 or float64 [T].

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape; on the CPU, a t outside [0, T). On a GPU
            such a picture becomes NaN.
    """
    kind = _arrays.kind_of(x0)
    x, e = _same(x0=x0, eps=eps)
    times = _checks.tensor("t", _arrays.as_tensor("t", t, write=False), (torch.int64,))
    levels = _checks.tensor(
        "abar", _arrays.as_tensor("abar", abar, write=False), (torch.float32, torch.float64)
    )
    if x.ndim < 1 or times.shape not in ((1,), x.shape[:1]):
        _checks.fail(ValueError, "t", f"[{x.shape[0] if x.ndim else 'B'}] or [1]", list(times.shape))
    if levels.ndim != 1 or not levels.numel():
        _checks.fail(ValueError, "abar", "[T] with levels", list(levels.shape))
    for name, value in (("t", times), ("abar", levels)):
        if value.device != x.device:
            _checks.fail(ValueError, name, f"a tensor on {x.device}", value.device)
    looks = x.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and not bool(((times >= 0) & (times < levels.numel())).all()):
        _checks.fail(ValueError, "t", f"timesteps in [0, {levels.numel()})", times.tolist())
    return kind(torch.ops.tenfold.add_noise_rows(x, e, times, levels.double()))


@torch.no_grad()
def cfg_ddim_step(
    x: Any,
    eu: Any,
    ec: Any,
    guidance: Any,
    a_t: Any,
    a_prev: Any,
    *,
    prediction_type: str = "epsilon",
    doubled: bool = False,
) -> Any:
    """Classifier-free guidance and a DDIM step without noise in one pass (arXiv 2207.12598, 2010.02502).

    out = eu + guidance (ec - eu); the clean sample x0 and the noise e that `out` stands for at level a_t; the
    result is sqrt(a_prev) x0 + sqrt(1 - a_prev) e. As weights of x and out, computed in float64.

    Args:
        x: latents [B, ...] at level a_t. ec: the model's output with the prompt. eu: without, or None for no
            guidance.
        guidance: a number, or [B]. a_t, a_prev: abar of the two levels in [0, 1], numbers or [B].
        prediction_type: what the output is: "epsilon", "v_prediction" or "sample". Only the latter two can
            step from a_t = 0.
        doubled: return [x; x], the input of the next guided call.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range (of tensors on a GPU, shape only).
    """
    kind = _arrays.kind_of(x)
    if eu is None:
        z, out = _same(x=x, ec=ec)
        base = None
    else:
        z, base, out = _same(x=x, eu=eu, ec=ec)
    _with_rows("x", z)
    _checks.choice("prediction_type", prediction_type, PREDICTIONS)
    scale = _per_row("guidance", guidance, z)
    a, b = _per_row("a_t", a_t, z), _per_row("a_prev", a_prev, z)
    if z.device.type == "cpu" and not torch.compiler.is_compiling():
        for name, value in (("a_t", a), ("a_prev", b)):
            low = value > 0 if name == "a_t" and prediction_type == "epsilon" else value >= 0
            if not bool((low & (value <= 1)).all()):
                expected = "levels in (0, 1]" if prediction_type == "epsilon" else "levels in [0, 1]"
                _checks.fail(ValueError, name, expected, value.tolist())
    return kind(torch.ops.tenfold.cfg_ddim_step(z, base, out, scale, a, b, prediction_type, bool(doubled)))


@torch.no_grad()
def sld_guidance(
    eu: Any,
    ec: Any,
    es: Any,
    momentum: Any,
    guidance: Any,
    *,
    scale: float,
    threshold: float,
    momentum_scale: float,
    momentum_beta: float,
    warm: bool = True,
) -> tuple[Any, Any]:
    """One step of Safe Latent Diffusion (arXiv 2211.05105): (noise prediction, next momentum).

    mu = 0 where ec - es >= threshold, else min(1, abs(ec - es) scale);
    g = mu (es - eu) + momentum_scale v;  v' = momentum_beta v + (1 - momentum_beta) g;
    e = eu + guidance ((ec - eu) - [warm] g)

    Args:
        eu, ec, es: predictions without text, with the prompt, with the safety concept. momentum: v.
        guidance: a number, or [B]. warm: whether the warm-up is over.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range.
    """
    kind = _arrays.kind_of(eu)
    tensors = _same(eu=eu, ec=ec, es=es, momentum=momentum)
    _with_rows("eu", tensors[0])
    numbers = [
        _checks.real("scale", scale, at_least=0.0), _checks.real("threshold", threshold),
        _checks.real("momentum_scale", momentum_scale), _checks.real("momentum_beta", momentum_beta),
    ]  # fmt: skip
    weights = _per_row("guidance", guidance, tensors[0])
    out, after = torch.ops.tenfold.sld_guidance(*tensors, weights, *numbers, bool(warm))
    return kind(out), kind(after)


def splice_embed(embeds: Any, adv: Any, index: Any) -> Any:
    """Word embeddings with extra ones put in: rows [B, L, D] of [embeds; adv], by number.

    `tenfold.diffusion.splice.splice_plan` makes the numbers of the published places (prefix, suffix, ...).
    Differentiable once in both.

    Args:
        embeds: [B, L, D]. adv: [B, k, D], the same dtype. index: int64 [B, L] in [0, L + k): a row of
            embeds, or L + j for row j of adv.

    Raises:
        TypeError, ValueError: arguments of the wrong kind or shape; on the CPU, an index out of range.
    """
    kind = _arrays.kind_of(embeds)
    e = _checks.tensor("embeds", _arrays.as_tensor("embeds", embeds, write=False))
    a = _checks.tensor("adv", _arrays.as_tensor("adv", adv, write=False), (e.dtype,))
    i = _checks.tensor("index", _arrays.as_tensor("index", index, write=False), (torch.int64,))
    if e.ndim != 3:
        _checks.fail(ValueError, "embeds", "[B, L, D]", list(e.shape))
    if a.ndim != 3 or a.shape[0] != e.shape[0] or a.shape[2] != e.shape[2]:
        _checks.fail(ValueError, "adv", f"[{e.shape[0]}, k, {e.shape[2]}]", list(a.shape))
    if i.shape != e.shape[:2]:
        _checks.fail(ValueError, "index", f"shape {list(e.shape[:2])}", list(i.shape))
    for name, value in (("adv", a), ("index", i)):
        if value.device != e.device:
            _checks.fail(ValueError, name, f"a tensor on {e.device}", value.device)
    looks = e.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and not bool(((i >= 0) & (i < e.shape[1] + a.shape[1])).all()):
        _checks.fail(
            ValueError, "index", f"numbers in [0, {e.shape[1] + a.shape[1]})", [int(i.min()), int(i.max())]
        )
    return kind(torch.ops.tenfold.splice_embed(e, a, i))


# ---- checks ----------------------------------------------------------------------------------------------


def _same(**values: Any) -> list[Tensor]:
    """Tensors of one shape, dtype and device."""
    found: list[Tensor] = []
    for name, value in values.items():
        x = _checks.tensor(name, _arrays.as_tensor(name, value, write=False))
        of = found[0] if found else x
        if x.dtype != of.dtype:
            _checks.fail(TypeError, name, f"dtype {of.dtype}", x.dtype)
        if x.shape != of.shape or x.device != of.device:
            expected = f"shape {list(of.shape)} on {of.device}"
            _checks.fail(ValueError, name, expected, f"{list(x.shape)} on {x.device}")
        found.append(x)
    return found


def _with_rows(name: str, x: Tensor) -> None:
    if x.ndim < 1:
        _checks.fail(ValueError, name, "[B, ...]", "a tensor without axes")


def _per_row(name: str, value: Any, like: Tensor) -> Tensor:
    """float64 [B] or [1]."""
    if isinstance(value, Tensor) and value.ndim:
        flat = value.detach().reshape(-1) if value.numel() == value.shape[0] else value
        if flat.ndim != 1 or flat.shape[0] not in (1, like.shape[0]) or flat.device != like.device:
            expected = f"a number or [{like.shape[0]}] on {like.device}"
            _checks.fail(ValueError, name, expected, f"{list(value.shape)} on {value.device}")
        return flat.double()
    if isinstance(value, Tensor) and value.device == like.device:
        return value.detach().double().reshape(1)
    if isinstance(value, Tensor) and value.device.type == "cpu" and not torch.compiler.is_compiling():
        value = value.item()  # filled in on the device: nothing waits, and a CUDA graph can hold it
    if isinstance(value, Tensor):
        return value.detach().double().reshape(1).to(like.device)
    return torch.full((1,), _checks.real(name, value), dtype=torch.float64, device=like.device)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- kernels ---------------------------------------------------------------------------------------------


def _kernels(op: str, device: torch.device) -> ModuleType:
    backend = chosen_backend(op, device.type)
    if backend == "reference":
        from tenfold.kernels.attack import guidance_reference as module
    elif backend == "triton":
        from tenfold.kernels.attack import guidance_triton as module
    else:
        from tenfold.kernels.attack import guidance_native as module
    return module


def _calls(op: str, name: str) -> Any:
    """The kernel `name` of the backend that `op` takes, on contiguous tensors."""

    def call(*args: Any) -> Any:
        plain = [x.contiguous() if isinstance(x, Tensor) else x for x in args]
        device = next(x.device for x in plain if isinstance(x, Tensor))
        return getattr(_kernels(op, device), name)(*plain)

    return call


def _mse_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pred, target, other, ctx.eta, ctx.criterion = inputs
    ctx.with_other = other is not None
    ctx.save_for_backward(pred, target, *([other] if ctx.with_other else []))


def _mse_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    pred, target, *more = ctx.saved_tensors
    other = more[0] if more else None
    found = torch.ops.tenfold.guided_mse_rows_backward(grad, pred, target, other, ctx.eta, ctx.criterion)
    needs = ctx.needs_input_grad
    eta = ctx.eta if ctx.with_other else 0.0
    of_target = found * -(1 + eta) if needs[1] else None
    of_other = found * eta if ctx.with_other and needs[2] else None
    return found if needs[0] else None, of_target, of_other, None, None


def _noise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, t, abar = inputs
    ctx.save_for_backward(t, abar)


def _noise_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    t, abar = ctx.saved_tensors
    zero = torch.zeros_like(grad)
    of_x0 = torch.ops.tenfold.add_noise_rows(grad, zero, t, abar) if ctx.needs_input_grad[0] else None
    of_eps = torch.ops.tenfold.add_noise_rows(zero, grad, t, abar) if ctx.needs_input_grad[1] else None
    return of_x0, of_eps, None, None


def _splice_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, adv, index = inputs
    ctx.k = adv.shape[1]
    ctx.save_for_backward(index)


def _splice_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    of_embeds, of_adv = torch.ops.tenfold.splice_embed_backward(grad, ctx.saved_tensors[0], ctx.k)
    needs = ctx.needs_input_grad
    return of_embeds if needs[0] else None, of_adv if needs[1] else None, None


def _only_once(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("guidance: expected to be differentiated once, got a second derivative")


def _plain(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


for _name, _op, _fake in (
    ("guided_mse_rows", "eps_mse_rows", lambda p, *r: p.new_empty(p.shape[:1], dtype=torch.float64)),
    ("guided_mse_rows_backward", "eps_mse_rows", lambda grad, p, *r: _plain(p)),
    ("add_noise_rows", "add_noise_rows", lambda x, *r: _plain(x)),
    (
        "cfg_ddim_step",
        "cfg_ddim_step",
        lambda x, *r: x.new_empty((2 * x.shape[0] if r[-1] else x.shape[0], *x.shape[1:])),
    ),
    ("sld_guidance", "sld_guidance", lambda x, *r: (_plain(x), _plain(x))),
    ("splice_embed", "splice_embed", lambda e, *r: _plain(e)),
    (
        "splice_embed_backward",
        "splice_embed",
        lambda g, i, k: (_plain(g), g.new_empty(g.shape[0], k, g.shape[2])),
    ),
):
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _calls(_op, _name.removeprefix("guided_")), _device)
    torch.library.register_fake(f"tenfold::{_name}", _fake, lib=_LIBRARY)
for _name, _gradient, _setup in (
    ("guided_mse_rows", _mse_gradient, _mse_setup),
    ("add_noise_rows", _noise_gradient, _noise_setup),
    ("splice_embed", _splice_gradient, _splice_setup),
):
    torch.library.register_autograd(f"tenfold::{_name}", _gradient, setup_context=_setup, lib=_LIBRARY)
for _name in ("guided_mse_rows_backward", "splice_embed_backward"):
    torch.library.register_autograd(f"tenfold::{_name}", _only_once, lib=_LIBRARY)

"""The fused superposition channel: fading, allocation, sum over users, noise, receive scale."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend

from .power import _complex, _expanded, _refuse, _spread
from .zo import _signed

OPS |= {"noma_channel": ("cpu", "cuda", "triton", "reference")}

_ALLOCATE = {None: 0, "joint": 1, "separable": 2}
_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_GIVEN = (
    "Tensor transmit, Tensor? gains, Tensor mean, Tensor scale, Tensor noise, Tensor? alpha, "
    "Tensor? power, Tensor? rho, int seed, int offset, int first, int block, int allocate, bool detach"
)
_LIBRARY.define(f"noma_channel({_GIVEN}) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(f"noma_channel_backward(Tensor grad, {_GIVEN}) -> (Tensor, Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "noma_gains(Tensor like, Tensor mean, Tensor scale, int seed, int offset, int first, int block) -> Tensor"
)


def noma_channel(
    transmit: Any,
    variance: Any,
    noise_power: Any,
    seed: int,
    offset: int = 0,
    *,
    gains: Any = None,
    fading: str = "rayleigh",
    k_factor_db: float | None = None,
    block: bool = False,
    alpha: Any = None,
    allocate: str | None = None,
    power: Any = None,
    rho: Any = None,
    detach_allocation: bool = False,
    first: int = 0,
    return_gains: bool = False,
) -> Any:
    """Users superposed on each subcarrier over fading channels: ``alpha (sum_n g_n u_n + w)``.

    Gains and noise are functions of (seed, offset, number of the row), not of batch, shard or device; without
    `return_gains` they are made in the pass that uses them, in the backward pass again, never kept. The noise
    power is fixed: it does not follow the received power. With `allocate`, what is sent and alpha are first
    found from the gains, as by `ssdt_joint` or `ssdt_separable`, within the same pass. Differentiable once in
    transmit, gains, alpha and power.

    Args:
        transmit: complex [..., N, K], or real [..., N, K, 2]: what user n sends on subcarrier k, in square
            roots of W; with `allocate`, the symbols t to be sent.
        variance: E|g|^2 > 0, a number or [..., N]; not used for "awgn" and given gains.
        noise_power: sigma2 >= 0 in W per complex sample, half of it in each part; a number or [...].
        seed, offset: integers in [0, 2^64), [0, 2^24).
        gains: [..., N, K], the channel where it is known.
        fading: "rayleigh", CN(0, variance); "rician", a constant and a Rayleigh part of together `variance`;
            "awgn", gain 1.
        k_factor_db: constant over Rayleigh power in dB, in [-300, 300), for "rician" and only there.
        block: all rows of the axis before N ([..., L, N, K]) fade alike.
        alpha: real [...], what the receiver multiplies by; not with `allocate`.
        allocate: "joint", "separable" (users held to their budgets), or None.
        power, rho: with `allocate`: budgets P_n > 0 in W and training gains, [N] or [..., N]; default rho 1.
        detach_allocation: gradients take mu (or the precoder) and alpha as constants.
        first: number of the first row, for shards of a batch; with `block` a multiple of L.

    Returns:
        [..., K] complex; with `return_gains`, also the gains [..., N, K].

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range.
    """
    kind = _arrays.kind_of(transmit)
    u = _complex("transmit", transmit)
    if u.ndim < 2 or u.shape[-2] < 1:
        _checks.fail(ValueError, "transmit", "shape [..., N, K] with N >= 1", tuple(u.shape))
    lead, users, carriers = u.shape[:-2], u.shape[-2], u.shape[-1]
    real = torch.float32 if u.dtype == torch.complex64 else torch.float64
    if block and not lead:
        _checks.fail(ValueError, "transmit", "shape [..., L, N, K] for block fading", tuple(u.shape))
    rows = math.prod(lead)
    length = max(1, int(lead[-1])) if block else 1
    draw = (
        _signed(_checks.seed("seed", seed)),
        _checks.query("offset", offset),
        _checks.integer("first", first, 0, 2**40),
        length,
    )
    if first % length:
        _checks.fail(ValueError, "first", f"a multiple of {length} for block fading", first)
    if allocate is not None:
        _checks.choice("allocate", allocate, ("joint", "separable"))
    _constant("variance", variance)
    _constant("noise_power", noise_power)
    mean, scale = _fading(fading, variance, k_factor_db, (*lead, users), u.device, real)
    noise = _spread("noise_power", noise_power, lead, u.device, real)
    _refuse(None, noise_power=(noise, False))
    g = None if gains is None else _same("gains", _complex("gains", gains), u)
    received, budget, training = None, None, None
    if allocate is None:
        for name, value in (("power", power), ("rho", rho)):
            if value is not None:
                _checks.fail(ValueError, name, "None without allocate", _checks.describe(value))
        if alpha is not None:
            received = _spread("alpha", alpha, lead, u.device, real).reshape(-1)
    else:
        if alpha is not None:
            _checks.fail(ValueError, "alpha", "None with allocate, which finds it", _checks.describe(alpha))
        if power is None:
            _checks.fail(ValueError, "power", "the users' budgets with allocate", None)
        _constant("rho", rho)
        budget = _spread("power", power, (*lead, users), u.device, real)
        training = _spread("rho", 1.0 if rho is None else rho, (*lead, users), u.device, real)
        _refuse(None, power=(budget, True), rho=(training, False))
        budget, training = budget.reshape(rows, users), training.reshape(rows, users)
    flat, mean, scale = (
        u.reshape(rows, users, carriers),
        mean.reshape(rows, users),
        scale.reshape(rows, users),
    )
    if g is not None:
        g = g.reshape(rows, users, carriers)
    elif return_gains:
        g = torch.ops.tenfold.noma_gains(flat.detach(), mean, scale, *draw)
    y = torch.ops.tenfold.noma_channel(
        flat, g, mean, scale, noise.reshape(-1), received, budget, training, *draw, _ALLOCATE[allocate],
        bool(detach_allocation),
    )[0].view(*lead, carriers)  # fmt: skip
    return (kind(y), kind(g.view(u.shape))) if return_gains and g is not None else kind(y)


def _constant(name: str, value: Any) -> None:
    if isinstance(value, Tensor) and value.requires_grad:
        _checks.fail(TypeError, name, "a value without gradient", "one that requires it")


def _same(name: str, value: Tensor, like: Tensor) -> Tensor:
    if value.device != like.device:
        _checks.fail(ValueError, name, f"a tensor on {like.device}", value.device)
    return _expanded(name, value.to(like.dtype), tuple(like.shape))


def _fading(
    fading: str,
    variance: Any,
    k_factor_db: float | None,
    shape: tuple[int, ...],
    device: torch.device,
    real: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(mean, scale) [..., N]: a gain is mean + scale (z + i z')."""
    _checks.choice("fading", fading, ("awgn", "rayleigh", "rician"))
    if (k_factor_db is not None) != (fading == "rician"):
        _checks.fail(ValueError, "k_factor_db", "a number for 'rician' and None otherwise", k_factor_db)
    if fading == "awgn":
        return _spread("mean", 1.0, shape, device, real), _spread("scale", 0.0, shape, device, real)
    ratio = 0.0
    if fading == "rician":
        ratio = 10 ** (_checks.real("k_factor_db", k_factor_db, at_least=-300.0, below=300.0) / 10)
    parts = ratio / (1 + ratio), 0.5 / (1 + ratio)
    if isinstance(variance, (int, float)) and not isinstance(variance, bool):
        size = _checks.real("variance", variance, positive=True)
        mean, scale = (_spread("variance", math.sqrt(size * p), shape, device, real) for p in parts)
        return mean, scale
    found = _spread("variance", variance, shape, device, real)
    _refuse(None, variance=(found, True))
    return (found * parts[0]).sqrt(), (found * parts[1]).sqrt()


# ---- registration ----------------------------------------------------------------------------------------


def _kernels(device: torch.device) -> ModuleType:
    backend = chosen_backend("noma_channel", device.type)
    if backend == "reference":
        from tenfold.kernels.channel import channel_reference as module
    elif backend == "triton":
        from tenfold.kernels.channel import channel_triton as module
    elif backend == "cuda":
        from tenfold.kernels.channel import channel_cuda as module
    else:
        from tenfold.kernels.channel import channel_native as module
    return module


def _channel(*a: Any) -> Any:
    from tenfold.kernels.channel.channel_reference import Draw, Given

    return _kernels(a[0].device).channel(Given(*a[:8]), Draw(*a[8:12]), a[12])


def _gains(like: Tensor, mean: Tensor, scale: Tensor, *draw: int) -> Tensor:
    from tenfold.kernels.channel.channel_reference import Draw, Given

    noise = mean.new_zeros(len(mean))
    given = Given(like, None, mean, scale, noise, None, None, None)
    found: Tensor = _kernels(like.device).gains(given, Draw(*draw))
    return found


def _backward(grad: Tensor, *a: Any) -> Any:
    from tenfold.kernels.channel.channel_gradient import channel_gradient
    from tenfold.kernels.channel.channel_reference import Draw, Given

    return channel_gradient(grad, Given(*a[:8]), Draw(*a[8:12]), a[12], a[13])


def _fake(transmit: Tensor, *a: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, users, carriers = transmit.shape
    dual = (rows, users) if a[11] else (0, 0)
    noise = a[3]
    return transmit.new_empty((rows, carriers)), noise.new_empty(dual[0]), noise.new_empty(dual)


def _fake_backward(grad: Tensor, *a: Any) -> tuple[Tensor, ...]:
    return tuple(
        a[0].new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (a[0], a[1], a[5], a[6])
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:8])
    ctx.rest = inputs[8:]


def _gradient(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 14
    saved = ctx.saved_tensors
    d_t, d_g, d_alpha, d_power = torch.ops.tenfold.noma_channel_backward(grad, *saved, *ctx.rest)
    some = [
        None if given is None else found
        for given, found in ((saved[1], d_g), (saved[5], d_alpha), (saved[6], d_power))
    ]
    return (d_t, some[0], None, None, None, some[1], some[2], None, *(None,) * 6)


def _only_once(ctx: Any, *_: Any) -> Any:
    raise RuntimeError("noma_channel: expected to be differentiated once, got a second derivative")


for _name, _function in (
    ("noma_channel", _channel),
    ("noma_gains", _gains),
    ("noma_channel_backward", _backward),
):
    for _device in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _function, _device)
torch.library.register_fake("tenfold::noma_channel", _fake, lib=_LIBRARY)
torch.library.register_fake("tenfold::noma_channel_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_fake("tenfold::noma_gains", lambda like, *_: like.new_empty(like.shape), lib=_LIBRARY)
torch.library.register_autograd("tenfold::noma_channel", _gradient, setup_context=_setup, lib=_LIBRARY)
torch.library.register_autograd("tenfold::noma_channel_backward", _only_once, lib=_LIBRARY)

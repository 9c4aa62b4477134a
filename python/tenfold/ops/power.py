"""Transmit power allocation: semantics-similar dual transformation (SSDT), water-filling.

Several users send on the same subcarriers and one decoder reads their sum (uplink NOMA without successive
cancellation). A codec trained over a channel without fading then wants the received sum to look as it did in
training. `ssdt_joint` finds the transmit signals that bring it closest under each user's power budget,
knowing all symbols and gains; `ssdt_separable` the precoders of users that know their own only.

The problem is that of channel-transferable semantic communication (arXiv 2312.03299); the closed-form duals,
their solvers and gradients are this library's derivation (docs/systems/ctsemcom.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks

from .power_ops import downlink

_REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_COMPLEX = (torch.complex64, torch.complex128)


class Joint(NamedTuple):
    """What `ssdt_joint` found."""

    transmit: Any
    """complex [..., N, K]: the transmitted signals u"""
    alpha: Any
    """[...]: the receiver multiplies by this before decoding"""
    mu: Any
    """[..., N]: dual variables, sum 1; zero for a user whose budget does not bind"""
    objective: Any
    """[...]: ``sum_k |alpha sum_n g u - s|^2 + K sigma2 alpha^2``"""
    iterations: Any
    """int32 [...]: steps of the solver"""


class Separable(NamedTuple):
    """What `ssdt_separable` found."""

    precoder: Any
    """complex [..., N, K]: v; user n transmits v t"""
    alpha: Any
    """[...]: the receiver multiplies by this before decoding"""
    tau: Any
    """[..., N]: regularisation of each user's inversion; zero where its budget does not bind"""
    objective: Any
    """[...]: ``sum_n E|t_n|^2 sum_k |g alpha v - c|^2 + K sigma2 alpha^2``"""
    iterations: Any
    """int32 [...]"""


@dataclass(frozen=True)
class WaterFilling:
    """What `water_filling` found."""

    power: Any
    """[..., K]"""
    level: Any
    """[...]: power is (level - 1/gain)_+; inf where no subcarrier takes part"""
    _gains: Any

    @property
    def rate(self) -> Any:
        """[...]: sum_k log(1 + gain power), in nats."""
        kind = _arrays.kind_of(self.power)
        gains, power = (_arrays.as_tensor("gains", v, write=False) for v in (self._gains, self.power))
        return kind(torch.log1p(gains.clamp_min(0.0) * power).sum(-1))


def ssdt_joint(
    gains: Any,
    symbols: Any,
    power: Any,
    noise_power: Any,
    *,
    transmitted: Any = None,
    rho: Any = None,
    alpha_scope: str = "symbol",
    statistics: str = "exact",
    max_iterations: int = 128,
    tolerance: float | None = None,
    check: bool | None = None,
) -> Joint:
    """Transmit signals of superposed users whose received sum is closest to a wanted one: global optimum.

    Minimises ``sum_k |alpha sum_n g_nk u_nk - s_k|^2 + K sigma2 alpha^2`` over u and alpha >= 0 under
    ``mean_k |u_nk|^2 <= P_n`` for each user. The dual of the equivalent convex problem has one variable per
    user; Newton's method in its logarithm finds it in 2 to 7 steps, an interior-point method where the
    optimum lies on the boundary (gains of zero). Differentiable once, by implicit differentiation.

    This mode needs every user's symbols at every user and alpha, which depends on them, at the receiver: it
    is the bound that a deployable scheme is measured against.

    Args:
        gains: complex [..., N, K], or real [..., N, K, 2]: channel of user n on subcarrier k.
        symbols: complex [..., K] (or real [..., K, 2]): the wanted signal s. None with `transmitted`.
        power: P_n > 0 in W, [N] or [..., N].
        noise_power: sigma2 >= 0 in W per complex sample, a number or [...].
        transmitted: complex [..., N, K] instead of `symbols`: s = sum_n sqrt(rho_n) t_n.
        rho: [N] or [..., N], gains of the channel of training; default 1.
        alpha_scope: "symbol", one alpha per row; "codeword", one for all L rows of [..., L, N, K] (the noise
            power is then that of the codeword, [...]).
        statistics: "exact" searches with the symbols; "csi" with their expected power sum_n rho_n P_n, so
            that alpha depends on gains only; each user is then held to its budget.
        max_iterations: most steps of the solver in all.
        tolerance: relative duality gap at which it stops; default 1e-10, for complex64 2e-6.
        check: refuse NaN, infinities and negative noise by name (reads the inputs once more; on a GPU it
            waits for the device). Default: on the CPU only; unchecked, such a row gives NaN and no other.

    Returns:
        `Joint`; for alpha_scope "codeword" alpha, objective and iterations are [...], mu is [..., L, N].

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range.
    """
    kind = _arrays.kind_of(gains)
    g = _complex("gains", gains)
    if g.ndim < 2 or g.shape[-2] < 1:
        _checks.fail(ValueError, "gains", "shape [..., N, K] with N >= 1", tuple(g.shape))
    _checks.choice("alpha_scope", alpha_scope, ("symbol", "codeword"))
    _checks.choice("statistics", statistics, ("exact", "csi"))
    most = _checks.integer("max_iterations", max_iterations, 1, 10_000)
    lead, users = g.shape[:-2], g.shape[-2]
    real = g.real.dtype
    budget = _spread("power", power, (*lead, users), g.device, real)
    reference = _ones(budget) if rho is None else _spread("rho", rho, (*lead, users), g.device, real)
    s = _wanted(symbols, transmitted, reference, g)
    whole = lead[:-1] if alpha_scope == "codeword" else lead
    if alpha_scope == "codeword" and not lead:
        _checks.fail(ValueError, "gains", "shape [..., L, N, K] for alpha_scope 'codeword'", tuple(g.shape))
    noise = _spread("noise_power", noise_power, whole, g.device, real)
    _refuse(check, power=(budget, True), noise_power=(noise, False), rho=(reference, False))
    expected = None
    if statistics == "csi":
        expected = (budget * reference).sum(-1)[..., None].expand(*lead, g.shape[-1])
    limit = _tolerance(tolerance, real)
    if alpha_scope == "codeword":
        found = _codeword(g, s, budget, noise, expected, limit, most)
    else:
        flat = (_flat(g, 2), _flat(s, 1), _flat(budget, 1))
        extra = None if expected is None else _flat(expected, 1)
        u, alpha, mu, objective, steps = torch.ops.tenfold.ssdt_joint(
            *flat, noise.reshape(-1), extra, limit, most
        )
        u, alpha = u.view(g.shape), alpha.view(lead)
        objective = objective.view(lead)
        if expected is not None:
            u = _within(u, budget)
            objective = _received_error(g, s, u, alpha, noise)
        found = Joint(u, alpha, mu.view(budget.shape), objective, steps.view(lead))
    _refuse_after(found.objective, check, gains=g, symbols=s)
    return Joint(*(kind(value) for value in found))


def ssdt_separable(
    gains: Any,
    power: Any,
    noise_power: Any,
    *,
    c: Any = None,
    weights: Any = None,
    max_iterations: int = 128,
    tolerance: float | None = None,
    check: bool | None = None,
) -> Separable:
    """Precoders of superposed users that each know their own channel and symbol: regularised inversion.

    Minimises ``sum_n T_n sum_k |g_nk w_nk - c_n|^2 + K sigma2 alpha^2`` with w = alpha v, where each user
    keeps ``mean_k T_n |v_nk|^2 <= P_n``. The optimum ``w = c conj(g) / (|g|^2 + tau_n)`` with
    sum_n P_n tau_n = sigma2 is known from over-the-air computation (Cao, Zhu, Xu and Huang 2020, IEEE TWC,
    doi 10.1109/TWC.2020.3012287). alpha depends on the channels alone, so a base station can compute it.
    Differentiable once, by implicit differentiation.

    Args:
        gains, power, noise_power, max_iterations, check: as for `ssdt_joint`.
        c: wanted gain of each user, [N] or [..., N]; default 1 (the training channel's sqrt(rho_n)).
        weights: ``|t|^2``, real [..., N, K]: each user's budget then holds for these very symbols. Default:
            for symbols of expected power P_n; a row that exceeds its budget is for the caller to scale down.
        tolerance: relative error of alpha; default 1e-12, for complex64 1e-6.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range.
    """
    kind = _arrays.kind_of(gains)
    g = _complex("gains", gains)
    if g.ndim < 2 or g.shape[-2] < 1:
        _checks.fail(ValueError, "gains", "shape [..., N, K] with N >= 1", tuple(g.shape))
    most = _checks.integer("max_iterations", max_iterations, 1, 10_000)
    lead, users = g.shape[:-2], g.shape[-2]
    real = g.real.dtype
    budget = _spread("power", power, (*lead, users), g.device, real)
    noise = _spread("noise_power", noise_power, lead, g.device, real)
    wanted = _ones(budget) if c is None else _spread("c", c, (*lead, users), g.device, real)
    load = None if weights is None else _spread("weights", weights, g.shape, g.device, real)
    _refuse(
        check,
        power=(budget, True),
        noise_power=(noise, False),
        c=(wanted, False),
        weights=(load, False),
    )
    limit = _tolerance(tolerance, real, 1e-12, 1e-6)
    v, alpha, tau, objective, steps = torch.ops.tenfold.ssdt_separable(
        _flat(g, 2),
        _flat(budget, 1),
        noise.reshape(-1),
        _flat(wanted, 1),
        None if load is None else _flat(load, 2),
        limit,
        most,
    )
    _refuse_after(objective, check, gains=g)
    found = (
        v.view(g.shape),
        alpha.view(lead),
        tau.view(budget.shape),
        objective.view(lead),
        steps.view(lead),
    )
    return Separable(*(kind(value) for value in found))


def water_filling(gains: Any, power: Any, *, mask: Any = None) -> WaterFilling:
    """Power on parallel subcarriers that maximises sum_k log(1 + g_k p_k) with sum_k p_k = P.

    p_k = (level - 1/g_k)_+, exact and without sorting: carriers below the level of the rest leave until none
    does (at most K rounds, about 8 at K = 64). Differentiable once.

    Args:
        gains: power gains over noise g, real [..., K]; g <= 0 gets no power.
        power: P >= 0, a number or [...].
        mask: bool [..., K], False for a subcarrier that takes no part.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range.
    """
    kind = _arrays.kind_of(gains)
    g = _real("gains", gains)
    if mask is not None:
        allowed = _checks.tensor("mask", _arrays.as_tensor("mask", mask, write=False), (torch.bool,))
        g = torch.where(_expanded("mask", allowed, g.shape), g, 0.0)
    mass = _spread("power", power, g.shape[:-1], g.device, g.dtype)
    _refuse(None, power=(mass, False))
    p, theta = torch.ops.tenfold.water_filling(_flat(g, 1), mass.reshape(-1), True)
    return WaterFilling(kind(p.view(g.shape)), kind(-theta.view(g.shape[:-1])), kind(g))


def project_simplex(x: Any, mass: Any = 1.0) -> Any:
    """Euclidean projection on the simplex {p >= 0, sum p = mass} along the last axis; sparsemax for mass 1.

    Exact, by Michelot's active set (1986). x = -inf takes no part. Differentiable once.

    Args:
        x: real [..., K].
        mass: >= 0, a number or [...].

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range.
    """
    kind = _arrays.kind_of(x)
    values = _real("x", x)
    total = _spread("mass", mass, values.shape[:-1], values.device, values.dtype)
    _refuse(None, mass=(total, False))
    p, _ = torch.ops.tenfold.water_filling(_flat(values, 1), total.reshape(-1), False)
    return kind(p.view(values.shape))


def mse_water_filling(gains: Any, weights: Any, power: Any) -> Any:
    """Power on parallel subcarriers that minimises sum_k S_k / (1 + a_k p_k) with sum_k p_k = P.

    With several users on each carrier, gains [..., N, K] and weights [..., K], it minimises
    sum_n sum_k S_k / (1 + a_nk p_k) (downlink, one power per carrier). Differentiable once.

    One user: in double precision and without cancellation, so that the powers keep their sum, and of float32
    inputs their digits, however small P is beside 1 / a; of float64 inputs they are those of the products S a
    as these round. Rows that hold NaN or infinities, where nothing refuses them (on a GPU), and those whose
    S a or 1 / a overflow, give NaN and touch no other. Several users: bisection of the level, Newton's method
    on each subcarrier.

    Args:
        gains: a >= 0, real [..., K], or [..., N, K] where `weights` has one axis fewer.
        weights: S >= 0, real [..., K].
        power: P >= 0, a number or [...].

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range.
    """
    kind = _arrays.kind_of(gains)
    a = _real("gains", gains)
    s = _real("weights", weights, a.dtype)
    if s.ndim == a.ndim - 1 and a.ndim >= 2 and s.shape == (*a.shape[:-2], a.shape[-1]):
        total = _spread("power", power, s.shape[:-1], a.device, a.dtype)
        _refuse(None, gains=(a, False), weights=(s, False), power=(total, False))
        flat = (_flat(a, 2), _flat(s, 1), total.reshape(-1))
        return kind(downlink(*flat).view(s.shape) if s.numel() else torch.zeros_like(s))
    s = _expanded("weights", s, a.shape)
    total = _spread("power", power, a.shape[:-1], a.device, a.dtype)
    _refuse(None, gains=(a, False), weights=(s, False), power=(total, False))
    if not a.numel():
        return kind(torch.zeros_like(a))
    p, _ = torch.ops.tenfold.mse_water_filling(_flat(a, 1), _flat(s, 1), total.reshape(-1))
    return kind(p.view(a.shape))


def power_normalize(x: Any, power: Any, *, mode: str = "mean") -> Any:
    """Symbols scaled to a power along the last axis: ``x sqrt(K P) / |x|``; a row of zeros stays zero.

    Args:
        x: complex or real [..., K].
        power: P >= 0 in W, a number or [...].
        mode: "mean", ``mean_k |x_k|^2 = P``; "sum", ``sum_k |x_k|^2 = P``.

    Raises:
        TypeError, ValueError: arguments of the wrong kind, shape or range.
    """
    kind = _arrays.kind_of(x)
    values = _checks.tensor("x", _arrays.as_tensor("x", x, write=False), (*_COMPLEX, *_REAL))
    if values.ndim < 1:
        _checks.fail(ValueError, "x", "shape [..., K]", tuple(values.shape))
    _checks.choice("mode", mode, ("mean", "sum"))
    wide = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
    total = _spread(
        "power", power, wide.shape[:-1], wide.device, wide.real.dtype if wide.is_complex() else wide.dtype
    )
    _refuse(None, power=(total, False))
    flat = torch.ops.tenfold.power_normalize(_flat(wide, 1), total.reshape(-1), mode == "mean")
    return kind(flat.view(wide.shape).to(values.dtype))


# ---- arguments -------------------------------------------------------------------------------------------


def _complex(name: str, value: Any) -> Tensor:
    """complex64 or complex128; real values with a last axis of two are seen as complex, halves widened."""
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), (*_COMPLEX, *_REAL))
    if found.is_complex():
        return found.resolve_conj()
    if found.ndim < 1 or found.shape[-1] != 2:
        _checks.fail(
            ValueError, name, "complex values, or real ones with a last axis of 2", tuple(found.shape)
        )
    wide = found.float() if found.dtype in (torch.bfloat16, torch.float16) else found
    return torch.view_as_complex(_paired(wide))


def _paired(t: Tensor) -> Tensor:
    """With strides that complex numbers can have, which those of an empty tensor need not be."""
    if torch.compiler.is_compiling():  # where a tensor's place in its memory is unknown
        return t.clone(memory_format=torch.contiguous_format)
    fits = t.stride(-1) == 1 and t.storage_offset() % 2 == 0 and all(n % 2 == 0 for n in t.stride()[:-1])
    return t if fits else t.clone(memory_format=torch.contiguous_format)


def _real(name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), _REAL)
    if found.ndim < 1:
        _checks.fail(ValueError, name, "shape [..., K]", tuple(found.shape))
    wide = found.float() if found.dtype in (torch.bfloat16, torch.float16) else found
    return wide if dtype is None else wide.to(dtype)


def _flat(t: Tensor, axes: int) -> Tensor:
    """[rows, ...] with the last `axes` axes; -1 would be ambiguous where one of them is empty."""
    lead = t.shape[: t.ndim - axes]
    return t.reshape(math.prod(lead), *t.shape[t.ndim - axes :])


def _spread(
    name: str, value: Any, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """A number, or an array whose shape can be expanded to `shape`."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if torch.finfo(dtype).max < abs(value) != math.inf:
            _checks.fail(ValueError, name, f"a number within the range of {dtype}", value)
        return torch.full((), float(value), dtype=dtype, device=device).expand(shape)
    if isinstance(value, (list, tuple)):
        try:
            listed = torch.tensor(value, dtype=dtype, device="cpu")  # errors of a device are no argument's
        except (TypeError, ValueError, RuntimeError):
            _checks.fail(TypeError, name, "numbers in lists of equal lengths", repr(value))
        value = listed.to(device)
    found = _checks.tensor(name, _arrays.as_tensor(name, value, write=False), (*_REAL, torch.int64))
    if found.device != device:
        _checks.fail(ValueError, name, f"a tensor on {device}", found.device)
    return _expanded(name, found.to(dtype), tuple(shape))


def _expanded(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return value.expand(shape)
    except RuntimeError:
        _checks.fail(ValueError, name, f"a shape that expands to {tuple(shape)}", tuple(value.shape))


def _tolerance(value: float | None, real: torch.dtype, double: float = 1e-10, single: float = 2e-6) -> float:
    if value is not None:
        return _checks.real("tolerance", value, positive=True)
    return double if real == torch.float64 else single


def _wanted(symbols: Any, transmitted: Any, rho: Tensor, gains: Tensor) -> Tensor:
    if (symbols is None) == (transmitted is None):
        got = "both" if symbols is not None else "neither"
        _checks.fail(ValueError, "symbols", "either symbols or transmitted", got)
    if symbols is not None:
        s = _complex("symbols", symbols)
        shape = (*gains.shape[:-2], gains.shape[-1])
        if s.device != gains.device:
            _checks.fail(ValueError, "symbols", f"a tensor on {gains.device}", s.device)
        return _expanded("symbols", s.to(gains.dtype), shape)
    t = _complex("transmitted", transmitted)
    if t.device != gains.device:
        _checks.fail(ValueError, "transmitted", f"a tensor on {gains.device}", t.device)
    t = _expanded("transmitted", t.to(gains.dtype), tuple(gains.shape))
    return (rho.sqrt()[..., None] * t).sum(-2)


def _refuse(check: bool | None, **values: Any) -> None:
    """Names the first value that is not finite, or negative where (value, whether zero is refused too)."""
    first = next(v[0] if isinstance(v, tuple) else v for v in values.values())
    if torch.compiler.is_compiling() or (first.device.type != "cpu" if check is None else not check):
        return
    for name, given in values.items():
        value, positive = given if isinstance(given, tuple) else (given, None)
        if value is None:
            continue
        value = _once(value)
        if _fine(value, positive):
            continue
        bad = ~value.isfinite()
        expected = "finite values"
        if positive is not None:
            bad |= (value <= 0) if positive else (value < 0)
            expected = "finite values > 0" if positive else "finite values >= 0"
        at = tuple(int(i) for i in bad.nonzero()[0])
        _checks.fail(ValueError, name, expected, f"{value[at].item()} at {at}")


def _fine(value: Tensor, positive: bool | None) -> bool:
    """In one pass without memory of its own."""
    if not value.numel():
        return True
    parts = torch.view_as_real(value.detach().resolve_conj()) if value.is_complex() else value.detach()
    low, high = (float(x) for x in parts.aminmax())  # not a number if one is
    least = -math.inf < low if positive is None else low > 0 if positive else low >= 0
    return least and high < math.inf


def _ones(like: Tensor) -> Tensor:
    return torch.ones((), dtype=like.dtype, device=like.device).expand(like.shape)


def _once(value: Tensor) -> Tensor:
    """The first of the equal elements along axes that `expand` made."""
    for axis, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        if stride == 0 and size > 1:
            value = value.narrow(axis, 0, 1)
    return value


def _refuse_after(objective: Tensor, check: bool | None, **values: Tensor) -> None:
    """As `_refuse`, but the inputs are read again only if a result is not finite."""
    if torch.compiler.is_compiling() or (objective.device.type != "cpu" if check is None else not check):
        return
    if not math.isfinite(objective.detach().sum().item()):  # nothing the size of a batch is made
        _refuse(check, **values)


# ---- joint forms -----------------------------------------------------------------------------------------


def _codeword(
    g: Tensor, s: Tensor, power: Tensor, noise: Tensor, expected: Tensor | None, limit: float, most: int
) -> Joint:
    """One alpha for L rows: one row of L N users, each silent outside its own symbol's K subcarriers, at L
    times the noise."""
    *lead, symbols, users, carriers = g.shape
    eye = torch.eye(symbols, dtype=g.dtype, device=g.device)
    wide = torch.einsum("...lnk,lm->...lnmk", g, eye).reshape(-1, symbols * users, symbols * carriers)
    u, alpha, mu, objective, steps = torch.ops.tenfold.ssdt_joint(
        wide,
        s.reshape(-1, symbols * carriers),
        power.reshape(-1, symbols * users),
        noise.reshape(-1) * symbols,
        None if expected is None else expected.reshape(-1, symbols * carriers),
        limit,
        most,
    )
    parts = u.view(*lead, symbols, users, symbols, carriers)
    own = torch.einsum("...lnmk,lm->...lnk", parts, eye) / symbols**0.5
    alpha, objective = alpha.view(lead) * symbols**0.5, objective.view(lead)
    if expected is not None:
        own = _within(own, power)
        objective = _received_error(g, s, own, alpha[..., None], noise[..., None]).sum(-1)
    return Joint(
        own,
        alpha,
        mu.view(*lead, symbols, users),
        objective,
        steps.view(lead),
    )


def _within(u: Tensor, power: Tensor) -> Tensor:
    """Each user held to its mean power."""
    limit = (power * u.shape[-1]).sqrt()
    energy = u.abs().square().sum(-1)
    used = torch.where(energy > 0, torch.where(energy > 0, energy, 1.0).sqrt(), 1.0)
    return u * torch.where(used > limit, limit / used, 1.0)[..., None]


def _received_error(g: Tensor, s: Tensor, u: Tensor, alpha: Tensor, noise: Tensor) -> Tensor:
    received = alpha[..., None] * (g * u).sum(-2)
    return (received - s).abs().square().sum(-1) + s.shape[-1] * noise * alpha.square()

"""Ways to send over a channel that the codec was not trained for, behind one interface.

    found = allocate("ssdt-sep", transmitted, gains, power_w=(0.6, 0.4), noise_power_w=0.06)
    received = (true_gains * found.transmit).sum(-2) + noise
    decoder_input = found.scale * received

Users transmit u_n in place of their symbols t_n, each within its power, and the receiver multiplies by a
scalar or, for receivers that equalise, by one number per subcarrier. What is wanted is the sum that the codec
was trained on, s = sum_n sqrt(rho_n) t_n. There is no successive cancellation in any of these.

What must be known where: `none` nothing; `rx-lmmse` the receiver its channels; `phase`, `invert`,
`water-filling` and `ssdt-sep` each user its own channel, and the receiver one scalar that depends on channels
alone; `mse-water-filling` that and the receiver its channels; `ssdt-joint` each user the symbols and channels
of all, and the receiver a scalar that depends on them: a bound. `ssdt-joint-csi` has the scalar from channels
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops.power import mse_water_filling, ssdt_joint, ssdt_separable, water_filling

__all__ = ["ALLOCATORS", "Allocation", "allocate", "nmse_db"]


class Allocation(NamedTuple):
    """What `allocate` found."""

    transmit: Tensor
    """complex [..., N, K]: what the users send"""
    scale: Tensor
    """[..., 1] or [..., K]: what the receiver multiplies by"""


class _Problem(NamedTuple):
    t: Tensor  # [..., N, K]
    g: Tensor  # [..., N, K]
    power: Tensor  # [N]
    noise: Tensor  # [...]
    c: Tensor  # [N], sqrt(rho)
    options: dict[str, Any]

    @property
    def users(self) -> Tensor:
        """P_n as [N, 1]."""
        return self.power[:, None]


def allocate(
    method: str,
    transmitted: Tensor,
    gains: Tensor,
    power_w: Sequence[float] | Tensor,
    noise_power_w: float | Tensor,
    *,
    rho: Sequence[float] | Tensor | None = None,
    inversion_floor: float = 0.05,
    alpha_scope: str = "symbol",
) -> Allocation:
    """Transmit signals and receiver scale of one method.

    Args:
        method: a name in `ALLOCATORS`.
        transmitted: complex [..., N, K], symbols of mean power P_n along K (`tenfold.ops.power_normalize`).
        gains: complex [..., N, K], the channel as it is known.
        power_w: P_n in W, [N].
        noise_power_w: sigma^2 in W per complex sample, a number or [...].
        rho: [N], power gains of the channel of training; 1 by default.
        inversion_floor: "invert" divides by no less than this times the mean of |g|^2.
        alpha_scope: "ssdt-joint": one alpha per OFDM "symbol" or, where rows are [..., L, N, K], "codeword".

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    _checks.choice("method", method, tuple(ALLOCATORS))
    if transmitted.ndim < 2 or transmitted.shape != gains.shape:
        got = f"{tuple(transmitted.shape)} and {tuple(gains.shape)}"
        _checks.fail(ValueError, "transmitted and gains", "one shape [..., N, K]", got)
    real = gains.real.dtype
    power = torch.as_tensor(power_w, dtype=real, device=gains.device)
    if power.shape != (gains.shape[-2],):
        _checks.fail(ValueError, "power_w", f"one power for each of {gains.shape[-2]} users", power.shape)
    noise = torch.as_tensor(noise_power_w, dtype=real, device=gains.device).expand(gains.shape[:-2])
    for name, value, fine in (("power_w", power, power > 0), ("noise_power_w", noise, noise >= 0)):
        if value.device.type == "cpu" and not bool((fine & value.isfinite()).all()):
            expected = "finite values >= 0" if value is noise else "finite values > 0"
            _checks.fail(ValueError, name, expected, value[~(fine & value.isfinite())][0].item())
    c = (
        torch.ones_like(power)
        if rho is None
        else torch.as_tensor(rho, dtype=real, device=gains.device).sqrt()
    )
    options = {"floor": inversion_floor, "alpha_scope": alpha_scope}
    return ALLOCATORS[method](_Problem(transmitted, gains, power, noise, c, options))


def nmse_db(received: Tensor, wanted: Tensor) -> Tensor:
    """Error of the received signal over the wanted signal's power, over the last two axes, in dB [...]."""
    error = (received - wanted).abs().square().sum((-2, -1))
    return 10 * torch.log10(error / wanted.abs().square().sum((-2, -1)))


def _none(p: _Problem) -> Allocation:
    return Allocation(p.t, torch.ones_like(p.noise)[..., None])


def _lmmse(p: _Problem, effective: Tensor) -> Tensor:
    """Per subcarrier: the linear estimate of s from sum_n h_n t_n + w, for symbols that are uncorrelated."""
    wanted = (p.users * p.c[:, None] * effective.conj()).sum(-2)
    return wanted / ((p.users * effective.abs().square()).sum(-2) + p.noise[..., None]).clamp_min(1e-30)


def _common(p: _Problem, effective: Tensor) -> Tensor:
    """The same with one real scalar for all subcarriers, [..., 1]."""
    wanted = (p.users * p.c[:, None] * effective.real).sum((-2, -1))
    carriers = effective.shape[-1]
    return (
        wanted / ((p.users * effective.abs().square()).sum((-2, -1)) + carriers * p.noise).clamp_min(1e-30)
    )[..., None]


def _rx_lmmse(p: _Problem) -> Allocation:
    return Allocation(p.t, _lmmse(p, p.g))


def _aligned(g: Tensor) -> Tensor:
    """conj(g) / |g|, 1 where the gain is zero."""
    size = g.abs()
    return torch.where(size > 0, g.conj() / torch.where(size > 0, size, 1.0), 1.0)


def _phase(p: _Problem) -> Allocation:
    turn = _aligned(p.g)
    return Allocation(turn * p.t, _common(p, p.g * turn))


def _held(p: _Problem, u: Tensor) -> Tensor:
    """Rows that exceed their user's power are scaled down to it."""
    limit = (p.power * u.shape[-1]).sqrt()
    used = u.abs().square().sum(-1).sqrt()
    return u * torch.where(used > limit, limit / used.clamp_min(1e-30), 1.0)[..., None]


def _invert(p: _Problem) -> Allocation:
    """Truncated channel inversion; the user with the worst channel sets what all receive."""
    gain = p.g.abs().square()
    floor = p.options["floor"] * gain.mean(-1, keepdim=True)
    w = p.c[:, None] * p.g.conj() / torch.maximum(gain, floor).clamp_min(1e-30)
    alpha = w.abs().square().mean(-1).sqrt().amax(-1).clamp_min(1e-30)[..., None]
    return Allocation(_held(p, w * p.t / alpha[..., None]), alpha)


def _precoded(p: _Problem, share: Tensor) -> tuple[Tensor, Tensor]:
    """Signals and effective gains of aligned users; `share` (mean 1) parts their power over subcarriers."""
    precoder = _aligned(p.g) * share.sqrt()
    return _held(p, precoder * p.t), p.g * precoder


def _share(p: _Problem, power: Tensor) -> Tensor:
    return power / p.users


def _water_filling(p: _Problem) -> Allocation:
    """Each user fills its own channel for capacity, not for the sum that the decoder wants."""
    gain = p.g.abs().square() / p.noise[..., None, None].clamp_min(1e-30)
    total = (p.power * p.g.shape[-1]).expand(gain.shape[:-1])
    u, effective = _precoded(p, _share(p, water_filling(gain, total).power))
    return Allocation(u, _common(p, effective))


def _mse_water_filling(p: _Problem) -> Allocation:
    """Each user fills its own channel for the error of its symbols; the receiver equalises per subcarrier."""
    gain = p.g.abs().square() / p.noise[..., None, None].clamp_min(1e-30)
    weights = torch.ones_like(gain)
    total = (p.power * p.g.shape[-1]).expand(gain.shape[:-1])
    u, effective = _precoded(p, _share(p, mse_water_filling(gain, weights, total)))
    return Allocation(u, _lmmse(p, effective))


def _separable(p: _Problem) -> Allocation:
    found = ssdt_separable(p.g, p.power, p.noise, c=p.c)
    return Allocation(_held(p, found.precoder * p.t), found.alpha[..., None])


def _joint(p: _Problem) -> Allocation:
    scope = p.options["alpha_scope"]
    noise = p.noise if scope == "symbol" else p.noise[..., 0]
    found = ssdt_joint(p.g, None, p.power, noise, transmitted=p.t, rho=p.c.square(), alpha_scope=scope)
    alpha = found.alpha if scope == "symbol" else found.alpha[..., None].expand(p.noise.shape)
    return Allocation(found.transmit, alpha[..., None])


def _joint_csi(p: _Problem) -> Allocation:
    found = ssdt_joint(p.g, None, p.power, p.noise, transmitted=p.t, rho=p.c.square(), statistics="csi")
    return Allocation(found.transmit, found.alpha[..., None])


ALLOCATORS: dict[str, Callable[[_Problem], Allocation]] = {
    "none": _none,
    "rx-lmmse": _rx_lmmse,
    "phase": _phase,
    "invert": _invert,
    "water-filling": _water_filling,
    "mse-water-filling": _mse_water_filling,
    "ssdt-sep": _separable,
    "ssdt-joint-csi": _joint_csi,
    "ssdt-joint": _joint,
}
"""Name -> allocator. "none" is equal power on every subcarrier, and nothing else."""

"""The superposition channel against what communications code draws and adds.

Two users, 4096 codewords of 8 OFDM symbols on 64 subcarriers, Rayleigh. Peers are written from published
expressions: "sionna", complex_normal gains and ApplyOFDMChannel of an uplink with one antenna each; "kaira",
FlatFadingChannel with a coherence time of one sample for each user, its gains laid out a codeword at a time,
and one noise for the sum. "torch" is the same in the fewest operations. They draw other numbers, so each is
compared twice: on our gains and noise, value by value, and on its own by the moments of what is received. No
peer allocates powers within the channel; the sides of the joint case draw as "torch" does and find powers by
bisection, or by our own solver called apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .harness import Agreement, Case, Side, Work, Workload, change_moments, compare_moments, compare_values
from .power import _joint_bisection, _torch
from .zo import _backend, _reference_side, _version

CODEWORDS, SYMBOLS, USERS, CARRIERS = 4096, 8, 2, 64
POWER_W = (0.6, 0.4)
SNR_DB = 10.0
SEED = 7
COMPARED = 64
"""Codewords on which a peer is given our gains and noise."""

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Expression:
    """draw(t [B, L, N, K]) -> gains like t and noise [B, L, K], of power 1; join(t, gains, noise) -> y."""

    draw: Callable[[Tensor], Pair]
    join: Callable[[Tensor, Tensor, Tensor], Tensor]


# ---- expressions -----------------------------------------------------------------------------------------


def _draw(t: Tensor) -> Pair:
    return torch.randn_like(t), torch.randn_like(t[:, :, 0])


def _join(noise_power: float, t: Tensor, g: Tensor, w: Tensor) -> Tensor:
    return (g * t).sum(2) + math.sqrt(noise_power) * w


def _sionna_normal(shape: tuple[int, ...], device: torch.device) -> Tensor:
    parts = [torch.normal(0.0, math.sqrt(0.5), shape, device=device) for _ in range(2)]
    return torch.complex(*parts)


def _sionna_draw(t: Tensor) -> Pair:
    batch, symbols, users, carriers = t.shape
    h = _sionna_normal((batch, 1, 1, users, 1, symbols, carriers), t.device)
    return h[:, 0, 0, :, 0].transpose(1, 2), _sionna_normal((batch, symbols, carriers), t.device)


def _sionna_join(noise_power: float, t: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """h [batch, rx, antenna, tx, antenna, symbol, carrier]: all transmitters' antennas are added."""
    h, x = g.transpose(1, 2)[:, None, None, :, None], t.transpose(1, 2)[:, None, None, :, None]
    y = (h * x).sum(4).sum(3)
    return (y + w[:, None, None] * torch.tensor(noise_power, device=t.device).sqrt())[:, 0, 0]


def _kaira_draw(t: Tensor) -> Pair:
    batch, symbols, users, carriers = t.shape
    length = symbols * carriers
    gains = torch.empty_like(t)
    for user in range(users):
        parts = [torch.randn(batch, length, device=t.device) for _ in range(2)]
        blocks = torch.complex(*parts) / 2**0.5
        own = torch.arange(length, device=t.device)
        expanded = torch.zeros(batch, length, dtype=t.dtype, device=t.device)
        for row in range(batch):
            expanded[row] = blocks[row, own]
        gains[:, :, user] = expanded.view(batch, symbols, carriers)
    re, im = (torch.randn(batch, symbols, carriers, device=t.device) * 0.5**0.5 for _ in range(2))
    return gains, torch.complex(re, im)


# ---- with allocation -------------------------------------------------------------------------------------


def _joint_join(
    solve: Callable[[Tensor, Tensor, Tensor, float], Pair],
    noise_power: float,
    t: Tensor,
    g: Tensor,
    w: Tensor,
) -> Tensor:
    rows = t.shape[0] * t.shape[1]
    power = torch.tensor(POWER_W, device=t.device)
    flat = g.reshape(rows, *g.shape[2:])
    u, alpha = solve(flat, t.sum(2).view(rows, -1), power, noise_power)
    y = (flat * u).sum(1) + math.sqrt(noise_power) * w.reshape(rows, -1)
    return (alpha[:, None] * y).view(w.shape)


def _ssdt(g: Tensor, s: Tensor, power: Tensor, noise_power: float) -> Pair:
    from tenfold.ops import ssdt_joint

    found = ssdt_joint(g, s, power, noise_power)
    return found.transmit, found.alpha


# ---- cases -----------------------------------------------------------------------------------------------


def _symbols(device: torch.device, tiny: bool) -> tuple[Tensor, float]:
    """What both users send, with their powers on average, and the power of the noise."""
    shape = (COMPARED if tiny else CODEWORDS, SYMBOLS, USERS, CARRIERS)
    generator = torch.Generator(device).manual_seed(6)
    t = torch.randn(shape, dtype=torch.complex64, device=device, generator=generator)
    power = torch.tensor(POWER_W, device=device)
    return t * power.sqrt()[:, None], POWER_W[0] * 10 ** (-SNR_DB / 10)


def _ours(t: Tensor, noise_power: float, joint: bool) -> Tensor:
    from tenfold.ops import noma_channel

    power = torch.tensor(POWER_W, device=t.device) if joint else None
    y: Tensor = noma_channel(t, 1.0, noise_power, SEED, allocate="joint" if joint else None, power=power)
    return y


def _reference(t: Tensor, noise_power: float, joint: bool) -> Tensor:
    from tenfold.kernels.channel.channel_reference import JOINT, NONE, Draw, Given, channel

    rows = t.shape[0] * t.shape[1]
    each = torch.ones(rows, USERS, device=t.device)
    power = torch.tensor(POWER_W, device=t.device).expand(rows, USERS) if joint else None
    noise = torch.full((rows,), noise_power, device=t.device)
    given = Given(
        t.view(rows, USERS, CARRIERS), None, each - 1, each * math.sqrt(0.5), noise, None, power,
        each if joint else None,
    )  # fmt: skip
    return channel(given, Draw(SEED, 0, 0, 1), JOINT if joint else NONE)[0].view(*t.shape[:2], CARRIERS)


def _drawn_by_ours(t: Tensor) -> Pair:
    from tenfold.ops import noma_channel

    y, g = noma_channel(torch.zeros_like(t), 1.0, 1.0, SEED, return_gains=True)
    return g, y


def _keep(y: Tensor) -> list[Tensor]:
    return [torch.view_as_real(y).clone()]


def _agree(
    expression: Expression, t: Tensor, tolerance: float, ours: list[Tensor], theirs: list[Tensor]
) -> Agreement:
    """On our numbers value by value, then on its own by moments; the worse of the two."""
    few = t[:COMPARED]
    same = expression.join(few, *_drawn_by_ours(few))
    values = compare_values([ours[0][:COMPARED]], _keep(same), tolerance)
    if not values.agrees:
        return values
    found = compare_moments(change_moments(ours), change_moments(theirs), unit="received value")
    how = (
        f"{found.how}; on our gains and noise within {values.max_error:.1e} of ours ({tolerance:.0e} allowed)"
    )
    return Agreement(found.agrees, found.max_error, found.tolerance, how)


def _case(joint: bool, device: torch.device, tiny: bool) -> Workload:
    t, noise_power = _symbols(device, tiny)
    plain = partial(_join, noise_power)
    found: dict[str, tuple[Expression, str]]
    if joint:
        found = {
            "torch_bisection": (
                Expression(_draw, partial(_joint_join, _joint_bisection, noise_power)),
                f"{_torch()}, 40 halvings of our dual",
            ),
            "torch_ssdt_joint": (
                Expression(_draw, partial(_joint_join, _ssdt, noise_power)),
                f"{_torch()}, with tenfold.ops.ssdt_joint for the powers",
            ),
        }
    else:
        found = {
            "torch": (Expression(_draw, plain), f"{_torch()}, randn, product, sum"),
            "sionna": (
                Expression(_sionna_draw, partial(_sionna_join, noise_power)),
                f"{_torch()}, expression of Sionna's complex_normal and ApplyOFDMChannel",
            ),
            "kaira": (
                Expression(_kaira_draw, plain),
                f"{_torch()}, expression of kaira's FlatFadingChannel",
            ),
        }
    tolerance = 3e-4 if joint else 1e-5

    def side(name: str, expression: Expression, version: str) -> Side:
        agree = partial(_agree, expression, t, tolerance)
        return Side(name, lambda: expression.join(t, *expression.draw(t)), version, agree, fewest=1)

    def alike(ours: list[Tensor], theirs: list[Tensor]) -> Agreement:
        return compare_values(ours, theirs, 2e-5 if joint else 0.0)

    complex_samples = t[:, :, 0].numel() * (USERS + 1)
    return Workload(
        ours=Side(
            "tenfold",
            lambda: _ours(t, noise_power, joint),
            version=_version(),
            kind="ours",
            backend=partial(_backend, "noma_channel", device),
        ),
        others=[
            _reference_side(lambda: _reference(t, noise_power, joint), alike),
            *(side(name, *rest) for name, rest in found.items()),
        ],
        work=Work(bytes=float(t.nbytes * (USERS + 1) / USERS), normals=2.0 * complex_samples),
        keep=_keep,
        note=f"{len(t)} codewords of {SYMBOLS} symbols, {USERS} users, {CARRIERS} carriers, {SNR_DB:g} dB",
    )


def cases() -> list[Case]:
    """The cases of this family."""
    return [
        Case(f"channel.{name}.rayleigh.c64.4096x8x64-n2", partial(_case, name == "joint"), devices=("cpu",))
        for name in ("noma", "joint")
    ]

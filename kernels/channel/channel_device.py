"""The superposition channel on a GPU, around kernels that draw, superpose and add noise in one pass.

Without allocation there is one launch and nothing beside the result. With allocation, a bounded piece of rows
at a time has its gains written, its powers found by the kernels of kernels/power, and is then superposed.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from . import channel_reference
from .channel_reference import Draw, Given


class Kernels(Protocol):
    def superpose(self, given: Given, draw: Draw, y: Tensor) -> None:
        """Write y [R, K] from gains that are given or drawn."""

    def gains(self, given: Given, draw: Draw) -> Tensor:
        """[R, N, K]."""

    def wanted(self, given: Given) -> Tensor:
        """s [R, K]."""


def channel(kernels: Kernels, given: Given, draw: Draw, allocate: int) -> tuple[Tensor, Tensor, Tensor]:
    """See channel_reference.channel."""
    given = resolved(given)
    y, alpha, dual = channel_reference.results(given, allocate)
    if not y.numel():
        return y, alpha.zero_(), dual.zero_()
    if not allocate:
        kernels.superpose(given, draw, y)
        return y, alpha, dual
    for part in channel_reference.pieces(given):
        mine, own = given.rows(part), draw._replace(first=draw.first + part.start)
        g = kernels.gains(mine, own)
        u, alpha[part], dual[part] = channel_reference.allocated(mine, g, allocate, kernels.wanted)
        kernels.superpose(mine._replace(transmit=u.contiguous(), gains=g, alpha=alpha[part]), own, y[part])
    return y, alpha, dual


def resolved(given: Given) -> Given:
    """Without lazy conjugates, which kernels do not see."""
    g = given.gains
    return given._replace(
        transmit=given.transmit.resolve_conj(), gains=None if g is None else g.resolve_conj()
    )

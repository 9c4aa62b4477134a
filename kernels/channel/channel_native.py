"""The compiled superposition channel behind the reference's signature; CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from tenfold import _native

from ..power.power_native import View, _shape, _view
from . import channel_reference
from .channel_reference import JOINT, SEPARABLE, STEPS, Draw, Given, gains

__all__ = ["channel", "gains", "views"]


def views(given: Given) -> list[View]:
    """What the door is given."""
    return [
        _view(given.transmit, "rnk"), _view(given.gains, "rnk"), _view(given.mean, "rn"),
        _view(given.scale, "rn"), _view(given.noise, "r"), _view(given.alpha, "r"),
        _view(given.power, "rn"), _view(given.rho, "rn"),
    ]  # fmt: skip


def channel(given: Given, draw: Draw, allocate: int) -> tuple[Tensor, Tensor, Tensor]:
    """See channel_reference.channel; separable allocation is done there, by the compiled solver."""
    u = given.transmit
    if not u.numel() or allocate == SEPARABLE:
        return channel_reference.channel(given, draw, allocate)
    u, g = u.resolve_conj(), None if given.gains is None else given.gains.resolve_conj()
    rows, users, carriers = u.shape
    real = u.real.dtype
    y = torch.empty((rows, carriers), dtype=u.dtype)
    found = (rows, users) if allocate == JOINT else (0, 0)
    alpha, dual = torch.empty(found[0], dtype=real), torch.empty(found, dtype=real)
    tolerance = 2e-6 if real == torch.float32 else 1e-10
    given = given._replace(transmit=u, gains=g)
    _native.cpu.channel(
        _shape(u, real), views(given), draw.seed % 2**64, (draw.offset, draw.first, draw.block), allocate,
        tolerance, STEPS, [y.data_ptr(), alpha.data_ptr(), dual.data_ptr()], torch.get_num_threads(),
    )  # fmt: skip
    return y, alpha, dual

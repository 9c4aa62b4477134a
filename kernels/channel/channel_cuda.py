"""The CUDA kernels of the superposition channel behind the reference's signatures."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from tenfold import _native

from ..power.power_native import _shape
from . import channel_device
from .channel_native import views
from .channel_reference import Draw, Given


def _door() -> Any:
    assert _native.cuda is not None
    return _native.cuda


def _stream(tensor: Tensor) -> int:
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def _run(name: str, given: Given, draw: Draw, out: Tensor) -> None:
    u = given.transmit
    getattr(_door(), name)(
        _shape(u, u.real.dtype), views(given), draw.seed % 2**64, (draw.offset, draw.first, draw.block),
        out.data_ptr(), _stream(u),
    )  # fmt: skip


def superpose(given: Given, draw: Draw, y: Tensor) -> None:
    """See channel_device.Kernels."""
    _run("channel", given, draw, y)


def gains(given: Given, draw: Draw) -> Tensor:
    """See channel_device.Kernels."""
    if given.gains is not None:
        return given.gains
    g = torch.empty_like(given.transmit, memory_format=torch.contiguous_format)
    if g.numel():
        _run("channel_gains", given, draw, g)
    return g


def wanted(given: Given) -> Tensor:
    """See channel_device.Kernels."""
    rows, _, carriers = given.transmit.shape
    s = given.transmit.new_empty((rows, carriers))
    _run("channel_wanted", given, Draw(0, 0, 0, 1), s)
    return s


def channel(given: Given, draw: Draw, allocate: int) -> tuple[Tensor, Tensor, Tensor]:
    """See channel_reference.channel."""
    return channel_device.channel(sys.modules[__name__], given, draw, allocate)

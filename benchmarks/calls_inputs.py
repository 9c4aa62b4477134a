"""What the calls are made of: inputs drawn from a seed, and the ways to run an op on them again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], list[Tensor]]
SEED = 2**63 + 11
ON_CUDA = ("cuda",)


@dataclass(frozen=True)
class Call:
    """make(device, seed) -> run() -> results. near: relative to the largest entry of a result, how far from
    the CPU's it may be; 0: the same bits. captures: whether a CUDA graph can hold the call. backends: those
    that have a GPU kernel for it."""

    name: str
    make: Callable[[torch.device, int], Run]
    near: float = 0.0
    captures: bool = False
    backends: tuple[str, ...] = ("cuda", "triton")
    covers: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        return self.name.partition(".")[0]


class Inputs:
    """Tensors drawn on the CPU and moved."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.generator = device, torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator)).to(dtype).to(self.device)

    def whole(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(dtype).to(self.device)

    def weights(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [self.normal(*shape, scale=0.02, dtype=dtype) for shape in ((1,), (257,), (33, 65), (4099,))]


def in_place(start: Sequence[Sequence[Tensor]], call: Callable[..., Any]) -> Run:
    """`call` on tensors that are put back to `start` before it; they are the results."""
    held = [[t.clone() for t in tensors] for tensors in start]

    def run() -> list[Tensor]:
        for tensors, first in zip(held, start, strict=True):
            for tensor, value in zip(tensors, first, strict=True):
                tensor.copy_(value)
        call(*held)
        return [t for tensors in held for t in tensors]

    return run


def with_gradient(operands: Sequence[Tensor], loss: Callable[..., Tensor]) -> Run:
    leaves = [t.detach().requires_grad_() for t in operands]

    def run() -> list[Tensor]:
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]

    return run

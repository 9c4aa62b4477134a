"""The usual call of `mmd`, short: two float32 matrices on the CPU, the mean distance, no weights.

On a batch of 32 the kernel takes less time than the general path around it, twice so when other work has
emptied the caches, as it does between two steps of a training loop: what counts is how much code a call
touches. This path does the same checks in one expression and leaves everything unusual, and every error, to
the general one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tenfold import _native
from tenfold._backend import chosen_backend

_PLAIN = (Tensor, torch.nn.Parameter)
_CPU = torch.device("cpu")

peek = torch._C._functorch.peek_interpreter_stack
modes = torch._C._len_torch_dispatch_stack


def usual(x: Any, y: Any) -> bool:
    """Whether both are dense float32 matrices in the CPU's memory that nothing else looks at."""
    return (
        type(x) in _PLAIN
        and type(y) in _PLAIN
        and x.dtype is torch.float32
        and y.dtype is torch.float32
        and x.layout is torch.strided
        and y.layout is torch.strided
        and not (x.is_nested or y.is_nested)
        and x.ndim == 2
        and y.ndim == 2
        and x.device == _CPU
        and y.device == _CPU
        and x.is_contiguous()
        and y.is_contiguous()
        and not (x.is_neg() or y.is_neg())
        and x.shape[1] == y.shape[1]
        and x.numel() > 0
        and y.numel() > 0
        and peek() is None
        and modes() == 0
        and forward_ad._current_level < 0
        and chosen_backend("mmd", "cpu") == "cpu"
    )


def _pass(
    x: Tensor, y: Tensor, widths: tuple[list[float], float, bool], unbiased: bool, kept: int
) -> tuple[Tensor, float]:
    value = torch.empty(())
    base = _native.cpu.mmd_single(
        x.data_ptr(), y.data_ptr(), len(x), len(y), x.shape[1], widths, unbiased, value.data_ptr(), kept,
        torch.get_num_threads(),
    )  # fmt: skip
    return value, base


class Small(torch.autograd.Function):
    """Value and base; the gradient is made with them and scaled in backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, widths: tuple[list[float], float, bool], unbiased: bool
    ) -> tuple[Tensor, float]:
        gradient = torch.empty(len(x) + len(y), x.shape[1])
        found = _pass(x, y, widths, unbiased, gradient.data_ptr())
        ctx.save_for_backward(gradient, x, y)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        gradient, x, y = ctx.saved_tensors
        gx, gy = (gradient * grad).split_with_sizes((len(x), len(y)))
        if torch.is_grad_enabled():
            from .mmd_dispatch import _Once

            gx, gy = _Once.apply(gx, x, y), _Once.apply(gy, x, y)
        return gx, gy, None, None


def small_mmd(
    x: Tensor, y: Tensor, widths: list[float], floor: float, unbiased: bool
) -> tuple[Tensor, float]:
    """The squared MMD of x [N, d] and y [M, d] for which `usual` holds, and the base of the widths."""
    options = (widths, floor, False)
    if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad):
        value, base = Small.apply(x, y, options, unbiased)
        return value, base
    return _pass(x, y, options, unbiased, 0)

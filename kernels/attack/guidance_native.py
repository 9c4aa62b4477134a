"""The compiled kernels of losses, noise and guidance behind the signatures of guidance_reference.py."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tenfold._native import DTYPE_CODES

from .attack_native import address, door
from .guidance_reference import PREDICTIONS

_PIECE = 8192  # kMsePiece of attack_api.hpp


def _rows(
    op: int,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    each: Sequence[Tensor],
    numbers: Sequence[float] = (),
    *,
    kind: int = 0,
    flag: bool = False,
    times: Tensor | None = None,
    levels: int = 0,
) -> None:
    x = next(v for v in inputs if v is not None)
    if not x.numel():
        return
    module, last = door(x)
    shape = (len(x), x[0].numel(), DTYPE_CODES[x.dtype])
    module.attack_rows(
        (op, *shape, kind, flag),
        [address(v) for v in inputs],
        [v.data_ptr() for v in outputs],
        [(v.data_ptr(), int(len(v) > 1)) for v in each],
        (address(times), int(times is not None and len(times) > 1), levels),
        list(numbers),
        last,
    )


def mse_rows(pred: Tensor, target: Tensor, other: Tensor | None, eta: float, criterion: str) -> Tensor:
    """See guidance_reference.mse_rows."""
    batch, size = pred.shape
    sums = torch.empty(batch, math.ceil(size / _PIECE), dtype=torch.float64, device=pred.device)
    if batch:
        module, last = door(pred)
        inputs = [address(x) for x in (pred, target, other)]
        shape = (batch, size, DTYPE_CODES[pred.dtype])
        module.guided_mse(inputs, shape, eta, criterion == "l2", sums.data_ptr(), last)
    return sums.sum(1) / size


def mse_rows_backward(
    grad: Tensor, pred: Tensor, target: Tensor, other: Tensor | None, eta: float, criterion: str
) -> Tensor:
    """See guidance_reference.mse_rows_backward."""
    out = torch.empty_like(pred)
    if len(pred):
        module, last = door(pred)
        inputs = [address(x) for x in (pred, target, other)]
        shape = (*pred.shape, DTYPE_CODES[pred.dtype])
        grad = grad.double().contiguous()
        module.guided_mse_backward(
            inputs, shape, eta, criterion == "l2", grad.data_ptr(), out.data_ptr(), last
        )
    return out


def add_noise_rows(x0: Tensor, eps: Tensor, t: Tensor, abar: Tensor) -> Tensor:
    """See guidance_reference.add_noise_rows."""
    out = torch.empty_like(x0)
    _rows(0, [x0, eps], [out], [abar], times=t, levels=len(abar))
    return out


def cfg_ddim_step(
    x: Tensor,
    eu: Tensor | None,
    ec: Tensor,
    guidance: Tensor,
    a: Tensor,
    b: Tensor,
    prediction: str,
    doubled: bool,
) -> Tensor:
    """See guidance_reference.cfg_ddim_step."""
    out = x.new_empty((2 * len(x) if doubled else len(x), *x.shape[1:]))
    _rows(1, [x, eu, ec], [out], [guidance, a, b], kind=PREDICTIONS.index(prediction), flag=doubled)
    return out


def sld_guidance(
    eu: Tensor,
    ec: Tensor,
    es: Tensor,
    momentum: Tensor,
    guidance: Tensor,
    scale: float,
    threshold: float,
    momentum_scale: float,
    momentum_beta: float,
    warm: bool,
) -> tuple[Tensor, Tensor]:
    """See guidance_reference.sld_guidance."""
    out, after = torch.empty_like(eu), torch.empty_like(eu)
    numbers = [scale, threshold, momentum_scale, momentum_beta]
    _rows(2, [eu, ec, es, momentum], [out, after], [guidance], numbers, kind=int(warm))
    return out, after


def splice_embed(embeds: Tensor, adv: Tensor, index: Tensor) -> Tensor:
    """See guidance_reference.splice_embed."""
    out = torch.empty_like(embeds)
    if out.numel():
        module, last = door(embeds)
        batch, columns, width = embeds.shape
        shape = (batch, columns, adv.shape[1], width, DTYPE_CODES[embeds.dtype])
        places = [x.data_ptr() for x in (index, embeds, adv, out)]
        module.splice_embed(shape, *places, last)
    return out


def splice_embed_backward(grad: Tensor, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See guidance_reference.splice_embed_backward."""
    batch, columns, width = grad.shape
    # Without columns nothing came from adv, and no kernel runs.
    of_embeds = torch.empty_like(grad)
    of_adv = grad.new_empty(batch, k, width) if columns else grad.new_zeros(batch, k, width)
    if grad.numel():
        module, last = door(grad)
        shape = (batch, columns, k, width, DTYPE_CODES[grad.dtype])
        places = [x.data_ptr() for x in (index, grad, of_embeds, of_adv)]
        module.splice_embed_backward(shape, *places, last)
    return of_embeds, of_adv

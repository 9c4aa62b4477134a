"""The compiled Sophia passes behind the signatures of sophia_reference.py: tensors to raw pointers."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from tenfold.kernels.zo import zo_native
from torch import Tensor

from tenfold import _native
from tenfold._native import DTYPE_CODES

from .sophia_reference import Rounding, State, StepArgs

_STATES = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.uint8: 2}
_MAX, _ADD, _SIGN = range(3)


def _by_dtypes(*lists: Sequence[Tensor]) -> dict[tuple[torch.dtype, ...], Sequence[int]]:
    """Positions by the dtypes of the tensors that stand there; most often there is one kind."""
    kinds = [{t.dtype for t in tensors} for tensors in lists]
    if all(len(kind) == 1 for kind in kinds):
        return {tuple(kind.pop() for kind in kinds): range(len(lists[0]))}
    return dict(zo_native._by_dtypes(*lists))


def _addresses(tensors: Sequence[Tensor], count: int) -> list[int]:
    return [t.data_ptr() for t in tensors] if len(tensors) else [0] * count


def _pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _partials(module: ModuleType, rows: Sequence[tuple[int, ...]], stats: Tensor | None) -> Tensor | None:
    """Where CUDA puts the statistics of each tile before it adds them up in order."""
    if stats is None or module is _native.cpu:
        return None
    tiles = sum(-(-row[8] // module.sophia_tile) for row in rows)
    return torch.empty(tiles * stats.numel(), dtype=stats.dtype, device=stats.device)


def step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    state: State,
    streams: Sequence[int],
    a: StepArgs,
    rounding: Rounding,
    inv_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    stats: Tensor | None = None,
) -> None:
    """See sophia_reference.step_; one call, and one parallel region or launch, per combination of dtypes."""
    beta2 = 0.0 if a.hessian_beta2 is None else a.hessian_beta2
    scalars = [a.beta1, 1 - a.beta1, beta2, 1 - beta2, a.denom_scale, a.eps, -a.lr, a.decay, a.shrink]
    flags = a.hessian_beta2 is not None, a.maximize, a.skip, rounding.kind == "stochastic"
    denom = _SIGN if not state.hessians else _ADD if a.add else _MAX
    columns = (
        params,
        grads,
        state.exp_avgs,
        state.hessians,
        state.exp_avg_scales,
        state.hessian_scales,
        state.masters,
        state.compensations,
    )
    places = [_addresses(column, len(params)) for column in columns]
    table = list(zip(*places, [p.numel() for p in params], streams, strict=True))
    for (dtype, grad, kept), members in _by_dtypes(params, grads, state.exp_avgs).items():
        rows = [table[i] for i in members if table[i][8]]
        if not rows:
            continue
        module, where = zo_native._module(params[members[0]])
        partials = _partials(module, rows, stats)
        module.sophia_step(
            rows,
            DTYPE_CODES[dtype],
            DTYPE_CODES[grad],
            _STATES[kept],
            denom,
            scalars,
            flags,
            rounding.seed,
            rounding.step,
            _pointer(inv_scale),
            _pointer(found_inf),
            _pointer(stats),
            *(() if module is _native.cpu else (_pointer(partials),)),
            *where,
        )


def hessian_(
    hessians: Sequence[Tensor],
    grads: Sequence[Tensor],
    probes: Sequence[Tensor],
    hessian_scales: Sequence[Tensor],
    streams: Sequence[int],
    keep: float,
    weight: float,
    rounding: Rounding,
    inv_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """See sophia_reference.hessian_."""
    places = [_addresses(column, len(hessians)) for column in (hessians, hessian_scales, grads, probes)]
    table = list(zip(*places, [h.numel() for h in hessians], streams, strict=True))
    for (kept, grad), members in _by_dtypes(hessians, grads).items():
        rows = [table[i] for i in members if table[i][4]]
        if not rows:
            continue
        module, where = zo_native._module(hessians[members[0]])
        module.sophia_hessian(
            rows,
            DTYPE_CODES[torch.float64 if kept == torch.float64 else torch.float32],
            DTYPE_CODES[grad],
            _STATES[kept],
            keep,
            weight,
            rounding.seed,
            rounding.step,
            _pointer(inv_scale),
            _pointer(found_inf),
            *where,
        )


def quantize(
    x: Tensor, codes: Tensor, scales: Tensor, hessian: bool, rounding: Rounding | None, stream: int
) -> None:
    """See sophia_reference.quantize."""
    if x.numel():
        module, where = zo_native._module(x)
        at = Rounding() if rounding is None else rounding
        counter = hessian, rounding is not None, at.seed, at.step, stream
        module.sophia_encode((x.data_ptr(), codes.data_ptr(), scales.data_ptr(), x.numel(), *counter), *where)


def dequantize(codes: Tensor, scales: Tensor, out: Tensor, hessian: bool) -> None:
    """See sophia_reference.dequantize."""
    if codes.numel():
        module, where = zo_native._module(codes)
        counter = hessian, False, 0, 0, 0
        module.sophia_decode(
            (out.data_ptr(), codes.data_ptr(), scales.data_ptr(), codes.numel(), *counter), *where
        )

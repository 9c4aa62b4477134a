"""rho="auto": the rho at which the wanted share of coordinates is not clipped."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _sophia_options, _sophia_state
from ._sophia_state import local

if TYPE_CHECKING:
    from ._sophia_step import Buckets, Entry
    from .sophia import Sophia

SAMPLE = 1_000_000  # coordinates, evenly spaced over all


def tune(optimizer: Sophia, buckets: Buckets, bs: float | None) -> bool:
    """Set rho of all groups from the momentum that the step is about to have; False if it overflowed.

    |m| < s h holds for the wanted share where s is that quantile of |m| / h.  Coordinates without curvature
    are always clipped: infinity.  If they are more than may be clipped, rho stays.
    """
    if buckets.found_inf is not None and float(buckets.found_inf) > 0:
        return False
    assert optimizer.target_win_rate is not None
    total = sum(entry.param.numel() for bucket in buckets for entry in bucket.entries)
    stride = max(1, math.ceil(total / SAMPLE))
    ratios: list[Tensor] = []
    for bucket in buckets:
        inv_scale = buckets.inv_scale(bucket.device)
        beta1 = bucket.group["betas"][0]
        ratios += [_ratio(entry, stride, beta1, inv_scale).cpu() for entry in bucket.entries]
    every = torch.cat(ratios)
    if not every.numel():
        return True
    place = min(every.numel(), max(1, math.ceil(optimizer.target_win_rate * every.numel())))
    scale = _agreed(optimizer, float(every.kthvalue(place).values))
    if math.isfinite(scale) and scale > 0:
        for group in optimizer.param_groups:
            per_rho = _sophia_options.denominator_scale({**group, "rho": 1.0}, optimizer.mode, bs)
            group["rho"] = scale / per_rho
    return True


def _ratio(entry: Entry, stride: int, beta1: float, inv_scale: Tensor | None) -> Tensor:
    g = entry.grad.reshape(-1)[::stride].float()
    m = local(_sophia_state.as_float(entry.state, "exp_avg")).reshape(-1)[::stride].float()
    h = local(_sophia_state.as_float(entry.state, "hessian")).reshape(-1)[::stride].float()
    m = beta1 * m + (1 - beta1) * (g if inv_scale is None else g * inv_scale)
    return torch.where(h > 0, m.abs() / h, torch.inf).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _agreed(optimizer: Sophia, scale: float) -> float:
    """The same number on all ranks: the mean over those that hold shards."""
    meshes = [p.device_mesh for group in optimizer.param_groups for p in group["params"] if _is_shard(p)]
    if not meshes:
        return scale
    import torch.distributed as dist

    value = torch.tensor([scale, 1.0], dtype=torch.float64, device=_exchange_device(meshes[0].device_type))
    dist.all_reduce(value)
    return float(value[0] / value[1])


def _is_shard(p: Tensor) -> bool:
    return _sophia_options.is_dtensor(p)


def _exchange_device(kind: str) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else torch.device("cpu")

"""Parameters sharded over processes (DTensor, FSDP2): which of their elements are here.

A direction is a function of the index of an element in the whole tensor, so each rank makes the part of it
that belongs to its rows and never sees the rest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tenfold import _checks

if TYPE_CHECKING:
    from ._parallel import Parallel


def is_sharded(p: Tensor) -> bool:
    """Whether it is a DTensor, of whatever placement."""
    module = sys.modules.get("torch.distributed.tensor")  # that no DTensor can be without
    return module is not None and isinstance(p, module.DTensor)


@torch.no_grad()
def local(p: Tensor) -> Tensor:
    """The tensor itself, or the part of a DTensor that is here, over the same memory."""
    return p.to_local() if is_sharded(p) else p  # type: ignore[attr-defined]


def gathered(p: Tensor) -> Tensor:
    """The whole tensor, on every rank; all of them must ask."""
    return p.full_tensor() if is_sharded(p) else p  # type: ignore[attr-defined]


def locals_of(tensors: Sequence[Tensor]) -> list[Tensor]:
    """`local` of each, detached."""
    return [local(p).detach() for p in tensors]


def first(p: Tensor) -> int:
    """The row-major index, in the whole tensor, of the first element that is here."""
    return _rows(p)[0] * math.prod(p.shape[1:]) if is_sharded(p) else 0


def _sharded_dim(p: Any) -> int | None:
    """The dimension of the mesh over which the rows are dealt out."""
    from torch.distributed.tensor import Shard

    return next((i for i, placement in enumerate(p.placements) if type(placement) is Shard), None)


def _rows(p: Any) -> tuple[int, int]:
    """The first row that is here and the number of rows, as `torch.chunk` deals them out."""
    rows = p.shape[0] if p.ndim else 1
    dim = _sharded_dim(p)
    if dim is None:
        return 0, rows
    each = -(-rows // p.device_mesh.size(dim))
    start = min(p.device_mesh.get_local_rank(dim) * each, rows)
    return start, min(start + each, rows) - start


def check(label: str, p: Any) -> None:
    """TypeError for a DTensor with placements other than rows dealt out over one dimension of the mesh."""
    from torch.distributed.tensor import Replicate, Shard

    rows = [placement for placement in p.placements if type(placement) is Shard and placement.dim == 0]
    others = [placement for placement in p.placements if type(placement) is not Replicate]
    expected = "a DTensor with placements Shard(0), at most once, and Replicate()"
    if len(others) > 1 or others != rows:
        _checks.fail(TypeError, label, expected, f"placements {tuple(p.placements)}")
    here = local(p)
    shape = (_rows(p)[1], *p.shape[1:]) if p.ndim else ()
    if tuple(here.shape) != shape:
        _checks.fail(
            TypeError, label, f"a shard of shape {shape}, as torch.chunk makes them", tuple(here.shape)
        )


def whole(p: Tensor) -> bool:
    """Whether all of its elements are here, on every rank."""
    return not is_sharded(p) or _sharded_dim(p) is None


def owned(p: Tensor, rank: int) -> bool:
    """Whether this rank counts for the elements that it has: each is counted by one rank."""
    if not is_sharded(p):
        return rank == 0
    dim, mesh = _sharded_dim(p), p.device_mesh  # type: ignore[attr-defined]
    return all(mesh.get_local_rank(i) == 0 for i in range(mesh.ndim) if i != dim)


def fsdp_modules(module: nn.Module) -> list[Any]:
    """The modules whose parameters `fully_shard` gathers and frees."""
    found = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(found, "FSDPModule", None)
    return [] if kind is None else [part for part in module.modules() if isinstance(part, kind)]


def reshard(modules: Sequence[Any]) -> None:
    """Let go of gathered parameters: FSDP keeps those of the outermost module after a forward pass, and would
    compute the next one with what they were."""
    for module in modules:
        module.reshard()


def quantiles(params: Sequence[Tensor], q: float, parallel: Parallel, *, together: bool) -> list[float]:
    """`tenfold.ops.quantile_abs` of each tensor, or of all of them `together`, whole tensors counted.

    Bisection over the bits of the result; the ranks exchange counts. An empty tensor gives 0.
    """
    from tenfold.ops import count_within

    wide = {p.dtype == torch.float64 for p in params}
    if together and len(wide) > 1:
        _checks.fail(TypeError, "mask", "parameters all float64 or none with scope='global'", "a mixture")
    here = locals_of(params)
    mine = [owned(p, parallel.rank) for p in params]
    groups = [list(range(len(params)))] if together else [[i] for i in range(len(params))]
    totals = [sum(params[i].numel() for i in group) for group in groups]
    ranks = [max(1, math.ceil(Fraction(q) * total)) if total else 0 for total in totals]
    low = [0] * len(groups)
    high = [_key(math.inf, params[group[0]]) for group in groups]  # a bound is always below it
    while any(a < b for a, b in zip(low, high, strict=True)):
        middle = [(a + b) // 2 for a, b in zip(low, high, strict=True)]
        bounds = [0.0] * len(params)
        for group, key in zip(groups, middle, strict=True):
            for i in group:
                bounds[i] = _value(key, params[i])
        counts = count_within(here, bounds)
        sums = [float(sum(counts[i] for i in group if mine[i])) for group in groups]
        totals_here = parallel.total(sums)
        for k, within in enumerate(totals_here):
            if low[k] < high[k]:
                low[k], high[k] = (low[k], middle[k]) if within >= ranks[k] else (middle[k] + 1, high[k])
    return [_value(key, params[group[0]]) for key, group in zip(low, groups, strict=True)]


def _kinds(p: Tensor) -> tuple[torch.dtype, torch.dtype]:
    wide = p.dtype == torch.float64
    return (torch.float64, torch.int64) if wide else (torch.float32, torch.int32)


def _key(value: float, p: Tensor) -> int:
    """The bits of a number >= 0, which are in the order of the numbers."""
    floating, integer = _kinds(p)
    return int(torch.tensor(value, dtype=floating).view(integer))


def _value(key: int, p: Tensor) -> float:
    floating, integer = _kinds(p)
    return float(torch.tensor(key, dtype=integer).view(floating))

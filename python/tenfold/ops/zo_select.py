"""Over lists of tensors: the norm of a direction, quantiles of |theta|, counts, masks as bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._backend import OPS
from tenfold.kernels.zo.zo_mask import MaskArgs

from . import zo
from .zo import _LIBRARY, DISTRIBUTIONS, Mask, RandomMask

OPS |= dict.fromkeys(("zo_direction_norm", "quantile_abs", "count_within", "magnitude_bits"), zo._ALL)

for _schema in (
    "quantile_abs(Tensor[] params, SymInt rank) -> Tensor",
    "count_within(Tensor[] params, float[] thresholds) -> Tensor",
    "magnitude_bits_(Tensor(a!)[] out, Tensor[] params, float[] thresholds) -> ()",
):
    _LIBRARY.define(_schema)


def _quantile_abs(params: list[Tensor], rank: int) -> Tensor:
    total = sum(p.numel() for p in params)
    _checks.integer("rank", rank, 1, total)
    kernels = zo._kernels("quantile_abs", params[0].device)
    return torch.tensor(kernels.quantile_abs(params, rank), dtype=torch.float64)


def _count_within(params: list[Tensor], thresholds: list[float]) -> Tensor:
    zo._pairs("thresholds", thresholds, params)
    kernels = zo._kernels("count_within", params[0].device)
    return torch.tensor(kernels.count_within(params, thresholds), dtype=torch.int64)


def _magnitude_bits_(out: list[Tensor], params: list[Tensor], thresholds: list[float]) -> None:
    zo._pairs("thresholds", thresholds, params)
    zo._bits("out", out, params)
    zo._kernels("magnitude_bits", params[0].device).magnitude_bits_(out, params, thresholds)
    zo._written(out)


zo._register("quantile_abs", _quantile_abs, lambda params, rank: torch.empty((), dtype=torch.float64))
zo._register(
    "count_within",
    _count_within,
    lambda params, thresholds: torch.empty(len(params), dtype=torch.int64),
)
zo._register("magnitude_bits_", _magnitude_bits_, zo._writes_only)


def zo_direction_norm(
    params_or_numels: Sequence[Tensor] | Sequence[int],
    streams: Sequence[int],
    seed: int,
    query: int,
    dist: str = "gaussian",
    *,
    mask: Mask | None = None,
    device: torch.device | str | None = None,
) -> float:
    """||z|| over all tensors together, in float64, nothing stored: sqrt(d)/||z|| puts a direction on the
    sphere.

    The same bits on every backend: z is squared and summed in float64 over tiles of 2,048 elements in a fixed
    order, and tiles and tensors are joined pairwise.

    Args:
        params_or_numels: the tensors, or their numbers of elements.
        streams: one integer in [0, 2^32) per tensor.
        dist: "gaussian", "rademacher" or "gauss16".
        mask: masked elements count as 0; a MagnitudeMask or BitMask needs the tensors.
        device: where to generate; default: the tensors' device, else the CPU.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    given = list(_checks.sequence("params_or_numels", params_or_numels, "tensors or integers"))
    if all(isinstance(v, int) and not isinstance(v, bool) for v in given):
        params: list[Tensor] = []
        numels = [_checks.integer(f"params_or_numels[{i}]", v, 0, 2**62) for i, v in enumerate(given)]
    else:
        params = zo._tensors("params_or_numels", given, write=False)
        zo._one_device("params_or_numels", params)
        numels = [p.numel() for p in params]
    where = (
        torch.device(device) if device is not None else params[0].device if params else torch.device("cpu")
    )
    streams = zo._streams(streams, numels)
    seed, query = _checks.seed("seed", seed), _checks.query("query", query)
    dist = _checks.choice("dist", dist, DISTRIBUTIONS)
    masking = _norm_mask(mask, params, numels)
    if not numels:
        return 0.0
    looked_at = params if masking is not None and masking.kind == "magnitude" else []
    kernels = zo._kernels("zo_direction_norm", where)
    sums = kernels.square_sums(numels, streams, seed, query, dist, where, masking, looked_at)
    from tenfold.kernels.zo.zo_select_reference import pairwise_sum

    return math.sqrt(pairwise_sum(sums))


def quantile_abs(params: Sequence[Tensor], q: float) -> float:
    """The q-quantile of abs(theta) over all elements of all tensors, exactly, without a copy of them.

    The smallest v such that at least ceil(q * d) of the d elements are <= v (the product exact, q as the
    float it is); q = 0 gives the minimum. NaN sorts last. A radix select that needs less than 1 MiB.

    Args:
        params: tensors of any shape and strides, float32, bfloat16, float16 or float64, on one device, with
            at least one element in all.
        q: in [0, 1].

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    tensors = _read("params", params)
    q = _checks.real("q", q, at_least=0.0)
    if q > 1.0:
        _checks.fail(ValueError, "q", "a number in [0, 1]", q)
    total = sum(t.numel() for t in tensors)
    if total == 0:
        _checks.fail(ValueError, "params", "at least one element", 0)
    rank = max(1, math.ceil(Fraction(q) * total))
    return float(torch.ops.tenfold.quantile_abs(tensors, rank).item())


def count_within(params: Sequence[Tensor], thresholds: float | Sequence[float]) -> list[int]:
    """How many elements of each tensor have abs(theta) <= threshold, compared as `MagnitudeMask` does.

    Args:
        params: as in `quantile_abs`; empty lists and tensors are fine.
        thresholds: >= 0, one for all tensors or one per tensor.
    """
    tensors = _read("params", params)
    bounds = zo._thresholds("thresholds", thresholds, tensors)
    if not tensors:
        return []
    counts: list[int] = torch.ops.tenfold.count_within(tensors, bounds).tolist()
    return counts


def magnitude_bits(params: Sequence[Tensor], thresholds: float | Sequence[float]) -> list[Tensor]:
    """One uint8 tensor [ceil(n / 8)] per tensor with bit i % 8 of byte i // 8 set where abs(theta_i) <=
    threshold.

    For `BitMask`: a mask of the small weights that stays as it is while they move. Arguments as
    `count_within`.
    """
    tensors = _read("params", params)
    bounds = zo._thresholds("thresholds", thresholds, tensors)
    out = [torch.empty((t.numel() + 7) // 8, dtype=torch.uint8, device=t.device) for t in tensors]
    if out:
        torch.ops.tenfold.magnitude_bits_(out, tensors, bounds)
    return out


def _read(name: str, values: Sequence[Tensor]) -> list[Tensor]:
    tensors = [t.detach() for t in zo._tensors(name, values, write=False)]
    zo._one_device(name, tensors)
    return tensors


def _norm_mask(mask: Mask | None, params: list[Tensor], numels: list[int]) -> MaskArgs | None:
    if mask is None:
        return None
    if not params:
        if not isinstance(mask, RandomMask):
            _checks.fail(TypeError, "mask", "None or RandomMask without tensors", _checks.describe(mask))
        params = [torch.empty(0)] * len(numels)  # only their number matters
    kind, seed, query, values, bits = zo._mask(mask, params)
    return MaskArgs(kind, zo._unsigned(seed), query, values, bits or [])

"""The compiled perturbed layers behind the signatures of dual_reference.py: tensors in, raw pointers out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tenfold._native import DTYPE_CODES
from tenfold.kernels.zo import zo_native
from tenfold.kernels.zo.zo_reference import PURPOSES
from torch import Tensor

from . import linear as blocks


def _weight(
    weight: Tensor, seed: int, stream: int, query: int, dist: str, z_round: torch.dtype | None
) -> tuple[Any, ...]:
    return (
        weight.data_ptr(),
        weight.shape[1],
        *weight.stride(),
        DTYPE_CODES[weight.dtype],
        seed,
        stream,
        query,
        PURPOSES[dist],
        zo_native._code(z_round),
    )


def fill(
    weight: Tensor,
    row: int,
    outs: Sequence[Tensor],
    coefs: Sequence[float],
    seed: int,
    stream: int,
    query: int,
    dist: str,
    z_round: torch.dtype | None,
) -> None:
    """See dual_reference.fill: contiguous outs of one shape, in the dtype of the weight or float32."""
    module, where = zo_native._module(weight)
    targets = [(out.data_ptr(), coef, 0) for out, coef in zip(outs, coefs, strict=True)]
    what = _weight(weight, seed, stream, query, dist, z_round)
    module.dual_fill(what, row, outs[0].shape[0], targets, DTYPE_CODES[outs[0].dtype], *where)


def embed(
    weight: Tensor,
    ids: Sequence[Tensor],
    outs: Sequence[Tensor],
    coefs: Sequence[float],
    seed: int,
    stream: int,
    query: int,
    dist: str,
    z_round: torch.dtype | None,
) -> None:
    """See dual_reference.embed: contiguous int64 ids and outs of the weight's dtype."""
    module, where = zo_native._module(weight)
    targets = [
        (out.data_ptr(), coef, index.data_ptr()) for out, index, coef in zip(outs, ids, coefs, strict=True)
    ]
    what = _weight(weight, seed, stream, query, dist, z_round)
    module.dual_embed(what, ids[0].numel(), targets, *where)


def linear(*arguments: Any) -> Tensor:
    """See linear.linear."""
    return blocks.linear(fill, *arguments)

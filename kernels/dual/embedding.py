"""Looking up rows of a perturbed embedding: grouping of the copies, the same for every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# embed(weight, ids, outs, coefs, seed, stream, query, dist, z_round)
Embed = Callable[
    [Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[float], int, int, int, str, "torch.dtype | None"],
    None,
]


def embedding(
    embed: Embed,
    ids: Tensor,
    weight: Tensor,
    seed: int,
    stream: int,
    queries: Sequence[int],
    coefs: Sequence[float],
    dist: str,
    z_round: torch.dtype | None,
) -> Tensor:
    """y[p] = W[ids[p]] + coef_p z[ids[p]], [P, ..., K] in the dtype of W."""
    k = weight.shape[1]
    flat = ids.reshape(ids.shape[0], -1).to(torch.int64).contiguous()
    out = torch.empty(*flat.shape, k, dtype=weight.dtype, device=weight.device)
    groups: dict[int, list[int]] = {}
    for p, (query, coef) in enumerate(zip(queries, coefs, strict=True)):
        if coef == 0.0:
            torch.index_select(weight, 0, flat[p], out=out[p])
        else:
            groups.setdefault(query, []).append(p)
    if out.numel():
        for query, members in groups.items():
            embed(
                weight,
                [flat[p] for p in members],
                [out[p] for p in members],
                [coefs[p] for p in members],
                seed,
                stream,
                query,
                dist,
                z_round,
            )
    return out.view(*ids.shape, k)

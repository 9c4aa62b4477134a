"""From the projected gradients of several queries to factors of their directions."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 16  # elements of a direction held at a time


def gram(
    params: list[Tensor], streams: list[int], seed: int, queries: int, dist: str, z_round: torch.dtype | None
) -> Tensor:
    """Inner products of all pairs of directions, float64 [queries, queries]; nothing large is stored."""
    from tenfold.ops import zo_sample

    total = torch.zeros(queries, queries, dtype=torch.float64)
    for p, stream in zip(params, streams, strict=True):
        for first in range(0, p.numel(), _CHUNK):
            n = min(_CHUNK, p.numel() - first)
            z = torch.stack(
                [
                    zo_sample(seed, stream, i, first=first, n=n, dist=dist, device=p.device)
                    for i in range(queries)
                ]
            )
            z = z.double() if z_round is None else z.to(z_round).double()
            total += (z @ z.T).cpu()
    return total


def least_squares(projected: list[float], products: Tensor, d: int) -> list[float]:
    """w such that (1/q) sum_i w_i z_i has projected gradient (q/d) g_i along every z_i.

    w = d (Z^T Z)^-1 g: in expectation over the directions the estimate is the gradient, as is that of the
    mean, while the noise that directions make in one another's projections is gone.
    """
    g = torch.tensor(projected, dtype=torch.float64)
    w = d * torch.linalg.lstsq(products, g.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    return [float(v) for v in w]

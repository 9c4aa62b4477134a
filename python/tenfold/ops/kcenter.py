"""Greedy k-center: a few rows that leave no other row far from all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._backend import OPS
from tenfold.kernels.distance.shards import NotFinite

from ._shards import Features, features, rows_of
from .distance import DISTANCE_BACKENDS, METRICS, kernels, not_finite

OPS |= {"kcenter_greedy": DISTANCE_BACKENDS}
STARTS = ("farthest_from_mean", "random")

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_LIBRARY.define(
    "kcenter_greedy(Tensor[] x, int k, int[] start, int[] first, bool farthest, bool cosine, int lookahead, "
    "bool prune, bool check) -> (Tensor indices, Tensor radius, Tensor min_distance, Tensor owner)"
)


class KCenter(NamedTuple):
    """What `kcenter_greedy` picks from N rows.

    indices: int64 [k], the rows in the order in which they were picked.

    radius: float32 [k], the largest distance of any row to its nearest centre after each pick.

    min_distance: float32 [N], the distance of each row to its nearest centre at the end.

    owner: int32 [N], the row number of that centre, of equals the one picked first.
    """

    indices: Any
    radius: Any
    min_distance: Any
    owner: Any


def kcenter_greedy(
    x: Any,
    k: int,
    *,
    init: Any = "farthest_from_mean",
    metric: str = "l2",
    lookahead: int = 128,
    prune: bool = True,
    seed: int = 0,
    check: bool = True,
) -> KCenter:
    """Picks k rows, each the farthest from all picked before it: at most twice the best covering radius
    (Gonzalez, Theoretical Computer Science 38, 1985; as coreset: Sener and Savarese, arXiv 1708.00489).

    Exact and the same everywhere: distances are differences summed in float64 and rounded to float32, and of
    rows equally far the one with the smaller number is picked.

    Args:
        x: features [N, d], float32, bfloat16, float16 or float64 (the last through the reference), or a list
            of such shards. Memory-mapped arrays are read in blocks, once per pass.
        k: how many rows to pick, 0 to N (less those of `init`, where it is a list).
        init: the first pick: "farthest_from_mean", "random" (by `seed`) or a row number. A list of row
            numbers is what is a centre already and not picked again.
        metric: "l2", or "cosine" for |a/|a| - b/|b|| = sqrt(2 - 2 cos); a row of zeros stays zero.
        lookahead: rows measured in one pass over x, those that are farthest at its start; picks are made from
            them as long as the farthest row is one of them. 1 to 256. No matter for the result.
        prune: leave out rows which the triangle inequality shows to be nearer to the centre that they have.
            No matter for the result.
        seed: of "random".
        check: whether values that are not finite are looked for. Without it they give an undefined result.

    Returns:
        KCenter. Distances are float64 for float64 `x`.

    Raises:
        TypeError, ValueError: wrong kinds or shapes, k > N, row numbers out of range or repeated, a row that
            is not finite.
    """
    data = features("x", x)
    cosine = _checks.choice("metric", metric, METRICS) == "cosine"
    lookahead = _checks.integer("lookahead", lookahead, 1, 256)
    seed = _checks.seed("seed", seed)
    start, first, farthest = _start(init, seed, data)
    k = _checks.integer("k", k, 0, data.rows - len(start))
    options = (start, first, farthest, cosine, lookahead, bool(prune), bool(check))
    found = torch.ops.tenfold.kcenter_greedy(data.shards, k, *options)
    return KCenter(*(data.kind(t) for t in found))


def _start(init: Any, seed: int, data: Features) -> tuple[list[int], list[int], bool]:
    """(centres there are, first pick, whether it is the row farthest from the mean)."""
    if isinstance(init, str):
        _checks.choice("init", init, STARTS)
        if init == "farthest_from_mean" or data.rows == 0:
            return [], [], data.rows > 0
        from tenfold.kernels.distance.kmeans import uniform

        return [], [int(uniform(seed, 0)[0] * data.rows)], False
    if hasattr(init, "ndim") and init.ndim == 0:
        init = init.item()
    if hasattr(init, "__len__"):
        return rows_of("init", init, data.rows), [], False
    return [], [_checks.integer("init", init, 0, data.rows - 1)], False


def _kcenter(
    x: list[Tensor],
    k: int,
    start: list[int],
    first: list[int],
    farthest: bool,
    cosine: bool,
    lookahead: int,
    prune: bool,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    module = kernels("kcenter_greedy", x[0].device)
    if farthest and k:
        first = [module.farthest_from(x, module.mean(x, cosine), cosine)]
    rows = (torch.tensor(given, dtype=torch.int64) for given in (start, first))
    try:
        found = module.kcenter(x, k, *rows, cosine, lookahead, prune, check)
    except NotFinite as error:
        not_finite("x", x, error.row)
    return found.picked, found.radius.sqrt(), found.distance.sqrt(), found.owner


def _kcenter_fake(x: list[Tensor], k: int, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = sum(s.shape[0] for s in x)
    dtype = torch.float64 if x[0].dtype == torch.float64 else torch.float32
    return (
        x[0].new_empty(k, dtype=torch.int64),
        x[0].new_empty(k, dtype=dtype),
        x[0].new_empty(rows, dtype=dtype),
        x[0].new_empty(rows, dtype=torch.int32),
    )


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("kcenter_greedy", _kcenter, _device)
torch.library.register_fake("tenfold::kcenter_greedy", _kcenter_fake, lib=_LIBRARY)

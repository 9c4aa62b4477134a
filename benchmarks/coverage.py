"""Facility location of a cloud of points, against the packages that choose such subsets today.

Every side starts from the points: what a package needs of similarities is its own work.  Sides agree when
the objectives of their picks do, computed for all of them in the same way.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .harness import Agreement, Case, Side, Work, Workload
from .installed import missing
from .zo import _backend, _version

POINTS, WIDTH, PICKS = 10_000, 64, 200


def _apricot(x: np.ndarray[Any, Any], k: int) -> list[int]:
    """Lazy greedy on the dense float64 matrix of max d^2 - d^2."""
    apricot = import_module("apricot")
    found = apricot.FacilityLocationSelection(k, metric="euclidean", optimizer="lazy").fit(x)
    return [int(j) for j in found.ranking]


def _warm_apricot(x: np.ndarray[Any, Any]) -> str | None:
    """numba compiles before the clock runs."""
    why = missing("apricot")
    if why is None:
        _apricot(x[:60], 3)
    return why


def _submodlib(x: np.ndarray[Any, Any], k: int) -> list[int]:
    """LazyGreedy on the same matrix, in float32."""
    functions = import_module("submodlib")
    norms = (x * x).sum(1)
    square = np.maximum(norms[:, None] + norms[None] - 2.0 * (x @ x.T), 0.0)
    cover = functions.FacilityLocationFunction(
        n=len(x), mode="dense", sijs=(square.max() - square).astype(np.float32), separate_rep=False
    )
    options = {"stopIfZeroGain": False, "stopIfNegativeGain": False, "verbose": False}
    picks = cover.maximize(budget=k, optimizer="LazyGreedy", show_progress=False, **options)
    return [j for j, _ in picks]


def _uncovered(x: Tensor, picks: Any) -> float:
    """sum_i min_{j in picks} |x_i - x_j|^2, float64: what the objective is short of N max d^2."""
    z = x.double().cpu()
    chosen = z[torch.as_tensor(picks).cpu()]
    norms, own = z.square().sum(1), chosen.square().sum(1)
    return float((norms[:, None] + own[None] - 2.0 * z @ chosen.T).amin(1).sum())


def _facility(device: torch.device, tiny: bool) -> Workload:
    from tenfold.ops import fl_greedy

    n, k = (200, 5) if tiny else (POINTS, PICKS)
    x = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))
    wide = x.double().numpy()
    here = x.to(device)

    def agree(ours: list[int], theirs: list[int]) -> Agreement:
        mine, other = _uncovered(x, ours), _uncovered(x, theirs)
        gap = abs(other - mine) / mine
        return Agreement(gap <= 1e-4, gap, 1e-4, "relative difference of what the picks leave uncovered")

    def reference() -> list[int]:
        from tenfold.kernels.coverage import coverage_reference
        from tenfold.kernels.coverage.problem import Similarity, Wanted

        s = Similarity(points=here, kind="sqeuclidean", rows=n)
        picks: list[int] = coverage_reference.fl_greedy(s, Wanted(k)).indices.tolist()
        return picks

    return Workload(
        ours=Side(
            "tenfold",
            lambda: fl_greedy(here, k).indices,
            version=_version(),
            kind="ours",
            backend=partial(_backend, "fl_greedy", device),
        ),
        others=[
            Side(
                "reference",
                reference,
                version=f"torch {torch.__version__}",
                kind="reference",
                agree=agree,
                fewest=1,
            ),
            Side(
                "apricot",
                partial(_apricot, wide, k),
                version="apricot-select, lazy, compiled before",
                agree=agree,
                prepare=partial(_warm_apricot, wide),
            ),
            Side(
                "submodlib",
                partial(_submodlib, wide, k),
                version="submodlib-py, LazyGreedy",
                agree=agree,
                prepare=partial(missing, "submodlib"),
                fewest=1,
            ),
        ],
        work=Work(bytes=float(x.nbytes), flops=2.0 * n * n * WIDTH),
        keep=lambda result: [int(j) for j in result],
        note=f"{k} of {n} points in {WIDTH} dimensions, squared distances, lazy greedy from the points on; "
        "the floor is that of one gain per point",
    )


def cases() -> list[Case]:
    """The cases of the family."""
    return [Case("selection.facility_location.f32.10kx64-k200", _facility)]

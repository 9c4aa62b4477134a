"""Distances of two sets of pictures by their features: FID, KID and CMMD.

A number means nothing without the network that made the features, so each result's label has its name:
`FID[judge-192]`. A bare "FID", "KID" or "CMMD" is for the features with which these were published.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold.kernels.moments import poly_reference
from tenfold.metrics._base import base
from tenfold.ops.kernel_mmd import _pair, mmd2_rbf
from tenfold.ops.moments import Moments, _features, frechet_distance, moments_merge, moments_update

__all__ = [
    "CLIPMaximumMeanDiscrepancy",
    "FrechetInceptionDistance",
    "KernelInceptionDistance",
    "clip_mmd",
    "frechet_distance",
    "kernel_distance",
    "score_label",
]

STANDARD = {
    "FID": "pt_inception-2015-12-05",
    "KID": "pt_inception-2015-12-05",
    "CMMD": "clip-vit-large-patch14-336",
}
"""The features with which a score has its bare name."""


def score_label(score: str, features: str) -> str:
    """`FID[judge-192]`; the bare name for the features with which the score was published.

    Raises:
        ValueError: an unknown score, or no name for the features.
    """
    _checks.choice("score", score, STANDARD)
    if not isinstance(features, str) or not features.strip():
        _checks.fail(ValueError, "name", "the name of the features", repr(features))
    return score if features == STANDARD[score] else f"{score}[{features}]"


def kernel_distance(
    x: Any,
    y: Any,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    gamma: float | None = None,
    coef: float = 1.0,
    seed: int = 2020,
) -> tuple[Any, Any]:
    """KID: mean and deviation of unbiased squared MMDs of random subsets (arXiv 1801.01401).

    All subsets come from one pass over the kernel matrix, a tile at a time. They are those that
    torch-fidelity draws from the same seed, so that its numbers are met.

    Args:
        x, y: features [N, d] and [M, d], float32 or float64.
        subsets, subset_size: how many and how large; a size above N or M is an error.
        degree, gamma, coef: the kernel (gamma a.b + coef)^degree; gamma None is 1 / d.
        seed: of the subsets.

    Returns:
        Two float64 scalars; the deviation divides by the number of subsets, not by one less.

    Raises:
        TypeError, ValueError: as for `tenfold.ops.mmd2_poly`, or a subset larger than a set.
    """
    a, b = _pair(x, y, 2)
    subsets = _checks.integer("subsets", subsets, 1, 10**6)
    size = _checks.integer("subset_size", subset_size, 2, 10**9)
    if size > min(len(a), len(b)):
        _checks.fail(ValueError, "subset_size", f"at most {min(len(a), len(b))}, the smaller set", size)
    degree = _checks.integer("degree", degree, 1, 16)
    gamma = 1.0 / a.shape[1] if gamma is None else _checks.real("gamma", gamma, positive=True)
    kernel = poly_reference.Poly(degree, gamma, _checks.real("coef", coef))
    picks = _subsets(len(a), len(b), subsets, size, _checks.integer("seed", seed, 0, 2**32 - 1))
    places = (picks[0].to(a.device), picks[1].to(a.device))
    with torch.no_grad():
        found = poly_reference.subset_mmd2(a.detach(), b.detach(), places, kernel)
    kind = _arrays.kind_of(x)
    return kind(found.mean()), kind(found.std(correction=0))


def _subsets(n: int, m: int, subsets: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Places [subsets, size] in the two sets, drawn in turns as torch-fidelity draws them."""
    draw = np.random.RandomState(seed)
    picks = [[draw.choice(many, size, replace=False) for many in (n, m)] for _ in range(subsets)]
    one, other = (torch.from_numpy(np.stack([pick[side] for pick in picks])) for side in (0, 1))
    return one, other


def clip_mmd(x: Any, y: Any, *, sigma: float = 10.0, scale: float = 1000.0) -> Any:
    """CMMD: biased squared MMD with a Gaussian kernel of embeddings of length one (arXiv 2401.09603).

    Args:
        x, y: embeddings [N, d] and [M, d], float32 or float64; brought to length one here.
        sigma: the kernel of a distance r is exp(-r^2 / (2 sigma^2)).
        scale: what the squared MMD is multiplied by.

    Returns:
        A float64 scalar.

    Raises:
        TypeError, ValueError: as for `tenfold.ops.mmd2_poly`, or an embedding of zeros.
    """
    a, b = _pair(x, y, 1)
    scale = _checks.real("scale", scale, positive=True)
    with torch.no_grad():
        units = [_unit(name, points.detach().double()) for name, points in (("x", a), ("y", b))]
        found = mmd2_rbf(*units, sigma=sigma)
    return _arrays.kind_of(x)(found * scale)


def _unit(name: str, points: Tensor) -> Tensor:
    lengths = points.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        _checks.fail(ValueError, name, "embeddings that are not all zero", "one of zeros")
    return points / lengths


# ---- classes ---------------------------------------------------------------------------------------------

# States are flat float64 lists, so that any framework can join them: a record is [kind, n, d, then the n rows
# (kind 0), or mean and scatter (kind 1)].
_ROWS, _MOMENTS = 0, 1


def _record(kind: int, n: int, size: int, *parts: Tensor) -> Tensor:
    head = parts[0].new_tensor([kind, n, size], dtype=torch.float64)
    return torch.cat([head, *(part.double().flatten() for part in parts)])


def _records(flat: Tensor) -> list[tuple[Tensor | None, Moments | None]]:
    found: list[tuple[Tensor | None, Moments | None]] = []
    at = 0
    while at < len(flat):
        kind, n, size = (int(v) for v in flat[at : at + 3])
        at += 3
        if kind == _ROWS:
            found.append((flat[at : at + n * size].view(n, size), None))
            at += n * size
        else:
            scatter = flat[at + size : at + size + size * size].view(size, size)
            found.append((None, Moments(n, flat[at : at + size], scatter)))
            at += size + size * size
    return found


class _FeatureDistance(base()):  # type: ignore[misc]
    """Two sets of features, gathered over batches and processes."""

    real: Any
    fake: Any
    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    score = "FID"

    def __init__(
        self,
        feature: Callable[[Any], Tensor] | None = None,
        *,
        name: str,
        reset_real_features: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if feature is not None and not callable(feature):
            expected = "a callable from pictures to features [N, D], or None where features are given"
            _checks.fail(TypeError, "feature", expected, _checks.describe(feature))
        self.feature = feature
        self.label = score_label(self.score, name)
        self.reset_real_features = bool(reset_real_features)
        if hasattr(self, "set_dtype"):  # of what torchmetrics sends for a process without pictures
            self.set_dtype(torch.float64)
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, imgs: Any, real: bool) -> None:
        """Take a batch of pictures in (features, without `feature`); real or generated ones."""
        if self.feature is None:
            rows = _features("imgs", imgs)
        else:
            with torch.no_grad():
                rows = _features("feature(imgs)", self.feature(imgs))
        side = "real" if real else "fake"
        own = getattr(self, side)
        setattr(self, side, self._taken([*own] if isinstance(own, (list, tuple)) else [own], rows))

    def _taken(self, held: list[Tensor], rows: Tensor) -> list[Tensor]:
        return [*held, _record(_ROWS, *rows.shape, rows)]

    def reset(self) -> None:
        """Forget all pictures; the real ones only with `reset_real_features`."""
        kept = None if self.reset_real_features else list(self.real)  # torchmetrics empties the list itself
        super().reset()
        if kept is not None:
            self.real = kept

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Not defined: a batch is of one kind, and has no distance of its own."""
        raise NotImplementedError(f"{self.label}: expected update and compute, got a call of the metric")

    def compute(self) -> Any:
        """The score of all pictures so far, of all processes."""
        return self._value(gather=True)

    def _side(self, side: str, gather: bool) -> list[tuple[Tensor | None, Moments | None]]:
        held = self._gathered(side, gather) if hasattr(self, "_gathered") else getattr(self, side)
        records = held if isinstance(held, (list, tuple)) else [held]
        found = [part for flat in records for part in _records(flat)]
        if not found:
            kind = "real" if side == "real" else "generated"
            _checks.fail(RuntimeError, "compute", f"{kind} pictures given to update before", "none")
        return found

    def _rows(self, side: str, gather: bool) -> Tensor:
        return torch.cat([rows for rows, _ in self._side(side, gather) if rows is not None])


class FrechetInceptionDistance(_FeatureDistance):
    """`frechet_distance` over batches, with the protocol of TorchMetrics' class of this name.

    Features are kept while there are no more of them than dimensions, for which the distance is made from
    the rows themselves; beyond that, their moments. Memory is that of two covariances.

    Args:
        feature: pictures to features [N, D], a callable; None: `update` takes features.
        name: of the features; `label` is "FID[name]", and "FID" for "pt_inception-2015-12-05" alone.
        reset_real_features: whether `reset` forgets real pictures too.
    """

    score = "FID"

    def _taken(self, held: list[Tensor], rows: Tensor) -> list[Tensor]:
        records = super()._taken(held, rows)
        joined = _joined([part for flat in records for part in _records(flat)])
        if isinstance(joined, Tensor):
            return records
        return [_record(_MOMENTS, joined.n, len(joined.mean), joined.mean, joined.scatter)]

    def _value(self, gather: bool) -> Tensor:
        found: Tensor = frechet_distance(*(_joined(self._side(side, gather)) for side in ("real", "fake")))
        return found


def _joined(parts: list[tuple[Tensor | None, Moments | None]]) -> Tensor | Moments:
    """Rows while no more than dimensions, else moments."""
    rows = [r for r, _ in parts if r is not None]
    sizes = {r.shape[1] for r in rows} | {len(m.mean) for _, m in parts if m is not None}
    if len(sizes) > 1:
        _checks.fail(ValueError, "imgs", "features of one size", sorted(sizes))
    if all(m is None for _, m in parts) and sum(map(len, rows)) <= next(iter(sizes)):
        return torch.cat(rows)
    state = moments_update(torch.cat(rows)) if rows else None
    for _, found in parts:
        if found is not None:
            state = found if state is None else moments_merge(state, found)
    assert state is not None
    return state


class KernelInceptionDistance(_FeatureDistance):
    """`kernel_distance` over batches; `compute` returns (mean, deviation) as TorchMetrics' class does.

    Args:
        feature, name, reset_real_features: as `FrechetInceptionDistance`.
        subsets, subset_size, degree, gamma, coef, seed: as `kernel_distance`.
    """

    score = "KID"

    def __init__(
        self, feature: Callable[[Any], Tensor] | None = None, *, name: str, subsets: int = 100,
        subset_size: int = 1000, degree: int = 3, gamma: float | None = None, coef: float = 1.0,
        seed: int = 2020, reset_real_features: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(feature, name=name, reset_real_features=reset_real_features, **options)
        self.given: dict[str, Any] = {"subsets": subsets, "subset_size": subset_size, "seed": seed}
        self.given |= {"degree": degree, "gamma": gamma, "coef": coef}

    def _value(self, gather: bool) -> tuple[Tensor, Tensor]:
        return kernel_distance(self._rows("real", gather), self._rows("fake", gather), **self.given)


class CLIPMaximumMeanDiscrepancy(_FeatureDistance):
    """`clip_mmd` over batches.

    Args:
        feature, name, reset_real_features: as `FrechetInceptionDistance`; `label` is "CMMD" for
            "clip-vit-large-patch14-336" alone.
        sigma, scale: as `clip_mmd`.
    """

    score = "CMMD"

    def __init__(
        self, feature: Callable[[Any], Tensor] | None = None, *, name: str, sigma: float = 10.0,
        scale: float = 1000.0, reset_real_features: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(feature, name=name, reset_real_features=reset_real_features, **options)
        self.sigma, self.scale = sigma, scale

    def _value(self, gather: bool) -> Tensor:
        found: Tensor = clip_mmd(
            self._rows("real", gather), self._rows("fake", gather), sigma=self.sigma, scale=self.scale
        )
        return found

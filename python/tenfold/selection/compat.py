"""Selectors under the names and with the manners of other libraries: anomalib, apricot.

from tenfold.selection.compat import KCenterGreedy              # anomalib.models.components
from tenfold.selection.compat import FacilityLocationSelection  # apricot
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks, ops
from tenfold.selection.coverage import FacilityLocation
from tenfold.selection.inputs import as_rows, num_rows, take

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FacilityLocationSelection", "KCenterGreedy", "sparse_projection"]


class KCenterGreedy:
    """anomalib's `KCenterGreedy(embedding, sampling_ratio)`, the coreset of PatchCore (arXiv 2106.08265).

    The embedding is projected to fewer dimensions, a first row is drawn, and rows are picked, each the
    farthest from all before it. In PatchCore::

        import anomalib.models.image.patchcore.torch_model as patchcore
        patchcore.KCenterGreedy = tenfold.selection.compat.KCenterGreedy

    Args:
        embedding: [N, d]; with more dimensions all but the first are flattened and nothing is projected.
        sampling_ratio: int(N * sampling_ratio) rows are picked, at least one.
        include_first: whether the first row is the first pick. Releases of anomalib left it out of the
            result, although all distances are measured from it too (its issue 3459): False makes their
            memory bank.
        projection: project to the dimensions that keep squared distances within 90 % (Johnson and
            Lindenstrauss; sparse signs after Li et al., KDD 2006), as anomalib does. False measures the rows
            as they are.
        first: the first row; drawn by `seed` if None.
        seed: of the projection and the first row.
        verbose: show progress.

    Raises:
        ValueError: a ratio outside (0, 1], or one that keeps no row; all rows asked for without the first
            one.
    """

    def __init__(
        self,
        embedding: Tensor,
        sampling_ratio: float,
        *,
        include_first: bool = True,
        projection: bool = True,
        first: int | None = None,
        seed: int = 0,
        verbose: bool = False,
    ) -> None:
        if not isinstance(embedding, Tensor) or embedding.ndim < 2:
            got = list(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
            _checks.fail(ValueError, "embedding", "a tensor [N, d]", got)
        ratio = _checks.real("sampling_ratio", sampling_ratio, positive=True)
        if ratio > 1:
            _checks.fail(ValueError, "sampling_ratio", "a share in (0, 1]", ratio)
        self.embedding = embedding
        n = len(embedding)
        self.coreset_size = int(n * ratio)
        if self.coreset_size == 0:
            _checks.fail(ValueError, "sampling_ratio", f"a share that keeps one of {n} rows", ratio)
        if not include_first and self.coreset_size >= n:
            want = "fewer than all rows, or include_first=True (the first row is never in the result)"
            _checks.fail(ValueError, "sampling_ratio", want, ratio)
        self.include_first, self.projection, self.verbose = include_first, projection, verbose
        self.first = None if first is None else _checks.integer("first", first, 0, n - 1)
        self.seed = _checks.seed("seed", seed)
        self.min_distances: Tensor | None = None

    def select_coreset_idxs(self, selected_idxs: Sequence[int] | None = None) -> list[int]:
        """Row numbers of the coreset, in the order of selection.

        Args:
            selected_idxs: rows that are covered already and not picked again; there is no drawn first row
                then.
        """
        n, size = len(self.embedding), self.coreset_size
        rows = self.features()
        covered = [] if selected_idxs is None else [int(i) for i in selected_idxs]
        if covered:
            if len(covered) + size > n:
                want = f"at most {n - size} rows beside the {size} to pick"
                _checks.fail(ValueError, "selected_idxs", want, len(covered))
            return self._picked(rows, size, covered)
        first = self.first
        if first is None:
            draw = torch.Generator().manual_seed(self.seed % 2**63)
            first = int(torch.randint(n, (1,), generator=draw))
        if self.include_first:
            return self._picked(rows, size, first)
        return self._picked(rows, size + 1, first)[1:]

    def sample_coreset(self, selected_idxs: Sequence[int] | None = None) -> Tensor:
        """The chosen rows of the embedding."""
        return self.embedding[self.select_coreset_idxs(selected_idxs)]

    def features(self) -> Tensor:
        """What distances are measured between: the projected, or flattened, embedding."""
        if self.embedding.ndim > 2:
            return self.embedding.reshape(len(self.embedding), -1)
        rows: Tensor = as_rows("embedding", self.embedding)
        if not self.projection:
            return rows
        matrix = sparse_projection(len(rows), rows.shape[1], seed=self.seed)
        return rows.float() @ matrix.to(rows.device)

    def _picked(self, rows: Tensor, k: int, init: Any) -> list[int]:
        if self.verbose:
            from tenfold.selection.ranks import Alone
            from tenfold.selection.sharded import kcenter_rounds

            options: dict[str, Any] = {"metric": "l2", "lookahead": 32, "seed": 0, "verbose": True}
            found = kcenter_rounds(Alone(len(rows)), rows, k, init=init, **options)
        else:
            found = ops.kcenter_greedy(rows, k, init=init)
        self.min_distances = found.min_distance
        indices: list[int] = found.indices.tolist()
        return indices


def sparse_projection(n: int, d: int, *, eps: float = 0.9, seed: int = 0) -> Tensor:
    """float32 [d, components]: a sparse random projection that keeps distances of `n` points within 1 +- eps.

    4 ln n / (eps^2 / 2 - eps^3 / 3) components (Dasgupta and Gupta, 2003), at most d; entries are
    +-sqrt(sqrt(d) / components) with probability 1 / (2 sqrt d) each, else 0 (Li, Hastie and Church, KDD
    2006).
    """
    eps = _checks.real("eps", eps, positive=True, below=1.0)
    wanted = int(4 * math.log(max(n, 2)) / (eps**2 / 2 - eps**3 / 3))
    components = max(1, min(wanted, d))
    density = 1 / math.sqrt(d)
    draw = torch.Generator().manual_seed(seed % 2**63)
    u = torch.rand(d, components, generator=draw)
    signs = (u < density / 2).float() - (u > 1 - density / 2).float()
    return signs * math.sqrt(1 / (density * components))


_METRICS = {"euclidean": "sqeuclidean", "cosine": "cosine2", "precomputed": "precomputed"}
_OPTIMIZERS = {
    "naive": "naive",
    "lazy": "lazy",
    "two-stage": "lazy",
    "stochastic": "stochastic",
    "sample": "stochastic",
    "approximate-lazy": "lazier",
}


class FacilityLocationSelection:
    """apricot's `FacilityLocationSelection`: `fit`, `transform`, `ranking`, `gains`.

    Computes in float32 (apricot: float64 alone) and holds no matrix of all pairs: memory grows with N.

    Args:
        n_samples: how many rows to pick.
        metric: "euclidean" (the largest squared distance less the squared distance), "cosine" (cos^2) or
            "precomputed" (X is the matrix of similarities, dense or SciPy sparse).
        initial_subset: rows, or a mask of rows, that are chosen from the start.
        optimizer: "lazy", "two-stage" and "naive" give the greedy picks; "stochastic" and "approximate-lazy"
            look at random samples of candidates.
        optimizer_kwds: {"epsilon": ...} for the last two: .01 by default. apricot's .9 has no guarantee left:
            1 - 1/e - .9 is negative.
        n_neighbors: keep each row's most similar rows only.
        random_state: seed of the samples.
        verbose: show progress (of loaders; the greedy picks come from one call).

    Attributes:
        ranking: row numbers in the order of selection. gains: what each added. subset: the rows themselves.

    Raises:
        ValueError: another metric or optimizer.
    """

    def __init__(
        self,
        n_samples: int,
        metric: str = "euclidean",
        initial_subset: Any = None,
        optimizer: str = "two-stage",
        optimizer_kwds: dict[str, Any] | None = None,
        n_neighbors: int | None = None,
        random_state: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.n_samples, self.metric, self.initial_subset = n_samples, metric, initial_subset
        self.optimizer, self.optimizer_kwds, self.n_neighbors = optimizer, optimizer_kwds, n_neighbors
        self.random_state, self.verbose = random_state, verbose
        self.ranking: NDArray[np.int64] | None = None
        self.gains: NDArray[np.float64] | None = None
        self.subset: Any = None

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        sample_cost: Any = None,
    ) -> Self:
        """Pick rows.

        Args:
            X: features [N, d], or similarities with the metric "precomputed".
            y: left alone.
            sample_weight: what covering each row is worth.
            sample_cost: a price of each row; `n_samples` is what all picks may cost together then.
        """
        _checks.choice("metric", self.metric, tuple(_METRICS))
        _checks.choice("optimizer", self.optimizer, tuple(_OPTIMIZERS))
        options = dict(self.optimizer_kwds or {})
        selector = FacilityLocation(
            kind=_METRICS[self.metric],
            optimizer=_OPTIMIZERS[self.optimizer],
            epsilon=options.pop("epsilon", 0.01),
            initial=self._initial(),
            costs=sample_cost,
            max_cost=None if sample_cost is None else float(self.n_samples),
            sample_weight=sample_weight,
            neighbors=self.n_neighbors,
            seed=self.random_state or 0,
            verbose=self.verbose,
        )
        if options:
            _checks.fail(ValueError, "optimizer_kwds", "'epsilon' alone", sorted(options))
        selector.fit(X)
        rows = selector.n_samples_
        count = rows - len(self._initial() or []) if sample_cost is not None else self.n_samples
        chosen = selector.select(count)
        self.ranking, self.gains = chosen.indices, chosen.gains
        self.subset = None if self.metric == "precomputed" else _rows(X, self.ranking)
        return self

    def _initial(self) -> list[int] | None:
        if self.initial_subset is None:
            return None
        given = np.asarray(self.initial_subset)
        return (np.flatnonzero(given) if given.dtype == bool else given).tolist()

    def transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """The picked rows of X, and of y and the weights where they are given, as apricot returns them."""
        if self.ranking is None:
            _checks.fail(
                ValueError, "FacilityLocationSelection", "a fitted one (call fit first)", "a new one"
            )
        parts = [_rows(X, self.ranking)]
        parts += [_rows(part, self.ranking) for part in (y, sample_weight) if part is not None]
        return parts[0] if len(parts) == 1 else tuple(parts)

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        sample_cost: Any = None,
    ) -> Any:
        """`fit`, then `transform`."""
        return self.fit(X, y, sample_weight, sample_cost).transform(X, y, sample_weight)


def _rows(X: Any, picks: NDArray[np.int64]) -> Any:
    array = X if hasattr(X, "shape") else np.asarray(X)
    if int(picks.max(initial=-1)) >= num_rows(array):
        _checks.fail(ValueError, "X", f"at least {int(picks.max()) + 1} rows", num_rows(array))
    return take(array, picks)

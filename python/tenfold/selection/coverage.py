"""Selection of rows that cover the others: facility location, graph cut, log-determinant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks
from tenfold.ops import fl_greedy, graphcut_greedy, logdet_greedy
from tenfold.selection.base import Picked, Selector
from tenfold.selection.geometry import to_array, whole
from tenfold.selection.inputs import Inputs, num_rows
from tenfold.selection.result import checked_indices

__all__ = ["FacilityLocation", "GraphCut", "LogDeterminant"]


@dataclass(eq=False, kw_only=True)
class CoverageSelector(Selector):
    """What the three have in common: similarities of rows, or a matrix of them in place of X.

    Attributes:
        kind: similarity of two rows: "sqeuclidean", "euclidean", "cosine01", "cosine2", "rbf" or "inner", as
            `tenfold.ops.fl_greedy` explains them, or "precomputed": X is the matrix, dense or SciPy sparse.
        gamma: of "rbf"; 1 / d by default.
        initial: rows that count as chosen from the start and are not picked again.
    """

    kind: str = "sqeuclidean"
    gamma: float | None = None
    initial: list[int] | None = None

    def _read(self, X: Any, y: Any, logits: Any, scores: Any, dynamics: Any, validation: Any) -> Inputs:
        if self.kind != "precomputed":
            return super()._read(X, y, logits, scores, dynamics, validation)
        if X is None:
            _checks.fail(ValueError, "X", "a matrix of similarities (kind 'precomputed')", None)
        if self.balanced:
            _checks.fail(ValueError, "balanced", "False with kind 'precomputed'", self.balanced)
        return Inputs(X.shape[1], Similarities(X))

    def _data(self, inputs: Inputs) -> dict[str, Any]:
        initial = self._initial(inputs.n)
        if isinstance(inputs.X, Similarities):
            return {"similarity": inputs.X.matrix, "initial": initial}
        return {"x": whole(inputs.X), "kind": self.kind, "gamma": self.gamma, "initial": initial}

    def _initial(self, n: int) -> list[int] | None:
        if self.initial is None:
            return None
        if self.balanced:
            _checks.fail(ValueError, "initial", "None with balanced (rows of the whole set)", self.initial)
        return checked_indices("initial", self.initial, n).tolist()


class Similarities:
    """A matrix of similarities, which has no features; `shape` speaks of rows to choose."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix
        self.shape = (matrix.shape[1], matrix.shape[0])

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(eq=False, kw_only=True)
class FacilityLocation(CoverageSelector):
    """Picks that maximise sum_i max_{j in S} s_ij: every row has a similar one among them. Reads X.

    Greedy picks are within 1 - 1/e of the best (Nemhauser et al., 1978). No matrix of similarities is held.
    `gains_` is what each pick added. `ranking` and `gains` are other names for `indices_` and `gains_`, as
    apricot has them.

    Attributes:
        optimizer: "lazy" (Minoux 1978) and "naive" give the greedy picks; "stochastic" (arXiv 1409.7938) and
            "lazier" look at a random sample of candidates in each step.
        epsilon: of the last two: in expectation they are within 1 - 1/e - epsilon of the best.
        costs: a price of each row, with `max_cost`: picks are those of the largest gain per price that still
            fit.
        max_cost: what the picks may cost together.
        sample_weight: what covering each row is worth.
        neighbors: only each row's most similar candidates count, as many: memory N x neighbors.
        weighted: weights are the numbers of rows most similar to each pick.
    """

    optimizer: str = "lazy"
    epsilon: float = 0.01
    costs: Any = None
    max_cost: float | None = None
    sample_weight: Any = None
    neighbors: int | None = None
    weighted: bool = False

    method: ClassVar[str] = "facility_location"

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        for name in ("costs", "sample_weight"):
            if self.balanced and getattr(self, name) is not None:
                _checks.fail(ValueError, name, "None with balanced", "values of the whole set")
        found = fl_greedy(
            k=k,
            optimizer=self.optimizer,
            epsilon=self.epsilon,
            costs=like("costs", self.costs, inputs.X),
            budget=self.max_cost,
            sample_weights=like("sample_weight", self.sample_weight, inputs.X),
            neighbors=self.neighbors,
            seed=seed,
            **self._data(inputs),
        )
        counts = to_array(found.counts)
        weights = counts.astype(np.float32) if self.weighted else None
        info = {"objective": found.objective, "counts": counts.tolist()}
        return Picked(to_array(found.indices), weights, to_array(found.gains), info=info)

    @property
    def ranking(self) -> NDArray[np.int64]:
        """Row numbers in the order of selection: apricot's name for `indices_`."""
        return self.indices_

    @property
    def gains(self) -> NDArray[np.float64] | None:
        """What each pick added: apricot's name for `gains_`."""
        return self.gains_


def like(name: str, values: Any, X: Any) -> Any:
    """One number for each row as float64."""
    if values is None:
        return None
    array = np.asarray(values, np.float64)
    if len(array) != num_rows(X):
        _checks.fail(ValueError, name, f"one for each of {num_rows(X)} rows", len(array))
    return array


@dataclass(eq=False, kw_only=True)
class GraphCut(CoverageSelector):
    """Picks that stand for the whole and not for each other. Reads X.

    gain of j: lam sum_i s_ij - 2 sum_{i in S} s_ij - s_jj (Iyer et al., arXiv 2006.15412).

    Attributes:
        lam: larger ones ask for more of the whole and less difference.
    """

    kind: str = "cosine01"
    lam: float = 1.0

    method: ClassVar[str] = "graph_cut"

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        found = graphcut_greedy(k=k, lam=self.lam, **self._data(inputs))
        return Picked(to_array(found.indices), gains=to_array(found.gains))


@dataclass(eq=False, kw_only=True)
class LogDeterminant(CoverageSelector):
    """Picks that span the largest volume: the greedy mode of a determinantal point process. Reads X.

    gain of j: log(s_jj - s_jS s_SS^-1 s_Sj) (Chen et al., arXiv 1709.05135).

    Attributes:
        ridge: added to the diagonal; without one a duplicate of a pick has gain -inf and comes last.
    """

    kind: str = "rbf"
    ridge: float = 0.0

    method: ClassVar[str] = "log_determinant"

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        found = logdet_greedy(k=k, ridge=self.ridge, **self._data(inputs))
        return Picked(to_array(found.indices), gains=to_array(found.gains))

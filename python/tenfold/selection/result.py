"""What a selector returns: indices in the order of selection, with weights, scores and gains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tenfold import _checks

__all__ = ["Selection", "SelectionSampler", "WeightedSubset"]


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows that a method kept.

    Attributes:
        indices: int64 [k], row numbers from 0 in the order of selection, no row twice.
        weights: float32 [k], what each kept row counts in a loss, or None (every row counts alike).
        scores: float [N], the score of every row where the method gives one, else None. With
            torch.distributed: of the rows of this process.
        gains: float64 [k], what each pick added to the objective (k-center: its distance), or None.
        info: plain values (numbers, text, lists of them): the method, its settings, "n" (the number of rows
            chosen from), and what the method reports besides.

    Raises:
        TypeError: indices are no integers.
        ValueError: an index is negative, stands twice or is not below info["n"]; lengths differ; weights are
            negative, not finite or all zero.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    scores: NDArray[np.floating] | None = None
    gains: NDArray[np.float64] | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.info.get("n")
        indices = checked_indices("indices", self.indices, n)
        object.__setattr__(self, "indices", indices)
        if self.weights is not None:
            weights = checked_weights("weights", self.weights, len(indices))
            object.__setattr__(self, "weights", weights)
        if self.scores is not None:
            object.__setattr__(self, "scores", _vector("scores", self.scores))
        if self.gains is not None:
            gains = _vector("gains", self.gains).astype(np.float64, copy=False)
            _checks.length("gains", gains, len(indices), "the indices")  # type: ignore[arg-type]
            object.__setattr__(self, "gains", gains)
        object.__setattr__(self, "info", dict(self.info))

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices.tolist())

    def __repr__(self) -> str:
        parts = [f"{len(self)} of {self.info['n']}" if "n" in self.info else f"{len(self)}"]
        parts += [name for name in ("weights", "scores", "gains") if getattr(self, name) is not None]
        return f"Selection({self.info.get('method', 'rows')}: {', '.join(parts)})"

    def head(self, k: int) -> Selection:
        """The first `k` picks. For greedy methods without weights this is the selection of budget `k`."""
        k = _checks.integer("k", k, 0, len(self))
        cut = {name: _head(getattr(self, name), k) for name in ("weights", "gains")}
        return Selection(self.indices[:k], scores=self.scores, info=self.info, **cut)

    def mask(self, n: int | None = None) -> NDArray[np.bool_]:
        """bool [n]: True at the kept rows; n defaults to info["n"]."""
        kept = np.zeros(self._rows(n), dtype=bool)
        kept[self.indices] = True
        return kept

    def dropped(self, n: int | None = None) -> NDArray[np.int64]:
        """The rows that were not kept, ascending."""
        return np.flatnonzero(~self.mask(n)).astype(np.int64, copy=False)

    def sample_weight(self, n: int | None = None) -> NDArray[np.float32]:
        """float32 [n] for `estimator.fit(X, y, sample_weight=...)`: the weights (1 without), 0 elsewhere."""
        weights = np.zeros(self._rows(n), dtype=np.float32)
        weights[self.indices] = 1.0 if self.weights is None else self.weights
        return weights

    def subset(self, dataset: Any, *, with_weights: bool = False) -> Any:
        """The kept samples of a map-style data set, in the order of selection.

        A data set of the `datasets` package answers with its own `select`, a NumPy array or a tensor with
        its rows, any other one becomes a `torch.utils.data.Subset`. `with_weights` gives each sample as
        (its parts ..., weight).
        """
        size = getattr(dataset, "__len__", None)
        if size is None:
            _checks.fail(TypeError, "dataset", "a data set with a length", type(dataset).__name__)
        checked_indices("indices", self.indices, len(dataset))
        if with_weights:
            return WeightedSubset(dataset, self)
        if isinstance(dataset, np.ndarray):
            return dataset[self.indices]
        if isinstance(dataset, torch.Tensor):
            return dataset[torch.from_numpy(self.indices).to(dataset.device)]
        if hasattr(dataset, "select") and hasattr(dataset, "column_names"):
            return dataset.select(self.indices.tolist())
        return torch.utils.data.Subset(dataset, self.indices.tolist())

    def sampler(
        self, *, weighted: bool = False, num_samples: int | None = None, seed: int = 0
    ) -> SelectionSampler:
        """A sampler over the *whole* data set that yields kept rows only, in a new order each epoch.

        Args:
            weighted: draw with replacement, in proportion to the weights, instead of once each.
            num_samples: samples in an epoch, default as many as are kept.
            seed: of the orders.
        """
        return SelectionSampler(self, weighted=weighted, num_samples=num_samples, seed=seed)

    def save(self, path: str | Path) -> Path:
        """Write to `path`, in the format of its suffix; the file is written aside, then renamed.

        .npz holds everything; .csv and .parquet rows of (index, weight, gain, score); .pt, .pth and .indices
        the indices as a torch int64 tensor, .npy as an int64 array, .txt one a line.
        """
        from tenfold.selection import files

        return files.save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Selection:
        """What :meth:`save` wrote, or an index file of another program (`tenfold.selection.files`)."""
        from tenfold.selection import files

        return files.load(Path(path))

    def _rows(self, n: int | None) -> int:
        if n is None:
            n = self.info.get("n")
        if n is None:
            _checks.fail(ValueError, "n", "the number of rows (this selection does not know it)", None)
        least = int(self.indices.max(initial=-1)) + 1
        return _checks.integer("n", n, least, 2**62, f"an integer of at least {least}")


class SelectionSampler(torch.utils.data.Sampler[int]):
    """Yields kept row numbers; `set_epoch` changes the order, as with DistributedSampler."""

    def __init__(
        self, selection: Selection, *, weighted: bool = False, num_samples: int | None = None, seed: int = 0
    ) -> None:
        self.num_samples = len(selection)
        if num_samples is not None:
            most = 2**62 if weighted else len(selection)
            self.num_samples = _checks.integer("num_samples", num_samples, 0, most)
        self.seed = _checks.integer("seed", seed, 0, 2**63 - 1)
        self.epoch = 0
        self._indices = torch.from_numpy(selection.indices)
        self._weights: torch.Tensor | None = None
        if weighted:
            if selection.weights is None:
                _checks.fail(ValueError, "weighted", "False (this selection has no weights)", True)
            if self.num_samples and not len(selection):
                _checks.fail(ValueError, "num_samples", "0 (nothing is kept)", self.num_samples)
            self._weights = torch.from_numpy(selection.weights).double()

    def set_epoch(self, epoch: int) -> None:
        """The next order is that of `epoch`; without this call each pass takes the next one."""
        self.epoch = _checks.integer("epoch", epoch, 0, 2**31)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        self.epoch += 1
        if self._weights is None or not self.num_samples:
            picks = torch.randperm(len(self._indices), generator=draw)[: self.num_samples]
        else:
            # by inverting the cumulative sum: torch.multinomial stops at 2^24 categories
            sums = self._weights.cumsum(0)
            at = torch.rand(self.num_samples, dtype=torch.float64, generator=draw) * sums[-1]
            picks = torch.searchsorted(sums, at, right=True).clamp_(max=len(sums) - 1)
        return iter(self._indices[picks].tolist())


class WeightedSubset(torch.utils.data.Dataset[Any]):
    """The kept samples, each with its weight as a float behind its parts: (x, y) becomes (x, y, weight)."""

    def __init__(self, dataset: Any, selection: Selection) -> None:
        self.dataset, self.indices = dataset, selection.indices
        one = np.ones(len(selection), np.float32)
        self.weights = one if selection.weights is None else selection.weights

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        sample, weight = self.dataset[int(self.indices[i])], float(self.weights[i])
        if isinstance(sample, dict):
            return {**sample, "weight": weight}
        return (*sample, weight) if isinstance(sample, (tuple, list)) else (sample, weight)


def checked_indices(name: str, value: ArrayLike, n: int | None = None) -> NDArray[np.int64]:
    """`value` as int64 [k] of different row numbers, each below `n` where it is given."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim != 1:
        _checks.fail(ValueError, name, "one dimension", f"shape {array.shape}")
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        _checks.fail(TypeError, name, "integers", array.dtype)
    array = array.astype(np.int64, copy=False)
    low, high = int(array.min()), int(array.max())
    if low < 0:
        _checks.fail(ValueError, name, "row numbers of at least 0", low)
    if n is not None and high >= n:
        _checks.fail(ValueError, name, f"row numbers below {n}", high)
    ordered = np.sort(array)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        _checks.fail(ValueError, name, "every row once", f"row {twice[0]} again")
    return array


def checked_weights(name: str, value: ArrayLike, count: int) -> NDArray[np.float32]:
    """`value` as float32 [count], finite, none negative, not all zero."""
    weights = _vector(name, value)
    if len(weights) != count:
        _checks.fail(ValueError, name, f"{count} entries (one for each index)", len(weights))
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        _checks.fail(ValueError, name, "finite numbers >= 0", f"{weights[bad[0]]} at {bad[0]}")
    if count and not weights.any():
        _checks.fail(ValueError, name, "a weight above 0", "zeros only")
    return weights.astype(np.float32, copy=False)


def _vector(name: str, value: ArrayLike) -> NDArray[Any]:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.ndim != 1:
        _checks.fail(ValueError, name, "one dimension", f"shape {array.shape}")
    if array.dtype.kind not in "fiub":
        _checks.fail(TypeError, name, "numbers", array.dtype)
    return array


def _head(values: NDArray[Any] | None, k: int) -> NDArray[Any] | None:
    return None if values is None else values[:k]

"""The interface of all selectors: `fit`, `select(budget)`, and what scikit-learn asks of an estimator."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tenfold import _checks
from tenfold.selection.budgets import budget_size, class_budgets
from tenfold.selection.inputs import (
    Inputs,
    as_labels,
    as_rows,
    gather,
    is_loader,
    num_rows,
    take,
    width,
)
from tenfold.selection.result import Selection

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Picked", "Selector"]


@dataclass
class Picked:
    """What a method chose among the rows it was given: positions in order, and what belongs to them."""

    indices: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    gains: NDArray[np.float64] | None = None
    scores: NDArray[Any] | None = None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, kw_only=True)
class Selector:
    """A method that chooses rows.

    `fit` takes the data in, `select(budget)` chooses; it may be called with one budget after the other. The
    budget is a count or a share of the rows. After `select`: `indices_` (int64, in the order of selection),
    `weights_`, `scores_`, `gains_` (each None where the method has none) and `selection_`, which holds all.

    Works in scikit-learn: `get_params`, `set_params`, `clone`; `fit_transform` at the end of a Pipeline gives
    the chosen rows. A step behind it would get fewer rows than labels, which scikit-learn's Pipeline cannot
    express; imbalanced-learn's can, through `fit_resample`. For an estimator that takes `sample_weight`,
    `selection_.sample_weight()` leaves X and y as they are.

    Attributes:
        budget: count or share for `fit_transform`, `fit_resample` and `select()`.
        balanced: choose within each class: True or "proportional" (each class its share, total kept by
            largest remainders), "equal" (the same number of each). Needs labels.
        seed: of whatever is drawn. Never touches global random states.
        verbose: show progress with rate and time left.
        sharded: the data are this process's part of a set that is spread over the processes of
            torch.distributed, in the order of the ranks. All processes call `fit` and `select` alike, and get
            row numbers of the whole set. Not every method can.
    """

    budget: int | float | None = None
    balanced: bool | str = False
    seed: int = 0
    verbose: bool = False
    sharded: bool = False

    indices_: NDArray[np.int64] = field(init=False, repr=False)
    weights_: NDArray[np.float32] | None = field(init=False, repr=False)
    scores_: NDArray[np.floating] | None = field(init=False, repr=False)
    gains_: NDArray[np.float64] | None = field(init=False, repr=False)
    selection_: Selection = field(init=False, repr=False)
    n_samples_: int = field(init=False, repr=False)
    n_features_in_: int = field(init=False, repr=False)

    method: ClassVar[str]
    """The name for `select` and the command."""
    needs: ClassVar[tuple[str, ...]] = ("X",)
    """What `fit` cannot do without, of X, y, logits, scores, dynamics, validation."""
    scores_suffice: ClassVar[bool] = False
    """Whether `scores` that were made before may stand for what they are made of."""
    can_shard: ClassVar[bool] = False

    # ---- fitting --------------------------------------------------------------------------------------

    def fit(
        self,
        X: Any = None,
        y: Any = None,
        *,
        logits: Any = None,
        scores: Any = None,
        dynamics: Any = None,
        validation: Any = None,
    ) -> Self:
        """Take the data in. Which of them a method reads is in its description; others are left alone.

        Args:
            X: features [N, d]: tensor, array, memory-mapped array or path of a .npy file, list of such
                shards, or a DataLoader of batches x, (x, y) or (x, y, row numbers). float32, bfloat16,
                float16; other numbers are rounded to float32.
            y: class of each row, int64 [N]; text is numbered in sorted order.
            logits: outputs of a classifier [N, C], or [R, N, C] of R runs; the same kinds as X.
            scores: a score for each row [N].
            dynamics: a `tenfold.selection.Recorder` of a training run.
            validation: (X, logits, y) of a validation set, for methods that match its gradient.

        Raises:
            TypeError: data of another kind.
            ValueError: something that the method needs is missing, lengths differ, labels are no classes.
        """
        for name in ("indices_", "weights_", "scores_", "gains_", "selection_", "_inputs"):
            self.__dict__.pop(name, None)
        inputs = self._prepare(self._read(X, y, logits, scores, dynamics, validation))
        self.n_samples_ = inputs.n
        if inputs.X is not None:
            self.n_features_in_ = width(inputs.X)
        self.scores_ = inputs.scores
        self._inputs = inputs
        return self

    def _read(self, X: Any, y: Any, logits: Any, scores: Any, dynamics: Any, validation: Any) -> Inputs:
        if is_loader(X):
            X, found = gather("X", X, verbose=self.verbose)
            y = found if y is None else y
        if is_loader(logits):
            logits, found = gather("logits", logits, verbose=self.verbose)
            y = found if y is None else y
        given = {"X": X, "y": y, "logits": logits, "scores": scores, "dynamics": dynamics}
        given["validation"] = validation
        needed = () if scores is not None and self.scores_suffice else self._needed()
        for name in (*needed, "y") if self.balanced else needed:
            if given[name] is None:
                _checks.fail(ValueError, name, f"some data ({type(self).__name__} reads them)", None)
        inputs = read_inputs(X, y, logits, scores, dynamics)
        if validation is None:
            return inputs
        if not isinstance(validation, (tuple, list)) or len(validation) != 3:
            _checks.fail(TypeError, "validation", "(X, logits, y)", type(validation).__name__)
        held_out = read_inputs(validation[0], validation[2], validation[1], None, None, "validation ")
        return dataclasses.replace(inputs, validation=held_out)

    def _needed(self) -> tuple[str, ...]:
        return self.needs

    def _prepare(self, inputs: Inputs) -> Inputs:
        """What is computed once, whatever the budget: a method that scores rows adds `scores`."""
        return inputs

    # ---- choosing -------------------------------------------------------------------------------------

    def select(self, budget: int | float | None = None) -> Selection:
        """Choose rows of what was fitted.

        Args:
            budget: how many rows (int), or which share of them (float in (0, 1]); default: the parameter.

        Raises:
            ValueError: not fitted, no budget, a count above the number of rows, a share outside (0, 1].
        """
        inputs = self._fitted()
        budget = self.budget if budget is None else budget
        if budget is None:
            _checks.fail(ValueError, "budget", "a number of rows or a share of them", None)
        if self.sharded:
            from tenfold.selection.sharded import select_sharded

            selection = select_sharded(self, inputs, budget)
        else:
            k = budget_size(budget, inputs.n)
            picked = self._pick_balanced(inputs, k) if self.balanced else self._pick(inputs, k, self.seed)
            selection = self._result(picked, inputs.n)
        self.selection_ = selection
        self.indices_, self.weights_ = selection.indices, selection.weights
        self.scores_, self.gains_ = selection.scores, selection.gains
        return selection

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        """`k` rows of `inputs`: each method's own."""
        raise NotImplementedError

    def _pick_sharded(self, ranks: Any, inputs: Inputs, k: int, seed: int) -> Picked:
        """`k` rows of all processes together, as positions in the rows of all; methods with `can_shard`."""
        raise NotImplementedError

    def _pick_balanced(self, inputs: Inputs, k: int) -> Picked:
        """The same within each class, classes in ascending order."""
        assert inputs.y is not None
        quotas = self._quotas(np.bincount(inputs.y), k)
        parts = []
        for c in np.flatnonzero(quotas):
            rows = np.flatnonzero(inputs.y == c)
            parts.append((rows, self._pick(inputs.take(rows), int(quotas[c]), class_seed(self.seed, int(c)))))
        return joined(parts, inputs.n, [int(c) for c in np.flatnonzero(quotas)])

    def _quotas(self, counts: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """How many rows of each class."""
        return class_budgets(counts, k, "proportional" if self.balanced is True else str(self.balanced))

    def _result(self, picked: Picked, n: int) -> Selection:
        settings = {name: value for name, value in self.get_params().items() if is_plain(value)}
        settings.pop("budget")
        settings.pop("verbose")
        scores = self.scores_ if picked.scores is None else picked.scores
        info = {"method": self.method, "n": n, "settings": settings, **picked.info}
        return Selection(picked.indices, picked.weights, scores, picked.gains, info)

    def _fitted(self) -> Inputs:
        inputs: Inputs | None = getattr(self, "_inputs", None)
        if inputs is None:
            _checks.fail(ValueError, type(self).__name__, "a fitted selector (call fit first)", "a new one")
        return inputs

    # ---- scikit-learn ---------------------------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name, as scikit-learn asks for them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}

    def set_params(self, **params: Any) -> Self:
        """Change parameters. ValueError names one that there is not."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                _checks.fail(ValueError, "params", "one of " + ", ".join(known), repr(name))
            setattr(self, name, value)
        return self

    def transform(self, X: Any) -> Any:
        """The chosen rows of `X`, which has to be what was fitted (or the same rows in another form)."""
        inputs = self._fitted()
        if not hasattr(self, "indices_"):
            self.select()
        rows = X if hasattr(X, "shape") else as_rows("X", X)
        if num_rows(rows) != inputs.n:
            want = (
                f"the {inputs.n} rows it was fitted on (a selector drops rows: it has no answer for others)"
            )
            _checks.fail(ValueError, "X", want, f"{num_rows(rows)} rows")
        if hasattr(rows, "iloc"):
            return rows.iloc[self.indices_]
        return take(rows, self.indices_)

    def fit_transform(self, X: Any, y: Any = None, **data: Any) -> Any:
        """`fit`, `select` with the parameter `budget`, and the chosen rows."""
        self.fit(X, y, **data).select()
        return self.transform(X)

    def fit_resample(self, X: Any, y: Any, **data: Any) -> tuple[Any, Any]:
        """The chosen rows and their labels: the protocol of samplers in imbalanced-learn's Pipeline."""
        rows = self.fit_transform(X, y, **data)
        return rows, (y.iloc[self.indices_] if hasattr(y, "iloc") else np.asarray(y)[self.indices_])

    def get_support(self, indices: bool = False) -> NDArray[Any]:
        """The chosen rows as a mask, or as ascending row numbers: scikit-learn's name for it."""
        if not hasattr(self, "selection_"):
            self.select()
        return np.sort(self.indices_) if indices else self.selection_.mask()

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        targets = TargetTags(required=bool(self.balanced) or "y" in self.needs)
        return Tags(estimator_type=None, target_tags=targets, transformer_tags=TransformerTags())


def read_inputs(X: Any, y: Any, logits: Any, scores: Any, dynamics: Any, where: str = "") -> Inputs:
    """All that was given, checked to be of the same rows."""
    sizes: dict[str, int] = {}
    if X is not None:
        X = as_rows(f"{where}X", X)
        sizes["X"] = num_rows(X)
    if logits is not None:
        three = hasattr(logits, "ndim") and logits.ndim == 3
        runs = list(logits) if three else [logits]
        logits = [as_rows(f"{where}logits", run) for run in runs]
        if not logits:
            _checks.fail(ValueError, f"{where}logits", "at least one run", "none")
        sizes["logits"] = num_rows(logits[0])
    if scores is not None:
        scores = np.asarray(scores.detach().cpu() if hasattr(scores, "detach") else scores)
        if scores.ndim != 1 or scores.dtype.kind not in "fiub":
            _checks.fail(ValueError, f"{where}scores", "numbers [N]", f"{scores.dtype} {list(scores.shape)}")
        scores = scores.astype(np.float64)
        if np.isnan(scores).any():
            row = int(np.isnan(scores).argmax())
            _checks.fail(ValueError, f"{where}scores", "numbers", f"NaN for row {row}")
        sizes["scores"] = len(scores)
    if dynamics is not None:
        sizes["dynamics"] = len(dynamics)
    if y is not None:
        labels = as_labels(f"{where}y", y)
        sizes["y"] = len(labels)
        y = labels
    if not sizes:
        _checks.fail(ValueError, f"{where}X", "some data", None)
    first, n = next(iter(sizes.items()))
    for name, size in sizes.items():
        if size != n:
            _checks.fail(ValueError, f"{where}{name}", f"{n} rows as {first} has", size)
    if logits is not None and y is not None and len(y) and y.max() >= width(logits[0]):
        row = int(y.argmax())
        want = f"classes below {width(logits[0])}, the columns of logits"
        _checks.fail(ValueError, f"{where}y", want, f"{y[row]} at row {row}")
    return Inputs(n, X, y, logits, scores, dynamics)


def class_seed(seed: int, c: int) -> int:
    """A seed of its own for each class: the same one would draw the same positions in all."""
    return (seed + (c + 1) * 0x9E3779B97F4A7C15) % 2**63


def joined(parts: list[tuple[NDArray[np.int64], Picked]], n: int, classes: list[int]) -> Picked:
    """The picks of each class as those of all `n` rows."""
    if not parts:
        return Picked(np.zeros(0, np.int64))

    def together(name: str) -> Any:
        values = [getattr(picked, name) for _, picked in parts]
        return None if any(v is None for v in values) else np.concatenate(values)

    scores = None
    if all(picked.scores is not None for _, picked in parts):
        scores = np.full(n, np.nan)
        for rows, picked in parts:
            scores[rows] = picked.scores
    return Picked(
        np.concatenate([rows[picked.indices] for rows, picked in parts]),
        together("weights"),
        together("gains"),
        scores,
        {
            "classes": classes,
            "class_counts": [len(picked.indices) for _, picked in parts],
            "by_class": [picked.info for _, picked in parts],
        },
    )


def is_plain(value: Any) -> bool:
    """Whether it can stand in a file of settings."""
    return value is None or isinstance(value, (bool, int, float, str))


def warn(text: str) -> None:
    """A word to the user, at the line that called the selector."""
    warnings.warn(text, stacklevel=4)

"""Selection by a score of each sample: the k hardest or easiest.

EL2N and GraNd: Paul et al., "Deep learning on a data diet" (arXiv 2107.07075). Forgetting: Toneva et al.
    (arXiv
1812.05159). AUM: Pleiss et al. (arXiv 2001.10528), on probabilities as CCS has it (arXiv 2210.15809).
Memorisation: Feldman and Zhang (arXiv 2008.03703). Entropy, margin and least confidence: Settles, "Active
learning literature survey" (2009), and Coleman et al. (arXiv 1906.11829).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.ops import score_fused, topk_stable
from tenfold.selection.base import Picked, Selector
from tenfold.selection.inputs import (
    Inputs,
    as_labels,
    batches,
    chunks,
    dataset_length,
    is_loader,
    to_tensor,
    with_progress,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "AUM",
    "EL2N",
    "Correctness",
    "Entropy",
    "Forgetting",
    "GraNd",
    "LeastConfidence",
    "Loss",
    "Margin",
    "Memorization",
    "ScoreSelector",
    "Scored",
]


@dataclass(eq=False, kw_only=True)
class ScoreSelector(Selector):
    """Keeps the rows with the largest or smallest score; of equal scores the smaller row number.

    Attributes:
        keep: "hard" or "easy" samples; which end of the score that is, is in the method's description.
    """

    keep: str = "hard"

    needs: ClassVar[tuple[str, ...]] = ()
    can_shard: ClassVar[bool] = True
    hard_is_large: ClassVar[bool] = True

    @property
    def largest_first(self) -> bool:
        """Whether large scores are kept."""
        return (_checks.choice("keep", self.keep, ("hard", "easy")) == "hard") is self.hard_is_large

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        assert inputs.scores is not None
        picks = np.asarray(topk_stable(inputs.scores, k, largest=self.largest_first))
        return Picked(picks, scores=inputs.scores)

    def _pick_sharded(self, ranks: Any, inputs: Inputs, k: int, seed: int) -> Picked:
        from tenfold.selection.ranks import top_rows

        assert inputs.scores is not None
        return Picked(top_rows(ranks, inputs.scores, k, self.largest_first), scores=inputs.scores)


@dataclass(eq=False, kw_only=True)
class LogitScore(ScoreSelector):
    """A score that one pass over the logits gives. Of several runs [R, N, C] the mean is taken.

    `logits` may be a DataLoader of (logits, y): they are scored batch by batch and not kept. `scores` that
    were made before may be given in their place.
    """

    score: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("logits",)
    scores_suffice: ClassVar[bool] = True

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
        if is_loader(logits) and "X" not in self.needs:
            scores, found = self._streamed(logits)
            return super().fit(X, found if y is None else y, scores=scores)
        return super().fit(X, y, logits=logits, scores=scores, dynamics=dynamics, validation=validation)

    def _prepare(self, inputs: Inputs) -> Inputs:
        if inputs.scores is not None:
            return inputs
        assert inputs.logits is not None
        norms = None if "X" not in self.needs else squared_norms(inputs.X)
        total = np.zeros(inputs.n)
        for run in with_progress(iter(inputs.logits), self.method, self.verbose, len(inputs.logits)):
            for start, piece in chunks(run):
                rows = slice(start, start + len(piece))
                y = None if inputs.y is None else torch.from_numpy(inputs.y[rows])
                h = None if norms is None else norms[rows]
                total[rows] += self._scored(to_tensor(piece), y, h, start)
        return replace(inputs, scores=total / len(inputs.logits))

    def _scored(self, z: Tensor, y: Tensor | None, norms: Tensor | None, start: int) -> NDArray[np.float64]:
        labels = torch.zeros(len(z), dtype=torch.int64) if y is None else y
        norms = None if norms is None else norms.to(z.device)
        require_finite("logits", z, start)
        want = (self.score,)
        found = score_fused(z, labels.to(z.device), feature_norms_squared=norms, want=want, check=False)
        values: Tensor = getattr(found, self.score)
        return values.double().cpu().numpy()

    def _streamed(self, loader: Any) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
        n = dataset_length("logits", loader)
        scores = np.full(n, np.nan)
        labels = np.full(n, -1, np.int64)
        at, labelled = 0, True
        for batch in with_progress(batches("logits", loader), self.method, self.verbose, len(loader)):
            size = len(batch.rows)
            where = np.arange(at, at + size) if batch.index is None else batch.index.cpu().numpy()
            y = None
            if batch.labels is not None:
                labels[where] = as_labels("y", batch.labels, size)
                y = torch.from_numpy(labels[where])
                if size and int(y.max()) >= batch.rows.shape[1]:
                    _checks.fail(ValueError, "y", f"classes below {batch.rows.shape[1]}", int(y.max()))
            elif "y" in self.needs:
                _checks.fail(ValueError, "logits", "batches (logits, y)", "logits alone")
            labelled &= batch.labels is not None
            scores[where] = self._scored(batch.rows, y, None, at)
            at += size
        missing = np.flatnonzero(np.isnan(scores))
        if len(missing):
            _checks.fail(ValueError, "logits", f"all {n} rows", f"none of number {missing[0]}")
        return scores, labels if labelled else None


def require_finite(name: str, z: Tensor, start: int) -> None:
    """ValueError naming the first row of a piece that starts at row `start` and is not finite."""
    bad = ~torch.isfinite(z).all(1)
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        value = float(z[row][~torch.isfinite(z[row])][0])
        _checks.fail(ValueError, name, "finite values", f"{value} in row {start + row}")


def squared_norms(X: Any) -> Tensor:
    """||h||^2 of every row, float32 [N]."""
    norms = []
    for start, piece in chunks(X):
        rows = to_tensor(piece)
        require_finite("X", rows, start)
        norms.append(rows.float().square().sum(1).cpu())
    return torch.cat(norms) if norms else torch.zeros(0)


@dataclass(eq=False, kw_only=True)
class EL2N(LogitScore):
    """||softmax(z) - onehot(y)||_2, large for hard samples. Reads logits and y, or `dynamics`.

    Paul et al. (arXiv 2107.07075) take the mean over ten runs at epoch 10 to 20: `logits` [R, N, C]. With the
    records of one training run instead, it is the mean over its updates, as CCS takes it over ten epochs.
    """

    method: ClassVar[str] = "el2n"
    score: ClassVar[str] = "el2n"
    needs: ClassVar[tuple[str, ...]] = ("logits", "y")

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
        if logits is None and scores is None and dynamics is not None:
            scores = dynamics.scores("el2n")
        return super().fit(X, y, logits=logits, scores=scores, dynamics=dynamics, validation=validation)


@dataclass(eq=False, kw_only=True)
class GraNd(LogitScore):
    """Gradient norm of the last layer, bias included: ||e||_2 sqrt(1 + ||h||^2), large for hard samples.

    Reads X (the inputs h of the last layer), logits and y. `tenfold.selection.grand_scores` computes the norm
    over all parameters of a model, as in arXiv 2107.07075; give those as `scores` to `Scored`.
    """

    method: ClassVar[str] = "grand"
    score: ClassVar[str] = "grand"
    needs: ClassVar[tuple[str, ...]] = ("X", "logits", "y")


@dataclass(eq=False, kw_only=True)
class Loss(LogitScore):
    """Cross-entropy, large for hard samples. Reads logits and y."""

    method: ClassVar[str] = "loss"
    score: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ("logits", "y")


@dataclass(eq=False, kw_only=True)
class Entropy(LogitScore):
    """-sum p ln p, large for uncertain samples, which are the hard ones. Reads logits."""

    method: ClassVar[str] = "entropy"
    score: ClassVar[str] = "entropy"


@dataclass(eq=False, kw_only=True)
class Margin(LogitScore):
    """The largest p less the second: small for uncertain samples, which are the hard ones. Reads logits."""

    method: ClassVar[str] = "margin"
    score: ClassVar[str] = "margin"
    hard_is_large: ClassVar[bool] = False


@dataclass(eq=False, kw_only=True)
class LeastConfidence(LogitScore):
    """1 - the largest p (a probability, not a logit): large for uncertain samples. Reads logits."""

    method: ClassVar[str] = "least_confidence"
    score: ClassVar[str] = "least_confidence"


@dataclass(eq=False, kw_only=True)
class RecordedScore(ScoreSelector):
    """A score that a training run gives: reads `dynamics`, a `tenfold.selection.Recorder`."""

    kind: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ("dynamics",)

    def _prepare(self, inputs: Inputs) -> Inputs:
        return replace(inputs, scores=self._recorded(inputs.dynamics))

    def _recorded(self, dynamics: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = dynamics.scores(self.kind)
        return found


@dataclass(eq=False, kw_only=True)
class AUM(RecordedScore):
    """Area under the margin: the sum over epochs of p_y less the largest other p. Small for hard."""

    method: ClassVar[str] = "aum"
    kind: ClassVar[str] = "aum"
    hard_is_large: ClassVar[bool] = False


@dataclass(eq=False, kw_only=True)
class Correctness(RecordedScore):
    """How many epochs a sample was right in: few for hard samples."""

    method: ClassVar[str] = "correctness"
    kind: ClassVar[str] = "correct"
    hard_is_large: ClassVar[bool] = False


@dataclass(eq=False, kw_only=True)
class Forgetting(RecordedScore):
    """How often a right answer was followed by a wrong one: many for hard samples.

    Attributes:
        never_learned: a sample that was never right is the hardest ("hardest": infinity, as in the paper) or
            has no event ("zero", as DeepCore and CCS count it). `selection_.info["never_learned"]` says how
            many.
    """

    never_learned: str = "hardest"

    method: ClassVar[str] = "forgetting"
    kind: ClassVar[str] = "forgetting"

    def _recorded(self, dynamics: Any) -> NDArray[np.float64]:
        found: NDArray[np.float64] = dynamics.scores(self.kind, never_learned=self.never_learned)
        return found

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        picked = super()._pick(inputs, k, seed)
        picked.info["never_learned"] = int(inputs.dynamics.never_learned.sum())
        return picked


@dataclass(eq=False, kw_only=True)
class Scored(ScoreSelector):
    """Scores that were made elsewhere: reads `scores`, large for hard samples."""

    method: ClassVar[str] = "scored"
    needs: ClassVar[tuple[str, ...]] = ("scores",)


@dataclass(eq=False, kw_only=True)
class Memorization(ScoreSelector):
    """Memorisation or influence scores, large for hard samples: `scores`, or a file of them.

    Attributes:
        path: .csv of (row number, ..., score), .npy, .npz or torch file; read when `scores` are not given.
        index_column: of a .csv, by number or header.
        score_column: of a .csv; -1 is the last.
    """

    path: str | None = None
    index_column: int | str = 0
    score_column: int | str = -1

    method: ClassVar[str] = "memorization"

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
        if scores is None:
            if self.path is None:
                _checks.fail(ValueError, "scores", "scores, or the parameter path", None)
            from tenfold.selection.files import read_scores

            scores = read_scores(self.path, index_column=self.index_column, score_column=self.score_column)
        return super().fit(X, y, logits=logits, scores=scores, dynamics=dynamics, validation=validation)

"""Selection by last-layer gradients, kept as factors: CRAIG, GradMatch, Glister; and full gradient norms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold import _checks
from tenfold.ops import craig, fgrad_rmv, fl_greedy, glister, omp_factored
from tenfold.selection.base import Picked, Selector, warn
from tenfold.selection.geometry import to_array, whole
from tenfold.selection.inputs import Inputs, batches, dataset_length, whole_tensor, with_progress

__all__ = ["CRAIG", "Glister", "GradMatch", "grand_scores"]


@dataclass(eq=False, kw_only=True)
class GradientSelector(Selector):
    """Gradients of the last layer: g = e (x) [1, h], e = softmax(logits) - onehot(y), h a row of X.

    They are never made: sums and products come from the factors e [N, C] and h [N, d].
    """

    needs: ClassVar[tuple[str, ...]] = ("X", "logits", "y")


def errors_of(inputs: Inputs) -> Tensor:
    """softmax(logits) - onehot(y), float32 [N, C]; the mean of the softmax over several runs."""
    assert inputs.logits is not None
    assert inputs.y is not None
    total: Tensor | None = None
    for run in inputs.logits:
        p = torch.softmax(whole_tensor(run).float(), 1)
        total = p if total is None else total + p
    assert total is not None
    if len(inputs.logits) > 1:
        total /= len(inputs.logits)
    labels = torch.from_numpy(inputs.y).to(total.device)
    if len(labels):
        total[torch.arange(len(labels), device=total.device), labels] -= 1.0
    return total


def hidden_of(inputs: Inputs, device: torch.device) -> Tensor:
    return whole_tensor(inputs.X).to(device)


@dataclass(eq=False, kw_only=True)
class CRAIG(GradientSelector):
    """Facility location on distances of gradients; weights count the rows nearest to each pick and sum to N.

    Mirzasoleiman et al. (arXiv 1906.01827), who run it within each class: `balanced=True`. Reads X, logits
    and y.

    Attributes:
        space: "gradients" of the last layer, or "features": distances of rows of X, without logits and
            labels.
        distance: "l2" or "sqeuclidean".
    """

    space: str = "gradients"
    distance: str = "l2"

    method: ClassVar[str] = "craig"

    def _needed(self) -> tuple[str, ...]:
        return (
            ("X",)
            if _checks.choice("space", self.space, ("gradients", "features")) == "features"
            else self.needs
        )

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        _checks.choice("distance", self.distance, ("l2", "sqeuclidean"))
        if self.space == "features":
            kind = "euclidean" if self.distance == "l2" else "sqeuclidean"
            covered = fl_greedy(whole(inputs.X), k, kind=kind)
            indices, gains, counts, objective = covered
        else:
            e = errors_of(inputs)
            found = craig(e, hidden_of(inputs, e.device), k, distance=self.distance)
            indices, gains, counts, objective = found
        weights = to_array(counts).astype(np.float32) if k else None
        return Picked(to_array(indices), weights, to_array(gains), info={"objective": float(objective)})


@dataclass(eq=False, kw_only=True)
class GradMatch(GradientSelector):
    """Weighted rows whose gradients add up to the mean gradient, by orthogonal matching pursuit.

    Killamsetty et al. (arXiv 2103.00123). Reads X, logits and y; with `validation` the mean gradient of that
    set is matched. Rows of weight 0 are left out, so that there may be fewer than asked for: `info["asked"]`
    says how many those were. `info["residual"]` is the distance from the target after each pick,
    `info["final"]` with the weights that are returned.

    Attributes:
        lam: ridge on the weights.
    """

    lam: float = 1.0

    method: ClassVar[str] = "gradmatch"

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        e = errors_of(inputs)
        h = hidden_of(inputs, e.device)
        target = None
        if inputs.validation is not None:
            ev = errors_of(inputs.validation).to(e.device)
            target = fgrad_rmv(ev, hidden_of(inputs.validation, e.device))
        found = omp_factored(e, h, k, target=target, lam=self.lam)
        indices = to_array(found.indices)
        weights = to_array(found.weights) if len(indices) else None
        info = {"asked": k, "residual": to_array(found.residual).tolist(), "final": float(found.final)}
        return Picked(indices, weights, info=info)


@dataclass(eq=False, kw_only=True)
class Glister(GradientSelector):
    """Rows whose gradient lies along that of the validation loss, which is made again after each round.

    Killamsetty et al. (arXiv 2012.10630), Taylor form. Reads X, logits, y and `validation`; without one the
    rows themselves stand for it, as in DeepCore. All rows weigh the same.

    Attributes:
        rounds: after each, the last layer is moved along the gradients of all picks.
        eta: step of that move.
    """

    rounds: int = 10
    eta: float = 0.1

    method: ClassVar[str] = "glister"

    def _pick(self, inputs: Inputs, k: int, seed: int) -> Picked:
        e = errors_of(inputs)
        held = inputs if inputs.validation is None else inputs.validation
        if held.X is None or held.logits is None or held.y is None:
            _checks.fail(ValueError, "validation", "(X, logits, y)", "a part that is None")
        z = whole_tensor(held.logits[0]).float().to(e.device)
        h, hv = hidden_of(inputs, e.device), hidden_of(held, e.device)
        y = torch.from_numpy(held.y).to(e.device)
        found = glister(e, h, z, hv, y, k, rounds=self.rounds, eta=self.eta)
        return Picked(to_array(found.indices), gains=to_array(found.gains).astype(np.float64))


def grand_scores(
    model: torch.nn.Module,
    loader: Any,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = torch.nn.functional.cross_entropy,
    chunk_size: int | None = None,
    device: torch.device | str | None = None,
    verbose: bool = False,
) -> NDArray[np.float64]:
    """Norm of each sample's gradient over *all* parameters: GraNd of arXiv 2107.07075, float64 [N].

    The paper averages it over ten freshly initialised models: call it with each. `EL2N` and `GraNd` (last
    layer alone) need forward passes only.

    Args:
        model: in evaluation mode or without layers that mix samples (BatchNorm in training mode makes a
            sample's gradient depend on its batch). Its mode is left as it is.
        loader: batches (x, y) in the order of the data set, or (x, y, row numbers).
        loss: of (logits [1, C], labels [1]); a scalar.
        chunk_size: samples whose gradients are in memory at once; by default a whole batch.
        device: where to compute; by default that of the first parameter.
        verbose: show progress.

    Raises:
        ValueError: a BatchNorm layer in training mode, batches without labels, a shuffled loader without row
            numbers.
    """
    from torch.func import functional_call, grad, vmap

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.training:
            _checks.fail(ValueError, "model", "evaluation mode (model.eval())", f"{name} in training mode")
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    fixed = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    state = {**fixed, **{n: b.detach() for n, b in model.named_buffers()}}
    if not parameters:
        _checks.fail(ValueError, "model", "parameters that require gradients", "none")
    device = device or next(iter(parameters.values())).device

    def norm(x: Tensor, y: Tensor) -> Tensor:
        def of(p: dict[str, Tensor]) -> Tensor:
            return loss(functional_call(model, {**p, **state}, (x[None],)), y[None])

        grads = grad(of)(parameters)
        return torch.stack([g.double().square().sum() for g in grads.values()]).sum().sqrt()

    every = vmap(norm, chunk_size=chunk_size, randomness="different")
    scores = np.full(dataset_length("loader", loader), np.nan)
    at = 0
    for batch in with_progress(batches("loader", loader), "gradient norms", verbose, len(loader)):
        if batch.labels is None:
            _checks.fail(ValueError, "loader", "batches (x, y)", "x alone")
        size = len(batch.rows)
        where = np.arange(at, at + size) if batch.index is None else batch.index.cpu().numpy()
        at += size
        scores[where] = every(batch.rows.to(device), batch.labels.to(device)).cpu().numpy()
    if np.isnan(scores).any():
        warn(f"grand_scores: {int(np.isnan(scores).sum())} of {len(scores)} rows without a finite norm")
    return scores

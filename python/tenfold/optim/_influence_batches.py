"""Losses, gradients and Hessian-vector products of batches, for influence unlearning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _checks

from ._curvature import _plain_attention, to_device
from ._predictions import loss_of

Vector = list[Tensor]


def wide(v: Vector) -> Vector:
    """In float32 at least."""
    return [t if t.dtype == torch.float64 else t.float() for t in v]


class Batches:
    """Losses, gradients and Hessian-vector products of batches, weighted by their predictions."""

    def __init__(self, model: nn.Module, params: list[Tensor], loss: Callable[..., Any] | None) -> None:
        self.model, self.params, self.own_loss = model, params, loss

    def _losses(self, name: str, batches: Iterable[Any]) -> Iterable[tuple[Tensor, float]]:
        found = False
        for batch in batches:
            found = True
            yield loss_of(self.model, to_device(batch, self.params[0].device), self.own_loss)
        if not found:
            _checks.fail(ValueError, name, "at least one batch", "none")

    def loss(self, name: str, batches: Iterable[Any]) -> float:
        with torch.no_grad():
            pairs = [(float(value), n) for value, n in self._losses(name, batches) if n]
        return sum(value * n for value, n in pairs) / sum(n for _, n in pairs)

    def _gradient(self, value: Tensor) -> Vector:
        grads = torch.autograd.grad(value, self.params, allow_unused=True)
        pairs = zip(grads, self.params, strict=True)
        return wide([torch.zeros_like(p) if g is None else g for g, p in pairs])

    def mean(self, name: str, batches: Iterable[Any]) -> tuple[float, Vector, float]:
        """(mean loss, its gradient, number of predictions)."""
        total, count = 0.0, 0.0
        sums = [torch.zeros_like(t) for t in wide([p.detach() for p in self.params])]
        for value, n in self._losses(name, batches):
            if n:
                for s, g in zip(sums, self._gradient(value), strict=True):
                    s.add_(g, alpha=n)
                total, count = total + n * float(value.detach()), count + n
        if not count:
            _checks.fail(ValueError, name, "at least one prediction", "none: all are masked")
        return total / count, [s / count for s in sums], count

    def gradients(self, batches: Iterable[Any]) -> Iterable[Vector]:
        """One per batch; between two of them grad mode is the caller's."""
        for batch in batches:
            with torch.enable_grad():
                pairs = list(self._losses("retain", [batch]))
                found = [self._gradient(value) for value, n in pairs if n]
            yield from found

    def product(self, batches: Iterable[Any], x: Vector) -> Vector:
        """The Hessian of the mean loss times x."""
        sums, count = [torch.zeros_like(t) for t in x], 0.0
        with torch.enable_grad(), _plain_attention():
            for value, n in self._losses("retain", batches):
                if n:
                    for s, h in zip(sums, self._curved(value, x), strict=True):
                        if h is not None:
                            s.add_(h.to(s.dtype), alpha=n)
                    count += n
        return [s / count for s in sums]

    def _curved(self, value: Tensor, x: Vector) -> Sequence[Tensor | None]:
        grads = torch.autograd.grad(value, self.params, create_graph=True, allow_unused=True)
        live = [
            (g, t.to(g.dtype)) for g, t in zip(grads, x, strict=True) if g is not None and g.requires_grad
        ]
        if not live:
            return [None] * len(x)
        return torch.autograd.grad([g for g, _ in live], self.params, [t for _, t in live], allow_unused=True)

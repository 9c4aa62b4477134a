"""LOZO: directions of low rank, and LOZO-M, which keeps their momentum in the small factor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold import _checks

from ._helpers import Values
from ._lowrank import MATRIX, LowRank
from ._seeds import splitmix64
from ._walk import Cell, Coefs, Walk
from .sgd import empty_state, gradient_coefficients, split_cell, stateful_options, stateful_pass, terms

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import Common

_MAX_TERMS = 64


class LOZO(LowRank):
    r"""ZO-SGD along directions U V^T of rank r for matrices, Gaussian ones for all other parameters.

    .. math::
        c = \frac{L(W + \epsilon U V^T) - L(W - \epsilon U V^T)}{2 \epsilon}, \qquad
        W \leftarrow (1 - \eta \lambda) W - \eta \, c \, U V^T

    U (m x r) is fresh in every step, V (n x r) is kept for nu steps, both standard normal.  Y. Chen et al.,
    "Enhancing zeroth-order fine-tuning for language models with low-rank structures", arXiv 2410.07698.  The
    entries of U V^T have variance r.  Update and probes use the same U in every step, also in those that draw
    a new V (the published code does not).

    With momentum > 0 this is LOZO-M: the estimate, projected onto V, is averaged over steps,
    :math:`N \leftarrow \mu N + (1 - \mu) c U`, and the step is :math:`-\eta N V^T`; N takes m x r numbers
    per matrix.  When V changes, N becomes the least-squares fit of the old momentum N V^T by the new V.
    Other parameters have an averaged momentum of their size.

    Args:
        params, lr, common: as for `ZOSGD`; Gaussian directions, no masks.  At most 64 queries with momentum.
        rank: r in [1, 256].
        nu: steps that one V serves, >= 1.
        momentum: mu in [0, 1).
    """

    _own = ("rank", "nu", "momentum")
    rank: int
    nu: int
    momentum: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-7,
        *,
        rank: int = 2,
        nu: int = 50,
        momentum: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        own = {
            "rank": _checks.integer("rank", rank, 1, 256),
            "nu": _checks.integer("nu", nu, 1, 1 << 62),
            "momentum": _checks.real("momentum", momentum, at_least=0.0, below=1.0),
        }
        self._vs: dict[Tensor, tuple[tuple[int, ...], Tensor]] = {}  # what each is of, and V
        if own["momentum"] > 0:
            self._chained = False
            self._max_queries = 64
        super().__init__(params, {"lr": lr}, dict(common), own)

    def _window(self) -> int:
        return self.num_steps - self.num_steps % self.nu

    def _v(self, p: Tensor, window: int | None = None) -> Tensor:
        """V of a matrix [m, n]: [n, r], float32; of an earlier window, or kept for the present one."""
        from tenfold.ops import lowrank_factor

        now = self._window()
        window = now if window is None else window
        stream = self._slots[p].stream
        key = self.seed, window, self.rank, stream
        if p in self._vs and self._vs[p][0] == key and self._vs[p][1].device == p.device:
            return self._vs[p][1]
        seed = splitmix64(self.seed, window)
        v = lowrank_factor(seed, stream, 0, p.shape[1], self.rank, side="v", device=p.device)
        if window == now:
            self._vs[p] = key, v
        return v

    def _factors(self, walk: Walk, cell: Cell, k: int, query: int) -> tuple[Tensor, Tensor]:
        from tenfold.ops import lowrank_factor

        p, stream = cell.params[k], cell.streams[k]
        u = lowrank_factor(walk.seed, stream, query, p.shape[0], self.rank, side="u", device=p.device)
        return u, self._v(p)

    def _move_matrices(
        self,
        walk: Walk,
        cell: Cell,
        params: list[Tensor],
        sources: list[Tensor] | None,
        coefs: Coefs,
        decay: float,
        rounding: dict[str, Any],
    ) -> None:
        from tenfold.ops import LowRankTerm, zo_lowrank_

        vs = [self._v(p) for p in cell.params]
        every = [LowRankTerm(walk.seed, i, c) for i, c in (coefs or {0: 0.0}).items()]
        for at in range(0, len(every), _MAX_TERMS):
            part = every[at : at + _MAX_TERMS]
            zo_lowrank_(params, vs, cell.streams, part, decay=decay, sources=sources, **rounding)
            decay, sources = 1.0, None

    # -- LOZO-M ----------------------------------------------------------------------------------------

    def _coefficients(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        if self.momentum > 0:
            return gradient_coefficients(self, walk, cell, values)
        return super()._coefficients(walk, cell, values)

    def _update(self, walk: Walk, updates: dict[Cell, Coefs], values: Values) -> None:
        if self.momentum == 0:
            super()._update(walk, updates, values)
            return

        def move(cell: Cell, gradient: Coefs) -> None:
            self._matrices(walk, cell, gradient) if cell.kind == MATRIX else self._rest(walk, cell, gradient)

        stateful_pass(walk, updates, move)

    def _matrices(self, walk: Walk, cell: Cell, gradient: Coefs) -> None:
        from tenfold.ops import LowRankTerm, zo_lowrank_, zo_lowrank_project

        window = self._window()
        for p, stream in zip(cell.params, cell.streams, strict=True):
            state = self.state[p]
            found = zo_lowrank_project(
                [LowRankTerm(walk.seed, i, g) for i, g in gradient.items()],
                stream,
                p.shape[0],
                self.rank,
                device=p.device,
            )
            if not state:
                state["momentum_buffer"] = found
            else:
                if state["window"] != window:
                    refit = _refit(self._v(p, state["window"]), self._v(p))
                    state["momentum_buffer"] = state["momentum_buffer"] @ refit.to(p.device)
                state["momentum_buffer"].mul_(self.momentum).add_(found, alpha=1.0 - self.momentum)
            state["window"] = window
            zo_lowrank_(
                [p.detach()],
                [self._v(p)],
                [stream],
                [LowRankTerm(walk.seed, 0, -cell.lr)],
                us=[state["momentum_buffer"]],
                decay=cell.decay,
                **walk.rounding_options(),
            )

    def _rest(self, walk: Walk, cell: Cell, gradient: Coefs) -> None:
        from tenfold.ops import zo_momentum_

        for first, part in split_cell(cell, lambda p: not self.state[p]):
            for p in part.params if first else ():
                self.state[p]["momentum_buffer"] = empty_state(p, None)
            zo_momentum_(
                [p.detach() for p in part.params],
                [self.state[p]["momentum_buffer"] for p in part.params],
                part.streams,
                terms(walk, gradient),
                lr=cell.lr,
                momentum=self.momentum,
                dampening=self.momentum,
                first=first,
                weight_decay=cell.weight_decay,
                **stateful_options(walk, part),
            )


def _refit(old: Tensor, new: Tensor) -> Tensor:
    """X [r, r] that makes N X new^T the least-squares fit of N old^T: old^T new (new^T new)^-1."""
    products = _inner(new, torch.cat([old, new], dim=1))
    r = new.shape[1]
    cross, own = products[:, :r].T, products[:, r:]
    return (cross @ torch.linalg.pinv(own)).float()


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """a^T b in float64 on the CPU, summed in an order that does not depend on threads."""
    a, b = a.cpu().double(), b.cpu().double()
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
    for j in range(a.shape[1]):
        rows = a[:, j : j + 1] * b
        while len(rows) > 1:
            half = len(rows) // 2
            pairs = rows[:half] + rows[half : 2 * half]
            rows = torch.cat([pairs, rows[2 * half :]]) if len(rows) % 2 else pairs
        total[j] = rows[0] if len(rows) else 0.0
    return total

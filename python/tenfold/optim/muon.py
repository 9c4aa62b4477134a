"""ZO-Muon: the estimate in a subspace, orthogonalised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold import _checks

from ._helpers import Values
from ._lowrank import MATRIX, LowRank
from ._seeds import splitmix64
from ._walk import Cell, Coefs, Walk
from .sgd import gradient_coefficients, stateful_pass

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import Common

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class ZOMuon(LowRank):
    r"""Steps of orthonormal matrices in a subspace that is kept for nu steps.

    .. math::
        Z_i = P u_i, \quad c_i = \frac{L(W + \epsilon Z_i) - L(W)}{\epsilon}, \quad
        R = \frac{1}{q} \sum_i c_i u_i, \quad
        W \leftarrow (1 - \eta \lambda) W - \eta P \, \mathrm{msign}(R)

    P (m x r) is the orthonormal factor of a Gaussian matrix, signs fixed, drawn anew every nu steps; the u_i
    (r x n) are Gaussian and fresh; msign(R) = U V^T of the singular value decomposition R = U S V^T.
    "ZO-Muon", arXiv 2602.17155.  Parameters that are no matrices take the steps of `ZOSGD`, with
    `vector_scale` times the step size.  Steps are the same bits again on the same machine with the same
    number of threads: msign uses matrix products and P a QR factorisation of PyTorch.

    Args:
        params, lr, common: as for `ZOSGD`; Gaussian directions, no masks; one-sided with 4 queries by
            default, at most 64.  Raw step size: a step has norm eta * sqrt(r).
        rank: r in [1, 256], at most m of each matrix is used.
        nu: steps that one P serves, >= 1.
        msign: "newton-schulz", five steps of the quintic iteration of Muon (3.4445, -4.7750, 2.0315), whose
            singular values are about 0.7 to 1.2; or "svd", exact.
        vector_scale: >= 0; the default makes 1e-4 of the default lr.
    """

    _defaults = {"num_queries": 4, "one_sided": True}  # noqa: RUF012
    _max_queries = 64
    _own = ("rank", "nu", "msign", "vector_scale")
    _chained = False
    rank: int
    nu: int
    msign: str
    vector_scale: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        *,
        rank: int = 64,
        nu: int = 100,
        msign: str = "newton-schulz",
        vector_scale: float = 1e-2,
        **common: Unpack[Common],
    ) -> None:
        own = {
            "rank": _checks.integer("rank", rank, 1, 256),
            "nu": _checks.integer("nu", nu, 1, 1 << 62),
            "msign": _checks.choice("msign", msign, ("newton-schulz", "svd")),
            "vector_scale": _checks.real("vector_scale", vector_scale, at_least=0.0),
        }
        self._bases: dict[Tensor, tuple[tuple[int, ...], Tensor]] = {}  # what each is of, and P
        super().__init__(params, {"lr": lr}, dict(common), own)

    def _prepare(self, walk: Walk) -> None:
        for cell in walk.cells:
            if cell.kind != MATRIX:
                cell.lr_scale = self.vector_scale

    def _basis(self, p: Tensor) -> Tensor:
        """P of a matrix [m, n]: [m, r], float32."""
        from tenfold.ops import lowrank_factor

        window = self.num_steps - self.num_steps % self.nu
        stream = self._slots[p].stream
        key = self.seed, window, self._rank(p), stream
        kept = self._bases.get(p)
        if kept is None or kept[0] != key or kept[1].device != p.device:
            seed = splitmix64(self.seed, window)
            gaussian = lowrank_factor(
                seed, stream, 0, p.shape[0], self._rank(p), side="v", dtype=torch.float64
            )
            if p.shape[0] > 0:  # of no rows there is nothing to make orthonormal
                q, r = torch.linalg.qr(gaussian)
                gaussian = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
            self._bases[p] = key, gaussian.float().to(p.device)
        return self._bases[p][1]

    def _rank(self, p: Tensor) -> int:
        return max(1, min(self.rank, p.shape[0]))

    def _factors(self, walk: Walk, cell: Cell, k: int, query: int) -> tuple[Tensor, Tensor]:
        p = cell.params[k]
        return self._basis(p), self._combined(walk, p, cell.streams[k], {query: 1.0})

    def _combined(self, walk: Walk, p: Tensor, stream: int, coefs: Coefs) -> Tensor:
        """sum_i coefs[i] u_i^T: [n, r], float32."""
        from tenfold.ops import LowRankTerm, zo_lowrank_project

        every = [LowRankTerm(walk.seed, i, c) for i, c in coefs.items()]
        return zo_lowrank_project(every, stream, p.shape[1], self._rank(p), device=p.device)

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

        for k, (p, stream) in enumerate(zip(cell.params, cell.streams, strict=True)):
            right = self._combined(walk, p, stream, coefs or {0: 0.0})
            zo_lowrank_(
                [params[k]],
                [right],
                [stream],
                [LowRankTerm(walk.seed, 0, 1.0)],
                us=[self._basis(p)],
                decay=decay,
                sources=None if sources is None else [sources[k]],
                **rounding,
            )

    def _coefficients(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        if cell.kind == MATRIX:
            return gradient_coefficients(self, walk, cell, values)
        return super()._coefficients(walk, cell, values)

    def _update(self, walk: Walk, updates: dict[Cell, Coefs], values: Values) -> None:
        from tenfold.ops import LowRankTerm, zo_lowrank_

        def move(cell: Cell, gradient: Coefs) -> None:
            if cell.kind != MATRIX:
                params = [p.detach() for p in cell.params]
                place = cell.place._replace(coefs=gradient, decay=cell.decay)
                walk.write([cell], place, params, None, walk.rounding_options())
                return
            for p, stream in zip(cell.params, cell.streams, strict=True):
                sign = msign(self._combined(walk, p, stream, gradient), self.msign)
                zo_lowrank_(
                    [p.detach()],
                    [sign],
                    [stream],
                    [LowRankTerm(walk.seed, 0, -cell.lr)],
                    us=[self._basis(p)],
                    decay=cell.decay,
                    **walk.rounding_options(),
                )

        stateful_pass(walk, updates, move)


def msign(x: Tensor, method: str) -> Tensor:
    """U V^T of the singular value decomposition U S V^T of a float32 matrix; 0 stays 0."""
    if method == "svd":
        if not x.any():
            return x.clone()
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        return (u @ vh).contiguous()
    a, b, c = _NEWTON_SCHULZ
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).contiguous()

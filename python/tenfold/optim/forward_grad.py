"""Forward gradients: exact derivatives along random directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tenfold import _checks

from ._base import ZerothOrder
from ._dual import Spot, Substitution
from ._helpers import Closure, Evaluate, Values
from ._record import FLAG_GRAD, Scalar
from ._walk import Cell, Coefs, Place, Walk

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import Common


class ForwardGrad(ZerothOrder):
    r"""Gradient descent on :math:`\hat g = \frac{1}{q} \sum_i (\nabla L \cdot v_i) v_i`, by forward-mode AD.

    A. Baydin et al., "Gradients without backpropagation", arXiv 2202.08587; the Forward-Grad of arXiv
    2402.11592.  The derivatives come with the loss out of one forward pass per query: nothing is perturbed,
    there is no eps, weights are written once per step.  The direction of a parameter is regenerated where
    the closure uses the parameter and let go again.

    The closure must compute its loss as a tensor by torch functions that have forward-mode derivatives, from
    the parameters themselves, on the same thread.  Scaled dot-product attention is sent to its plain
    implementation, as the fused ones have none; a model that calls fused attention otherwise must be loaded
    with attn_implementation="eager".

    Args:
        params, lr, common: as for `ZOSGD` but `eps`, `one_sided`, `restore` and `blocks`.
    """

    _fixed = ("one_sided", "restore", "blocks", "eps")
    _per_eps = False
    _static = False
    _fixed_masks = True
    _shardable = False

    def __init__(self, params: Any, lr: float = 1e-6, **common: Unpack[Common]) -> None:
        super().__init__(params, {"lr": lr}, dict(common))

    def _way_back(self, cells: list[Cell]) -> str:
        return "dual"

    def _targets(self) -> list[Coefs]:
        return []

    def _step(self, closure: Closure | None, attached: Any) -> Tensor:
        self._closure = closure
        try:
            return super()._step(closure, attached)
        finally:
            self._closure = None

    def _measure(self, walk: Walk, evaluate: Evaluate, known: Values | None = None) -> list[Scalar]:
        if known is not None:
            return []
        pairs: list[tuple[float, float] | None] = []
        for query in range(self.num_queries):
            mine = self._parallel is None or self._parallel.mine(query)
            pairs.append(self._derivative(walk, query) if mine else None)
        walk.losses += self._agreed([None if pair is None else pair[0] for pair in pairs])
        slopes = self._agreed([None if pair is None else pair[1] for pair in pairs])
        slopes = [self._clipped(slope) for slope in slopes]
        if self.aggregate == "least_squares":
            slopes = self._least_squares(walk, slopes)
        return [Scalar(i, FLAG_GRAD, slope) for i, slope in enumerate(slopes)]

    def _derivative(self, walk: Walk, query: int) -> tuple[float, float]:
        """Loss and its derivative along direction number `query`."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        assert self._closure is not None
        spots = {id(p): Spot(walk, cell, k) for cell in walk.cells for k, p in enumerate(cell.params)}
        for other, param in self._twins.items():
            if id(param) in spots:
                spots[id(other)] = spots[id(param)]

        def make(spot: Spot) -> Tensor:
            v = torch.zeros_like(spot.param, requires_grad=False)
            part = spot.cell.only(spot.k)
            place = Place({query: walk.unit(query, spot.cell.block)})
            walk.write([part], place, [v], None, {"out_rounding": "rne"})
            return forward_ad.make_dual(spot.param.detach(), v)

        with forward_ad.dual_level():
            try:
                with sdpa_kernel(SDPBackend.MATH), Substitution(spots, make):
                    loss = self._closure()
            except NotImplementedError as error:
                raise RuntimeError(
                    "closure: expected operations with forward-mode derivatives (models with "
                    f"attn_implementation='eager'), got one without: {error}"
                ) from error
            if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
                got = (
                    f"a {loss.dtype} tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
                )
                _checks.fail(TypeError, "closure", "a real scalar loss tensor", got or type(loss).__name__)
            value, tangent = forward_ad.unpack_dual(loss)
            if tangent is None:
                got = "one without a derivative"
                _checks.fail(
                    TypeError, "closure", "a loss computed from the parameters by torch functions", got
                )
            return float(value), float(tangent)

"""ZO-SGD, the optimizer of MeZO, and its variants with momentum, by sign, and with masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tenfold import _checks
from tenfold.ops import Term

from ._base import ZerothOrder
from ._helpers import Values
from ._options import MagnitudeSparsity
from ._shards import locals_of
from ._walk import Cell, Coefs, Walk

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._options import Common


class ZOSGD(ZerothOrder):
    r"""Stochastic gradient descent on a gradient estimated from two losses per query (MeZO).

    .. math::
        g_i = \frac{L(\theta + \epsilon z_i) - L(\theta - \epsilon z_i)}{2 \epsilon}, \qquad
        \theta \leftarrow (1 - \eta \lambda) \theta - \frac{\eta}{q} \sum_{i=1}^{q} g_i z_i

    S. Malladi et al., "Fine-tuning language models with just forward passes", arXiv 2305.17333.  The
    directions are regenerated from a seed whenever they are needed, so q queries need no more memory than
    one.  With compat="zo-llm" weight decay is ignored, random masks are drawn as N(0, 1) < s (a share
    Phi(s)), the update from several queries moves masked elements too, and equal blocks have equal
    directions.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of a group; dense, float32, bfloat16, float16 or
            float64.  Tensors with requires_grad=False are left alone.  A group may have its own lr, eps and
            weight_decay.
        lr: step size, >= 0.
        common: `Common` options.

    Raises:
        ValueError, TypeError: an argument is out of range or of another type; its name comes first.
    """

    def __init__(self, params: Any, lr: float = 1e-6, **common: Unpack[Common]) -> None:
        super().__init__(params, {"lr": lr}, dict(common))


class SparseMeZO(ZOSGD):
    """ZO-SGD on the small weights of each tensor only (see `MagnitudeSparsity`).

    Y. Liu et al., "Sparse MeZO: less parameters for better performance in zeroth-order LLM fine-tuning",
    arXiv 2402.15751.  No mask is stored: the passes compare weights with a threshold; but with
    restore="arithmetic", where probes see other than the clean weights, one bit per element is.

    Args:
        params, lr, common: as for `ZOSGD`; without `mask`.
        ratio: share of the elements that stays, in [0, 1).
        every: steps after which thresholds are taken anew; None keeps the first ones.
    """

    _fixed: tuple[str, ...] = ("mask",)
    _own = ("ratio", "every")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-6,
        *,
        ratio: float = 0.75,
        every: int | None = None,
        **common: Unpack[Common],
    ) -> None:
        if "mask" in common:
            raise TypeError("SparseMeZO() got an unexpected keyword argument 'mask'")
        self._fixed = ()  # from here on
        self.ratio, self.every = ratio, every
        mask = MagnitudeSparsity(ratio, every)
        super().__init__(params, lr, **{**common, "mask": mask})  # type: ignore[arg-type]


class ZOSGDSign(ZerothOrder):
    r"""Steps of the same size along the sign of the estimated gradient.

    mode="element": :math:`\theta \leftarrow (1 - \eta \lambda) \theta - \eta \, \mathrm{sign}(\hat g)`,
    S. Liu et al., "signSGD via zeroth-order oracle", ICLR 2019; the ZO-SGD-Sign of arXiv 2402.11592.
    mode="scalar": :math:`\theta \leftarrow (1 - \eta \lambda) \theta - \frac{\eta}{q} \sum_i
    \mathrm{sign}(g_i) z_i`, what that benchmark's code computes.  There, a default of the trainer then hands
    this estimate to AdamW; compat="zo-llm" does so too (betas 0.9 and 0.999, weight decay 0).

    Args:
        params, lr, common: as for `ZOSGD`; at most 64 queries.
        mode: "element" or "scalar".
    """

    _max_queries = 64
    _own = ("mode",)
    mode: str
    _chained = False

    def __init__(
        self, params: Any, lr: float = 1e-6, *, mode: str = "element", **common: Unpack[Common]
    ) -> None:
        mode = _checks.choice("mode", mode, ("element", "scalar"))
        if common.get("compat") == "zo-llm":
            mode = "scalar"
        super().__init__(params, {"lr": lr}, dict(common), {"mode": mode})

    def _coefficients(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        gradient = self._gradient(walk, cell, values)
        if self.mode == "element" or self.compat == "zo-llm":
            sign = -1.0 if self.maximize else 1.0
            if self.compat == "zo-llm":
                gradient = {i: _sign(g) * walk.unit(i, cell.block) for i, g in gradient.items()}
            return {i: sign * g / self.num_queries for i, g in gradient.items()}
        scale = (cell.lr if self.maximize else -cell.lr) / self.num_queries
        return {i: scale * _sign(g) * walk.unit(i, cell.block) for i, g in gradient.items()}

    def _update(self, walk: Walk, updates: dict[Cell, Coefs], values: Values) -> None:
        if self.compat == "zo-llm":
            from .adam import adam_pass

            adam_pass(self, walk, updates, betas=(0.9, 0.999), adam_eps=1e-8)
        elif self.mode == "scalar":
            super()._update(walk, updates, values)
        else:
            from tenfold.ops import zo_sign_

            def move(cell: Cell, gradient: Coefs) -> None:
                zo_sign_(
                    cell.tensors(),
                    cell.streams,
                    terms(walk, gradient),
                    lr=cell.lr,
                    weight_decay=cell.weight_decay,
                    **stateful_options(walk, cell),
                )

            stateful_pass(walk, updates, move)


def _sign(g: float) -> float:
    return float((g > 0) - (g < 0))


class ZOSGDMomentum(ZerothOrder):
    r"""`torch.optim.SGD` with momentum on :math:`\hat g = \frac{1}{q} \sum_i g_i z_i`; decoupled decay.

    .. math::
        m \leftarrow \mu m + (1 - \tau) \hat g, \qquad
        \theta \leftarrow (1 - \eta \lambda) \theta - \eta m

    with :math:`m = \hat g` in the first step, and :math:`\hat g + \mu m` in place of m with nesterov.  The
    ZO-SGD-MMT of arXiv 2402.11592.  Steps are about 1/(1 - mu) times those of an average; dampening = mu
    makes it one.

    Args:
        params, lr, common: as for `ZOSGD`; at most 64 queries.
        momentum: mu in [0, 1).
        dampening: tau in [0, 1].
        nesterov: needs momentum > 0 and dampening 0.
        state_dtype: torch.bfloat16 keeps the momentum of float32 and half-precision weights at 2 bytes an
            element, rounded stochastically; None: float32 (float64 for float64 weights).
    """

    _max_queries = 64
    _own = ("_state_dtype",)
    _state_dtype: str | None
    _chained = False

    def __init__(
        self,
        params: Any,
        lr: float = 1e-6,
        *,
        momentum: float = 0.9,
        dampening: float = 0.0,
        nesterov: bool = False,
        state_dtype: torch.dtype | None = None,
        **common: Unpack[Common],
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": bool(nesterov)}
        super().__init__(params, defaults, dict(common), {"_state_dtype": state_dtype_name(state_dtype)})

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        momentum = _checks.real("momentum", group["momentum"], at_least=0.0, below=1.0)
        dampening = _checks.real("dampening", group["dampening"], at_least=0.0)
        if dampening > 1:
            _checks.fail(ValueError, "dampening", "a number in [0, 1]", dampening)
        if group["nesterov"] and (momentum == 0 or dampening != 0):
            _checks.fail(ValueError, "nesterov", "False without momentum or with dampening", True)

    def _coefficients(self, walk: Walk, cell: Cell, values: Values) -> Coefs:
        return gradient_coefficients(self, walk, cell, values)

    def _update(self, walk: Walk, updates: dict[Cell, Coefs], values: Values) -> None:
        from tenfold.ops import zo_momentum_

        missing = [p for cell in updates for p in cell.params if "momentum_buffer" not in self.state[p]]
        made = [empty_state(p, self._state_dtype) for p in missing]  # before anything is written
        new = set(missing)
        for p, buffer in zip(missing, made, strict=True):
            self.state[p]["momentum_buffer"] = buffer

        def move(cell: Cell, gradient: Coefs) -> None:
            for first, part in split_cell(cell, lambda p: p in new):
                zo_momentum_(
                    part.tensors(),
                    locals_of([self.state[p]["momentum_buffer"] for p in part.params]),
                    part.streams,
                    terms(walk, gradient),
                    lr=cell.lr,
                    momentum=cell.group["momentum"],
                    dampening=cell.group["dampening"],
                    nesterov=cell.group["nesterov"],
                    first=first,
                    weight_decay=cell.weight_decay,
                    **stateful_options(walk, part),
                )

        stateful_pass(walk, updates, move)


# -- what optimizers with a state share ------------------------------------------------------------------


def gradient_coefficients(opt: ZerothOrder, walk: Walk, cell: Cell, values: Values) -> Coefs:
    """The estimated gradient, before it is scaled by lr: what stateful updates take."""
    sign = -1.0 if opt.maximize else 1.0
    return {i: sign * g / opt.num_queries for i, g in opt._gradient(walk, cell, values).items()}


def stateful_pass(walk: Walk, updates: dict[Cell, Coefs], move: Callable[[Cell, Coefs], None]) -> None:
    """Restore, then one pass in which `move` writes each cell's weights and states."""
    walk.to({})
    with walk.one_pass():
        for cell, gradient in updates.items():
            move(cell, gradient)
            cell.written = True


def stateful_options(walk: Walk, cell: Cell) -> dict[str, Any]:
    masked = {} if cell.mask is None else {"mask": cell.mask}
    sharded = {"firsts": cell.firsts} if any(cell.firsts) else {}
    return {"z_round": walk.z_round, **walk.rounding_options(), **masked, **sharded}


def terms(walk: Walk, gradient: Coefs) -> list[Term]:
    return [Term(walk.seed, i, g, walk.dist) for i, g in gradient.items()]


def split_cell(cell: Cell, by: Callable[[Tensor], Any]) -> list[tuple[Any, Cell]]:
    """Parts of a cell whose parameters have the same value of `by`."""
    from ._masks import joined

    groups: dict[Any, list[int]] = {}
    for k, p in enumerate(cell.params):
        groups.setdefault(by(p), []).append(k)
    if len(groups) == 1:
        return [(next(iter(groups)), cell)]
    parts = []
    for value, members in groups.items():
        singles = [cell.only(k) for k in members]
        part = singles[0]
        part.params = [p for single in singles for p in single.params]
        part.streams = [s for single in singles for s in single.streams]
        part.firsts = [first for single in singles for first in single.firsts]
        part.mask = joined([single.mask for single in singles])
        parts.append((value, part))
    return parts


def state_dtype_name(dtype: torch.dtype | None) -> str | None:
    if dtype is None:
        return None
    allowed = (torch.float32, torch.bfloat16)
    return str(_checks.dtype("state_dtype", dtype, allowed)).removeprefix("torch.")


def empty_state(p: Tensor, name: str | None) -> Tensor:
    """Zeros for a state of a parameter."""
    own = getattr(torch, name) if name else torch.float32
    dtype = torch.float64 if p.dtype == torch.float64 else own
    return torch.zeros_like(p, dtype=dtype, requires_grad=False)

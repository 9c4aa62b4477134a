"""Sophia: momentum divided by a diagonal of curvature, clipped per coordinate (arXiv 2305.14342)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tenfold import _checks

from . import _curvature, _sophia_auto, _sophia_options, _sophia_state
from ._sophia_stats import Stats
from ._sophia_step import Buckets, amp_of

Closure = Callable[[], "Tensor | float"]


class Sophia(Optimizer):
    r"""Second-order clipped steps: each coordinate moves by at most the step size.

    .. math::
        m \leftarrow \beta_1 m + (1-\beta_1) g, \quad
        \theta \leftarrow (1 - \eta\lambda)\theta
            - \eta\,\mathrm{clip}\!\left(\frac{m}{\max(\rho h, \epsilon)}, 1\right)

    and, every `update_interval` steps, h <- beta2 h + (1 - beta2) h^ with an estimate h^ of the diagonal of
    the Gauss-Newton matrix or of the Hessian.  Where the quotient is clipped the step is that of
    sign-momentum; `win_rate` is the share of coordinates where it is not, and `rho` sets it (the authors ask
    for 0.1 to 0.5).  H. Liu et al., "Sophia", arXiv 2305.14342.

    Modes:

    ================== =============================== ==================== ==============================
    `mode`             curvature                       denominator          what it is
    ================== =============================== ==================== ==============================
    "paper"            `estimate_hessian`, includes B  max(rho h, eps)      Algorithm 3
    "liuhong99"        `update_hessian`, without B     rho bs h + 1e-15     the authors' code
    "soul_legacy"      g^2 of every step               rho 5120 h + 1e-15   the code of SOUL (2404.18239),
                                                                            where m decays twice a step
    "empirical_fisher" `estimate_hessian`, true labels max(rho h, eps)      what that code meant
    "sign"             none                            none                 sign-momentum, the ablation
    ================== =============================== ==================== ==============================

    B is the number of predictions (tokens) in the batch of the estimate.

    Args:
        params: parameters, groups or (name, parameter) pairs; real floating-point, dense.  DTensors (FSDP2)
            are stepped shard by shard.
        lr: step size eta >= 0; a coordinate moves by at most lr in a step, beside decay.
        betas: (beta1, beta2), each in [0, 1).  SOUL uses (0.9, 0.95).
        rho: >= 0, or "auto": set after each refresh so that `win_rate` is `target_win_rate`, by a quantile
            over up to a million coordinates (one synchronisation with a GPU each time).
        gamma: the paper's name of `rho`; takes its place where given.
        eps: the smallest denominator; None for 1e-12 in "paper" and "empirical_fisher", 1e-15 else.
        weight_decay: decoupled, lambda >= 0.
        mode: see above.
        bs: "liuhong99" and "soul_legacy" only: number of predictions in a batch that multiplies rho.  None:
            in "liuhong99" that of the last `estimate_hessian`, 5120 before; in "soul_legacy" 5120.
        update_interval: k >= 1; `hessian_due` goes by it.
        estimator: "gnb" (labels sampled from the model) or "hutchinson" (Hessian-vector products).
        state_dtype: float32, bfloat16 or "8bit" (one byte and 1/64 per element).  States of float64
            parameters are float64.
        master: keep float32 weights in the state of half-precision parameters, which are their rounding.
        rounding: how half-precision parameters are stored: "nearest", "stochastic", or "kahan" (a residual
            in the parameter's dtype).  With "nearest" and no master a warning tells, once, when most updates
            are lost.
        nonfinite: elements whose gradient is not finite: "propagate", "skip_element", or "error"
            (RuntimeError before anything is written; synchronises).
        maximize: step uphill.
        target_win_rate: for rho="auto", in (0, 1).
        stats_interval: count what `win_rate` and `stats` tell in every such step only, >= 1; counting costs a
            share of the pass on a CPU.
        seed: of stochastic rounding, sampled labels and probes.

    `state_dict` and that of the authors' SophiaG load into each other: state `step`, `exp_avg`, `hessian`;
    groups `lr`, `betas`, `rho`, `weight_decay`, `maximize`, `capturable`.  States are float32 whatever was
    loaded.

    Raises TypeError for parameters that are sparse, complex or integer, ValueError for arguments out of
    range.  A GradScaler is served without synchronisation: a step that overflowed changes nothing.
    """

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float | str = 0.04,
        *,
        gamma: float | None = None,
        eps: float | None = None,
        weight_decay: float = 0.1,
        mode: str = "paper",
        bs: int | None = None,
        update_interval: int = 10,
        estimator: str = "gnb",
        state_dtype: torch.dtype | str = torch.float32,
        master: bool = False,
        rounding: str = "nearest",
        nonfinite: str = "propagate",
        maximize: bool = False,
        target_win_rate: float = 0.3,
        stats_interval: int = 1,
        seed: int = 0,
    ) -> None:
        self.mode = _checks.choice("mode", mode, tuple(_sophia_options.MODES))
        self.update_interval = _checks.integer("update_interval", update_interval, 1, 1 << 62)
        self.estimator = _sophia_options.estimator(mode, estimator)
        self.state_dtype = _sophia_options.state_dtype(state_dtype)
        self.rounding = _checks.choice("rounding", rounding, _sophia_options.ROUNDINGS)
        self.master = _sophia_options.master(master, rounding)
        self.nonfinite = _checks.choice("nonfinite", nonfinite, _sophia_options.NONFINITE)
        self.stats_interval = _checks.integer("stats_interval", stats_interval, 1, 1 << 62)
        self.seed = _checks.seed("seed", seed)
        rho = rho if gamma is None else gamma
        self.target_win_rate = _sophia_options.target(mode, rho, target_win_rate)
        defaults = {
            "lr": lr,
            "betas": betas,
            "rho": 0.04 if rho == "auto" else rho,
            "weight_decay": weight_decay,
            "maximize": bool(maximize),
            "capturable": False,  # the authors' code looks for it
            "eps": _sophia_options.MODES[mode].eps if eps is None else eps,
            "bs": bs,
            "measured_bs": None,
            "num_updates": 0,
            "num_refreshes": 0,
            "refreshed_at": -1,
        }
        self._stats = Stats()
        self._rho_is_stale = False
        super().__init__(params, defaults)

    # -- groups and counters ---------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _sophia_options.check_group(group, self.mode, self.state_dtype)
        except Exception:
            self.param_groups.pop()
            raise
        for counter in ("num_updates", "num_refreshes", "refreshed_at", "measured_bs"):
            group[counter] = self.param_groups[0][counter]

    @property
    def num_updates(self) -> int:
        """How often `step` was called (steps that a GradScaler skipped count)."""
        return self.param_groups[0]["num_updates"]

    @property
    def num_refreshes(self) -> int:
        """How often the curvature was refreshed."""
        return self.param_groups[0]["num_refreshes"]

    @property
    def hessian_due(self) -> bool:
        """Whether the curvature should be refreshed now, between two steps.

        Every `update_interval` steps: the other modes from before the first step on, "liuhong99" after step
        k - 1 for the first time, as the authors' training script does.  Never in "soul_legacy" and "sign".
        """
        if _sophia_options.MODES[self.mode].refresh != "call":
            return False
        n = self.num_updates
        started = n > 0 or self.mode != "liuhong99"
        return started and n % self.update_interval == 0 and self.param_groups[0]["refreshed_at"] != n

    def _count(self, **counters: Any) -> None:
        for group in self.param_groups:
            group.update(counters)

    # -- the step --------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Closure | None = None, bs: int | None = None, **amp: Any) -> Any:
        """One step by the gradients at hand; parameters without a gradient are left alone, states too.

        Args:
            closure: evaluates the loss and its gradients again, under `enable_grad`.
            bs: "liuhong99" only: number of predictions in a batch, for this step.
            grad_scaler: (keyword) a `torch.amp.GradScaler` whose scale is on the gradients.
                `scaler.step(optimizer)` needs no argument: it sets `grad_scale` and `found_inf`.

        Returns what the closure returned.

        Raises TypeError or ValueError naming the parameter if a gradient is sparse or does not fit;
        RuntimeError for nonfinite="error".
        """
        if bs is not None and self.mode != "liuhong99":
            _checks.fail(ValueError, "bs", "None in every mode but 'liuhong99'", f"{bs!r} in {self.mode!r}")
        if bs is not None:
            _checks.real("bs", bs, positive=True)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, found_inf = amp_of(self, amp)
        buckets = Buckets(self, scale, found_inf)
        if self.nonfinite == "error":
            buckets.expect_finite()
        if self._rho_is_stale and buckets.any:
            self._rho_is_stale = not _sophia_auto.tune(self, buckets, bs)
        counted = self.num_updates % self.stats_interval == 0
        if counted:
            self._stats.begin()
        buckets.step(bs, self._stats if counted else None)
        self._stats.warn_if_lost(self)
        self._count(num_updates=self.num_updates + 1)
        return loss

    # -- curvature -------------------------------------------------------------------------------------

    @torch.no_grad()
    def update_hessian(self, scale: float = 1.0, grad_scaler: Any = None) -> None:
        """h <- beta2 h + (1 - beta2) scale g^2 with the gradients at hand: those of a loss of sampled labels.

        Accumulate over micro-batches and ranks first: it is the sum that is squared.

        Args:
            scale: >= 0.  In "paper": B, the number of predictions, for gradients of the mean loss; 1/B for
                gradients of the sum.  In "liuhong99": 1 (B is `bs`, at the step).
            grad_scaler: a GradScaler whose scale is on the gradients; a refresh that overflowed changes
                nothing.

        Raises RuntimeError in "soul_legacy" and "sign", which have nothing to refresh.
        """
        scale = _checks.real("scale", scale, at_least=0.0)
        self._expect_refresh()
        amp = {} if grad_scaler is None else {"grad_scaler": grad_scaler}
        Buckets(self, *amp_of(self, amp)).refresh(scale)
        self._refreshed(None)

    def estimate_hessian(
        self,
        model: torch.nn.Module,
        batches: Iterable[Any],
        *,
        estimator: str | None = None,
        predict: Callable[..., Any] | None = None,
        loss: Callable[..., Any] | None = None,
        probes: int = 1,
        max_norm: float | None = None,
        group: Any = "auto",
    ) -> int:
        """Estimate the diagonal of curvature on the batches and take it into h.

        Gradients that are there are set aside and put back: nothing is added to them, and beside them one
        more set lives meanwhile.  Call it where there are none (before the first backward pass of a step, or
        after `zero_grad`) and it takes no memory beyond that of a backward pass.

        * "gnb": labels are sampled from the model's own predictions, the gradient g of their mean loss is
          accumulated over batches and ranks, and h^ = B g^2, whose expectation is the diagonal of the
          Gauss-Newton matrix.  Positions whose label is -100 (or that attend to nothing) are neither sampled
          nor counted in B.
        * "hutchinson": h^ = u * (H u) for signs u, averaged over `probes`, batches and ranks.  Needs double
          backward: attention runs by its plain formula; FSDP2 is refused.
        * "empirical_fisher": the square of the gradient of each batch's own loss times its B, averaged over
          batches and ranks (under FSDP2, a batch is that of all ranks).

        Args:
            model: the model, or DistributedDataParallel or FSDP2 around it; in the mode (training,
                evaluation, autocast) that you have it in.
            batches: dicts for transformers models, else (inputs, targets).  All ranks need as many; batch
                i of rank r of W is number i W + r of the whole, so that W ranks sample what one would.
            estimator: None for that of the optimizer.
            predict: `predict(model, batch)` -> logits [..., V], or (logits, mask [...]) with the positions
                to be sampled, where the default does not know the model.
            loss: `loss(model, batch)` -> mean loss, or (mean loss, number of predictions); for "hutchinson"
                and "empirical_fisher".
            probes: per batch, >= 1.
            max_norm: "gnb": clip the norm of g to it, as the authors' script does with 1.0.
            group: the process group over which batches are spread; "auto" for that of
                DistributedDataParallel, else the default one if there is one; None for none.

        Returns:
            B, the number of predictions over all batches and ranks.

        Raises:
            ValueError: no batch, or no position to predict; RuntimeError: in "soul_legacy" and "sign";
            TypeError: a model or batch that the defaults do not know.
        """
        self._expect_refresh()
        chosen = self.estimator if estimator is None else estimator
        _checks.choice("estimator", chosen, _sophia_options.ESTIMATORS)
        request = _curvature.Request(
            model, batches, predict, loss, _checks.integer("probes", probes, 1, 1 << 20), max_norm, group
        )
        predictions = _curvature.ESTIMATE[chosen](self, request)
        self._refreshed(predictions)
        return predictions

    def _expect_refresh(self) -> None:
        if _sophia_options.MODES[self.mode].refresh != "call":
            got = f"{self.mode!r}"
            _checks.fail(RuntimeError, "mode", "one whose curvature is refreshed by call", got)

    def _refreshed(self, predictions: int | None) -> None:
        self._count(num_refreshes=self.num_refreshes + 1, refreshed_at=self.num_updates)
        if predictions is not None:
            self._count(measured_bs=predictions)
        self._rho_is_stale = self.target_win_rate is not None

    # -- what happened ---------------------------------------------------------------------------------

    @property
    def win_rate(self) -> float:
        """Share of coordinates of the last counted step that were not clipped; NaN before the first.

        Reading it waits for a GPU; of this rank's shards alone under FSDP2 (`stats(reduce=True)` for all).
        """
        return self.stats()["win_rate"]

    def stats(self, reduce: bool = False, group: Any = None) -> dict[str, float]:
        """What the last counted step did; reading waits for a GPU, steps do not.

        Args:
            reduce: sum over the ranks of `group` (all must call); for FSDP2, where each has its shards.

        Returns:
            win_rate: share of coordinates not clipped; update_rms: root mean square of the clipped quotient
            (times lr: of the update); changed: share of stored weights that changed; nonfinite: gradients
            that were not finite; elements: how many coordinates were stepped; skipped_refreshes: estimates of
            curvature dropped because they were not finite, since the start.
        """
        return self._stats.read(reduce, group)

    # -- saving ----------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state of this class or of the authors' SophiaG; moments come in this optimizer's dtype.

        Raises ValueError, before anything changes, if a state does not fit its parameter.
        """
        _sophia_state.check_loaded(self, state_dict)
        own = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, kept, saved in zip(self.param_groups, own, state_dict["param_groups"], strict=True):
            for key, value in kept.items():
                group.setdefault(key, value)
            if "num_updates" not in saved:  # the authors': only states count steps
                group["num_updates"] = _sophia_state.steps_of(state_dict)
        _sophia_state.take_loaded(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        """For deep copies and pickles."""
        own = ("mode", "update_interval", "estimator", "state_dtype", "rounding", "master", "nonfinite")
        more = ("seed", "stats_interval", "target_win_rate", "_rho_is_stale", "_stats")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in (*own, *more)}}


class SophiaG(Sophia):
    """Sophia with the Gauss-Newton-Bartlett estimator, as the authors' code has it (mode "liuhong99").

    A drop-in for their class: same arguments, defaults, `step(bs=...)`, `update_hessian()` and state.  `bs`
    is the number of predictions (sequences times tokens) of a batch.  With `estimate_hessian` instead of
    `update_hessian` it need not be given.  `capturable` is taken for their scripts' sake and changes nothing:
    no step waits for a GPU.  Other arguments as `Sophia`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float | str = 0.04,
        weight_decay: float = 1e-1,
        *,
        maximize: bool = False,
        capturable: bool = False,
        **options: Any,
    ) -> None:
        options.setdefault("mode", "liuhong99")
        super().__init__(
            params, lr, betas, rho, weight_decay=weight_decay, maximize=maximize, estimator="gnb", **options
        )


class SophiaH(Sophia):
    """Sophia with Hutchinson's estimator and the paper's constants (mode "paper").

    An update clamp(m / max(h, eps), -p, p) with step size lr, as other libraries write it, is this one with
    lr p, gamma p and eps p.  Other arguments as `Sophia`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 6e-4,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.01,
        weight_decay: float = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(
            params, lr, betas, gamma=gamma, weight_decay=weight_decay, estimator="hutchinson", **options
        )

"""The options that all zeroth-order optimizers share, and their checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold import _checks

DISTRIBUTIONS = ("gaussian", "rademacher", "gauss16", "sphere")
RESTORES = ("auto", "arithmetic", "exact", "dual")
LEVELS = ("block", "mlp-attn", "linear")
ORDERS = ("coordinate", "simultaneous")
AGGREGATES = ("mean", "least_squares")
COMPATS = ("mezo", "zo-llm")
PARALLELS = ("data", "query")
_Z_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class RandomSparsity:
    """Only a random share of the elements moves; the mask is redrawn every `every` steps.

    Args:
        ratio: share of the elements that stays, s in [0, 1].
        every: steps that one mask serves, >= 1.
        rescale: multiply directions by 1/sqrt(1 - s), which keeps their expected norm; then s < 1.
        scope: "tensor" masks the share s of each tensor.  "global" takes the s-quantile of abs(theta) over
            all trainable elements and masks of each tensor the share that lies at or below it, as the
            benchmark of arXiv 2402.11592 does; the quantile is exact.

    An element is masked with exactly probability s, by counter-based words, and by every probe and update of
    the step alike, for any number of queries.  Weight decay still applies to masked elements.
    """

    ratio: float
    every: int = 1
    rescale: bool = False
    scope: str = "tensor"

    def __post_init__(self) -> None:
        ratio = _checks.real("ratio", self.ratio, at_least=0.0)
        if ratio > 1 or (self.rescale and ratio == 1):
            top = "[0, 1) with rescale=True" if self.rescale else "[0, 1]"
            _checks.fail(ValueError, "ratio", f"a share in {top}", ratio)
        _checks.integer("every", self.every, 1, 1 << 62)
        _checks.choice("scope", self.scope, ("tensor", "global"))


@dataclass(frozen=True)
class MagnitudeSparsity:
    """Only the small weights move: those of each tensor at or below its (1 - ratio)-quantile of abs(theta).

    Y. Liu et al., "Sparse MeZO: less parameters for better performance in zeroth-order LLM fine-tuning",
    arXiv 2402.15751.

    Args:
        ratio: share of the elements that stays (the largest), in [0, 1).
        every: steps after which the thresholds are taken anew; None keeps those of the first step.

    The mask itself follows the weights: at every step it is made from the clean weights, and is the same in
    all probes and in the update of that step.
    """

    ratio: float = 0.75
    every: int | None = None

    def __post_init__(self) -> None:
        _checks.real("ratio", self.ratio, at_least=0.0, below=1.0)
        if self.every is not None:
            _checks.integer("every", self.every, 1, 1 << 62)


@dataclass(frozen=True)
class Blocks:
    """Block-wise steps: the estimate of each block comes from probes that move that block alone.

    Args:
        model: the module whose parts are the blocks, or a list of modules.  Trainable parameters outside
            all of them form one more block, the first.
        level: "block" makes a block of every layer of the model's longest list of layers, and of what stands
            beside it; "mlp-attn" splits each layer into its direct children; "linear" makes a block of every
            module that owns parameters.  Ignored where a list is given.
        order: "coordinate" moves a block as soon as it is probed, later ones see it moved; "simultaneous"
            probes all blocks at the same weights and moves them together.
        reuse_prefix: keep the activations before the block under probe instead of computing them again.

    Equal blocks have different directions: the stream of a parameter is its own.
    """

    model: nn.Module | Sequence[nn.Module]
    level: str = "block"
    order: str = "coordinate"
    reuse_prefix: bool = True

    def __post_init__(self) -> None:
        modules = [self.model] if isinstance(self.model, nn.Module) else self.model
        if not isinstance(modules, Sequence) and not isinstance(modules, nn.ModuleList):
            _checks.fail(TypeError, "blocks", "a module or a list of modules", type(modules).__name__)
        for i, module in enumerate(modules):
            if not isinstance(module, nn.Module):
                _checks.fail(TypeError, f"blocks[{i}]", "a torch.nn.Module", type(module).__name__)
        _checks.choice("level", self.level, LEVELS)
        _checks.choice("order", self.order, ORDERS)


@dataclass(frozen=True)
class HybridFirstOrder:
    """Back-propagation through the last `last` layers only, zeroth-order steps for all that comes before.

    Args:
        last: how many layers of the model's longest list of layers learn by back-propagation, >= 1; what is
            behind them (final norm, an untied head) goes with them.
        optimizer: makes the first-order optimizer from a list of parameters, e.g.
            `lambda params: torch.optim.AdamW(params, lr=1e-5)`; it is `.first_order` of the outer one.
        model: the module; default: the one given as `streams`.

    One step takes three losses for one two-sided query: one with gradients, whose graph begins at the first
    of these layers, and two at perturbed weights.  Both updates are made at the same weights.
    """

    last: int
    optimizer: Callable[[list[Any]], Optimizer]
    model: nn.Module | None = None

    def __post_init__(self) -> None:
        _checks.integer("last", self.last, 1, 1 << 31)
        if not callable(self.optimizer):
            _checks.fail(TypeError, "optimizer", "a callable", type(self.optimizer).__name__)


class Common(TypedDict, total=False):
    """Keyword options of every optimizer here.

    Attributes:
        eps: how far the probes stand from the weights, > 0; in units of the weights, per unit of z.
        num_queries: directions per step, q >= 1.
        dist: "gaussian"; "rademacher" signs; "gauss16", normals of 16-bit uniforms (abs(z) <= 4.85), faster
            to make; "sphere", Gaussian directions scaled to norm sqrt(d), d being the number of trainable
            elements (of the block, in block-wise steps).
        one_sided: g_i = (L(theta + eps z_i) - L(theta)) / eps; the q queries share L(theta).
        weight_decay: decoupled, lambda >= 0.
        seed: of the run, in [0, 2^64).
        restore: how a probe is undone.  "auto", the default, is "exact" while the trainable tensors take at
            most 12 MiB, and "dual" above.  "exact" keeps one clean copy of the trainable tensors, taken at
            the start of each step: probes and update are written from it.  "dual" never writes the weights
            in a probe: linear layers, embeddings, matrix products with a weight or its transpose, rows picked
            by index and the log-probability losses of `tenfold.ops` compute with the perturbed weight made
            on the way, in buffers of 8 MiB; other functions get a perturbed copy of the one tensor they ask
            for (so do all under autocast, with a random mask, or along several directions at once), and
            "auto" says which where it is larger than 4 MiB.  It needs closures that reach the weights
            through torch functions on the same thread;
            where "auto" sees a parameter that the closure does not reach so, it says so and takes copies
            instead, and "dual" raises if no parameter is reached.  In all of these nothing drifts, and an
            exception or Ctrl-C at any time restores the weights bit for bit.  "arithmetic" adds the
            opposite, as MeZO does: no extra memory for any closure, but each pass rounds, and weights drift
            in half precision (100 steps at eps 1e-3 with lr 0 move bfloat16 weights of rms 0.02 by 7.8e-4
            rms, float16 by 9.8e-5, float32 by 1.2e-8).
        rounding: to the dtype of the weights.  "rne", to nearest even, is the default in every dtype; small
            updates are then lost in half precision (88 % of the elements do not move for lr*g = 1e-5 in
            bfloat16).  "sr", stochastic, keeps them on average.
        z_round: bfloat16 or float16 rounds the directions first, as reference code does that draws them in
            the dtype of the weights.
        streams: a module that holds all parameters.  The directions of a parameter then depend on its place
            among all parameters of the module, not of `params`, and weight decay leaves biases and the
            parameters of normalisation layers (told by the type of the layer) alone.
        max_nonfinite: this many steps in a row with a loss that is not finite raise RuntimeError.
        maximize: ascend.
        max_projected_grad: None, or a bound > 0: projected gradients g_i (those of the first group, where
            groups differ in eps) are clipped to [-bound, bound] before they are used or recorded, as QZO does
            (arXiv 2505.13430).  One that is not finite still skips the step.
        mask: None, `RandomSparsity` or `MagnitudeSparsity`.
        blocks: None or `Blocks`.
        hybrid: None or `HybridFirstOrder`.
        aggregate: "mean" estimates the gradient by (1/q) sum_i g_i z_i.  "least_squares" solves for the
            estimate in the span of the directions that has all the projected gradients g_i, times d/q, which
            makes it unbiased like the mean: w = d (Z^T Z)^-1 g in place of g.
        compat: None, or the behaviour of reference code where it differs: "mezo" (weight decay by the name
            of the parameter) or "zo-llm" (what it changes is told by each class).
        group: process group of torch.distributed, None for the default one.
        parallel: None, or how the ranks of the group share a step: "data" (each sees its own shard, losses
            are averaged) or "query" (each evaluates its part of the queries).
    """

    eps: float
    num_queries: int
    dist: str
    one_sided: bool
    weight_decay: float
    seed: int
    restore: str
    rounding: str
    z_round: torch.dtype | None
    streams: nn.Module | None
    max_nonfinite: int
    maximize: bool
    max_projected_grad: float | None
    mask: RandomSparsity | MagnitudeSparsity | None
    blocks: Blocks | None
    hybrid: HybridFirstOrder | None
    aggregate: str
    compat: str | None
    group: Any
    parallel: str | None


DEFAULTS: dict[str, Any] = {
    "eps": 1e-3,
    "num_queries": 1,
    "dist": "gaussian",
    "one_sided": False,
    "weight_decay": 0.0,
    "seed": 0,
    "restore": "auto",
    "rounding": "rne",
    "z_round": None,
    "streams": None,
    "max_nonfinite": 3,
    "maximize": False,
    "max_projected_grad": None,
    "mask": None,
    "blocks": None,
    "hybrid": None,
    "aggregate": "mean",
    "compat": None,
    "group": None,
    "parallel": None,
}


def checked(options: dict[str, Any], max_queries: int) -> dict[str, Any]:
    """The options with values in range, as the types they are kept in.

    Raises TypeError or ValueError with the name of the option.
    """
    o = dict(options)
    o["num_queries"] = _checks.integer("num_queries", o["num_queries"], 1, max_queries)
    o["dist"] = _checks.choice("dist", o["dist"], DISTRIBUTIONS)
    o["one_sided"] = bool(o["one_sided"])
    o["seed"] = _checks.seed("seed", o["seed"])
    o["restore"] = _checks.choice("restore", o["restore"], RESTORES)
    o["rounding"] = _checks.choice("rounding", o["rounding"], ("rne", "sr"))
    o["z_round"] = None if o["z_round"] is None else _checks.dtype("z_round", o["z_round"], _Z_DTYPES)
    o["max_nonfinite"] = _checks.integer("max_nonfinite", o["max_nonfinite"], 1, 1 << 31)
    o["maximize"] = bool(o["maximize"])
    if o["max_projected_grad"] is not None:
        bound = _checks.real("max_projected_grad", o["max_projected_grad"], positive=True)
        o["max_projected_grad"] = bound
    o["aggregate"] = _checks.choice("aggregate", o["aggregate"], AGGREGATES)
    for name, choices in (("compat", COMPATS), ("parallel", PARALLELS)):
        if o[name] is not None:
            _checks.choice(name, o[name], choices)
    kinds: dict[str, Any] = {
        "streams": nn.Module,
        "mask": (RandomSparsity, MagnitudeSparsity),
        "blocks": Blocks,
        "hybrid": HybridFirstOrder,
    }
    words = {
        "streams": "a torch.nn.Module",
        "mask": "RandomSparsity or MagnitudeSparsity",
        "blocks": "Blocks",
        "hybrid": "HybridFirstOrder",
    }
    for name, kind in kinds.items():
        if o[name] is not None and not isinstance(o[name], kind):
            _checks.fail(TypeError, name, f"{words[name]} or None", type(o[name]).__name__)
    _check_pairs(o)
    return o


def _check_pairs(o: dict[str, Any]) -> None:
    """Options that each make sense and do not combine."""
    if o["dist"] == "sphere" and o["mask"] is not None:
        _checks.fail(ValueError, "mask", "None with dist='sphere'", type(o["mask"]).__name__)
    if o["aggregate"] == "least_squares":
        for name in ("mask", "blocks"):
            if o[name] is not None:
                _checks.fail(ValueError, name, "None with aggregate='least_squares'", type(o[name]).__name__)
    if o["hybrid"] is not None and o["blocks"] is not None:
        _checks.fail(ValueError, "hybrid", "None with blocks", "HybridFirstOrder")
    if o["parallel"] == "query" and o["restore"] == "arithmetic":
        got = "'arithmetic': ranks would round differently"
        _checks.fail(ValueError, "restore", "'exact' or 'dual' with parallel='query'", got)
    if o["group"] is not None and o["parallel"] is None:
        _checks.fail(ValueError, "parallel", "'data' or 'query' with a process group", None)

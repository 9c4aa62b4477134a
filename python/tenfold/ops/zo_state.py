"""Zeroth-order updates with state: momentum, Adam, sign, HiZOO, and many chains in one pass (see zo.py).

The gradient estimate g = sum_k coef_k * z_k is regenerated; weights and states are read and written once. A
masked element has g = 0. States are float32 (float64 for float64 tensors), or bfloat16 for weights that are
not float64; bfloat16 states are stored with stochastic rounding, whose bits differ from those of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _checks
from tenfold._backend import OPS
from tenfold.kernels.zo.zo_mask import MaskArgs

from . import zo
from .zo import _DIRECTIONS, _FIRSTS, _LIBRARY, _MASK, _ROUNDING, DISTRIBUTIONS, Mask, RandomMask, Term

VARIANTS = ("adam", "radazo")

_NEW = ("zo_momentum_", "zo_sign_", "zo_hizoo_perturb_", "zo_hizoo_update_", "zo_replay_")
OPS |= dict.fromkeys((*_NEW, "zo_adam_"), zo._ALL)
OPS |= {f"{name} with firsts": ("cpu", "reference") for name in (*_NEW[:-1], "zo_adam_")}

for _schema in (
    "zo_momentum_(Tensor(a!)[] params, Tensor(b!)[] momentum_buffers, "
    f"{_DIRECTIONS}, float lr, float momentum, float dampening, bool nesterov, bool first, "
    f"{_ROUNDING}, {_MASK}, {_FIRSTS}) -> ()",
    "zo_adam_(Tensor(a!)[] params, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    f"{_DIRECTIONS}, float lr, float beta1, float beta2, float eps, SymInt step, "
    f"{_ROUNDING}, str variant='adam', {_MASK}, {_FIRSTS}) -> ()",
    f"zo_sign_(Tensor(a!)[] params, {_DIRECTIONS}, float lr, {_ROUNDING}, {_MASK}, {_FIRSTS}) -> ()",
    "zo_hizoo_perturb_(Tensor(a!)[] params, Tensor[] sources, Tensor[] hessians, SymInt[] streams, "
    "SymInt seed, SymInt query, float c, str dist, ScalarType? z_round, bool stochastic, "
    f"SymInt rounding_seed, SymInt rounding_query, {_MASK}, {_FIRSTS}) -> ()",
    "zo_hizoo_update_(Tensor(a!)[] params, Tensor(b!)[] hessians, "
    f"{_DIRECTIONS}, float[] curvatures, float lr, float smoothing, float restore, "
    f"{_ROUNDING}, {_MASK}, {_FIRSTS}) -> ()",
    f"zo_replay_(Tensor(a!)[] params, {_DIRECTIONS}, SymInt[] sizes, float[] decays, "
    "SymInt[] rounding_seeds, SymInt[] rounding_queries, SymInt[] mask_seeds, SymInt[] mask_queries, "
    "float[] mask_ratios, ScalarType? z_round, bool stochastic) -> ()",
):
    _LIBRARY.define(_schema)


class ReplayPass(NamedTuple):
    """One `zo_chain_` of a replay: theta = round(decay * theta + sum_k coef_k z_k).

    rounding_seed: default, the first term's seed.
    """

    terms: Sequence[Term]
    decay: float = 1.0
    rounding_seed: int | None = None
    mask: RandomMask | None = None


# ---- the dispatcher's side: check what would read or write wrong memory, choose the backend, call it -------


def _unsigned(seeds: Sequence[int]) -> list[int]:
    return [zo._unsigned(s) for s in seeds]


def _state_like(name: str, states: Sequence[Tensor], params: Sequence[Tensor], half: bool = True) -> None:
    zo._match(name, states, params, [t.dtype for t in states])
    for i, (state, param) in enumerate(zip(states, params, strict=True)):
        wide = torch.float64 if param.dtype == torch.float64 else torch.float32
        allowed = (wide, torch.bfloat16) if half and wide == torch.float32 else (wide,)
        _checks.dtype(f"{name}[{i}].dtype", state.dtype, allowed)


def _directions(
    params: Sequence[Tensor],
    streams: Sequence[int],
    seeds: Sequence[int],
    queries: Sequence[int],
    coefs: Sequence[float],
    dists: Sequence[str],
) -> tuple[Any, ...]:
    zo._pairs("streams", streams, params)
    zo._distributions(dists, DISTRIBUTIONS)
    return streams, _unsigned(seeds), queries, coefs, dists


def _rounded(
    decay: float, z_round: torch.dtype | None, stochastic: bool, seed: int, query: int
) -> tuple[Any, ...]:
    return decay, z_round, stochastic, zo._unsigned(seed), query


def _zo_momentum_(
    params: list[Tensor], momentum_buffers: list[Tensor], *rest: Any
) -> None:  # rest: as in the schema
    directions, (lr, momentum, dampening, nesterov, first), rounding = rest[:5], rest[5:10], rest[10:15]
    columns = _directions(params, *directions)
    mask, firsts = _masked(params, rest[15:])
    _state_like("momentum_buffers", momentum_buffers, params)
    _checks.memory(params=params, momentum_buffers=momentum_buffers)
    kernels = zo._kernels("zo_momentum_", params[0].device, firsts)
    scalars = lr, momentum, dampening, nesterov, first
    kernels.momentum_(
        params, momentum_buffers, *columns, *scalars, *_rounded(*rounding), *_ends(mask, firsts)
    )
    zo._written([*params, *momentum_buffers])


def _zo_adam_(params: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], *rest: Any) -> None:
    directions, scalars, rounding = rest[:5], rest[5:10], rest[10:15]
    variant = rest[15] if len(rest) > 15 else "adam"
    columns = _directions(params, *directions)
    mask, firsts = _masked(params, rest[16:])
    _checks.choice("variant", variant, VARIANTS)
    _state_like("exp_avgs", exp_avgs, params)
    _state_like("exp_avg_sqs", exp_avg_sqs, params)
    _same_dtypes("exp_avg_sqs", exp_avg_sqs, exp_avgs)
    _checks.memory(params=params, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs)
    plain = mask is None and variant == "adam" and not firsts
    extra = () if plain else (variant, *_ends(mask, firsts))
    kernels = zo._kernels("zo_adam_", params[0].device, firsts)
    kernels.adam_(params, exp_avgs, exp_avg_sqs, *columns, *scalars, *_rounded(*rounding), *extra)
    zo._written([*params, *exp_avgs, *exp_avg_sqs])


def _zo_sign_(params: list[Tensor], *rest: Any) -> None:
    columns = _directions(params, *rest[:5])
    mask, firsts = _masked(params, rest[11:])
    _checks.memory(params=params)
    kernels = zo._kernels("zo_sign_", params[0].device, firsts)
    kernels.sign_(params, *columns, rest[5], *_rounded(*rest[6:11]), *_ends(mask, firsts))
    zo._written(params)


def _zo_hizoo_perturb_(
    params: list[Tensor], sources: list[Tensor], hessians: list[Tensor], streams: list[int], *rest: Any
) -> None:
    seed, query, c, dist, z_round, stochastic, rounding_seed, rounding_query = rest[:8]
    zo._pairs("streams", streams, params)
    zo._distributions([dist], DISTRIBUTIONS)
    mask, firsts = _masked(params, rest[8:])
    if sources:
        zo._match("sources", sources, params)
        _checks.separate("sources", sources, params)
    _state_like("hessians", hessians, params, half=False)
    _checks.memory(params=params)
    _checks.separate("hessians", hessians, params)
    kernels = zo._kernels("zo_hizoo_perturb_", params[0].device, firsts)
    kernels.hizoo_perturb_(
        params, sources or None, hessians, streams, zo._unsigned(seed), query, c, dist, z_round, stochastic,
        zo._unsigned(rounding_seed), rounding_query, *_ends(mask, firsts),
    )  # fmt: skip
    zo._written(params)


def _zo_hizoo_update_(params: list[Tensor], hessians: list[Tensor], *rest: Any) -> None:
    columns = _directions(params, *rest[:5])
    curvatures, lr, smoothing, restore = rest[5:9]
    _checks.length("curvatures", curvatures, len(columns[1]), "terms")
    if restore != 0.0 and len(columns[1]) != 1:
        _checks.fail(ValueError, "terms", "one term where restore is given", len(columns[1]))
    mask, firsts = _masked(params, rest[14:])
    _state_like("hessians", hessians, params, half=False)
    _checks.memory(params=params, hessians=hessians)
    kernels = zo._kernels("zo_hizoo_update_", params[0].device, firsts)
    scalars = curvatures, lr, smoothing, restore
    kernels.hizoo_update_(params, hessians, *columns, *scalars, *_rounded(*rest[9:14]), *_ends(mask, firsts))
    zo._written([*params, *hessians])


def _zo_replay_(params: list[Tensor], *rest: Any) -> None:
    streams, seeds, queries, coefs, dists = _directions(params, *rest[:5])
    sizes, decays, rounding_seeds, rounding_queries, mask_seeds, mask_queries, ratios = rest[5:12]
    passes = len(sizes)
    for name, column in (("decays", decays), ("rounding_seeds", rounding_seeds), ("mask_seeds", mask_seeds)):
        _checks.length(name, column, passes, "passes")
    for name, column in (("rounding_queries", rounding_queries), ("mask_queries", mask_queries)):
        _checks.length(name, column, passes, "passes")
    if ratios:
        _checks.length("mask_ratios", ratios, passes * len(params), "passes and params")
    for name, column in (
        ("queries", queries),
        ("coefs", coefs),
        ("dists", dists),
        ("sizes", range(sum(sizes))),
    ):
        _checks.length(name, column, len(seeds), "terms")
    if any(size < 1 for size in sizes):
        _checks.fail(ValueError, "sizes", "1 or more terms in every pass", min(sizes))
    _checks.memory(params=params)
    kernels = zo._kernels("zo_replay_", params[0].device)
    kernels.replay_(
        params, streams, seeds, queries, coefs, dists, sizes, decays, _unsigned(rounding_seeds),
        rounding_queries, _unsigned(mask_seeds), mask_queries, ratios, rest[12], rest[13],
    )  # fmt: skip
    zo._written(params)


def _masked(params: Sequence[Tensor], rest: Sequence[Any]) -> tuple[MaskArgs | None, Sequence[int]]:
    """Mask and firsts in what a schema call ends with; the dispatcher leaves trailing defaults out."""
    defaults: tuple[Any, ...] = ("", 0, 0, [], None, [])
    kind, seed, query, values, bits, firsts = (*rest, *defaults[len(rest) :])
    zo._check_firsts(firsts, params)
    return zo._mask_args(params, kind, seed, query, values, bits), firsts


def _ends(mask: MaskArgs | None, firsts: Sequence[int]) -> tuple[Any, ...]:
    """What a kernel takes last."""
    return (mask, firsts) if firsts else (mask,)


def _same_dtypes(name: str, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(tensors, others, strict=True)):
        if a.dtype != b.dtype:
            _checks.fail(TypeError, f"{name}[{i}].dtype", f"{b.dtype} as exp_avgs[{i}]", a.dtype)


for _name, _kernel in (
    ("zo_momentum_", _zo_momentum_),
    ("zo_adam_", _zo_adam_),
    ("zo_sign_", _zo_sign_),
    ("zo_hizoo_perturb_", _zo_hizoo_perturb_),
    ("zo_hizoo_update_", _zo_hizoo_update_),
    ("zo_replay_", _zo_replay_),
):
    zo._register(_name, _kernel, zo._writes_only)


# ---- the public side ---------------------------------------------------------------------------------------


def zo_momentum_(
    params: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    streams: Sequence[int],
    terms: Sequence[Term],
    *,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    nesterov: bool = False,
    first: bool,
    weight_decay: float = 0.0,
    z_round: torch.dtype | None = None,
    out_rounding: str = "rne",
    rounding_seed: int | None = None,
    mask: Mask | None = None,
    firsts: Sequence[int] | None = None,
) -> None:
    """One step of SGD with momentum on g = sum_k coef_k * z_k, in the convention of torch.optim.SGD.

    m = g on the first step, else momentum * m + (1 - dampening) * g; d = g + momentum * m if nesterov, else
    m; theta = round((1 - lr wd) * theta - lr * d).

    Args:
        momentum_buffers: shaped as params; what they hold is ignored on the first step. float32 (float64 for
            float64 tensors) or, for weights that are not float64, bfloat16 (stored with stochastic rounding).
        terms: the gradient estimate, e.g. `Term(seed, i, projected_grad_i / q)` for each of q queries.
        lr: learning rate, >= 0. momentum, dampening: in [0, 1].
        nesterov: needs momentum > 0 and dampening 0.
        first: whether this is the first step.
        weight_decay: decoupled (AdamW-style) decay, >= 0.

    The rest of the arguments, and the errors, are those of `zo_chain_`; a masked element has g = 0.
    """
    params = zo._params("params", params)
    buffers = _states("momentum_buffers", momentum_buffers, params)
    momentum = _share("momentum", momentum)
    dampening = _share("dampening", dampening)
    nesterov, first = _flag("nesterov", nesterov), _flag("first", first)
    if nesterov and (momentum == 0.0 or dampening != 0.0):
        _checks.fail(
            ValueError, "nesterov", "False, or momentum > 0 and dampening 0", (nesterov, momentum, dampening)
        )
    lr = _checks.real("lr", lr, at_least=0.0)
    columns, rounding = _common(
        params, streams, terms, lr, weight_decay, z_round, out_rounding, rounding_seed
    )
    masking = *zo._mask(mask, params), zo._firsts(firsts, params)
    if params:
        torch.ops.tenfold.zo_momentum_(
            params, buffers, *columns, lr, momentum, dampening, nesterov, first, *rounding, *masking
        )


def zo_adam_(
    params: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    streams: Sequence[int],
    terms: Sequence[Term],
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    step: int,
    weight_decay: float = 0.0,
    z_round: torch.dtype | None = None,
    out_rounding: str = "rne",
    rounding_seed: int | None = None,
    variant: str = "adam",
    mask: Mask | None = None,
    firsts: Sequence[int] | None = None,
) -> None:
    """One Adam step on g = sum_k coef_k * z_k, with z regenerated: one read and write of weights and states.

    Kingma and Ba (arXiv 1412.6980) with decoupled decay (Loshchilov and Hutter, arXiv 1711.05101).

    Args:
        exp_avgs, exp_avg_sqs: first and second moments, shaped as params, both float32 (float64 for float64
            tensors), or both bfloat16 for weights that are not float64 (stored with stochastic rounding).
        terms: the gradient estimate, e.g. `Term(seed, i, projected_grad_i / q)` for each of q queries.
        lr: learning rate, >= 0.
        beta1, beta2: decay rates of the moments, in [0, 1).
        eps: > 0.
        step: 1 for the first step.
        weight_decay: >= 0.
        variant: "adam"; or "radazo", R-AdaZO (arXiv 2502.01014): the second moment follows the square of the
            new first moment instead of g's.

    The rest of the arguments, and the errors, are those of `zo_chain_`; a masked element has g = 0.
    """
    params = zo._params("params", params)
    exp_avgs = _states("exp_avgs", exp_avgs, params)
    exp_avg_sqs = _states("exp_avg_sqs", exp_avg_sqs, params)
    _same_dtypes("exp_avg_sqs", exp_avg_sqs, exp_avgs)
    single = zo._single(params)
    lr = _checks.real("lr", lr, at_least=0.0)
    beta1 = _checks.real("beta1", beta1, at_least=0.0, below=1.0)
    beta2 = _checks.real("beta2", beta2, at_least=0.0, below=1.0)
    eps = _checks.real("eps", eps, positive=True)
    step = _checks.integer("step", step, 1, 2**62)
    if single and eps < 1e-45:
        _checks.fail(ValueError, "eps", "a number > 0 in float32", eps)
    variant = _checks.choice("variant", variant, VARIANTS)
    columns, rounding = _common(
        params, streams, terms, lr, weight_decay, z_round, out_rounding, rounding_seed
    )
    _checks.fits("lr / (1 - beta1**step)", lr / (1 - beta1**step), single)
    masking = *zo._mask(mask, params), zo._firsts(firsts, params)
    if params:
        torch.ops.tenfold.zo_adam_(
            params, exp_avgs, exp_avg_sqs, *columns, lr, beta1, beta2, eps, step, *rounding, variant, *masking
        )


def zo_sign_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    terms: Sequence[Term],
    *,
    lr: float,
    weight_decay: float = 0.0,
    z_round: torch.dtype | None = None,
    out_rounding: str = "rne",
    rounding_seed: int | None = None,
    mask: Mask | None = None,
    firsts: Sequence[int] | None = None,
) -> None:
    """theta = round((1 - lr wd) * theta - lr * sign(g)), g = sum_k coef_k * z_k and sign(0) = 0.

    Sign SGD on a zeroth-order estimate: Liu et al., "signSGD via zeroth-order oracle" (ICLR 2019).

    Args:
        lr: learning rate, >= 0.
        weight_decay: decoupled decay, >= 0.

    The rest of the arguments, and the errors, are those of `zo_chain_`; a masked element has g = 0.
    """
    params = zo._params("params", params)
    lr = _checks.real("lr", lr, at_least=0.0)
    columns, rounding = _common(
        params, streams, terms, lr, weight_decay, z_round, out_rounding, rounding_seed
    )
    masking = *zo._mask(mask, params), zo._firsts(firsts, params)
    if params:
        torch.ops.tenfold.zo_sign_(params, *columns, lr, *rounding, *masking)


def zo_hizoo_perturb_(
    params: Sequence[Tensor],
    hessians: Sequence[Tensor],
    streams: Sequence[int],
    seed: int,
    query: int,
    c: float,
    dist: str = "gaussian",
    *,
    z_round: torch.dtype | None = None,
    out_rounding: str = "rne",
    rounding_seed: int | None = None,
    sources: Sequence[Tensor] | None = None,
    mask: Mask | None = None,
    firsts: Sequence[int] | None = None,
) -> None:
    """theta = round(theta + c * z / sqrt(h)) for every tensor, in place: HiZOO's perturbation.

    Zhao et al., "Second-order fine-tuning without pain for LLMs" (arXiv 2402.15173).

    Args:
        hessians: the diagonal estimate h, shaped as params, float32 (float64 for float64 tensors), > 0 (the
            caller's duty; it is read only).
        c: finite; +eps, -2 eps, +eps.

    The rest of the arguments, and the errors, are those of `zo_perturb_`; masked elements stay.
    """
    params = zo._params("params", params)
    hessians = _hessians(hessians, params, write=False)
    held = [] if sources is None else zo._like("sources", sources, params, write=False)
    term = Term(
        _checks.seed("seed", seed),
        _checks.query("query", query),
        _checks.fits("c", _checks.real("c", c), zo._single(params)),
        _checks.choice("dist", dist, DISTRIBUTIONS),
    )
    streams = zo._streams(streams, params)
    stochastic, z_round, rounding = zo._rounding(out_rounding, z_round, rounding_seed, term)
    masking = *zo._mask(mask, params), zo._firsts(firsts, params)
    if params:
        torch.ops.tenfold.zo_hizoo_perturb_(
            params, held, hessians, streams, zo._signed(term.seed), term.query, term.coef, term.dist, z_round,
            stochastic, rounding, term.query, *masking,
        )  # fmt: skip


def zo_hizoo_update_(
    params: Sequence[Tensor],
    hessians: Sequence[Tensor],
    streams: Sequence[int],
    terms: Sequence[Term],
    curvatures: Sequence[float],
    *,
    lr: float,
    smoothing: float,
    restore: float = 0.0,
    weight_decay: float = 0.0,
    z_round: torch.dtype | None = None,
    out_rounding: str = "rne",
    rounding_seed: int | None = None,
    mask: Mask | None = None,
    firsts: Sequence[int] | None = None,
) -> None:
    """HiZOO's step on weights and Hessian diagonal, in one pass.

    With h as read: theta + restore * z / sqrt(h) first; then h = (1 - a) h + a h sum_k curvature_k z_k^2, and
    theta = round((1 - lr wd) * theta - lr * g / sqrt(h)) with the new h and g = sum_k coef_k z_k.

    Zhao et al., "Second-order fine-tuning without pain for LLMs" (arXiv 2402.15173).

    Args:
        hessians: as in `zo_hizoo_perturb_`, written here.
        terms: the gradient estimate, 1 to 64 terms.
        curvatures: one per term, >= 0: abs(L(+) + L(-) - 2 L(0)) / (2 eps^2), divided by the number of
            queries.
        lr: learning rate, >= 0. smoothing: a, in [0, 1).
        restore: scale of the perturbation to undo, e.g. eps when the weights stand at -eps; needs exactly one
            term. Nothing is rounded to the weights' dtype in between.
        weight_decay: decoupled decay, >= 0.

    The rest of the arguments, and the errors, are those of `zo_chain_`; a masked element is only decayed and
    its h stays.
    """
    params = zo._params("params", params)
    hessians = _hessians(hessians, params, write=True)
    single = zo._single(params)
    lr = _checks.real("lr", lr, at_least=0.0)
    smoothing = _checks.real("smoothing", smoothing, at_least=0.0, below=1.0)
    restore = _checks.fits("restore", _checks.real("restore", restore), single)
    columns, rounding = _common(
        params, streams, terms, lr, weight_decay, z_round, out_rounding, rounding_seed
    )
    bends = _checks.sequence("curvatures", curvatures, "numbers")
    _checks.length("curvatures", bends, len(columns[1]), "terms")
    bends = [_checks.real(f"curvatures[{k}]", v, at_least=0.0) for k, v in enumerate(bends)]
    for k, bend in enumerate(bends):
        _checks.fits(f"curvatures[{k}]", bend, single)
    if restore != 0.0 and len(bends) != 1:
        _checks.fail(ValueError, "terms", "one term where restore is given", len(bends))
    masking = *zo._mask(mask, params), zo._firsts(firsts, params)
    if params:
        torch.ops.tenfold.zo_hizoo_update_(
            params, hessians, *columns, bends, lr, smoothing, restore, *rounding, *masking
        )


def zo_replay_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    passes: Sequence[ReplayPass],
    *,
    z_round: torch.dtype | None = None,
    out_rounding: str = "rne",
) -> None:
    """The same bits as one `zo_chain_` for each pass in turn, with one read and one write of theta.

    Every pass rounds to the weights' dtype, as it would alone. Arguments and errors as `zo_chain_`; an empty
    list of passes does nothing. Masks are random ones only: they do not depend on the weights.

    Args:
        passes: any number of `ReplayPass(terms, decay, rounding_seed, mask)`.
    """
    params = zo._params("params", params)
    streams = zo._streams(streams, params)
    single = zo._single(params)
    passes = [_pass(f"passes[{p}]", value, single) for p, value in enumerate(
        _checks.sequence("passes", passes, "ReplayPass(terms, decay, rounding_seed, mask)")
    )]  # fmt: skip
    stochastic, z_round, _ = zo._rounding(out_rounding, z_round, 0, Term(0, 0, 0.0))
    if not passes or not params:
        return
    masks = [zo._mask(p.mask, params, f"passes[{k}].mask") for k, p in enumerate(passes)]
    any_mask = any(p.mask is not None for p in passes)
    unmasked = [-1.0] * len(params)
    torch.ops.tenfold.zo_replay_(
        params,
        streams,
        *zo._columns([term for p in passes for term in p.terms]),
        [len(p.terms) for p in passes],
        [p.decay for p in passes],
        [zo._signed(p.terms[0].seed if p.rounding_seed is None else p.rounding_seed) for p in passes],
        [p.terms[0].query for p in passes],
        [m[1] for m in masks],
        [m[2] for m in masks],
        list(chain.from_iterable(m[3] if m[0] else unmasked for m in masks)) if any_mask else [],
        z_round,
        stochastic,
    )


# ---- checks ------------------------------------------------------------------------------------------------


def _states(name: str, values: Sequence[Any], params: list[Tensor]) -> list[Tensor]:
    tensors = zo._tensors(name, values)
    _state_like(name, tensors, params)
    return tensors


def _hessians(values: Sequence[Any], params: list[Tensor], write: bool) -> list[Tensor]:
    tensors = zo._tensors("hessians", values, write)
    _state_like("hessians", tensors, params, half=False)
    return tensors


def _share(name: str, value: float) -> float:
    value = _checks.real(name, value, at_least=0.0)
    if value > 1.0:
        _checks.fail(ValueError, name, "a number in [0, 1]", value)
    return value


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        _checks.fail(TypeError, name, "True or False", _checks.describe(value))
    return value


def _common(
    params: list[Tensor],
    streams: Sequence[int],
    terms: Sequence[Term],
    lr: float,
    weight_decay: float,
    z_round: torch.dtype | None,
    out_rounding: str,
    rounding_seed: int | None,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(streams and terms, decay and rounding) as schemas carry them."""
    single = zo._single(params)
    checked = zo._terms(terms)
    decay = 1.0 - lr * _checks.real("weight_decay", weight_decay, at_least=0.0)
    _checks.fits("1 - lr * weight_decay", decay, single)
    _checks.fits("lr", lr, single)
    for k, term in enumerate(checked):
        _checks.fits(f"terms[{k}].coef", term.coef, single)
    streams = zo._streams(streams, params)
    stochastic, z_round, seed = zo._rounding(out_rounding, z_round, rounding_seed, checked[0])
    return (streams, *zo._columns(checked)), (decay, z_round, stochastic, seed, checked[0].query)


def _pass(name: str, value: ReplayPass, single: bool) -> ReplayPass:
    if not isinstance(value, ReplayPass):
        _checks.fail(
            TypeError, name, "a ReplayPass(terms, decay, rounding_seed, mask)", _checks.describe(value)
        )
    terms = zo._terms(value.terms, f"{name}.terms")
    for k, term in enumerate(terms):
        _checks.fits(f"{name}.terms[{k}].coef", term.coef, single)
    decay = _checks.fits(f"{name}.decay", _checks.real(f"{name}.decay", value.decay), single)
    seed = value.rounding_seed
    seed = seed if seed is None else _checks.seed(f"{name}.rounding_seed", seed)
    if value.mask is not None and not isinstance(value.mask, RandomMask):
        _checks.fail(TypeError, f"{name}.mask", "None or RandomMask", _checks.describe(value.mask))
    return ReplayPass(terms, decay, seed, value.mask)

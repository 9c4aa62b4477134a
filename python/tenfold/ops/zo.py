"""Zeroth-order passes: weights moved along directions that are never stored.

A direction z is a pure function of (seed, stream, query, element): Philox4x32-10 counters turned into normals
or signs (kernels/core/normal.hpp). A pass regenerates it in registers and reads and writes each weight once.
The same seed gives the same bits on the reference, every CPU instruction set, and CUDA, whatever the threads,
chunks or strides.

Method: MeZO, Malladi et al., "Fine-tuning language models with just forward passes" (arXiv 2305.17333).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tenfold import _arrays, _checks
from tenfold._backend import OPS, chosen_backend
from tenfold.kernels.zo.zo_mask import KINDS, MaskArgs

DISTRIBUTIONS = ("gaussian", "rademacher", "gauss16")
SAMPLED = ("gaussian", "rademacher", "uniform", "gauss16")
PURPOSES = (
    "gaussian", "rademacher", "uniform", "mask", "rounding", "lowrank_u", "lowrank_v", "gauss16",
    "sophia", "sophia_exp_avg", "sophia_hessian", "label",
)  # fmt: skip
ROUNDINGS = ("rne", "sr")
MAX_TERMS = 64

_ALL = ("cpu", "cuda", "triton", "reference")
OPS |= dict.fromkeys(("zo_chain_", "zo_sample", "random_words", "stochastic_round"), _ALL)
OPS["zo_chain_ with firsts"] = ("cpu", "reference")
OPS["zo_moments"] = ("cpu", "cuda", "reference")


class Term(NamedTuple):
    """One summand `coef * z(seed, query)` of a chain.

    seed in [0, 2^64), query in [0, 2^24), coef finite, dist "gaussian", "rademacher", or "gauss16" (normals
    made of 16 + 16 random bits instead of 32 + 32, half the random words; `|z|` <= 4.85).
    """

    seed: int
    query: int
    coef: float
    dist: str = "gaussian"


class RandomMask(NamedTuple):
    """Leave out a random share of the elements, the same ones for the same (seed, stream, query).

    ratio: the probability with which an element is masked, in [0, 1], one for all tensors or one per tensor
    (resolution 2^-32; 1 masks all). Its bits are independent of those of z.
    """

    seed: int
    query: int
    ratio: float | Sequence[float]


class MagnitudeMask(NamedTuple):
    """Move only small weights: an element is masked unless abs(x) <= threshold, x the weight as it is read.

    threshold: >= 0, one for all tensors or one per tensor, compared in float32 (float64 for float64 tensors).
    Where `sources` are given, x is the element of `sources`. NaN is masked.

    Sparse MeZO, Liu et al. (arXiv 2402.15751).
    """

    threshold: float | Sequence[float]


class BitMask(NamedTuple):
    """Move the elements whose bit is 1.

    bits: one uint8 tensor [ceil(n / 8)] per tensor, contiguous, on its device; element i (row-major) is bit i
    % 8 of byte i // 8. `magnitude_bits` makes them.
    """

    bits: Sequence[Tensor]


Mask = RandomMask | MagnitudeMask | BitMask


# ---- the dispatcher's side --------------------------------------------------------------------------------
# The schemas carry 64-bit seeds as signed integers and dtypes and distributions as they are; each kernel
# picks its backend per call.

_LIBRARY = torch.library.Library("tenfold", "FRAGMENT")
_DIRECTIONS = "SymInt[] streams, SymInt[] seeds, SymInt[] queries, float[] coefs, str[] dists"
_ROUNDING = "float decay, ScalarType? z_round, bool stochastic, SymInt rounding_seed, SymInt rounding_query"
_MASK = (
    "str mask_kind='', SymInt mask_seed=0, SymInt mask_query=0, float[] mask_values=[], "
    "Tensor[]? mask_bits=None"
)
_FIRSTS = "SymInt[] firsts=[]"
_COUNTER = "SymInt seed, SymInt stream, SymInt query"
for _schema in (
    f"zo_chain_(Tensor(a!)[] params, Tensor[] sources, {_DIRECTIONS}, {_ROUNDING}, {_MASK}, {_FIRSTS}) -> ()",
    f"zo_sample_(Tensor(a!) out, {_COUNTER}, SymInt first, str dist) -> ()",
    f"random_words_(Tensor(a!) out, {_COUNTER}, str purpose, SymInt first_block) -> ()",
    f"stochastic_round(Tensor x, ScalarType dtype, {_COUNTER}, SymInt first) -> Tensor",
):
    _LIBRARY.define(_schema)


def _signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


def _unsigned(seed: int) -> int:
    return seed % 2**64


def _kernels(op: str, device: torch.device, firsts: Sequence[int] = ()) -> Any:
    """The module that implements `op` for the chosen backend; they share their signatures."""
    backend = chosen_backend(f"{op} with firsts" if firsts else op, device.type)
    if backend == "reference":
        from tenfold.kernels.zo import zo_reference as module
    elif backend == "triton":
        from tenfold.kernels.zo import zo_triton as module
    elif backend == "cuda":
        from tenfold.kernels.zo import zo_cuda as module
    else:
        from tenfold.kernels.zo import zo_native as module
    return module


def _mask_args(
    params: Sequence[Tensor],
    kind: str,
    seed: int,
    query: int,
    values: Sequence[float],
    bits: Sequence[Tensor] | None,
) -> MaskArgs | None:
    """The mask as kernels take it, checked against reading past its end."""
    if not kind:
        return None
    _checks.choice("mask_kind", kind, KINDS)
    if kind == "bits":
        _bits("mask.bits", bits or [], params)
    else:
        _pairs("mask_values", values, params)
    return MaskArgs(kind, _unsigned(seed), query, values, bits or [])


def _extra(mask: MaskArgs | None, firsts: Sequence[int]) -> tuple[Any, ...]:
    if firsts:
        return mask, firsts
    return () if mask is None else (mask,)


def _written(tensors: Sequence[Tensor]) -> None:
    """Tell autograd that these were changed in place."""
    torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])


def _zo_chain_(
    params: list[Tensor],
    sources: list[Tensor],
    streams: list[int],
    seeds: list[int],
    queries: list[int],
    coefs: list[float],
    dists: list[str],
    decay: float,
    z_round: torch.dtype | None,
    stochastic: bool,
    rounding_seed: int,
    rounding_query: int,
    mask_kind: str = "",
    mask_seed: int = 0,
    mask_query: int = 0,
    mask_values: Sequence[float] = (),
    mask_bits: Sequence[Tensor] | None = None,
    firsts: Sequence[int] = (),
) -> None:
    _pairs("streams", streams, params)
    _check_firsts(firsts, params)
    _distributions(dists, DISTRIBUTIONS)
    mask = _mask_args(params, mask_kind, mask_seed, mask_query, mask_values, mask_bits)
    if sources:
        _match("sources", sources, params)
        _checks.separate("sources", sources, params)
    _checks.memory(params=params)
    kernels = _kernels("zo_chain_", params[0].device, firsts)
    kernels.chain_(
        params,
        sources or None,
        streams,
        [_unsigned(s) for s in seeds],
        queries,
        coefs,
        dists,
        decay,
        z_round,
        stochastic,
        _unsigned(rounding_seed),
        rounding_query,
        *_extra(mask, firsts),
    )
    _written(params)


def _zo_sample_(out: Tensor, seed: int, stream: int, query: int, first: int, dist: str) -> None:
    _whole("out", out, _checks.FLOAT_DTYPES)
    _distributions([dist], SAMPLED)
    _kernels("zo_sample", out.device).sample_(out, _unsigned(seed), stream, query, first, dist)
    _written([out])


def _random_words_(out: Tensor, seed: int, stream: int, query: int, purpose: str, first_block: int) -> None:
    _whole("out", out, (torch.int64,))
    if out.ndim != 2 or out.shape[1] != 4:
        _checks.fail(ValueError, "out", "shape [blocks, 4]", tuple(out.shape))
    _kernels("random_words", out.device).words_(out, _unsigned(seed), stream, query, purpose, first_block)
    _written([out])


def _stochastic_round(
    x: Tensor, dtype: torch.dtype, seed: int, stream: int, query: int, first: int
) -> Tensor:
    if dtype == torch.float64:
        return x.to(dtype, copy=True)
    x = x.to(torch.float32).contiguous()
    return _kernels("stochastic_round", x.device).stochastic_round(
        x, dtype, _unsigned(seed), stream, query, first
    )


def _stochastic_round_meta(
    x: Tensor, dtype: torch.dtype, seed: int, stream: int, query: int, first: int
) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _register(name: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _LIBRARY.impl(name, kernel, "CPU")
    _LIBRARY.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"tenfold::{name}", fake, lib=_LIBRARY)


def _writes_only(*_: Any) -> None:
    """Fake kernel of ops that only write what they are given."""


_register("zo_chain_", _zo_chain_, _writes_only)
_register("zo_sample_", _zo_sample_, _writes_only)
_register("random_words_", _random_words_, _writes_only)
_register("stochastic_round", _stochastic_round, _stochastic_round_meta)


def _round_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


def _round_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Straight through: the expectation of a stochastic rounding is the identity."""
    return grad.to(ctx.dtype), None, None, None, None, None


torch.library.register_autograd(
    "tenfold::stochastic_round", _round_backward, setup_context=_round_setup, lib=_LIBRARY
)


# ---- the public side ---------------------------------------------------------------------------------------


def zo_chain_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    terms: Sequence[Term],
    *,
    decay: float = 1.0,
    z_round: torch.dtype | None = None,
    out_rounding: str = "rne",
    rounding_seed: int | None = None,
    sources: Sequence[Tensor] | None = None,
    mask: Mask | None = None,
    firsts: Sequence[int] | None = None,
) -> None:
    """theta = round(decay * theta + sum_k coef_k * z_k) for every tensor, in place, in one pass.

    The sum is made in float32 (float64 for float64 tensors) in the order of the terms, `acc = decay * theta;
    acc = fma(coef_k, z_k, acc)`, and rounded once at the end. Weights are read and written once however many
    terms there are, so averaging over many queries, or the update of one step together with the perturbation
    of the next, costs one pass and no memory.

    Args:
        params: tensors of any shape and strides, float32, bfloat16, float16 or float64 (mixed as you like),
            on one device; NumPy and CuPy arrays are taken as they are. Empty lists and tensors are fine.
        streams: one integer in [0, 2^32) per tensor: the part of the counter that tells tensors apart.
        terms: 1 to 64 `Term(seed, query, coef, dist)`.
        decay: factor on theta, for decoupled weight decay; finite.
        z_round: `torch.bfloat16` or `torch.float16` rounds z to nearest even first, as code does that draws z
            in the weights' dtype.
        out_rounding: "rne" rounds to nearest even; "sr" rounds stochastically to bfloat16 and float16, so
            that steps far below the last bit still move weights in the mean (no effect on wider dtypes).
        rounding_seed: seed of the rounding bits, default: the first term's. Their query is the first term's.
        sources: read theta from these instead (same shapes, dtypes, device) and write `params`; restoring is
            then exact.
        mask: `RandomMask`, `MagnitudeMask` or `BitMask`: at a masked element the terms are left out, so that
            it becomes round(decay * theta).
        firsts: the index of each tensor's first element in its direction, >= 0; default: 0 for all. A shard
            of rows of a larger tensor moves as it would as a part of that tensor. The bits of a `BitMask` are
            those of the shard. On the CPU; elsewhere the reference runs, with a PerformanceWarning.

    Raises:
        TypeError: an argument of the wrong kind, or a dtype or layout that has no kernel.
        ValueError: a value out of range, lists of different lengths, tensors that share or overlap memory
            (named).
        RuntimeError: a leaf that requires grad while gradients are enabled, or a forced backend that cannot
            run.
        Nothing is written when an error is raised.
    """
    params = _params("params", params)
    sources = [] if sources is None else _like("sources", sources, params, write=False)
    checked = _terms(terms)
    firsts = _firsts(firsts, params)
    _run_chain(params, sources, streams, checked, decay, z_round, out_rounding, rounding_seed, mask, firsts)


def zo_perturb_(
    params: Sequence[Tensor],
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
    """theta = round(theta + c * z(seed, query)) for every tensor, in place: one fused multiply-add each.

    The perturbation of a zeroth-order step with c = +eps, -2 eps, +eps. Arguments and errors as `zo_chain_`;
    `c` is finite.
    """
    params = _params("params", params)
    sources = [] if sources is None else _like("sources", sources, params, write=False)
    term = Term(
        _checks.seed("seed", seed),
        _checks.query("query", query),
        _checks.fits("c", _checks.real("c", c), _single(params)),
        _checks.choice("dist", dist, DISTRIBUTIONS),
    )
    firsts = _firsts(firsts, params)
    _run_chain(params, sources, streams, [term], 1.0, z_round, out_rounding, rounding_seed, mask, firsts)


def zo_restore_update_(
    params: Sequence[Tensor],
    streams: Sequence[int],
    seed: int,
    query: int,
    *,
    eps: float,
    lr: float,
    projected_grad: float,
    dist: str = "gaussian",
    weight_decay: float = 0.0,
    z_round: torch.dtype | None = None,
    out_rounding: str = "rne",
    rounding_seed: int | None = None,
    mask: Mask | None = None,
    firsts: Sequence[int] | None = None,
) -> None:
    """Undo `-eps * z` and take the step, in one pass: from theta - eps z to (1 - lr wd) theta - lr g z.

    Coefficients are computed in float64 and rounded once, with decay = 1 - lr wd:
    theta <- round(decay * theta + (decay * eps - lr * g) z).

    Args:
        eps: perturbation scale, > 0.
        lr: learning rate, >= 0.
        projected_grad: g = (L(theta + eps z) - L(theta - eps z)) / (2 eps), finite.
        weight_decay: decoupled (AdamW-style) decay, >= 0.

    The rest of the arguments, and the errors, are those of `zo_chain_`.
    """
    params = _params("params", params)
    eps = _checks.real("eps", eps, positive=True)
    lr = _checks.real("lr", lr, at_least=0.0)
    gradient = _checks.real("projected_grad", projected_grad)
    single = _single(params)
    decay = 1.0 - lr * _checks.real("weight_decay", weight_decay, at_least=0.0)
    _checks.fits("1 - lr * weight_decay", decay, single)
    coef = _checks.fits("decay * eps - lr * projected_grad", decay * eps - lr * gradient, single)
    dist = _checks.choice("dist", dist, DISTRIBUTIONS)
    term = Term(_checks.seed("seed", seed), _checks.query("query", query), coef, dist)
    firsts = _firsts(firsts, params)
    _run_chain(params, [], streams, [term], decay, z_round, out_rounding, rounding_seed, mask, firsts)


def zo_sample(
    seed: int,
    stream: int = 0,
    query: int = 0,
    *,
    first: int = 0,
    n: int,
    dist: str = "gaussian",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Elements [first, first + n) of a direction: what the passes add, as a tensor [n].

    Args:
        seed, stream, query: integers in [0, 2^64), [0, 2^32), [0, 2^24).
        first: index of the first element, in [0, 2^62). n: how many, >= 0.
        dist: "gaussian" (mean 0, variance 1, `|z|` <= 6.76), "rademacher" (-1 or +1), "uniform" (in (0, 1]).
        dtype: float32, float64, bfloat16 or float16; z is float32 and rounded to nearest even where dtype is
            narrower.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    n = _checks.integer("n", n, 0, 2**62)
    first = _checks.integer("first", first, 0, 2**62)
    dist = _checks.choice("dist", dist, SAMPLED)
    seed, stream, query = (
        _checks.seed("seed", seed),
        _checks.stream("stream", stream),
        _checks.query("query", query),
    )
    out = torch.empty(n, dtype=_checks.dtype("dtype", dtype), device=device)
    if n:
        torch.ops.tenfold.zo_sample_(out, _signed(seed), stream, query, first, dist)
    return out


def random_words(
    seed: int,
    *,
    stream: int = 0,
    query: int = 0,
    purpose: str = "gaussian",
    first_block: int = 0,
    blocks: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Raw Philox4x32-10 words, int64 [blocks, 4], each in [0, 2^32).

    The counter is (block, stream, purpose << 24 | query), the key `seed`.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    blocks = _checks.integer("blocks", blocks, 0, 2**58)
    first_block = _checks.integer("first_block", first_block, 0, 2**62)
    purpose = _checks.choice("purpose", purpose, PURPOSES)
    seed, stream, query = (
        _checks.seed("seed", seed),
        _checks.stream("stream", stream),
        _checks.query("query", query),
    )
    out = torch.empty((blocks, 4), dtype=torch.int64, device=device)
    if blocks:
        torch.ops.tenfold.random_words_(out, _signed(seed), stream, query, purpose, first_block)
    return out


def stochastic_round(
    x: Any, dtype: torch.dtype, seed: int, *, stream: int = 0, query: int = 0, first: int = 0
) -> Any:
    """`x` rounded to bfloat16 or float16 by chance: up with the probability of the discarded fraction.

    The mean of the result is `x`.

    Element i uses the 16 random bits of element first + i of (seed, stream, query). Finite values never
    become infinite; infinities and NaN stay. float32 and float64 outputs are plain casts. The gradient passes
    straight through.

    Args:
        x: tensor (or NumPy/CuPy array) of any shape, float32 (wider is rounded to float32 first, narrower is
            exact).
        dtype: the dtype of the result.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """
    kind = _arrays.kind_of(x)
    value = _checks.tensor("x", _arrays.as_tensor("x", x, write=False))
    dtype = _checks.dtype("dtype", dtype)
    seed, stream, query = (
        _checks.seed("seed", seed),
        _checks.stream("stream", stream),
        _checks.query("query", query),
    )
    first = _checks.integer("first", first, 0, 2**62)
    return kind(torch.ops.tenfold.stochastic_round(value, dtype, _signed(seed), stream, query, first))


def zo_moments(
    seed: int,
    stream: int = 0,
    query: int = 0,
    *,
    first: int = 0,
    n: int,
    dist: str = "gaussian",
    device: torch.device | str = "cpu",
) -> tuple[float, float]:
    """Sum and sum of squares of elements [first, first + n) of a direction, in float64, nothing stored.

    Deterministic: the order of summation depends on `first` and `n` alone.
    """
    n = _checks.integer("n", n, 0, 2**62)
    first = _checks.integer("first", first, 0, 2**62)
    dist = _checks.choice("dist", dist, SAMPLED)
    seed, stream, query = (
        _checks.seed("seed", seed),
        _checks.stream("stream", stream),
        _checks.query("query", query),
    )
    where = torch.device(device)
    kernels = _kernels("zo_moments", where)
    options = () if where.type == "cpu" else (where,)
    total, squares = kernels.moments(seed, stream, query, first, n, dist, *options)
    return total, squares


# ---- checks ------------------------------------------------------------------------------------------------


def _single(params: Sequence[Tensor]) -> bool:
    """Whether any of the math is in float32."""
    return any(p.dtype != torch.float64 for p in params)


def _pairs(name: str, values: Sequence[Any], params: Sequence[Any]) -> None:
    _checks.length(name, values, len(params), "params")


def _distributions(dists: Sequence[str], known: Sequence[str]) -> None:
    for k, dist in enumerate(dists):
        _checks.choice(f"dists[{k}]", dist, known)


def _whole(name: str, out: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    _checks.tensor(name, out, dtypes)
    if not out.is_contiguous():
        _checks.fail(
            ValueError, name, "a contiguous tensor", f"shape {tuple(out.shape)}, strides {out.stride()}"
        )


def _params(name: str, values: Sequence[Any]) -> list[Tensor]:
    _checks.sequence(name, values, "tensors")
    if _checks.are_plain(values, _checks.FLOAT_DTYPES, True):
        _one_device(name, values)
        return list(values)
    out: list[Tensor] = []
    for i, value in enumerate(values):
        t = _checks.tensor(f"{name}[{i}]", _arrays.as_tensor(f"{name}[{i}]", value))
        _checks.writable(f"{name}[{i}]", t)
        if out and t.device != out[0].device:
            _checks.fail(ValueError, f"{name}[{i}]", f"device {out[0].device} as {name}[0]", t.device)
        out.append(t)
    return out


def _tensors(name: str, values: Sequence[Any], write: bool = True) -> list[Tensor]:
    return [
        _checks.tensor(f"{name}[{i}]", _arrays.as_tensor(f"{name}[{i}]", value, write=write))
        for i, value in enumerate(_checks.sequence(name, values, "tensors"))
    ]


def _one_device(name: str, tensors: Sequence[Tensor]) -> None:
    if not tensors:
        return
    first = tensors[0].device
    for i, t in enumerate(tensors):
        if t.device != first:
            _checks.fail(ValueError, f"{name}[{i}]", f"device {first} as {name}[0]", t.device)


def _like(
    name: str,
    values: Sequence[Any],
    params: list[Tensor],
    dtypes: list[torch.dtype] | None = None,
    write: bool = True,
) -> list[Tensor]:
    """Tensors that pair with `params`: same count, shapes and device; dtypes as given (default: the same)."""
    out = _tensors(name, values, write)
    _match(name, out, params, dtypes)
    return out


def _match(
    name: str, tensors: Sequence[Tensor], params: Sequence[Tensor], dtypes: list[torch.dtype] | None = None
) -> None:
    _checks.length(name, tensors, len(params), "params")
    for i, (t, param) in enumerate(zip(tensors, params, strict=True)):
        if t.shape != param.shape:
            _checks.fail(
                ValueError, f"{name}[{i}]", f"shape {tuple(param.shape)} as params[{i}]", tuple(t.shape)
            )
        if t.device != param.device:
            _checks.fail(ValueError, f"{name}[{i}]", f"device {param.device} as params[{i}]", t.device)
        _checks.dtype(f"{name}[{i}].dtype", t.dtype, (param.dtype if dtypes is None else dtypes[i],))


def _streams(streams: Sequence[int], params: Sequence[Any]) -> list[int]:
    streams = _checks.sequence("streams", streams, "integers")
    _pairs("streams", streams, params)
    if all(type(s) is int and 0 <= s < 2**32 for s in streams):
        return list(streams)
    return [_checks.stream(f"streams[{i}]", s) for i, s in enumerate(streams)]


def _firsts(firsts: Sequence[int] | None, params: Sequence[Any]) -> list[int]:
    """As schemas carry them: nothing where all are 0."""
    if firsts is None:
        return []
    firsts = _checks.sequence("firsts", firsts, "integers")
    _pairs("firsts", firsts, params)
    checked = [_checks.integer(f"firsts[{i}]", first, 0, 2**62) for i, first in enumerate(firsts)]
    return checked if any(checked) else []


def _check_firsts(firsts: Sequence[int], params: Sequence[Tensor]) -> None:
    if firsts:
        _pairs("firsts", firsts, params)
        if min(firsts) < 0:
            _checks.fail(ValueError, "firsts", "integers >= 0", min(firsts))


def _terms(terms: Sequence[Term], name: str = "terms") -> list[Term]:
    terms = _checks.sequence(name, terms, "Term(seed, query, coef, dist)")
    if not 1 <= len(terms) <= MAX_TERMS:
        _checks.fail(ValueError, name, f"1 to {MAX_TERMS} terms", len(terms))
    return [_term(f"{name}[{k}]", t) for k, t in enumerate(terms)]


def _term(name: str, value: Term) -> Term:
    if not isinstance(value, tuple) or len(value) not in (3, 4):
        _checks.fail(TypeError, name, "a Term(seed, query, coef, dist)", _checks.describe(value))
    term = Term(*value)
    return Term(
        _checks.seed(f"{name}.seed", term.seed),
        _checks.query(f"{name}.query", term.query),
        _checks.real(f"{name}.coef", term.coef),
        _checks.choice(f"{name}.dist", term.dist, DISTRIBUTIONS),
    )


def _rounding(
    out_rounding: str, z_round: torch.dtype | None, rounding_seed: int | None, first: Term
) -> tuple[bool, torch.dtype | None, int]:
    """(stochastic, z_round, signed rounding seed)"""
    stochastic = _checks.choice("out_rounding", out_rounding, ROUNDINGS) == "sr"
    if z_round is not None:
        _checks.dtype("z_round", z_round, (torch.float32, torch.bfloat16, torch.float16))
    seed = first.seed if rounding_seed is None else _checks.seed("rounding_seed", rounding_seed)
    return stochastic, z_round, _signed(seed)


def _mask(
    mask: Mask | None, params: list[Tensor], name: str = "mask"
) -> tuple[str, int, int, list[float], list[Tensor] | None]:
    """The mask as schemas carry it: kind, signed seed, query, values, bits."""
    if mask is None:
        return "", 0, 0, [], None
    if isinstance(mask, RandomMask):
        ratios = _per_tensor(f"{name}.ratio", mask.ratio, len(params))
        for i, ratio in enumerate(ratios):
            if ratio > 1.0:
                _checks.fail(ValueError, f"{name}.ratio[{i}]", "a number in [0, 1]", ratio)
        seed, query = _checks.seed(f"{name}.seed", mask.seed), _checks.query(f"{name}.query", mask.query)
        return "random", _signed(seed), query, ratios, None
    if isinstance(mask, MagnitudeMask):
        return "magnitude", 0, 0, _thresholds(f"{name}.threshold", mask.threshold, params), None
    if isinstance(mask, BitMask):
        bits = list(_checks.sequence(f"{name}.bits", mask.bits, "uint8 tensors"))
        _bits(f"{name}.bits", bits, params)
        return "bits", 0, 0, [], bits
    _checks.fail(TypeError, name, "None, RandomMask, MagnitudeMask or BitMask", _checks.describe(mask))


def _per_tensor(name: str, value: float | Sequence[float], count: int) -> list[float]:
    """Numbers >= 0, one for each tensor."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        _checks.length(name, value, count, "params")
        return [_checks.real(f"{name}[{i}]", v, at_least=0.0) for i, v in enumerate(value)]
    return [_checks.real(name, value, at_least=0.0)] * count


def _thresholds(name: str, value: float | Sequence[float], params: Sequence[Tensor]) -> list[float]:
    values = _per_tensor(name, value, len(params))
    for i, (threshold, param) in enumerate(zip(values, params, strict=True)):
        _checks.fits(f"{name}[{i}]", threshold, param.dtype != torch.float64)
    return values


def _bits(name: str, bits: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    _pairs(name, bits, params)
    for i, (value, param) in enumerate(zip(bits, params, strict=True)):
        _whole(f"{name}[{i}]", value, (torch.uint8,))
        shape = ((param.numel() + 7) // 8,)
        if value.shape != shape:
            _checks.fail(ValueError, f"{name}[{i}]", f"shape {shape} for params[{i}]", tuple(value.shape))
        if value.device != param.device:
            _checks.fail(ValueError, f"{name}[{i}]", f"device {param.device} as params[{i}]", value.device)


def _columns(terms: list[Term]) -> tuple[list[int], list[int], list[float], list[str]]:
    return (
        [_signed(t.seed) for t in terms],
        [t.query for t in terms],
        [t.coef for t in terms],
        [t.dist for t in terms],
    )


def _run_chain(
    params: list[Tensor],
    sources: list[Tensor],
    streams: Sequence[int],
    terms: list[Term],
    decay: float,
    z_round: torch.dtype | None,
    out_rounding: str,
    rounding_seed: int | None,
    mask: Mask | None,
    firsts: list[int],
) -> None:
    streams = _streams(streams, params)
    single = _single(params)
    decay = _checks.fits("decay", _checks.real("decay", decay), single)
    masking = _mask(mask, params)
    for k, term in enumerate(terms):
        _checks.fits(f"terms[{k}].coef", term.coef, single)
    stochastic, z_round, rounding = _rounding(out_rounding, z_round, rounding_seed, terms[0])
    if params:
        seeds, queries, coefs, dists = _columns(terms)
        torch.ops.tenfold.zo_chain_(
            params,
            sources,
            streams,
            seeds,
            queries,
            coefs,
            dists,
            decay,
            z_round,
            stochastic,
            rounding,
            terms[0].query,
            *masking,
            firsts,
        )

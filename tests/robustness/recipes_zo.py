"""Arguments for zeroth-order, low-rank and Sophia ops."""

from __future__ import annotations

from typing import Any

import torch
from drawing import Draw
from torch import Tensor

from tenfold import ops

DISTS = ("gaussian", "rademacher", "gauss16")


def _params(d: Draw, count: int | None = None, *axes: int) -> list[Tensor]:
    count = d.size(0, 3) if count is None else count
    shapes = [axes or d.sizes(d.integer(0, 3)) for _ in range(count)]
    return [d.floats(*shape, dtype=d.dtype(), written=True) for shape in shapes]


def _like(d: Draw, params: list[Tensor], positive: bool = False, narrow: bool = True) -> list[Tensor]:
    """States in float32, float64 beside float64, or bfloat16."""
    half = narrow and d.often(False, True)
    kinds = [
        torch.float64 if p.dtype == torch.float64 else torch.bfloat16 if half else torch.float32
        for p in params
    ]
    return [
        d.floats(*p.shape, dtype=k, positive=positive, written=True)
        for p, k in zip(params, kinds, strict=True)
    ]


def _terms(d: Draw, low: int = 1, high: int = 3) -> list[Any]:
    return [
        ops.Term(d.seed(), d.one(0, 2**24 - 1), d.one(0.5, -1e-3, 0.0, 3e38), d.one(*DISTS))
        for _ in range(d.integer(low, high))
    ]


def _mask(d: Draw, params: list[Tensor]) -> Any:
    kind = d.often("none", "random", "magnitude", "bits")
    if kind == "random":
        return ops.RandomMask(d.seed(), 1, d.one(0.5, 0.0, 1.0, [0.25] * len(params)))
    if kind == "magnitude":
        return ops.MagnitudeMask(d.one(0.5, 0.0, [1.0] * len(params)))
    if kind == "bits":
        return ops.BitMask([torch.randint(0, 256, (-(-p.numel() // 8),), dtype=torch.uint8) for p in params])
    return None


def _passes(d: Draw, params: list[Tensor], sources: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {
        "z_round": d.often(None, torch.bfloat16, torch.float16),
        "out_rounding": d.often("rne", "sr"),
        "rounding_seed": d.often(None, 0, 2**64 - 1),
        "mask": _mask(d, params),
        "firsts": d.often(None, [d.one(0, 1, 255, 2**40)] * len(params)),
    }
    if sources:
        found["sources"] = d.often(None, [d.floats(*p.shape, dtype=p.dtype) for p in params])
    return found


def _streams(d: Draw, params: list[Any]) -> list[int]:
    return [d.one(0, i, 2**32 - 1) for i in range(len(params))]


def zo_chain_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    return {
        "params": w,
        "streams": _streams(d, w),
        "terms": _terms(d),
        "decay": d.one(1.0, 0.9),
        **_passes(d, w, True),
    }


def zo_perturb_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    step = {
        "seed": d.seed(),
        "query": d.one(0, 2**24 - 1),
        "c": d.one(1e-3, 0.0, -2.5),
        "dist": d.one(*DISTS),
    }
    return {"params": w, "streams": _streams(d, w), **step, **_passes(d, w, True)}


def zo_restore_update_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    step = {"eps": 1e-3, "lr": d.one(1e-2, 0.0), "projected_grad": d.one(0.5, -1e30)}
    step |= {"dist": d.one(*DISTS), "weight_decay": d.one(0.0, 0.1)}
    return {"params": w, "streams": _streams(d, w), "seed": d.seed(), "query": 3, **step, **_passes(d, w)}


def zo_sample(d: Draw) -> dict[str, Any]:
    place = {"stream": d.one(0, 2**32 - 1), "query": 1, "first": d.one(0, 1, 2**61), "n": d.size()}
    return {"seed": d.seed(), **place, "dist": d.one("gaussian", "rademacher", "uniform"), "dtype": d.dtype()}


def zo_moments(d: Draw) -> dict[str, Any]:
    place = {"stream": 1, "query": 1, "first": d.one(0, 1, 255, 2**61), "n": d.one(0, 1, 300)}
    return {"seed": d.seed(), **place, "dist": d.one("gaussian", "rademacher")}


def random_words(d: Draw) -> dict[str, Any]:
    return {"seed": d.seed(), "stream": 1, "query": 2, "first_block": d.one(0, 2**32), "blocks": d.size()}


def stochastic_round(d: Draw) -> dict[str, Any]:
    x = d.floats(*d.sizes(d.integer(0, 3)), dtype=d.dtype())
    return {
        "x": x,
        "dtype": d.dtype(),
        "seed": d.seed(),
        "stream": 0,
        "query": 0,
        "first": d.one(0, 7, 2**40),
    }


def _step(d: Draw) -> dict[str, Any]:
    return {"lr": d.one(1e-2, 0.0), "weight_decay": d.one(0.0, 0.1)}


def zo_adam_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    m, v = _like(d, w, narrow=False), _like(d, w, True, narrow=False)
    rest = {"terms": _terms(d), "step": d.one(1, 2, 1000), "variant": d.one("adam", "radazo"), "eps": 1e-8}
    start = {"params": w, "exp_avgs": m, "exp_avg_sqs": v, "streams": _streams(d, w)}
    return {**start, **rest, "beta1": 0.9, "beta2": 0.999, **_step(d), **_passes(d, w)}


def zo_momentum_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    nesterov = d.flag()
    rest = {"terms": _terms(d), "momentum": 0.9, "dampening": 0.0 if nesterov else d.one(0.0, 0.5)}
    rest |= {"nesterov": nesterov, "first": d.flag()}
    start = {"params": w, "momentum_buffers": _like(d, w), "streams": _streams(d, w)}
    return {**start, **rest, **_step(d), **_passes(d, w)}


def zo_sign_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    return {"params": w, "streams": _streams(d, w), "terms": _terms(d), **_step(d), **_passes(d, w)}


def zo_hizoo_perturb_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    h = [x.abs() + 1 for x in _like(d, w, True, narrow=False)]
    place = {"streams": _streams(d, w), "seed": d.seed(), "query": 1, "c": d.one(1e-3, -2e-3, 0.0)}
    return {"params": w, "hessians": h, **place, "dist": d.one(*DISTS), **_passes(d, w, True)}


def zo_hizoo_update_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    h = [x.abs() + 1 for x in _like(d, w, True, narrow=False)]
    terms = _terms(d)
    rest = {"terms": terms, "curvatures": [0.5] * len(terms), "smoothing": d.one(1e-3, 0.0)}
    rest |= {"restore": 1e-3 if len(terms) == 1 else 0.0}
    return {"params": w, "hessians": h, "streams": _streams(d, w), **rest, **_step(d), **_passes(d, w)}


def zo_replay_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    passes = [
        ops.ReplayPass(
            _terms(d),
            d.one(1.0, 0.5),
            d.often(None, 3),
            d.often(None, ops.RandomMask(3, 1, 0.5)),
        )
        for _ in range(d.integer(0, 3))
    ]
    rounding = {"z_round": d.often(None, torch.float16), "out_rounding": d.often("rne", "sr")}
    return {"params": w, "streams": _streams(d, w), "passes": passes, **rounding}


def zo_direction_norm(d: Draw) -> dict[str, Any]:
    w = _params(d)
    given = d.one(w, [p.numel() for p in w])
    mask = d.often(None, ops.RandomMask(1, 2, 0.5))
    place = {"streams": _streams(d, w), "seed": d.seed(), "query": 1}
    return {"params_or_numels": given, **place, "dist": d.one(*DISTS), "mask": mask}


def quantile_abs(d: Draw) -> dict[str, Any]:
    return {"params": _params(d), "q": d.one(0.5, 0.0, 1.0, 0.3)}


def count_within(d: Draw) -> dict[str, Any]:
    w = _params(d)
    return {"params": w, "thresholds": d.one(0.5, 0.0, 1e300, [0.7] * len(w))}


magnitude_bits = count_within


def _dual(d: Draw) -> dict[str, Any]:
    return {"seed": d.seed(), "dist": d.one(*DISTS), "z_round": d.often(None, torch.bfloat16)}


def zo_linear_perturbed(d: Draw) -> dict[str, Any]:
    kind, copies, k, n = d.dtype(), d.size(1, 4), d.size(), d.size()
    x = d.floats(copies, *d.sizes(d.integer(0, 2)), k, dtype=kind)
    bias = d.one(None, d.floats(n, dtype=kind))
    queries, coefs = [d.one(0, 1) for _ in range(copies)], [d.one(1e-2, 0.0, -1e-2) for _ in range(copies)]
    rest = {"mode": d.one(None, "fold", "split"), "stream": d.often(0, None), "bias_stream": d.often(None, 1)}
    weights = {"x": x, "weight": d.floats(n, k, dtype=kind), "bias": bias}
    return {**weights, "queries": queries, "coefs": coefs, **rest, **_dual(d)}


def zo_linear_dual(d: Draw) -> dict[str, Any]:
    kind, k, n, q = d.dtype(), d.size(), d.size(), d.one(0, [0, 1])
    x = d.floats(4 if isinstance(q, list) else 2, *d.sizes(d.integer(0, 2)), k, dtype=kind)
    rest = {"eps": 1e-2, "query": q, "stream": 0, "bias_stream": d.often(None, 1)}
    bias = d.one(None, d.floats(n, dtype=kind))
    return {"x": x, "weight": d.floats(n, k, dtype=kind), "bias": bias, **rest, **_dual(d)}


def zo_embedding_perturbed(d: Draw) -> dict[str, Any]:
    v, copies = d.size(1), d.size(1, 4)
    ids = d.ints(copies, *d.sizes(d.integer(0, 2)), low=0, high=v, dtype=d.one(torch.int64, torch.int32))
    given = {"queries": [1] * copies, "coefs": [0.5] * copies, "stream": 3, "padding_idx": d.often(None, 0)}
    return {"ids": ids, "weight": d.floats(v, d.size(), dtype=d.dtype()), **given, **_dual(d)}


def zo_embedding_dual(d: Draw) -> dict[str, Any]:
    v, q = d.size(1), d.one(0, [0, 1])
    ids = d.ints(4 if isinstance(q, list) else 2, *d.sizes(d.integer(0, 2)), low=0, high=v)
    weight = d.floats(v, d.size(), dtype=d.dtype())
    return {"ids": ids, "weight": weight, "stream": 3, "eps": 1e-2, "query": q, **_dual(d)}


def _lowrank_terms(d: Draw, count: int | None = None) -> list[Any]:
    return [ops.LowRankTerm(d.seed(), 1, d.one(0.5, -1e-3)) for _ in range(count or d.integer(1, 3))]


def lowrank_factor(d: Draw) -> dict[str, Any]:
    size = {"rows": d.size(), "rank": d.size(1, 9), "side": d.one("u", "v"), "dtype": d.dtype()}
    return {"seed": d.seed(), "stream": 1, "query": 2, **size}


def zo_lowrank_project(d: Draw) -> dict[str, Any]:
    size = {"rows": d.size(), "rank": d.size(1, 9), "side": d.one("u", "v")}
    return {"terms": _lowrank_terms(d), "stream": 2, **size}


def zo_lowrank_(d: Draw) -> dict[str, Any]:
    r, count = d.size(1, 9), d.size(0, 3)
    w = [d.floats(*d.sizes(2), dtype=d.dtype(), written=True) for _ in range(count)]
    us = d.often(None, [d.floats(p.shape[0], r) for p in w])
    rest = {"decay": d.one(1.0, 0.9), "out_rounding": d.often("rne", "sr"), "rounding_seed": d.often(None, 3)}
    rest |= {"sources": d.often(None, [d.floats(*p.shape, dtype=p.dtype) for p in w]), "us": us}
    terms = _lowrank_terms(d, 1 if us is not None else None)
    vs = [d.floats(p.shape[1], r) for p in w]
    return {"params": w, "vs": vs, "streams": _streams(d, w), "terms": terms, **rest}


def hutchinson_probe(d: Draw) -> dict[str, Any]:
    like = _params(d)
    given = {"seed": d.seed(), "streams": d.one(None, _streams(d, like)), "index": d.one(0, 2**24 - 1)}
    return {"like": like, **given, "dist": d.one("rademacher", "gaussian")}


def hutchinson_accumulate_(d: Draw) -> dict[str, Any]:
    kind = d.one(torch.float32, torch.float64, torch.bfloat16)
    shapes = [d.sizes(d.integer(0, 2)) for _ in range(d.size(0, 3))]
    sums, probes, hvps = ([d.floats(*s, dtype=kind, written=True) for s in shapes] for _ in range(3))
    return {"sums": sums, "probes": probes, "hvps": hvps, "scale": d.one(1.0, 0.5, 0.0)}


def _scaler(d: Draw) -> dict[str, Any]:
    return {"inv_scale": d.often(None, torch.tensor([0.5])), "found_inf": d.often(None, torch.tensor([1.0]))}


def sophia_hessian_(d: Draw) -> dict[str, Any]:
    h = _like(d, _params(d), True)
    g = [d.floats(*x.shape, dtype=x.dtype) for x in h]
    source = d.one("gnb", "hvp")
    probes = [d.floats(*x.shape, dtype=x.dtype) for x in h] if source == "hvp" else None
    rest = {"beta2": 0.9, "scale": d.one(1.0, 0.0), "source": source, "probes": probes, "seed": 1, "step": 2}
    return {"hessians": h, "grads": g, **rest, **_scaler(d)}


def sophia_step_(d: Draw) -> dict[str, Any]:
    w = _params(d)
    m = _like(d, w)
    h = d.often([d.floats(*x.shape, dtype=x.dtype, positive=True, written=True) for x in m], None)
    rest = {"lr": d.one(1e-2, 0.0), "beta1": 0.9, "weight_decay": d.one(0.0, 0.1), "maximize": d.flag()}
    rest |= {"denom": d.one("max", "add"), "hessian_beta2": None if h is None else d.one(None, 0.9)}
    rest |= {"rounding": d.one("nearest", "stochastic"), "seed": d.seed(), "step": 1, "denom_scale": 2.0}
    rest |= {"nonfinite": d.often("propagate", "skip_element", "error")}
    g = [d.floats(*p.shape, dtype=p.dtype) for p in w]
    return {"params": w, "grads": g, "exp_avgs": m, "hessians": h, **rest, **_scaler(d)}


def sophia8_quantize(d: Draw) -> dict[str, Any]:
    x = d.floats(*d.sizes(d.integer(0, 2)))
    kind = d.one("exp_avg", "hessian")
    return {"x": x, "kind": kind, "seed": d.one(None, 3), "step": 1, "stream": d.one(0, 2**32 - 1)}


def sophia8_dequantize(d: Draw) -> dict[str, Any]:
    codes = d.ints(*d.sizes(d.integer(0, 2)), low=0, high=256, dtype=torch.uint8)
    scales = d.floats(-(-codes.numel() // 256), positive=True, tame=True)
    return {"codes": codes, "scales": scales, "kind": d.one("exp_avg", "hessian")}

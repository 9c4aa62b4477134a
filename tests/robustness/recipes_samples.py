"""Arguments for the ops on samples and features: selection, scores, discrepancies, moments."""

from __future__ import annotations

from typing import Any

import torch
from drawing import Draw
from torch import Tensor

from tenfold import ops

NARROW = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _points(d: Draw, batched: bool = True, low: int = 1, **how: Any) -> tuple[Tensor, Tensor]:
    lead = d.often((), (2,)) if batched else ()
    width, kind = d.size(1, 9), d.dtype()
    return tuple(d.floats(*lead, d.size(low, 17), width, dtype=kind, **how) for _ in range(2))  # type: ignore[return-value]


def linear_mmd(d: Draw) -> dict[str, Any]:
    x, y = _points(d)
    return {"x": x, "y": y}


def coral(d: Draw) -> dict[str, Any]:
    x, y = _points(d, low=2)
    return {"x": x, "y": y}


def mmd(d: Draw) -> dict[str, Any]:
    x, y = _points(d, low=2, written=True)  # see mmd_permutation_test
    rest = {"kernels": d.one(5, 1), "bandwidth": d.one("mean", "median", "tllib", 2.0)}
    return {"x": x, "y": y, **rest, "estimator": d.one("biased", "unbiased", "linear", "pairs"), "mul": 2.0}


def median_distance(d: Draw) -> dict[str, Any]:
    return {"x": _points(d)[0]}


def weighted_mmd(d: Draw) -> dict[str, Any]:
    z = _points(d)[0]
    kind = torch.float64 if z.dtype == torch.float64 else torch.float32
    v = d.floats(*z.shape[:-1], 2, dtype=kind)
    return {"z": z, "v": v, "base": d.one("mean", 2.0), "kernels": d.one(5, 2)}


def cdd(d: Draw) -> dict[str, Any]:
    s, t = _points(d)
    ys, yt = (d.ints(*x.shape[:-1], low=-1, high=3) for x in (s, t))
    rest = {"min_count": d.one(2, 1), "clamp": d.one("none", "can")}
    return {"s": s, "ys": ys, "t": t, "yt": yt, "num_classes": 3, **rest}


def lmmd(d: Draw) -> dict[str, Any]:
    s, t = _points(d)
    q = torch.from_numpy(d.rng.random((*t.shape[:-1], 3))).to(torch.float32)
    return {"s": s, "ys": d.ints(*s.shape[:-1], low=-1, high=3), "t": t, "q": q}


def joint_mmd(d: Draw) -> dict[str, Any]:
    n, m, kind = d.size(2, 9), d.size(2, 9), d.dtype()
    widths = [d.size(1, 5) for _ in range(d.integer(1, 2))]
    xs, ys = ([d.floats(rows, w, dtype=kind) for w in widths] for rows in (n, m))
    return {"xs": xs, "ys": ys, "estimator": d.one("biased", "unbiased"), "bandwidth": d.one("mean", 2.0)}


def mmd_permutation_test(d: Draw) -> dict[str, Any]:
    x, y = _points(d, False, 2, written=True)  # not one point many times: a bandwidth of 0, up to rounding
    given = {"bandwidth": d.one("median", "mean", 1.0), "n_resamples": d.one(9, 1)}
    return {"x": x, "y": y, **given, "estimator": d.one("unbiased", "biased")}


def mmd2_poly(d: Draw) -> dict[str, Any]:
    width, kind = d.size(1, 9), d.one(torch.float32, torch.float64)
    x, y = (d.floats(d.size(1), width, dtype=kind) for _ in range(2))
    return {"x": x, "y": y, "degree": d.one(3, 1), "coef": 1.0, "biased": d.flag()}


def mmd2_rbf(d: Draw) -> dict[str, Any]:
    given = mmd2_poly(d)
    return {"x": given["x"], "y": given["y"], "sigma": d.one(1.0, [0.5, 2.0]), "biased": d.flag()}


def moments_update(d: Draw) -> dict[str, Any]:
    return {"x": d.floats(*d.sizes(2), dtype=d.dtype()), "state": None}


def _moments(d: Draw, width: int) -> Any:
    return ops.moments_update(torch.from_numpy(d.rng.standard_normal((d.size(2), width))))


def moments_merge(d: Draw) -> dict[str, Any]:
    width = d.size(1, 5)
    return {"a": _moments(d, width), "b": _moments(d, width)}


def frechet_distance(d: Draw) -> dict[str, Any]:
    width = d.size(1, 5)
    x, y = (d.one(_moments(d, width), d.floats(d.size(2), width, dtype=d.dtype())) for _ in range(2))
    return {"x": x, "y": y, "diagnostics": d.flag()}


def _features(d: Draw, low: int = 1) -> Tensor:
    return d.floats(d.size(low, 17), d.size(1, 9), dtype=d.one(*NARROW))


def nn_assign(d: Draw) -> dict[str, Any]:
    x = _features(d, 0)
    m = d.size(0, 9)
    labels = d.flag()
    given = {"x": x, "centers": d.floats(m, x.shape[1], dtype=x.dtype), "k": d.size(1, 5)}
    given |= {"x_labels": d.ints(len(x), low=0, high=3) if labels else None}
    given |= {"center_labels": d.ints(m, low=0, high=3) if labels else None}
    return {**given, "metric": d.one("l2", "cosine"), "precision": d.one("f32", "bf16")}


def kcenter_greedy(d: Draw) -> dict[str, Any]:
    x = _features(d)
    init = d.one("farthest_from_mean", "random", 0, [0])
    k = d.integer(0, len(x) - 1)
    return {"x": x, "k": k, "init": init, "metric": d.one("l2", "cosine"), "lookahead": d.one(128, 1, 3)}


def kmeans(d: Draw) -> dict[str, Any]:
    x = _features(d)
    k = d.integer(1, len(x))
    init = d.often("k-means++", d.floats(k, x.shape[1], dtype=x.dtype))
    return {"x": x, "num_clusters": k, "iterations": d.one(3, 0), "init": init, "tol": d.one(0.0, 0.1)}


def fl_greedy(d: Draw) -> dict[str, Any]:
    x = _features(d)
    kinds = ("sqeuclidean", "euclidean", "cosine01", "cosine2", "rbf", "inner")
    rest = {"kind": d.one(*kinds), "optimizer": d.one("lazy", "naive", "stochastic", "lazier")}
    rest |= {"sample_weights": d.often(None, d.floats(len(x), positive=True))}
    if d.often(False, True):
        similarity = d.floats(len(x), len(x), positive=True)
        return {"similarity": similarity, "k": d.integer(0, len(x)), "optimizer": rest["optimizer"]}
    return {"x": x, "k": d.integer(0, len(x)), **rest}


def graphcut_greedy(d: Draw) -> dict[str, Any]:
    x = _features(d)
    kind = d.one("cosine01", "cosine2", "rbf", "inner", "sqeuclidean")
    return {"x": x, "k": d.integer(0, len(x)), "kind": kind, "lam": d.one(1.0, 0.0)}


def logdet_greedy(d: Draw) -> dict[str, Any]:
    x = _features(d)
    kind = d.one("rbf", "cosine01", "cosine2", "inner")
    return {"x": x, "k": d.integer(0, len(x)), "kind": kind, "ridge": d.one(0.1, 1.0)}


def herding(d: Draw) -> dict[str, Any]:
    x = _features(d)
    labels = d.often(None, d.ints(len(x), low=0, high=3))
    return {"x": x, "k": d.integer(0, len(x)), "labels": labels}


def _gradients(d: Draw, low: int = 1) -> dict[str, Any]:
    n, c, width, kind = d.size(low, 9), d.size(1, 4), d.size(1, 5), d.one(*NARROW)
    given = {"errors": d.floats(n, c, dtype=kind), "hidden": d.floats(n, width, dtype=kind)}
    return {**given, "bias": d.flag()}


def fgrad_gram(d: Draw) -> dict[str, Any]:
    given = _gradients(d, 0)
    if d.flag():
        m = d.size(0, 9)
        given["other_errors"] = d.floats(m, given["errors"].shape[1], dtype=given["errors"].dtype)
        given["other_hidden"] = d.floats(m, given["hidden"].shape[1], dtype=given["hidden"].dtype)
    return given


fgrad_sqdist = fgrad_gram


def fgrad_mv(d: Draw) -> dict[str, Any]:
    given = _gradients(d, 0)
    width = given["hidden"].shape[1] + given["bias"]
    return {**given, "matrix": d.floats(given["errors"].shape[1], width)}


def fgrad_rmv(d: Draw) -> dict[str, Any]:
    given = _gradients(d)
    return {**given, "weights": d.one(None, d.floats(len(given["errors"])))}


def omp_factored(d: Draw) -> dict[str, Any]:
    given = _gradients(d)
    return {**given, "k": d.integer(0, len(given["errors"])), "lam": d.one(1.0, 0.5)}


def craig(d: Draw) -> dict[str, Any]:
    given = _gradients(d)
    labels = d.one(None, d.ints(len(given["errors"]), low=0, high=3))
    rest = {"k": d.integer(0, len(given["errors"])), "labels": labels}
    return {**given, **rest, "distance": d.one("l2", "sqeuclidean")}


def glister(d: Draw) -> dict[str, Any]:
    given, v = _gradients(d), d.size(1, 5)
    c, width = given["errors"].shape[1], given["hidden"].shape[1]
    given |= {"val_logits": d.floats(v, c), "val_hidden": d.floats(v, width)}
    rest = {"k": d.integer(0, len(given["errors"])), "rounds": d.one(10, 1), "eta": 0.1}
    return {**given, "val_labels": d.ints(v, low=0, high=c), **rest}


def class_mask(d: Draw) -> dict[str, Any]:
    c = d.size(1, 5)
    return {"labels": d.ints(d.size(), low=0, high=c), "keep": d.one([0], d.bools(c), []), "num_classes": c}


def class_median_distance(d: Draw) -> dict[str, Any]:
    x = _features(d, 0)
    return {"x": x, "labels": d.ints(len(x), low=0, high=3), "num_classes": d.one(3, 5)}


def class_vote(d: Draw) -> dict[str, Any]:
    n, c = d.size(), d.size(1, 5)
    logits = d.one(d.floats(n, c, dtype=d.dtype()), d.ints(n, low=0, high=c))
    return {"logits": logits, "num_classes": c, "target_labels": d.one(None, d.ints(n, low=0, high=3))}


def moderate_select(d: Draw) -> dict[str, Any]:
    n = d.size(1)
    labels = d.one(None, d.ints(n, low=0, high=3))
    rest = {"budget": d.integer(0, n), "rounding": d.often("exact", "reference")}
    return {"distances": d.floats(n, positive=True), "labels": labels, **rest}


def stratified_budget(d: Draw) -> dict[str, Any]:
    counts = d.ints(d.size(0, 5), low=0, high=9)
    return {"counts": counts, "budget": d.integer(0, int(counts.sum()))}


def topk_stable(d: Draw) -> dict[str, Any]:
    n = d.size()
    return {"scores": d.floats(n, dtype=d.dtype()), "k": d.integer(0, n), "largest": d.flag()}


def new_dynamics(d: Draw) -> dict[str, Any]:
    return {"n": d.size()}


def dynamics_update(d: Draw) -> dict[str, Any]:
    n, c = d.size(1), d.size(1, 5)
    b = d.integer(0, n)
    indices = torch.from_numpy(d.rng.permutation(n)[:b].copy())
    given = {"logits": d.floats(b, c, dtype=d.dtype()), "labels": d.ints(b, low=0, high=c)}
    return {"state": ops.new_dynamics(n), "indices": indices, **given, "check": True}


def score_fused(d: Draw) -> dict[str, Any]:
    n, c = d.size(), d.size(1, 9)
    norms = d.one(None, d.floats(n, positive=True))
    want = d.one(None, ["el2n"], ["entropy", "margin"])
    given = {"logits": d.floats(n, c, dtype=d.dtype()), "labels": d.ints(n, low=0, high=c), "want": want}
    return {**given, "feature_norms_squared": norms, "check": d.often(True, False)}


def weighted_cross_entropy(d: Draw) -> dict[str, Any]:
    n, c = d.size(), d.size(1, 9)
    given = {"logits": d.floats(n, c, dtype=d.dtype()), "labels": d.ints(n, low=0, high=c)}
    return {**given, "weights": d.floats(n), "reduction": d.one("mean", "sum", "none")}

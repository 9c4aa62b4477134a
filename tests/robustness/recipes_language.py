"""Arguments for the ops on logits, hidden states, prompts and diffusion latents."""

from __future__ import annotations

from typing import Any

import torch
from drawing import Draw
from torch import Tensor

from tenfold import ops

WANT = ("logp", "lse", "argmax", "mean_logit", "mean_logp", "mean_logp2")


def _head(d: Draw, low: int = 1) -> tuple[dict[str, Any], int, int]:
    n, width, v = d.size(), d.size(1), d.size(low)
    kind = d.dtype()
    bias = d.one(None, d.floats(v, dtype=kind))
    weight = d.floats(v, width, dtype=d.often(kind, d.dtype()), scale=d.one(1.0, 0.1))
    return {"hidden": d.floats(n, width, dtype=kind, scale=1.0), "weight": weight, "bias": bias}, n, v


def _targets(d: Draw, *shape: int, v: int, ignored: bool = True) -> Tensor:
    t = d.ints(*shape, low=0, high=v).contiguous().clone()
    if ignored and t.numel():
        t.view(-1)[0] = d.one(-100, 0)
    return t


def token_logprobs(d: Draw) -> dict[str, Any]:
    head, n, v = _head(d)
    return {**head, "targets": _targets(d, n, v=v, ignored=False)}


def linear_logprob(d: Draw) -> dict[str, Any]:
    head, n, v = _head(d)
    want = [d.one(*WANT) for _ in range(d.integer(0, 3))]
    return {**head, "targets": _targets(d, n, v=v), "softcap": d.often(None, 30.0), "want": want}


def logits_logprob(d: Draw) -> dict[str, Any]:
    rows, v = d.one((d.size(),), d.sizes(2)), d.size(1)
    rest = {"softcap": d.often(None, 30.0), "want": [d.one(*WANT) for _ in range(d.integer(0, 3))]}
    return {"logits": d.floats(*rows, v, dtype=d.dtype()), "targets": _targets(d, *rows, v=v), **rest}


def gnb_sample(d: Draw) -> dict[str, Any]:
    rows = d.one((d.size(),), d.sizes(2))
    rest = {"row_offset": d.one(0, 5, 2**61), "temperature": d.one(1.0, 0.5), "seed": d.seed()}
    return {
        "logits": d.floats(*rows, d.size(1), dtype=d.dtype()),
        "mask": d.one(None, d.bools(*rows)),
        **rest,
    }


def linear_gnb_sample(d: Draw) -> dict[str, Any]:
    head, n, _ = _head(d)
    rest = {"row_offset": d.one(0, 5), "temperature": d.one(1.0, 0.5), "seed": d.seed()}
    return {**head, "mask": d.one(None, d.bools(n)), **rest, "softcap": d.often(None, 30.0)}


def linear_loss(d: Draw) -> dict[str, Any]:
    head, n, v = _head(d)
    kind = d.one("weights", "npo", "simnpo", "power")
    given: dict[str, Any] = {"targets": _targets(d, n, v=v), "kind": kind, "factor": 0.5}
    given["weights"] = d.one(None, d.floats(n))
    if kind != "weights":
        given["num_segments"] = b = d.size(1, 4)
        given["segments"] = d.ints(n, low=-1, high=b).sort().values
        given["ref_nll"] = d.floats(b) if kind == "npo" else None
        given["delta"] = 0.0 if kind == "npo" else 0.1
    return {**head, **given}


def segment_nll(d: Draw) -> dict[str, Any]:
    n, b = d.size(), d.size()
    return {"logp": d.floats(n, dtype=d.dtype()), "segments": d.ints(n, low=-1, high=b), "num_segments": b}


def linear_ceu(d: Draw) -> dict[str, Any]:
    head, n, v = _head(d, 2)
    return {**head, "targets": _targets(d, n, v=v)}


def _pair(d: Draw) -> tuple[dict[str, Any], int, int]:
    head, n, v = _head(d)
    e, kind = d.size(1), d.dtype()
    other = {"ref_hidden": d.floats(n, e, dtype=kind, scale=1.0), "ref_weight": d.floats(v, e, dtype=kind)}
    return {**head, **other, "ref_bias": d.one(None, d.floats(v, dtype=kind))}, n, v


def linear_kl(d: Draw) -> dict[str, Any]:
    head, n, _ = _pair(d)
    return {**head, "mask": d.one(None, d.bools(n)), "direction": d.one("forward", "reverse")}


def linear_undial(d: Draw) -> dict[str, Any]:
    head, n, v = _pair(d)
    return {**head, "targets": _targets(d, n, v=v), "beta": d.one(10.0, 0.0)}


def linear_topk(d: Draw) -> dict[str, Any]:
    head, n, v = _head(d)
    targets = d.one(None, _targets(d, n, v=v, ignored=False))
    return {**head, "k": d.integer(1, v), "targets": targets, "softcap": d.often(None, 30.0)}


def linear_topk_kl(d: Draw) -> dict[str, Any]:
    head, n, v = _head(d)
    k = d.integer(1, v)
    tokens = torch.from_numpy(d.rng.permuted(d.rng.permutation(v)[None].repeat(n, 0), axis=1)[:, :k].copy())
    logp = torch.full((n, k), 0.5 / k).log()
    rest = torch.full((n,), 0.5).log()
    return {**head, "reference": ops.TopK(tokens.reshape(n, k), logp, rest), "softcap": d.often(None, 30.0)}


def vocab_parallel_logprob(d: Draw) -> dict[str, Any]:
    head, n, v = _head(d)
    return {**head, "targets": _targets(d, n, v=v), "start": 0, "vocabulary": v}


def merge_vocab_shards(d: Draw) -> dict[str, Any]:
    n = d.size()
    parts = [d.floats(n, dtype=torch.float64, scale=1.0, tame=True) for _ in range(2)]
    inside = torch.ones(n, dtype=torch.float64)
    return {"shard": ops.VocabShard(parts[0], parts[1].abs() + 1, parts[0], inside)}


def option_loss(d: Draw) -> dict[str, Any]:
    b, t, width, v = 2 * d.size(0, 3), d.size(2), d.size(1), d.size(1)
    kind, mode = d.dtype(), d.one("choice", "lm")
    given: dict[str, Any] = {"hidden": d.floats(b, t, width, dtype=kind, scale=1.0)}
    given |= {"weight": d.floats(v, width, dtype=kind), "bias": d.one(None, d.floats(v, dtype=kind))}
    given |= {"ids": d.ints(b, t, low=0, high=v), "option_len": d.ints(b, low=1, high=t), "mode": mode}
    if mode == "choice":
        given |= {"num_options": d.one(2, [2] * (b // 2)), "labels": d.ints(b // 2, low=0, high=2)}
    return given


def verbalizer_loss(d: Draw) -> dict[str, Any]:
    head, n, v = _head(d)
    c = d.size(1, 4)
    return {**head, "token_ids": d.ints(c, low=0, high=v), "labels": d.ints(n, low=0, high=c)}


def inverse_norms(d: Draw) -> dict[str, Any]:
    return {"table": d.floats(d.size(), d.size(), dtype=d.dtype())}


def nearest_token(d: Draw) -> dict[str, Any]:
    v, width = d.size(1), d.size(1)
    kind = d.one(torch.float32, torch.bfloat16, torch.float16)
    mask = d.one(None, d.bools(v))
    given = {"q": d.floats(d.size(), width, dtype=kind), "table": d.floats(v, width, dtype=kind, tame=True)}
    return {**given, "metric": d.one("cos", "l2"), "mask": mask}


def sample_rows(d: Draw) -> dict[str, Any]:
    r, kind = d.size(), d.one(torch.float32, torch.float64)
    p = d.floats(r, d.size(1), dtype=kind, positive=True).abs()  # of special values too
    return {"p": p, "u": torch.from_numpy(d.rng.random(r)).to(kind)}


def sign_step_(d: Draw) -> dict[str, Any]:
    shape, kind = d.sizes(d.integer(1, 3)), d.dtype()
    norm = d.one("linf", "l2")
    rest = {"lr": d.one(0.1, 0.0), "eps": d.one(None, 0.3), "norm": norm}
    rest["origin"] = None if rest["eps"] is None else d.one(None, d.floats(*shape, dtype=kind))
    delta = d.floats(*shape, dtype=kind, written=True)
    return {"delta": delta, "grad": d.floats(*shape, dtype=kind), **rest}


def simplex_project(d: Draw) -> dict[str, Any]:
    p = d.floats(d.size(), d.size(1), dtype=d.one(torch.float32, torch.float64))
    return {"p": p, "radius": d.one(1.0, 2.5)}


def ste_adam_simplex_(d: Draw) -> dict[str, Any]:
    r, v, width = d.size(0, 5), d.size(1), d.size(1)
    kind = d.one(torch.float32, torch.bfloat16, torch.float16)
    p = torch.from_numpy(d.rng.random((r, v))).float() / v
    m, w = torch.zeros(r, v), torch.zeros(r, v)
    banned = None if v < 2 else d.one(None, torch.arange(v) == 0)
    given = {"grad_embeds": d.floats(r, width, dtype=kind), "table": d.floats(v, width, dtype=kind)}
    rest = {"lr": d.one(0.1, 0.0), "weight_decay": d.one(0.0, 0.1), "step": d.one(1, 7), "banned": banned}
    return {"p": p, "m": m, "v": w, **given, **rest}


def _latents(d: Draw, count: int) -> list[Tensor]:
    shape, kind = (d.size(0, 4), *d.sizes(d.integer(1, 3), 1)), d.dtype()
    return [d.floats(*shape, dtype=kind, scale=1.0) for _ in range(count)]


def add_noise_rows(d: Draw) -> dict[str, Any]:
    x, eps = _latents(d, 2)
    t = d.ints(d.one(1, len(x)), low=0, high=5)
    return {"x0": x, "eps": eps, "t": t, "abar": torch.linspace(1, 0, 5, dtype=torch.float64)}


def cfg_ddim_step(d: Draw) -> dict[str, Any]:
    x, eu, ec = _latents(d, 3)
    kind = d.one("epsilon", "v_prediction", "sample")
    levels = {"a_t": d.one(0.5, 0.99), "a_prev": d.one(0.9, 1.0, 0.0), "guidance": d.one(7.5, 0.0)}
    return {"x": x, "eu": d.often(eu, None), "ec": ec, **levels, "prediction_type": kind, "doubled": d.flag()}


def eps_mse_rows(d: Draw) -> dict[str, Any]:
    pred, target = _latents(d, 2)
    return {"pred": pred, "target": target, "criterion": d.one("l1", "l2")}


def esd_mse(d: Draw) -> dict[str, Any]:
    a, b, c = _latents(d, 3)
    return {"prediction": a, "e0": b, "ep": c, "eta": d.one(1.0, -3.0)}


def sld_guidance(d: Draw) -> dict[str, Any]:
    eu, ec, es, v = _latents(d, 4)
    rest = {"scale": 5000.0, "threshold": 0.01, "momentum_scale": 0.3, "momentum_beta": 0.4, "warm": d.flag()}
    return {"eu": eu, "ec": ec, "es": es, "momentum": v, "guidance": 7.5, **rest}


def splice_embed(d: Draw) -> dict[str, Any]:
    b, long, k, width = d.size(), d.size(1), d.size(1), d.size()
    kind = d.dtype()
    index = d.ints(b, long, low=0, high=long + k)
    return {
        "embeds": d.floats(b, long, width, dtype=kind),
        "adv": d.floats(b, k, width, dtype=kind),
        "index": index,
    }


def abs_quantile(d: Draw) -> dict[str, Any]:
    tensors = [d.floats(*d.sizes(d.integer(0, 3)), dtype=d.dtype()) for _ in range(d.size(1, 3))]
    return {"tensors": tensors, "q": d.one(0.5, 0.01, 1.0)}


def topk_mask(d: Draw) -> dict[str, Any]:
    return {**abs_quantile(d), "q": d.one(0.5, 0.0, 1.0), "largest": d.flag()}


def attn_column_norm(d: Draw) -> dict[str, Any]:
    b, heads, n, long, width = d.size(0, 3), d.size(1, 3), d.size(), d.size(1, 9), d.size(1, 9)
    kind = d.dtype()
    q, k = (d.floats(b, heads, s, width, dtype=kind, scale=1.0) for s in (n, long))
    return {"q": q, "k": k, "mask": d.bools(b, long), "scale": d.one(None, 0.5)}


def saliency_accum_(d: Draw) -> dict[str, Any]:
    shapes, mode = [d.sizes(d.integer(0, 3)) for _ in range(d.size(0, 3))], d.one("signed", "abs", "product")
    acc = [d.floats(*s, dtype=d.one(torch.float32, torch.float64), written=True) for s in shapes]
    grads = [d.often(d.floats(*s, dtype=d.dtype()), None) for s in shapes]
    weights = [d.floats(*s, dtype=d.dtype()) for s in shapes] if mode == "product" else None
    return {"acc": acc, "grads": grads, "mode": mode, "weights": weights}


def masked_adam_(d: Draw) -> dict[str, Any]:
    shapes = [d.sizes(d.integer(0, 3)) for _ in range(d.size(0, 3))]
    kinds = [d.dtype() for _ in shapes]
    wide = d.flag()
    state = [torch.float32 if wide and k != torch.float64 else k for k in kinds]
    w, m, v = (
        [d.floats(*s, dtype=k, positive=p, written=True) for s, k in zip(shapes, ks, strict=True)]
        for ks, p in ((kinds, False), (state, False), (state, True))
    )
    masks = [torch.randint(0, 256, (-(-x.numel() // 8),), dtype=torch.uint8) for x in w]
    rest = {"step": d.one(1, 9), "lr": d.one(0.01, 0.0), "weight_decay": d.one(0.0, 0.1)}
    grads = [d.floats(*s, dtype=k) for s, k in zip(shapes, kinds, strict=True)]
    return {"params": w, "grads": grads, "exp_avgs": m, "exp_avg_sqs": v, "masks": masks, **rest}


def lowrank_apply_(d: Draw) -> dict[str, Any]:
    r, count = d.size(1, 4), d.size(0, 3)
    shapes = [d.sizes(2, 1) for _ in range(count)]
    kind = d.dtype()
    w = [d.floats(*s, dtype=kind, written=True) for s in shapes]
    downs = [d.floats(r, s[1], dtype=kind) for s in shapes]
    return {
        "weights": w,
        "downs": downs,
        "ups": [d.floats(s[0], r, dtype=kind) for s in shapes],
        "scale": 0.5,
    }


def _uce(d: Draw) -> tuple[Any, int]:
    m, width = d.size(0, 3), d.size(1, 5)
    right, left = (torch.from_numpy(d.rng.standard_normal((m, width))) for _ in range(2))
    return ops.UceEdit(right, left, None, (0, m), 1.0), width


def uce_apply_(d: Draw) -> dict[str, Any]:
    edit, width = _uce(d)
    weights = [d.floats(d.size(), width, dtype=d.dtype(), written=True) for _ in range(d.size(0, 3))]
    return {"weights": weights, "edit": edit, "scale": d.one(1.0, -0.5)}


uce_apply = uce_apply_


def uce_edit(d: Draw) -> dict[str, Any]:
    m, p, width = d.size(0, 3), d.size(0, 4), d.size(1, 5)
    kind = d.dtype()
    old, new, keep = (d.floats(rows, width, dtype=kind) for rows in (m, m, p))
    weights = d.one(None, d.floats(p, positive=True))
    return {"old": old, "new": new, "keep": keep, "keep_weights": weights, "lam": d.one(1.0, 0.5)}

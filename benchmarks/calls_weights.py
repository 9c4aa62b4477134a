"""The calls on weights and on a model's outputs: zeroth order, Sophia, log-probabilities, editing weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tenfold import ops

from .calls_inputs import ON_CUDA, SEED, Call, Inputs, Run, in_place, with_gradient

# ---- zeroth order ----------------------------------------------------------------------------------------


def _zo(name: str, device: torch.device, seed: int, dtype: torch.dtype = torch.float32) -> Run:
    x = Inputs(device, seed)
    params = x.weights(dtype)
    streams = list(range(len(params)))
    terms = [ops.Term(SEED, 3, 0.7), ops.Term(SEED + 1, 4, -0.2)]
    states = [[torch.full_like(p, v, dtype=torch.float32) for p in params] for v in (0.01, 1e-4, 0.5)]
    mask = ops.RandomMask(5, 6, 0.5)
    options: dict[str, Any]
    update: Callable[..., Any]
    if name == "perturb":
        return in_place([params], lambda p: ops.zo_perturb_(p, streams, SEED, 3, 1e-3))
    if name == "chain":
        options = {"decay": 0.9, "out_rounding": "sr", "mask": mask}
        return in_place([params], lambda p: ops.zo_chain_(p, streams, terms, **options))
    if name == "adam":
        update = partial(ops.zo_adam_, streams=streams, terms=terms, lr=1e-2, step=2)
        return in_place([params, *states[:2]], lambda p, m, v: update(p, m, v))
    if name == "momentum":
        update = partial(ops.zo_momentum_, streams=streams, terms=terms, lr=1e-2, momentum=0.9, first=False)
        return in_place([params, states[0]], lambda p, m: update(p, m))
    if name == "sign":
        return in_place([params], lambda p: ops.zo_sign_(p, streams, terms, lr=1e-2))
    if name == "hizoo_perturb":
        return in_place([params], lambda p: ops.zo_hizoo_perturb_(p, states[2], streams, SEED, 3, 1e-3))
    if name == "hizoo_update":
        update = partial(ops.zo_hizoo_update_, streams=streams, terms=terms, lr=1e-2, smoothing=0.01)
        return in_place([params, states[2]], lambda p, h: update(p, h, curvatures=[0.5, 2.0]))
    if name == "restore_update":
        options = {"eps": 1e-3, "lr": 1e-2, "projected_grad": 0.7}
        return in_place([params], lambda p: ops.zo_restore_update_(p, streams, SEED, 3, **options))
    assert name == "replay"
    passes = [ops.ReplayPass([term]) for term in terms]
    return in_place([params], lambda p: ops.zo_replay_(p, streams, passes))


def _generator(device: torch.device, seed: int) -> Run:
    def run() -> list[Tensor]:
        drawn = [
            ops.zo_sample(seed, 1, 2, first=2**33 - 3, n=4099, dist=dist, device=device)
            for dist in ("gaussian", "rademacher", "uniform", "gauss16")
        ]
        words = ops.random_words(seed, stream=1, query=2, blocks=1025, device=device)
        return [*drawn, words]

    return run


def _stochastic_round(device: torch.device, seed: int) -> Run:
    values = Inputs(device, seed).normal(4099)
    return lambda: [ops.stochastic_round(values, dtype, seed) for dtype in (torch.bfloat16, torch.float16)]


def _select(device: torch.device, seed: int) -> Run:
    params = Inputs(device, seed).weights()

    def run() -> list[Tensor]:
        bits = ops.magnitude_bits(params, 0.015)
        counts = torch.tensor(ops.count_within(params, 0.015))
        quantile = torch.tensor(ops.quantile_abs(params, 0.4))
        norm = torch.tensor(ops.zo_direction_norm(params, list(range(4)), SEED, 3))
        return [*bits, counts, quantile, norm]

    return run


def _moments(device: torch.device, seed: int) -> Run:
    return lambda: [torch.tensor(ops.zo_moments(seed, n=4099, device=device))]


def _lowrank(device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    params = [x.normal(33, 65), x.normal(7, 1025)]
    factors = [x.normal(65, 3), x.normal(1025, 3)]
    terms = [ops.LowRankTerm(SEED, 3, 0.7), ops.LowRankTerm(SEED, 4, -0.2)]
    return in_place([params], lambda p: ops.zo_lowrank_(p, factors, [0, 1], terms, decay=0.9))


def _lowrank_factors(device: torch.device, seed: int) -> Run:
    terms = [ops.LowRankTerm(seed, 3, 0.7), ops.LowRankTerm(seed, 4, -0.2)]
    return lambda: [
        ops.lowrank_factor(seed, 1, 2, 257, 3, side="v", device=device),
        ops.zo_lowrank_project(terms, 1, 257, 3, device=device),
    ]


def _dual(mode: str, dtype: torch.dtype, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    value, w, b = x.normal(2, 5, 129, dtype=dtype), x.normal(65, 129, dtype=dtype), x.normal(65, dtype=dtype)
    options: dict[str, Any] = {"seed": SEED, "stream": 3, "bias_stream": 4, "eps": 1e-3, "mode": mode}
    return lambda: [ops.zo_linear_dual(value, w, b, **options)]


def _dual_embedding(device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    ids, w = x.whole(37, 2, 3, 5), x.normal(37, 65)
    return lambda: [ops.zo_embedding_dual(ids, w, seed=SEED, stream=3, eps=1e-3)]


# ---- Sophia ----------------------------------------------------------------------------------------------


def _sophia(states: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    params, grads = x.weights(), x.weights()
    settings: dict[str, Any] = {"lr": 1e-3, "beta1": 0.9, "denom_scale": 10.0, "weight_decay": 0.1}
    m, h = ([torch.full_like(p, v) for p in params] for v in (0.01, 1e-3))
    if states == "hessian":
        return in_place([h], lambda h: ops.sophia_hessian_(h, grads, beta2=0.99, scale=3.0))
    if states == "f32":
        return in_place([params, m, h], lambda p, m, h: ops.sophia_step_(p, grads, m, h, **settings))
    codes = [[ops.sophia8_quantize(t, kind) for t in ts] for kind, ts in (("exp_avg", m), ("hessian", h))]
    (mc, ms), (hc, hs) = (([c for c, _ in pairs], [s for _, s in pairs]) for pairs in codes)

    def step(p: Any, mc: Any, hc: Any, ms: Any, hs: Any) -> None:
        ops.sophia_step_(p, grads, mc, hc, exp_avg_scales=ms, hessian_scales=hs, **settings)

    return in_place([params, mc, hc, ms, hs], step)


def _codes(device: torch.device, seed: int) -> Run:
    values = Inputs(device, seed).normal(4099, scale=1e-3)

    def run() -> list[Tensor]:
        found = []
        for kind, x, rounding in (("exp_avg", values, None), ("hessian", values.abs(), seed)):
            codes, scales = ops.sophia8_quantize(x, kind, seed=rounding, step=3)
            found += [codes, scales, ops.sophia8_dequantize(codes, scales, kind)]
        return found

    return run


def _hutchinson(device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    like, products = x.weights(), x.weights()
    probes = ops.hutchinson_probe(like, seed=seed)
    sums = [torch.zeros_like(t) for t in like]
    accumulate = in_place([sums], lambda s: ops.hutchinson_accumulate_(s, probes, products, 0.5))
    return lambda: [*ops.hutchinson_probe(like, seed=seed), *accumulate()]


# ---- log-probabilities -----------------------------------------------------------------------------------


def _logits(device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    logits, targets = x.normal(5, 4099), x.whole(4099, 5)
    segments = torch.tensor([0, 0, 1, 1, 1], device=device)

    def loss(z: Tensor) -> Tensor:
        return ops.segment_nll(ops.logits_logprob(z, targets).logp, segments, 2)[0]

    return with_gradient([logits], loss)


def _gnb(device: torch.device, seed: int) -> Run:
    logits = Inputs(device, seed).normal(5, 4099)

    def run() -> list[Tensor]:
        found = ops.gnb_sample(logits, seed=seed)
        return [found.tokens, found.logp]

    return run


def _linear(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    operands = [x.normal(7, 17), x.normal(301, 17), x.normal(301)]
    ref, head = x.normal(7, 17), x.normal(301, 17)
    targets = x.whole(301, 7)
    top = ops.linear_topk(ref, head, 5)
    losses: dict[str, Callable[..., Tensor]] = {
        "logprob": lambda h, w, b: ops.linear_logprob(h, w, targets, b).logp,
        "loss": lambda h, w, b: ops.linear_loss(h, w, targets, b, weights=torch.ones_like(h[:, 0])).loss,
        "kl": lambda h, w, b: ops.linear_kl(h, w, ref, head, bias=b),
        "ceu": lambda h, w, b: ops.linear_ceu(h, w, targets, b),
        "undial": lambda h, w, b: ops.linear_undial(h, w, ref, head, targets, bias=b),
        "topk_kl": lambda h, w, b: ops.linear_topk_kl(h, w, top, b),
        "gnb": lambda h, w, b: ops.linear_gnb_sample(h, w, b, seed=seed).logp,
        "vocab_parallel": lambda h, w, b: ops.vocab_parallel_logprob(
            h, w, targets, b, start=0, vocabulary=301
        ),
    }
    return with_gradient(operands, losses[name])


# ---- editing weights -------------------------------------------------------------------------------------


def _erase(name: str, device: torch.device, seed: int) -> Run:
    x = Inputs(device, seed)
    if name == "columns":
        q, k = x.normal(2, 3, 37, 20), x.normal(2, 3, 11, 20)
        chosen = x.whole(2, 2, 11).bool()
        return with_gradient([q, k], lambda q, k: ops.attn_column_norm(q, k, chosen))
    weights = x.weights()

    def selected() -> list[Tensor]:
        found = ops.abs_quantile(weights, 0.3)
        sums = [torch.zeros_like(w) for w in weights]
        ops.saliency_accum_(sums, weights, mode="abs")
        at = torch.tensor([found.threshold, found.count], dtype=torch.float64)
        return [at, *sums, *ops.topk_mask(weights, 0.3)]

    if name == "selection":
        return selected
    masks = ops.topk_mask(weights, 0.3)
    grads, zeros = x.weights(), [torch.zeros_like(w) for w in weights]
    return in_place(
        [weights, zeros, zeros],
        lambda p, m, v: ops.masked_adam_(p, grads, m, v, masks, step=3, lr=0.01, weight_decay=0.1),
    )


BF16, F32 = torch.bfloat16, torch.float32
_PASSES = (
    "perturb", "chain", "adam", "momentum", "sign", "hizoo_perturb", "hizoo_update", "restore_update",
    "replay",
)  # fmt: skip
_HEADS = {
    "logprob": "linear_logprob",
    "loss": "linear_loss",
    "kl": "linear_kl",
    "ceu": "linear_ceu",
    "undial": "linear_undial",
    "topk_kl": "linear_topk_kl",
    "gnb": "linear_gnb_sample",
    "vocab_parallel": "vocab_parallel_logprob",
}

WEIGHTS: tuple[Call, ...] = (
    *(
        Call(f"zo.{name}.{kind}", partial(_zo, name, dtype=dtype), captures=True, covers=(f"zo_{name}_",))
        for name in _PASSES
        for kind, dtype in (("f32", F32), ("bf16", BF16))
    ),
    Call("zo.generator", _generator, covers=("zo_sample", "random_words"), captures=True),
    Call("zo.stochastic_round", _stochastic_round, covers=("stochastic_round",), captures=True),
    Call(
        "zo.select",
        _select,
        1e-12,
        covers=("magnitude_bits", "count_within", "quantile_abs", "zo_direction_norm"),
    ),
    Call("zo.moments", _moments, 1e-12, backends=ON_CUDA, covers=("zo_moments",)),
    Call("lowrank.pass", _lowrank, covers=("zo_lowrank_",), captures=True),
    Call("lowrank.factors", _lowrank_factors, covers=("lowrank_factor", "zo_lowrank_project"), captures=True),
    *(
        Call(f"dual.linear.{mode}.{kind}", partial(_dual, mode, dtype), near, True, covers=covers)
        for mode in ("fold", "split")
        for kind, dtype, near in (("f32", F32, 2e-6), ("bf16", BF16, 8e-3))
        for covers in (("zo_linear_dual", "zo_linear_perturbed"),)
    ),
    Call("dual.embedding", _dual_embedding, covers=("zo_embedding_dual", "zo_embedding_perturbed")),
    *(
        Call(f"sophia.{name}", partial(_sophia, name), captures=True, covers=covers)
        for name, covers in (
            ("f32", ("sophia_step_",)),
            ("8bit", ("sophia_step_",)),
            ("hessian", ("sophia_hessian_",)),
        )
    ),
    Call("sophia.codes", _codes, covers=("sophia8_quantize", "sophia8_dequantize")),
    Call("sophia.hutchinson", _hutchinson, covers=("hutchinson_probe", "hutchinson_accumulate_")),
    Call("logprob.logits", _logits, 2e-5, covers=("logits_logprob", "segment_nll")),
    Call("logprob.gnb", _gnb, 2e-5, covers=("gnb_sample",)),
    *(
        Call(f"logprob.linear.{name}", partial(_linear, name), 2e-5, covers=(op, "linear_topk"))
        for name, op in _HEADS.items()
    ),
    Call("erase.selection", partial(_erase, "selection"), 1e-12, covers=("abs_quantile", "topk_mask")),
    Call("erase.adam", partial(_erase, "adam"), covers=("masked_adam_", "saliency_accum_")),
    Call(
        "erase.columns", partial(_erase, "columns"), 2e-5, backends=("triton",), covers=("attn_column_norm",)
    ),
)

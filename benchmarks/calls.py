"""One small call of every op that has a GPU kernel, on odd sizes: for tests and for compute-sanitizer.

    compute-sanitizer python -m tenfold.benchmarks.calls [--device cuda] [NAME ...]

A `Call` makes its inputs from a seed on the CPU, so that they are the same on every device, and runs as often
as one likes with the same result: what an op writes in place starts from a copy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], list[Tensor]]
SEED = 2**63 + 11


@dataclass(frozen=True)
class Call:
    """make(device, seed) -> run() -> results. near: relative to the largest entry of a result, how far from
    the CPU's it may be; 0: the same bits. captures: whether a CUDA graph can hold the call. backends: those
    that have a GPU kernel for it."""

    name: str
    make: Callable[[torch.device, int], Run]
    near: float = 0.0
    captures: bool = False
    backends: tuple[str, ...] = ("cuda", "triton")
    covers: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        return self.name.partition(".")[0]


class _Inputs:
    """Tensors drawn on the CPU and moved."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.generator = device, torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (scale * torch.randn(shape, generator=self.generator)).to(dtype).to(self.device)

    def whole(self, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(dtype).to(self.device)

    def weights(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [self.normal(*shape, scale=0.02, dtype=dtype) for shape in ((1,), (257,), (33, 65), (4099,))]


def _in_place(start: Sequence[Sequence[Tensor]], call: Callable[..., Any]) -> Run:
    """`call` on tensors that are put back to `start` before it; they are the results."""
    held = [[t.clone() for t in tensors] for tensors in start]

    def run() -> list[Tensor]:
        for tensors, first in zip(held, start, strict=True):
            for tensor, value in zip(tensors, first, strict=True):
                tensor.copy_(value)
        call(*held)
        return [t for tensors in held for t in tensors]

    return run


def _with_gradient(operands: Sequence[Tensor], loss: Callable[..., Tensor]) -> Run:
    leaves = [t.detach().requires_grad_() for t in operands]

    def run() -> list[Tensor]:
        value = loss(*leaves)
        return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]

    return run


# ---- zeroth order ----------------------------------------------------------------------------------------


def _zo(name: str, device: torch.device, seed: int, dtype: torch.dtype = torch.float32) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    params = x.weights(dtype)
    streams = list(range(len(params)))
    terms = [ops.Term(SEED, 3, 0.7), ops.Term(SEED + 1, 4, -0.2)]
    states = [[torch.full_like(p, v, dtype=torch.float32) for p in params] for v in (0.01, 1e-4, 0.5)]
    mask = ops.RandomMask(5, 6, 0.5)
    options: dict[str, Any]
    update: Callable[..., Any]
    if name == "perturb":
        return _in_place([params], lambda p: ops.zo_perturb_(p, streams, SEED, 3, 1e-3))
    if name == "chain":
        options = {"decay": 0.9, "out_rounding": "sr", "mask": mask}
        return _in_place([params], lambda p: ops.zo_chain_(p, streams, terms, **options))
    if name == "adam":
        update = partial(ops.zo_adam_, streams=streams, terms=terms, lr=1e-2, step=2)
        return _in_place([params, *states[:2]], lambda p, m, v: update(p, m, v))
    if name == "momentum":
        update = partial(ops.zo_momentum_, streams=streams, terms=terms, lr=1e-2, momentum=0.9, first=False)
        return _in_place([params, states[0]], lambda p, m: update(p, m))
    if name == "sign":
        return _in_place([params], lambda p: ops.zo_sign_(p, streams, terms, lr=1e-2))
    if name == "hizoo_perturb":
        return _in_place([params], lambda p: ops.zo_hizoo_perturb_(p, states[2], streams, SEED, 3, 1e-3))
    if name == "hizoo_update":
        update = partial(ops.zo_hizoo_update_, streams=streams, terms=terms, lr=1e-2, smoothing=0.01)
        return _in_place([params, states[2]], lambda p, h: update(p, h, curvatures=[0.5, 2.0]))
    if name == "restore_update":
        options = {"eps": 1e-3, "lr": 1e-2, "projected_grad": 0.7}
        return _in_place([params], lambda p: ops.zo_restore_update_(p, streams, SEED, 3, **options))
    assert name == "replay"
    passes = [ops.ReplayPass([term]) for term in terms]
    return _in_place([params], lambda p: ops.zo_replay_(p, streams, passes))


def _generator(device: torch.device, seed: int) -> Run:
    from tenfold import ops

    def run() -> list[Tensor]:
        drawn = [
            ops.zo_sample(seed, 1, 2, first=2**33 - 3, n=4099, dist=dist, device=device)
            for dist in ("gaussian", "rademacher", "uniform", "gauss16")
        ]
        words = ops.random_words(seed, stream=1, query=2, blocks=1025, device=device)
        return [*drawn, words]

    return run


def _stochastic_round(device: torch.device, seed: int) -> Run:
    from tenfold.ops import stochastic_round

    values = _Inputs(device, seed).normal(4099)
    return lambda: [stochastic_round(values, dtype, seed) for dtype in (torch.bfloat16, torch.float16)]


def _select(device: torch.device, seed: int) -> Run:
    from tenfold import ops

    params = _Inputs(device, seed).weights()

    def run() -> list[Tensor]:
        bits = ops.magnitude_bits(params, 0.015)
        counts = torch.tensor(ops.count_within(params, 0.015))
        quantile = torch.tensor(ops.quantile_abs(params, 0.4))
        norm = torch.tensor(ops.zo_direction_norm(params, list(range(4)), SEED, 3))
        return [*bits, counts, quantile, norm]

    return run


def _moments(device: torch.device, seed: int) -> Run:
    from tenfold.ops import zo_moments

    return lambda: [torch.tensor(zo_moments(seed, n=4099, device=device))]


def _lowrank(device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    params = [x.normal(33, 65), x.normal(7, 1025)]
    factors = [x.normal(65, 3), x.normal(1025, 3)]
    terms = [ops.LowRankTerm(SEED, 3, 0.7), ops.LowRankTerm(SEED, 4, -0.2)]
    return _in_place([params], lambda p: ops.zo_lowrank_(p, factors, [0, 1], terms, decay=0.9))


def _lowrank_factors(device: torch.device, seed: int) -> Run:
    from tenfold import ops

    terms = [ops.LowRankTerm(seed, 3, 0.7), ops.LowRankTerm(seed, 4, -0.2)]
    return lambda: [
        ops.lowrank_factor(seed, 1, 2, 257, 3, side="v", device=device),
        ops.zo_lowrank_project(terms, 1, 257, 3, device=device),
    ]


def _dual(mode: str, dtype: torch.dtype, device: torch.device, seed: int) -> Run:
    from tenfold.ops import zo_linear_dual

    x = _Inputs(device, seed)
    value, w, b = x.normal(2, 5, 129, dtype=dtype), x.normal(65, 129, dtype=dtype), x.normal(65, dtype=dtype)
    options: dict[str, Any] = {"seed": SEED, "stream": 3, "bias_stream": 4, "eps": 1e-3, "mode": mode}
    return lambda: [zo_linear_dual(value, w, b, **options)]


def _dual_embedding(device: torch.device, seed: int) -> Run:
    from tenfold.ops import zo_embedding_dual

    x = _Inputs(device, seed)
    ids, w = x.whole(37, 2, 3, 5), x.normal(37, 65)
    return lambda: [zo_embedding_dual(ids, w, seed=SEED, stream=3, eps=1e-3)]


# ---- Sophia ----------------------------------------------------------------------------------------------


def _sophia(states: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    params, grads = x.weights(), x.weights()
    settings: dict[str, Any] = {"lr": 1e-3, "beta1": 0.9, "denom_scale": 10.0, "weight_decay": 0.1}
    m, h = ([torch.full_like(p, v) for p in params] for v in (0.01, 1e-3))
    if states == "hessian":
        return _in_place([h], lambda h: ops.sophia_hessian_(h, grads, beta2=0.99, scale=3.0))
    if states == "f32":
        return _in_place([params, m, h], lambda p, m, h: ops.sophia_step_(p, grads, m, h, **settings))
    codes = [[ops.sophia8_quantize(t, kind) for t in ts] for kind, ts in (("exp_avg", m), ("hessian", h))]
    (mc, ms), (hc, hs) = (([c for c, _ in pairs], [s for _, s in pairs]) for pairs in codes)

    def step(p: Any, mc: Any, hc: Any, ms: Any, hs: Any) -> None:
        ops.sophia_step_(p, grads, mc, hc, exp_avg_scales=ms, hessian_scales=hs, **settings)

    return _in_place([params, mc, hc, ms, hs], step)


def _codes(device: torch.device, seed: int) -> Run:
    from tenfold.ops import sophia8_dequantize, sophia8_quantize

    values = _Inputs(device, seed).normal(4099, scale=1e-3)

    def run() -> list[Tensor]:
        found = []
        for kind, x, rounding in (("exp_avg", values, None), ("hessian", values.abs(), seed)):
            codes, scales = sophia8_quantize(x, kind, seed=rounding, step=3)
            found += [codes, scales, sophia8_dequantize(codes, scales, kind)]
        return found

    return run


def _hutchinson(device: torch.device, seed: int) -> Run:
    from tenfold.ops import hutchinson_accumulate_, hutchinson_probe

    x = _Inputs(device, seed)
    like, products = x.weights(), x.weights()
    probes = hutchinson_probe(like, seed=seed)
    sums = [torch.zeros_like(t) for t in like]
    accumulate = _in_place([sums], lambda s: hutchinson_accumulate_(s, probes, products, 0.5))
    return lambda: [*hutchinson_probe(like, seed=seed), *accumulate()]


# ---- log-probabilities -----------------------------------------------------------------------------------


def _logits(device: torch.device, seed: int) -> Run:
    from tenfold.ops import logits_logprob, segment_nll

    x = _Inputs(device, seed)
    logits, targets = x.normal(5, 4099), x.whole(4099, 5)
    segments = torch.tensor([0, 0, 1, 1, 1], device=device)

    def loss(z: Tensor) -> Tensor:
        return segment_nll(logits_logprob(z, targets).logp, segments, 2)[0]

    return _with_gradient([logits], loss)


def _gnb(device: torch.device, seed: int) -> Run:
    from tenfold.ops import gnb_sample

    logits = _Inputs(device, seed).normal(5, 4099)

    def run() -> list[Tensor]:
        found = gnb_sample(logits, seed=seed)
        return [found.tokens, found.logp]

    return run


def _linear(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
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
    return _with_gradient(operands, losses[name])


# ---- discrepancies ---------------------------------------------------------------------------------------


def _mmd(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    s, t = x.normal(37, 13), x.normal(29, 13, scale=1.3)
    ys, yt = x.whole(3, 37), x.whole(3, 29)
    soft = x.normal(29, 3).softmax(1)
    losses: dict[str, Callable[..., Tensor]] = {
        "mmd": ops.mmd,
        "median": partial(ops.mmd, bandwidth="median", estimator="unbiased"),
        "linear": ops.linear_mmd,
        "coral": ops.coral,
        "joint": lambda s, t: ops.joint_mmd([s, s.tanh()], [t, t.tanh()]),
        "cdd": lambda s, t: (lambda found: found.intra - found.inter)(ops.cdd(s, ys, t, yt, 3)),
        "lmmd": lambda s, t: ops.lmmd(s, ys, t, soft),
    }
    return _with_gradient([s, t], losses[name])


def _weighted(device: torch.device, seed: int) -> Run:
    from tenfold.ops import weighted_mmd

    x = _Inputs(device, seed)
    z, v = x.normal(37, 13), x.normal(37, 4)
    base = torch.tensor(3.0, dtype=torch.float64, device=device)
    return _with_gradient([z], lambda z: weighted_mmd(z, v, base))


# ---- volumes ---------------------------------------------------------------------------------------------


def _soft_overlap(device: torch.device, seed: int) -> Run:
    from tenfold.ops import dice_ce_loss

    x = _Inputs(device, seed)
    logits, labels = x.normal(2, 5, 3, 7, 33), x.whole(5, 2, 3, 7, 33, dtype=torch.uint8)
    return _with_gradient([logits], lambda z: dice_ce_loss(z, labels))


def _other_dice(device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    logits, labels = x.normal(2, 5, 3, 7, 33), x.whole(5, 2, 3, 7, 33)
    losses = ops.dice_loss, ops.tversky_loss, ops.generalized_dice_loss
    runs = [_with_gradient([logits], partial(lambda f, z: f(z, labels), f)) for f in losses]
    return lambda: [t for run in runs for t in run()]


def _labels(device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Two label volumes 7 x 11 x 67 in blocks, as segmentations are."""
    x = _Inputs(torch.device("cpu"), seed)
    pair = []
    for _ in range(2):
        volume = x.whole(5, 3, 4, 23, dtype=torch.uint8)
        for axis, n in enumerate((7, 11, 67)):
            volume = volume.repeat_interleave(3, axis).narrow(axis, 0, n)
        pair.append(volume.contiguous().to(device))
    return pair[0], pair[1]


def _overlap(device: torch.device, seed: int) -> Run:
    from tenfold.ops import overlap_counts

    a, b = _labels(device, seed)
    return lambda: list(overlap_counts(a, b, 5, boxes=True))


def _bits(device: torch.device, seed: int) -> Run:
    from tenfold import ops

    a, b = _labels(device, seed)
    lut = torch.tensor([0, 1, 2, 5, 6], device=device)
    masks = [torch.stack([v == c for c in range(5)]) for v in (a, b)]

    def run() -> list[Tensor]:
        owners = [ops.label_lut(v, lut) for v in (a, b)]
        packed = [ops.pack_bits(m) for m in masks]
        counts = [ops.multihot_counts(*packed), ops.owner_counts(owners[0], owners[1], 3)]
        return [*owners, *packed, *counts, ops.unpack_bits(packed[0], a.shape)]

    return run


def _edt(device: torch.device, seed: int) -> Run:
    from tenfold.ops import edt, signed_distance

    a, _ = _labels(device, seed)
    mask = a == 1
    return lambda: [
        edt(mask, (3.0, 0.5, 0.7)),
        edt(mask, (3.0, 0.5, 0.7), dtype=torch.float64, squared=True),
        signed_distance(mask, (3.0, 0.5, 0.7)),
    ]


def _surface(definition: str, device: torch.device, seed: int) -> Run:
    from tenfold.ops import surface_metrics

    a, b = _labels(device, seed)
    organs = [(1,), (2, 3), (7,)]
    return lambda: list(surface_metrics(a, b, organs, (3.0, 0.5, 0.7), definition=definition))[1:]


def _resample(device: torch.device, seed: int) -> Run:
    from tenfold.ops import resample_argmax

    logits = _Inputs(device, seed).normal(5, 3, 7, 33)
    return lambda: [resample_argmax(logits, (5, 9, 67))]


# ---- pictures --------------------------------------------------------------------------------------------


def _quality(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    side = 163 if name == "ms_ssim" else 47
    x = _Inputs(device, seed).normal(2, 3, side, side + 6).sigmoid()
    y = (x + _Inputs(device, seed + 1).normal(*x.shape, scale=0.1)).clamp(0, 1)
    return _with_gradient([x, y], partial(getattr(ops, name), reduction="none"))


# ---- communications --------------------------------------------------------------------------------------


def _channel(name: str, device: torch.device, seed: int) -> Run:
    from tenfold.ops import noma_channel

    sent = torch.view_as_complex(_Inputs(device, seed).normal(37, 2, 30, 2))
    options: dict[str, Any] = {"allocate": "joint", "power": (0.6, 0.4)} if name == "joint" else {}
    if name == "plain":
        return lambda: list(noma_channel(sent, 1.5, 0.1, seed, 3, return_gains=True))
    received: Any = partial(noma_channel, variance=1.5, noise_power=0.1, seed=seed, **options)
    return _with_gradient([torch.view_as_real(sent)], lambda t: received(t).abs().square())


# ---- power allocation ------------------------------------------------------------------------------------


def _complex(x: _Inputs, *shape: int) -> Tensor:
    return torch.complex(x.normal(*shape), x.normal(*shape))


def _power(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    g, s = _complex(x, 131, 3, 37), _complex(x, 131, 37)
    power, noise = x.normal(131, 3).abs() + 0.1, x.normal(131).abs()
    real = g[:, 0].abs()
    pair, budgets = g[:, :2].contiguous(), power[:, :2].contiguous()

    def allocated() -> list[Tensor]:
        found = [*ops.ssdt_joint(g, s, power, noise)[:4], *ops.ssdt_joint(pair, s, budgets, noise)[:4]]
        found += ops.ssdt_separable(g, power, noise)[:4]
        return [torch.view_as_real(t) if t.is_complex() else t for t in found]

    def filled(gains: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        found = ops.water_filling(gains, total)
        powers = (
            found.power,
            ops.mse_water_filling(gains, weights, total),
            ops.project_simplex(gains, total),
        )
        normal = ops.power_normalize(gains, total)
        return sum((p * weights).sum(-1) for p in (*powers, normal)) + found.level

    if name == "filling":
        return _with_gradient((real, s.abs() + 0.1, noise + 0.1), filled)
    if name == "normalize":
        return lambda: [torch.view_as_real(ops.power_normalize(s, noise, mode="sum"))]
    if name == "gradient":
        return _with_gradient((power, noise), lambda p, n: ops.ssdt_joint(g, s, p, n).objective)
    return allocated


# ---- editing weights -------------------------------------------------------------------------------------


def _erase(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    if name == "columns":
        q, k = x.normal(2, 3, 37, 20), x.normal(2, 3, 11, 20)
        chosen = x.whole(2, 2, 11).bool()
        return _with_gradient([q, k], lambda q, k: ops.attn_column_norm(q, k, chosen))
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
    return _in_place(
        [weights, zeros, zeros],
        lambda p, m, v: ops.masked_adam_(p, grads, m, v, masks, step=3, lr=0.01, weight_decay=0.1),
    )


# ---- attacks on diffusion models -------------------------------------------------------------------------


def _tokens(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    table, q = x.normal(1301, 24), x.normal(11, 24)
    p, u = ops.simplex_project(x.normal(3, 1301)), torch.linspace(0.1, 0.9, 3, dtype=torch.float64)
    if name == "simplex":
        return _with_gradient((x.normal(3, 1301), x.normal(3, 1301)), lambda a, b: ops.simplex_project(a) * b)
    if name == "nearest":
        return lambda: [*ops.nearest_token(q, table), *ops.nearest_token(q[:3], table, metric="l2")]
    if name == "samples":
        return lambda: [ops.sample_rows(p, u.to(device))]
    if name == "signs":
        steps = (x.normal(2, 1025), x.normal(2, 1025))

        def step(pair: Sequence[Tensor]) -> None:
            ops.sign_step_(pair[0], steps[0], lr=0.05, eps=0.1)
            ops.sign_step_(pair[1], steps[1], lr=0.05, eps=0.5, norm="l2")

        return _in_place([[x.normal(2, 1025), x.normal(2, 1025)]], step)
    zeros = [torch.zeros_like(p), torch.zeros_like(p)]
    return _in_place(
        [[p, *zeros]],
        lambda state: ops.ste_adam_simplex_(
            state[0], state[1], state[2], q[:3], table, lr=0.01, step=1, weight_decay=0.1
        ),
    )


def _guidance(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    a, b, c, d = (x.normal(3, 4, 9, 31) for _ in range(4))
    if name == "losses":
        return _with_gradient(
            (a, b, c), lambda a, b, c: ops.esd_mse(a, b, c, 0.7) + ops.eps_mse_rows(a, b, "l1").sum()
        )
    if name == "splice":
        index = x.whole(13, 3, 9)
        words = (x.normal(3, 9, 16), x.normal(3, 4, 16))
        return _with_gradient(words, lambda e, v: ops.splice_embed(e, v, index).square())
    t, abar = x.whole(50, 3), torch.linspace(0.999, 0.005, 50, dtype=torch.float64).to(device)

    safe = partial(ops.sld_guidance, scale=5.0, threshold=0.01, momentum_scale=0.3, momentum_beta=0.4)

    def stepped() -> list[Tensor]:
        found = [ops.add_noise_rows(a, b, t, abar), *safe(a, b, c, d, 7.5)]
        return [*found, ops.cfg_ddim_step(a, b, c, 7.5, abar[t], abar[t // 2], doubled=True)]

    return stepped


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
_DISCREPANCIES = {
    "mmd": "mmd",
    "median": "median_distance",
    "linear": "linear_mmd",
    "coral": "coral",
    "joint": "joint_mmd",
    "cdd": "cdd",
    "lmmd": "lmmd",
}
# ---- data selection --------------------------------------------------------------------------------------
# Whole numbers, whose sums no order of additions changes, so that the picks are the same everywhere.


def _tensors(*found: Any) -> list[Tensor]:
    """The tensors of results, which are tensors or tuples of them."""
    flat: list[Tensor] = []
    for result in found:
        if isinstance(result, Tensor):
            flat.append(result)
        elif isinstance(result, tuple):
            flat += _tensors(*result)
    return flat


def _whole_points(x: _Inputs, rows: int, width: int) -> Tensor:
    return x.whole(17, rows, width, dtype=torch.float32) - 8


def _distance(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    points, centers = _whole_points(x, 203, 19), _whole_points(x, 33, 19)
    if name == "nn":
        return lambda: _tensors(ops.nn_assign(points, centers, 3))
    if name == "kmeans":
        return lambda: _tensors(ops.kmeans(points, 33, iterations=3, init=centers))
    return lambda: _tensors(ops.kcenter_greedy(points, 21, init=0))


def _coverage(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    points = _whole_points(x, 203, 19)
    if name == "fl":
        return lambda: _tensors(ops.fl_greedy(points, 13))
    if name == "graphcut":
        return lambda: _tensors(ops.graphcut_greedy(points, 13, kind="inner"))
    if name == "logdet":
        smooth = x.normal(203, 5)
        return lambda: _tensors(ops.logdet_greedy(smooth, 13))
    return lambda: _tensors(ops.herding(points, 13))


def _scores(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    logits, labels = x.normal(131, 37), x.whole(37, 131)
    if name == "fused":
        norms = x.normal(131).square()
        return lambda: _tensors(ops.score_fused(logits, labels, feature_norms_squared=norms))
    if name == "dynamics":
        rows = torch.arange(131, device=device)

        def recorded() -> list[Tensor]:
            state = ops.new_dynamics(131, device=device)
            for epoch in range(3):
                ops.dynamics_update(state, rows, logits.roll(epoch, 1), labels)
            return _tensors(*(getattr(state, field) for field in state.__dataclass_fields__))

        return recorded
    if name == "classes":
        points, keep = _whole_points(x, 131, 19), torch.arange(0, 37, 3, device=device)
        return lambda: _tensors(
            ops.class_vote(logits, 37, target_labels=labels % 5, num_target_classes=5),
            ops.class_mask(labels, keep, 37),
            ops.class_median_distance(points, labels % 5, 5),
        )
    weights = x.normal(131).abs()
    return _with_gradient((logits, weights), lambda z, w: ops.weighted_cross_entropy(z, labels, w))


def _fgrad(name: str, device: torch.device, seed: int) -> Run:
    from tenfold import ops

    x = _Inputs(device, seed)
    errors, hidden = x.normal(131, 7), x.normal(131, 19)
    if name == "omp":
        return lambda: _tensors(ops.omp_factored(errors, hidden, 11)[:2])
    matrix, weights = x.normal(7, 20), x.normal(131)
    return lambda: _tensors(
        ops.fgrad_gram(errors, hidden),
        ops.fgrad_mv(errors, hidden, matrix),
        ops.fgrad_rmv(errors, hidden, weights),
    )


_CUDA = ("cuda",)

CALLS: tuple[Call, ...] = (
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
    Call("zo.moments", _moments, 1e-12, backends=_CUDA, covers=("zo_moments",)),
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
    *(
        Call(f"mmd.{name}", partial(_mmd, name), 2e-5, captures=name in ("mmd", "linear"), covers=(op,))
        for name, op in _DISCREPANCIES.items()
    ),
    Call("mmd.weighted", _weighted, 2e-5, covers=("weighted_mmd",)),
    Call("softdice.dice_ce", _soft_overlap, 2e-5, captures=True, covers=("dice_ce_loss", "soft_overlap")),
    Call("softdice.others", _other_dice, 2e-5, covers=("dice_loss", "tversky_loss", "generalized_dice_loss")),
    Call("overlap.counts", _overlap, captures=True, backends=_CUDA, covers=("overlap_counts",)),
    Call(
        "overlap.bits",
        _bits,
        captures=True,
        backends=_CUDA,
        covers=("label_lut", "pack_bits", "unpack_bits", "multihot_counts", "owner_counts"),
    ),
    Call("surface.edt", _edt, 1e-6, captures=True, backends=_CUDA, covers=("edt", "signed_distance")),
    *(
        Call(f"surface.{kind}", partial(_surface, kind), 1e-12, backends=_CUDA, covers=("surface_metrics",))
        for kind in ("area", "edge")
    ),
    *(
        Call(f"quality.{name}", partial(_quality, name), 2e-5, captures=True, covers=(name,))
        for name in ("psnr", "ssim", "ms_ssim")
    ),
    Call("erase.selection", partial(_erase, "selection"), 1e-12, covers=("abs_quantile", "topk_mask")),
    Call("erase.adam", partial(_erase, "adam"), covers=("masked_adam_", "saliency_accum_")),
    Call(
        "erase.columns", partial(_erase, "columns"), 2e-5, backends=("triton",), covers=("attn_column_norm",)
    ),
    *(
        Call(
            f"attack.{name}",
            partial(_tokens, name),
            near,
            captures=name != "simplex",
            backends=on,
            covers=(op,),
        )
        for name, op, near, on in (
            ("simplex", "simplex_project", 2e-5, ("cuda", "triton")),
            ("adam", "ste_adam_simplex_", 1e-4, ("cuda", "triton")),
            ("samples", "sample_rows", 0.0, ("cuda", "triton")),
            ("nearest", "nearest_token", 1e-5, ("cuda",)),
            ("signs", "sign_step_", 2e-6, ("cuda", "triton")),
        )
    ),
    *(
        Call(f"attack.{name}", partial(_guidance, name), 1e-5, covers=covers)
        for name, covers in (
            ("losses", ("esd_mse", "eps_mse_rows")),
            ("latents", ("add_noise_rows", "cfg_ddim_step", "sld_guidance")),
            ("splice", ("splice_embed",)),
        )
    ),
    Call("channel.plain", partial(_channel, "plain"), captures=True, covers=("noma_channel",)),
    *(
        Call(f"channel.{name}", partial(_channel, name), 2e-5, covers=("noma_channel",))
        for name in ("gradient", "joint")
    ),
    *(
        Call(f"power.{name}", partial(_power, name), near, captures=name != "gradient", covers=covers)
        for name, near, covers in (
            ("allocation", 2e-5, ("ssdt_joint", "ssdt_separable")),
            ("gradient", 1e-4, ()),
            ("filling", 1e-4, ("water_filling", "mse_water_filling", "project_simplex")),
            ("normalize", 2e-6, ("power_normalize",)),
        )
    ),
    Call("volume.resample", _resample, captures=True, backends=("triton",), covers=("resample_argmax",)),
    *(
        Call(f"distance.{name}", partial(_distance, name), 2e-6, covers=(op,))
        for name, op in (("nn", "nn_assign"), ("kmeans", "kmeans"), ("kcenter", "kcenter_greedy"))
    ),
    *(
        Call(f"coverage.{name}", partial(_coverage, name), 2e-5, covers=(op,))
        for name, op in (
            ("fl", "fl_greedy"),
            ("graphcut", "graphcut_greedy"),
            ("logdet", "logdet_greedy"),
            ("herding", "herding"),
        )
    ),
    *(
        Call(f"scores.{name}", partial(_scores, name), 2e-5, covers=(op,))
        for name, op in (
            ("fused", "score_fused"),
            ("dynamics", "dynamics_update"),
            ("weighted_ce", "weighted_cross_entropy"),
        )
    ),
    Call(
        "scores.classes",
        partial(_scores, "classes"),
        2e-5,
        backends=_CUDA,
        covers=("class_vote", "class_mask", "class_median_distance"),
    ),
    Call("scores.omp", partial(_fgrad, "omp"), 2e-5, covers=("omp_factored",)),
    Call(
        "scores.fgrad",
        partial(_fgrad, "products"),
        2e-5,
        backends=_CUDA,
        covers=("fgrad_gram", "fgrad_mv", "fgrad_rmv"),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Every call once, or those whose names begin with one of the arguments; prints each."""
    parser = argparse.ArgumentParser(prog="tenfold.benchmarks.calls", description="Call every op once.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="calls or families (default: all)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", choices=("auto", "cuda", "triton", "reference", "cpu"), default="auto")
    options = parser.parse_args(argv)
    chosen = [c for c in CALLS if not options.names or any(c.name.startswith(n) for n in options.names)]
    if not chosen:
        print(f"NAME: expected calls or families, got {options.names}", file=sys.stderr)
        return 2
    import tenfold

    device = torch.device(options.device)
    with tenfold.use_backend(options.backend):
        for call in chosen:
            if options.backend in ("cuda", "triton") and options.backend not in call.backends:
                continue
            call.make(device, 7)()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            print(call.name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Stateful passes, masks, gauss16: native kernels against the reference to the bit, and held numbers."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import tenfold
from tenfold import _native
from tenfold.ops import (
    BitMask,
    MagnitudeMask,
    RandomMask,
    ReplayPass,
    Term,
    magnitude_bits,
    zo_adam_,
    zo_chain_,
    zo_hizoo_perturb_,
    zo_hizoo_update_,
    zo_momentum_,
    zo_perturb_,
    zo_replay_,
    zo_restore_update_,
    zo_sample,
    zo_sign_,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
QUIET = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
TERMS = [Term(5, 1, 0.3), Term(2**64 - 9, 2, -0.2, "gauss16"), Term(7, 2**24 - 1, 0.1, "rademacher")]


@pytest.fixture(autouse=True)
def best_isa_afterwards():
    before = _native.cpu.isa_used()
    yield
    _native.cpu.use_isa(before)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    )


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(a, b, strict=True))


def weights(n: int, dtype: torch.dtype, strided: bool) -> Tensor:
    values = torch.linspace(-2, 2, 2 * n, dtype=torch.float64).to(dtype)
    return values[::2] if strided else values[:n]


def state(like: Tensor, half: bool) -> Tensor:
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    dtype = torch.bfloat16 if half and wide == torch.float32 else wide
    values = torch.linspace(0.01, 1, 2 * like.numel(), dtype=torch.float64).to(dtype)
    return values[::2] if not like.is_contiguous() else values[: like.numel()]


def hessian(like: Tensor) -> Tensor:
    return state(like, False)


masks = st.sampled_from(["none", "random", "ratios", "magnitude", "bits"])


def make_mask(kind: str, params: list[Tensor]):
    if kind == "none":
        return None
    if kind == "random":
        return RandomMask(2**64 - 3, 5, 0.4)
    if kind == "ratios":
        return RandomMask(3, 5, [(0.0, 1.0, 0.7, 1e-10)[i % 4] for i in range(len(params))])
    if kind == "magnitude":
        return MagnitudeMask([0.3 + 0.4 * i for i in range(len(params))])
    return BitMask(magnitude_bits(params, 0.7))


def passes(case: dict) -> dict:
    """Each pass as a function of (params, first states, second states, hessians)."""
    streams = list(range(2**32 - case["count"], 2**32))
    common = {
        "z_round": case["z_round"],
        "out_rounding": case["rounding"],
        "rounding_seed": case["seed"],
    }

    def run(p, m, v, h):
        kept = make_mask(case["mask"], p)
        options = {**common, "mask": kept}
        chain = case["terms"]
        return {
            "chain": lambda: zo_chain_(p, streams, chain, decay=case["decay"], **options),
            "chain of sources": lambda: zo_chain_(
                p, streams, chain, sources=[t.clone() for t in p], **options
            ),
            "perturb": lambda: zo_perturb_(p, streams, 1, 2, 0.5, chain[0].dist, **options),
            "restore": lambda: zo_restore_update_(
                p, streams, 1, 2, eps=0.1, lr=0.01, projected_grad=3.0, weight_decay=0.1, **options
            ),
            "momentum": lambda: zo_momentum_(
                p, m, streams, chain, lr=0.1, first=False, dampening=0.3, weight_decay=0.1, **options
            ),
            "momentum first": lambda: zo_momentum_(
                p, m, streams, chain, lr=0.1, first=True, nesterov=True, **options
            ),
            "adam": lambda: zo_adam_(p, m, v, streams, chain, lr=0.1, step=3, weight_decay=0.1, **options),
            "radazo": lambda: zo_adam_(p, m, v, streams, chain, lr=0.1, step=1, variant="radazo", **options),
            "sign": lambda: zo_sign_(p, streams, chain, lr=0.1, weight_decay=0.2, **options),
            "hizoo perturb": lambda: zo_hizoo_perturb_(p, h, streams, 3, 4, -0.2, chain[0].dist, **options),
            "hizoo update": lambda: zo_hizoo_update_(
                p, h, streams, chain, [0.5] * len(chain), lr=0.1, smoothing=0.2, **options
            ),
            "hizoo restoring": lambda: zo_hizoo_update_(
                p,
                h,
                streams,
                chain[:1],
                [0.5],
                lr=0.1,
                smoothing=0.2,
                restore=0.3,
                weight_decay=0.1,
                **options,
            ),
        }

    return run


PASSES = (
    "chain", "chain of sources", "perturb", "restore", "momentum", "momentum first", "adam", "radazo", "sign",
    "hizoo perturb", "hizoo update", "hizoo restoring",
)  # fmt: skip

cases = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(0, 5000), min_size=1, max_size=3),
        "dtypes": st.lists(st.sampled_from(DTYPES), min_size=3, max_size=3),
        "strided": st.booleans(),
        "half": st.booleans(),
        "mask": masks,
        "z_round": st.sampled_from([None, torch.bfloat16, torch.float16]),
        "rounding": st.sampled_from(["rne", "sr"]),
        "seed": st.integers(0, 2**64 - 1),
        "decay": st.sampled_from([1.0, 0.9]),
        "terms": st.sampled_from([TERMS[:1], TERMS[1:2], TERMS[2:], TERMS]),
        "isa": st.sampled_from(_native.cpu.isa_available()),
        "threads": st.integers(1, 3),
    }
)


def fresh(case: dict) -> tuple[list[Tensor], ...]:
    p = [weights(n, d, case["strided"]) for n, d in zip(case["sizes"], case["dtypes"], strict=False)]
    return (
        p,
        [state(t, case["half"]) for t in p],
        [state(t, case["half"]) for t in p],
        [hessian(t) for t in p],
    )


@pytest.mark.parametrize("name", PASSES)
def test_the_native_kernels_have_the_bits_of_the_reference(name, set_threads):
    @QUIET
    @given(cases)
    def check(case):
        case["count"] = len(case["sizes"])
        want, got = fresh(case), fresh(case)
        with tenfold.use_backend("reference"):
            passes(case)(*want)[name]()
        _native.cpu.use_isa(case["isa"])
        set_threads(case["threads"])
        passes(case)(*got)[name]()
        for kind, a, b in zip(("params", "first", "second", "hessians"), want, got, strict=True):
            assert same(a, b), kind

    check()


@pytest.mark.parametrize("isa", _native.cpu.isa_available())
def test_gauss16_has_the_bits_of_the_reference(isa):
    _native.cpu.use_isa(isa)
    for first, n in ((0, 1), (3, 4099), (2**35 - 5, 700), (8, 16384)):
        for dtype in DTYPES:
            got = zo_sample(9, 3, 4, first=first, n=n, dist="gauss16", dtype=dtype)
            with tenfold.use_backend("reference"):
                want = zo_sample(9, 3, 4, first=first, n=n, dist="gauss16", dtype=dtype)
            assert torch.equal(bits(got), bits(want))


def test_gauss16_is_normal():
    n = 1 << 20
    z = zo_sample(1, n=n, dist="gauss16", dtype=torch.float64)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.square().mean() - 1) < 4 * math.sqrt(2 / n) + 1e-4
    assert abs(z.pow(4).mean() - 3) < 4 * math.sqrt(96 / n) + 2e-2
    assert 4.0 < z.abs().max() <= 4.85
    half = n // 2
    assert abs((z[:half] * z[half:]).mean()) < 4 / math.sqrt(half)
    assert abs((z[0::2] * z[1::2]).mean()) < 4 / math.sqrt(half)
    # Kolmogorov-Smirnov at the 1e-4 level
    order = z.sort().values
    cdf = 0.5 * (1 + torch.erf(order / math.sqrt(2)))
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert (cdf - steps).abs().max() < 2.23 / math.sqrt(n)


# -- masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_that_a_random_mask_leaves_out(ratio):
    n = 1 << 18
    p = torch.zeros(n)
    zo_perturb_([p], [4], 1, 2, 1.0, mask=RandomMask(77, 3, ratio))
    masked = int((p == 0).sum())
    assert abs(masked - ratio * n) <= 4 * math.sqrt(n * ratio * (1 - ratio))
    moved = p != 0
    assert torch.equal(p[moved], zo_sample(1, 4, 2, n=n)[moved])


def test_masks_of_other_streams_queries_and_seeds_are_independent():
    n = 1 << 16

    def moved(seed, query, stream):
        p = torch.zeros(n)
        zo_perturb_([p], [stream], 1, 2, 1.0, mask=RandomMask(seed, query, 0.5))
        return p != 0

    first = moved(1, 2, 3)
    assert torch.equal(first, moved(1, 2, 3))
    for other in (moved(9, 2, 3), moved(1, 9, 3), moved(1, 2, 9)):
        both = int((first & other).sum())
        assert abs(both - n / 4) < 4 * math.sqrt(n * 3 / 16)


def test_masked_weights_keep_their_bits_and_only_decay():
    p = torch.tensor([-0.0, 0.0, 1e-40, math.inf, -math.inf, math.nan, 3.5] * 300)
    before = p.clone()
    zo_chain_([p], [0], TERMS, mask=RandomMask(1, 1, 1.0))
    assert torch.equal(bits(p), bits(before))
    zo_chain_([p], [0], TERMS, decay=0.5, mask=BitMask([torch.zeros(263, dtype=torch.uint8)]))
    nan = torch.isnan(before)
    assert torch.equal((before * 0.5)[~nan], p[~nan])


def test_a_magnitude_mask_looks_at_the_sources_and_leaves_out_nan():
    source = torch.tensor([0.1, -0.5, 0.5, 0.500001, -3.0, math.nan, 0.0, -0.0])
    p = torch.full((8,), 9.0)
    zo_perturb_([p], [0], 1, 2, 1.0, sources=[source], mask=MagnitudeMask(0.5))
    z = zo_sample(1, 0, 2, n=8)
    moved = [0, 1, 2, 6, 7]
    stay = [3, 4]
    assert torch.equal(p[moved], (source + z)[moved])
    assert torch.equal(p[stay], source[stay])
    assert math.isnan(p[5])
    frozen = torch.tensor([0.0, -0.0, 1e-45])
    zo_perturb_([frozen], [0], 1, 2, 1.0, mask=MagnitudeMask(-0.0))
    assert (frozen[:2] != 0).all()
    assert frozen[2] == torch.tensor(1e-45)


def test_a_bit_mask_holds_while_weights_move():
    p = torch.randn(1003)
    small = p.abs() <= 0.4
    packed = np.packbits(small.numpy(), bitorder="little")
    got = magnitude_bits([p], 0.4)[0]
    assert torch.equal(got, torch.from_numpy(packed))
    moving, fixed = p.clone(), p[~small].clone()
    for query in range(3):
        zo_perturb_([moving], [0], 1, query, 5.0, mask=BitMask([got]))
    assert torch.equal(moving[~small], fixed)
    assert (moving[small] != p[small]).all()


def test_masked_elements_have_no_gradient_in_stateful_passes():
    n = 4000
    p, m, v, h = torch.ones(n), torch.full((n,), 0.5), torch.ones(n), torch.full((n,), 2.0)
    mask = RandomMask(4, 4, 0.5)
    marks = torch.zeros(n)
    zo_perturb_([marks], [3], 1, 1, 1.0, mask=mask)
    out = marks == 0
    zo_momentum_([p], [m], [3], [Term(1, 1, 1.0)], lr=0.1, momentum=0.5, first=False, mask=mask)
    assert (m[out] == 0.25).all()
    assert (m[~out] != 0.25).all()
    assert torch.allclose(p[out], torch.tensor(1 - 0.1 * 0.25))
    p.fill_(1.0)
    zo_hizoo_update_(
        [p], [h], [3], [Term(1, 1, 1.0)], [1.0], lr=0.1, smoothing=0.1, weight_decay=1.0, mask=mask
    )
    assert (h[out] == 2.0).all()
    assert (h[~out] != 2.0).all()
    assert torch.allclose(p[out], torch.tensor(0.9))
    m.zero_()
    zo_adam_([p], [m], [v], [3], [Term(1, 1, 1.0)], lr=0.1, step=1, mask=mask)
    assert (m[out] == 0).all()
    assert (m[~out] != 0).all()


# -- held numbers against float64 ----------------------------------------------------------------------------


def z64(term: Term, stream: int, n: int) -> Tensor:
    return zo_sample(term.seed, stream, term.query, n=n, dist=term.dist, dtype=torch.float64)


def gradient64(n: int) -> Tensor:
    return sum(t.coef * z64(t, 3, n) for t in TERMS)  # type: ignore[return-value]


def test_momentum_follows_torch_sgd():
    n, lr = 2000, 0.05
    for nesterov, dampening in ((False, 0.0), (False, 0.4), (True, 0.0)):
        p, m = torch.ones(n, dtype=torch.float64), torch.full((n,), math.nan, dtype=torch.float64)
        want = torch.nn.Parameter(p.clone())
        sgd = torch.optim.SGD([want], lr=lr, momentum=0.9, dampening=dampening, nesterov=nesterov)
        for step in range(3):
            want.grad = gradient64(n)
            sgd.step()
            options = {"dampening": dampening, "nesterov": nesterov, "first": step == 0}
            zo_momentum_([p], [m], [3], TERMS, lr=lr, **options)
            torch.testing.assert_close(p, want.data, rtol=1e-12, atol=1e-12)


def test_sign_steps_by_the_learning_rate():
    p = torch.zeros(3000)
    zo_sign_([p], [3], TERMS, lr=0.25)
    assert torch.equal(p, -0.25 * gradient64(3000).sign().float())
    still = torch.full((50,), 2.0)
    zo_sign_([still], [3], [Term(1, 1, 0.0)], lr=0.25)
    assert (still == 2.0).all()
    zo_sign_([still], [3], [Term(1, 1, 0.0)], lr=0.25, weight_decay=1.0)
    assert (still == 1.5).all()


@pytest.mark.parametrize("variant", ["adam", "radazo"])
def test_adam_and_radazo_against_float64(variant):
    n, lr, b1, b2, eps = 1500, 0.01, 0.9, 0.99, 1e-8
    p, m, v = torch.ones(n), torch.zeros(n), torch.zeros(n)
    want, mean, square = torch.ones(n).double(), torch.zeros(n).double(), torch.zeros(n).double()
    for step in (1, 2, 3):
        terms = [t._replace(query=t.query - step) for t in TERMS[2:]] + [Term(4, step, 0.7)]
        g = sum(t.coef * z64(t, 3, n) for t in terms)
        mean = b1 * mean + (1 - b1) * g
        square = b2 * square + (1 - b2) * (mean if variant == "radazo" else g) ** 2
        corrected = (square / (1 - b2**step)).sqrt() + eps
        want = want - lr * mean / (1 - b1**step) / corrected
        zo_adam_([p], [m], [v], [3], terms, lr=lr, beta1=b1, beta2=b2, eps=eps, step=step, variant=variant)
        torch.testing.assert_close(m.double(), mean, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(v.double(), square, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(p.double(), want, rtol=1e-5, atol=1e-6)


def test_hizoo_against_float64():
    n, eps, a, lr = 1500, 0.01, 0.1, 0.05
    p, h = torch.linspace(-1, 1, n), torch.linspace(0.5, 4, n)
    start, h0, z = p.double(), h.double(), z64(TERMS[0], 3, n)
    zo_hizoo_perturb_([p], [h], [3], TERMS[0].seed, TERMS[0].query, -eps)
    torch.testing.assert_close(p.double(), start - eps * z / h0.sqrt(), rtol=1e-6, atol=1e-7)
    curvature = 2.5
    zo_hizoo_update_([p], [h], [3], TERMS[:1], [curvature], lr=lr, smoothing=a, restore=eps, weight_decay=0.1)
    h1 = (1 - a) * h0 + a * curvature * h0 * z**2
    torch.testing.assert_close(h.double(), h1, rtol=1e-6, atol=1e-7)
    want = (1 - lr * 0.1) * start - lr * TERMS[0].coef * z / h1.sqrt()
    torch.testing.assert_close(p.double(), want, rtol=1e-5, atol=1e-6)


def test_bfloat16_states_are_unbiased():
    n = 1 << 16
    p, m = torch.zeros(n), torch.full((n,), 1.0, dtype=torch.bfloat16)
    zo_momentum_([p], [m], [3], [Term(1, 1, 0.0)], lr=1.0, momentum=0.999, first=False)
    assert set(m.float().unique().tolist()) == {0.99609375, 1.0}
    share = (m == 1.0).double().mean().item()
    chance = (0.999 - 0.99609375) / (1 - 0.99609375)
    assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / n) + 1e-4
    assert torch.equal(p, torch.full((n,), -float(np.float32(0.999))))  # weights see m before its rounding


def test_rounding_bits_of_weights_and_states_differ():
    n = 4096
    p, m, v = (torch.full((n,), 1.0, dtype=torch.bfloat16) for _ in range(3))
    options = {
        "lr": 0.0,
        "weight_decay": 0.0,
        "step": 1,
        "out_rounding": "sr",
        "beta1": 0.998,
        "beta2": 0.998,
    }
    zo_adam_([p], [m], [v], [3], [Term(1, 1, 0.0)], **options)
    assert 0 < int((m == v).sum()) < n


# -- replay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["rne", "sr"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_replay_has_the_bits_of_its_passes(dtype, rounding, set_threads):
    params = [weights(5001, dtype, False), weights(300, dtype, True), weights(0, dtype, False)]
    params.append(weights(40000, dtype, False))
    streams = [3, 4, 5, 6]
    dists = "gaussian", "rademacher", "gauss16"
    options = (
        (),
        (0.99,),
        (1.0, 123),
        (0.9, None, RandomMask(5, 6, 0.3)),
        (1.0, 7, RandomMask(5, 6, [0, 1, 0.5, 0.9])),
    )
    steps = [
        ReplayPass([Term(i, j, 0.01 * (-1) ** j, dist) for j, dist in enumerate(dists)], *option)
        for i, option in enumerate(options)
    ]
    want = [p.clone() for p in params]
    for one in steps:
        zo_chain_(
            want, streams, one.terms, decay=one.decay, rounding_seed=one.rounding_seed, mask=one.mask,
            out_rounding=rounding, z_round=torch.bfloat16,
        )  # fmt: skip
    for backend, threads in (("cpu", 1), ("cpu", 3), ("reference", 1)):
        got = [p.clone() for p in params]
        set_threads(threads)
        with tenfold.use_backend(backend):
            zo_replay_(got, streams, steps, out_rounding=rounding, z_round=torch.bfloat16)
        assert same(want, got)


def test_an_empty_replay_and_empty_lists_do_nothing():
    p = torch.ones(5)
    zo_replay_([p], [0], [])
    zo_replay_([], [], [ReplayPass(TERMS)])
    assert (p == 1).all()
    zo_momentum_([], [], [], TERMS, lr=0.1, first=True)
    zo_sign_([], [], TERMS, lr=0.1)
    zo_hizoo_update_([], [], [], TERMS[:1], [1.0], lr=0.1, smoothing=0.1)
    zo_hizoo_perturb_([], [], [], 1, 2, 0.1)


# -- bad input -----------------------------------------------------------------------------------------------

ONE = [Term(1, 1, 0.5)]
BAD = {
    "ratio above 1": (
        lambda p, s: zo_chain_([p], [0], ONE, mask=RandomMask(1, 1, 1.5)),
        ValueError,
        "mask.ratio",
    ),
    "ratio below 0": (
        lambda p, s: zo_chain_([p], [0], ONE, mask=RandomMask(1, 1, -0.1)),
        ValueError,
        "mask.ratio",
    ),
    "ratio nan": (
        lambda p, s: zo_chain_([p], [0], ONE, mask=RandomMask(1, 1, math.nan)),
        ValueError,
        "mask.ratio",
    ),
    "ratios": (
        lambda p, s: zo_chain_([p], [0], ONE, mask=RandomMask(1, 1, [0.1, 0.2])),
        ValueError,
        "mask.ratio",
    ),
    "mask query": (
        lambda p, s: zo_chain_([p], [0], ONE, mask=RandomMask(1, 2**24, 0.1)),
        ValueError,
        "mask.query",
    ),
    "threshold": (
        lambda p, s: zo_sign_([p], [0], ONE, lr=1, mask=MagnitudeMask(-1)),
        ValueError,
        "mask.threshold",
    ),
    "mask type": (lambda p, s: zo_sign_([p], [0], ONE, lr=1, mask=0.5), TypeError, "mask"),
    "few bits": (
        lambda p, s: zo_chain_([p], [0], ONE, mask=BitMask([torch.zeros(1, dtype=torch.uint8)])),
        ValueError,
        "mask.bits[0]",
    ),
    "bits dtype": (
        lambda p, s: zo_chain_([p], [0], ONE, mask=BitMask([torch.zeros(5)])),
        TypeError,
        "mask.bits[0]",
    ),
    "lr": (lambda p, s: zo_momentum_([p], [s], [0], ONE, lr=-1, first=True), ValueError, "lr"),
    "momentum": (
        lambda p, s: zo_momentum_([p], [s], [0], ONE, lr=1, momentum=2, first=True),
        ValueError,
        "momentum",
    ),
    "first": (lambda p, s: zo_momentum_([p], [s], [0], ONE, lr=1, first=1), TypeError, "first"),
    "nesterov": (
        lambda p, s: zo_momentum_([p], [s], [0], ONE, lr=1, first=True, nesterov=True, dampening=0.1),
        ValueError,
        "nesterov",
    ),
    "state dtype": (
        lambda p, s: zo_momentum_([p], [s.half()], [0], ONE, lr=1, first=True),
        TypeError,
        "momentum_buffers",
    ),
    "state shape": (
        lambda p, s: zo_momentum_([p], [s[1:]], [0], ONE, lr=1, first=True),
        ValueError,
        "momentum_buffers",
    ),
    "shared state": (
        lambda p, s: zo_momentum_([p], [p], [0], ONE, lr=1, first=True),
        ValueError,
        "momentum_buffers",
    ),
    "variant": (
        lambda p, s: zo_adam_([p], [s], [s + 0], [0], ONE, lr=1, step=1, variant="x"),
        ValueError,
        "variant",
    ),
    "states differ": (
        lambda p, s: zo_adam_([p], [s], [s.bfloat16()], [0], ONE, lr=1, step=1),
        TypeError,
        "exp_avg_sqs",
    ),
    "lr of sign": (lambda p, s: zo_sign_([p], [0], ONE, lr=math.nan), ValueError, "lr"),
    "hessian dtype": (
        lambda p, s: zo_hizoo_perturb_([p], [s.bfloat16()], [0], 1, 1, 0.1),
        TypeError,
        "hessians",
    ),
    "curvature": (
        lambda p, s: zo_hizoo_update_([p], [s], [0], ONE, [-1.0], lr=1, smoothing=0.1),
        ValueError,
        "curvatures[0]",
    ),
    "curvatures": (
        lambda p, s: zo_hizoo_update_([p], [s], [0], ONE, [], lr=1, smoothing=0.1),
        ValueError,
        "curvatures",
    ),
    "smoothing": (
        lambda p, s: zo_hizoo_update_([p], [s], [0], ONE, [1.0], lr=1, smoothing=1.0),
        ValueError,
        "smoothing",
    ),
    "restore": (
        lambda p, s: zo_hizoo_update_([p], [s], [0], ONE * 2, [1.0] * 2, lr=1, smoothing=0.1, restore=0.1),
        ValueError,
        "terms",
    ),
    "pass": (lambda p, s: zo_replay_([p], [0], [(ONE,)]), TypeError, "passes[0]"),
    "pass without terms": (
        lambda p, s: zo_replay_([p], [0], [ReplayPass([])]),
        ValueError,
        "passes[0].terms",
    ),
    "later pass": (
        lambda p, s: zo_replay_([p], [0], [ReplayPass(ONE), ReplayPass(ONE, math.inf)]),
        ValueError,
        "passes[1].decay",
    ),
    "pass mask": (
        lambda p, s: zo_replay_([p], [0], [ReplayPass(ONE, 1.0, None, MagnitudeMask(1))]),
        TypeError,
        "passes[0].mask",
    ),
}


def digest(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


@pytest.mark.parametrize("what", list(BAD))
def test_bad_input_leaves_weights_and_states_alone(what):
    call, kind, argument = BAD[what]
    p, s = torch.linspace(-1, 1, 37), torch.linspace(1, 2, 37)
    before = digest(p, s)
    with pytest.raises(kind) as caught:
        call(p, s)
    assert str(caught.value).startswith(argument)
    assert digest(p, s) == before


def test_overlaps_are_found_behind_empty_tensors_and_neighbours_are_fine():
    buffer = torch.zeros(100)
    parts = [buffer[:50], buffer[50:50], buffer[50:]]
    zo_sign_(parts, [0, 1, 2], ONE, lr=0.1)
    assert (buffer != 0).all()
    before = buffer.clone()
    for shared in ([buffer, buffer[50:50], buffer[60:80]], [buffer[60:80], buffer[10:61]]):
        with pytest.raises(ValueError, match=r"params\[\d\]: expected every tensor once"):
            zo_sign_(shared, list(range(len(shared))), ONE, lr=0.1)
    assert torch.equal(buffer, before)

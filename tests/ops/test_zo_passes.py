"""The passes equal the reference bit for bit: dtypes, directions, roundings, layouts, sizes, threads."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from tenfold.kernels.zo import zo_reference as ref
from torch import Tensor

from tenfold.ops import Term, zo_adam_, zo_chain_, zo_perturb_, zo_restore_update_, zo_sample

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LENGTH = 6000  # elements of the reference; smaller tensors hold its first elements
STREAM, SEED, QUERY = 3, 0xFEDCBA9876543210, 77


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@functools.cache
def weights(dtype: torch.dtype) -> Tensor:
    """LENGTH weights: ordinary ones, norm weights at one, and special values but for NaN and infinities."""
    generator = torch.Generator().manual_seed(1)
    values = 0.02 * torch.randn(LENGTH, generator=generator, dtype=torch.float64)
    values[::7] = 1.0
    out = values.to(dtype)
    info = torch.finfo(dtype)
    special = [
        0.0,
        -0.0,
        info.max,
        -info.max,
        info.tiny,
        -info.tiny,
        info.tiny / 2,
        -info.tiny / 4,
        info.smallest_normal,
    ]
    patterns = (
        torch.randint(0, 2**15, (LENGTH,), generator=generator).to(torch.int16).view(torch.float16).to(dtype)
    )
    patterns = torch.where(torch.isfinite(patterns), patterns, torch.ones((), dtype=dtype))
    out[5::11] = patterns[5::11]
    out[40 : 40 + len(special)] = torch.tensor(special, dtype=torch.float64).to(dtype)
    return out


def layouts(values: Tensor) -> dict[str, Tensor]:
    """A tensor for every size and layout treated apart, with the first of `values` in row-major order."""

    def strided(shape: tuple[int, ...], make) -> Tensor:
        out = make(values.dtype)
        assert out.shape == shape
        n = out.numel()
        return out.copy_(values[:n].view(shape))

    tensors = {str(n): values[:n].clone() for n in (0, 1, 3, 63, 64, 65, 255, 2047, 2048, 2049, 4097)}
    empty = torch.empty
    tensors |= {
        "scalar": values[0].clone(),
        "empty matrix": values[:0].view(0, 5).clone(),
        "unaligned": strided((2051,), lambda d: empty(2060, dtype=d)[3:2054]),
        "transposed": strided((60, 71), lambda d: empty(71, 60, dtype=d).t()),
        "every other row": strided((33, 20), lambda d: empty(66, 20, dtype=d)[::2]),
        "columns": strided((50, 41), lambda d: empty(50, 60, dtype=d)[:, 7:48]),
        "stride three": strided((2500,), lambda d: empty(7500, dtype=d)[1::3]),
        "channels last": strided(
            (2, 3, 9, 11), lambda d: empty(2, 3, 9, 11, dtype=d).to(memory_format=torch.channels_last)
        ),
        "five axes": strided(
            (3, 4, 5, 6, 7), lambda d: empty(7, 5, 3, 6, 8, dtype=d)[..., 1:5].permute(2, 4, 1, 3, 0)
        ),
        "axes of one": strided((1, 61, 1, 40), lambda d: empty(40, 1, 61, 1, dtype=d).permute(1, 2, 3, 0)),
    }
    return tensors


def ordered(terms: list[Term]) -> tuple[list[int], list[int], list[float], list[str]]:
    return [t.seed for t in terms], [t.query for t in terms], [t.coef for t in terms], [t.dist for t in terms]


@functools.cache
def expected(
    dtype: torch.dtype,
    terms: tuple[Term, ...],
    decay: float,
    z_round: torch.dtype | None,
    out_rounding: str,
    rounding_seed: int | None,
) -> Tensor:
    out = weights(dtype).clone()
    seed = terms[0].seed if rounding_seed is None else rounding_seed
    ref.chain_(
        [out],
        None,
        [STREAM],
        *ordered(list(terms)),
        decay,
        z_round,
        out_rounding == "sr",
        seed,
        terms[0].query,
    )
    return out


def check(tensors: dict[tuple[torch.dtype, str], Tensor], **options) -> None:
    for (dtype, name), got in tensors.items():
        want = expected(dtype, **options)[: got.numel()].view(got.shape)
        assert torch.equal(bits(got), bits(want)), (dtype, name)


def everything() -> dict[tuple[torch.dtype, str], Tensor]:
    return {(dtype, name): t for dtype in DTYPES for name, t in layouts(weights(dtype)).items()}


# -- one direction ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z_round", [None, torch.bfloat16, torch.float16], ids=["z32", "zbf16", "zf16"])
@pytest.mark.parametrize("out_rounding", ["rne", "sr"])
@pytest.mark.parametrize("dist", ["gaussian", "rademacher"])
def test_perturb_equals_the_reference(isa, set_threads, dist, out_rounding, z_round):
    for c, threads, rounding_seed in (
        (1e-3, 1, None),
        (-37.5, 2, 12345),
        (3e38, 7, None),
        (2.0**-30, 2, 2**64 - 1),
    ):
        set_threads(threads)
        tensors = everything()
        options = {"z_round": z_round, "out_rounding": out_rounding, "rounding_seed": rounding_seed}
        zo_perturb_(list(tensors.values()), [STREAM] * len(tensors), SEED, QUERY, c, dist, **options)
        check(tensors, terms=(Term(SEED, QUERY, c, dist),), decay=1.0, **options)


@pytest.mark.parametrize("out_rounding", ["rne", "sr"])
@pytest.mark.parametrize("dist", ["gaussian", "rademacher"])
def test_restore_update_equals_the_reference(isa, dist, out_rounding):
    eps, lr, g = 1e-3, 2e-2, 0.7
    for weight_decay in (0.0, 0.1):
        tensors = everything()
        zo_restore_update_(
            list(tensors.values()), [STREAM] * len(tensors), SEED, QUERY, eps=eps, lr=lr, projected_grad=g,
            dist=dist, weight_decay=weight_decay, out_rounding=out_rounding,
        )  # fmt: skip
        decay = 1.0 - lr * weight_decay
        term = Term(SEED, QUERY, decay * eps - lr * g, dist)
        check(
            tensors, terms=(term,), decay=decay, z_round=None, out_rounding=out_rounding, rounding_seed=None
        )


def test_restore_update_takes_the_step_it_says():
    w = torch.linspace(-1, 1, 999, dtype=torch.float64)
    z = zo_sample(1, 0, 5, n=999, dtype=torch.float64)
    moved = w.clone()
    zo_perturb_([moved], [0], 1, 5, -1e-2)
    zo_restore_update_([moved], [0], 1, 5, eps=1e-2, lr=0.1, projected_grad=3.0, weight_decay=0.2)
    assert torch.allclose(moved, (1 - 0.1 * 0.2) * w - 0.1 * 3.0 * z, rtol=0, atol=1e-14)


# -- chains -------------------------------------------------------------------------------------------------

MIXED = (
    Term(1, 0, 0.25),
    Term(2**63 + 9, 5, -1e-3, "rademacher"),
    Term(1, 1, 3e-2),
    Term(7, 2**24 - 1, 1.5, "rademacher"),
)


@pytest.mark.parametrize("z_round", [None, torch.bfloat16], ids=["z32", "zbf16"])
@pytest.mark.parametrize("out_rounding", ["rne", "sr"])
@pytest.mark.parametrize("decay", [1.0, 0.99, -0.5, 0.0])
def test_chain_equals_the_reference(isa, decay, out_rounding, z_round):
    tensors = everything()
    options = {"decay": decay, "z_round": z_round, "out_rounding": out_rounding, "rounding_seed": 4}
    zo_chain_(list(tensors.values()), [STREAM] * len(tensors), MIXED, **options)
    check(tensors, terms=MIXED, **options)


@pytest.mark.parametrize("dist", ["gaussian", "rademacher"])
def test_chain_of_one_is_perturb(isa, dist):
    for out_rounding, z_round in itertools.product(("rne", "sr"), (None, torch.float16)):
        a, b = everything(), everything()
        options = {"out_rounding": out_rounding, "z_round": z_round}
        zo_perturb_(list(a.values()), [STREAM] * len(a), SEED, QUERY, 0.0371, dist, **options)
        zo_chain_(list(b.values()), [STREAM] * len(b), [Term(SEED, QUERY, 0.0371, dist)], **options)
        for key, got in a.items():
            assert torch.equal(bits(got), bits(b[key])), key


def test_chain_of_64_terms(isa):
    terms = tuple(
        Term(1000 + k, k, (-1) ** k * 1e-2 / (k + 1), ("gaussian", "rademacher")[k % 3 == 0])
        for k in range(64)
    )
    tensors = {(d, n): t for (d, n), t in everything().items() if n in ("2049", "transposed", "65", "scalar")}
    zo_chain_(list(tensors.values()), [STREAM] * len(tensors), terms, decay=0.9)
    check(tensors, terms=terms, decay=0.9, z_round=None, out_rounding="rne", rounding_seed=None)


def test_chain_is_within_one_rounding_of_the_exact_sum():
    # In bfloat16 the one rounding at the end is half an ulp, at most 2^-8; the float32 sum adds a few 2^-24.
    terms = [Term(5, k, c) for k, c in enumerate((0.3, -0.2, 0.1, 0.05))]
    w = weights(torch.bfloat16)[:3000].clone().clamp(-2, 2)
    exact = 0.97 * w.double() + sum(
        t.coef * zo_sample(5, STREAM, t.query, n=3000, dtype=torch.float64) for t in terms
    )
    zo_chain_([w], [STREAM], terms, decay=0.97)
    error = (w.double() - exact).abs()
    assert (error <= exact.abs() * (2.0**-8 + 2.0**-16) + 1e-6).all()
    assert (error > exact.abs() * 2.0**-9).any()


def test_order_of_terms_is_the_order_of_additions():
    w = torch.ones(4000)
    forward = [Term(1, k, 10.0 ** (k - 4)) for k in range(8)]
    a, b = w.clone(), w.clone()
    zo_chain_([a], [0], forward)
    zo_chain_([b], [0], forward[::-1])
    assert not torch.equal(a, b)
    assert torch.allclose(a, b, atol=2e-2)


# -- lists --------------------------------------------------------------------------------------------------


def test_one_call_equals_many(isa, set_threads):
    set_threads(2)
    many, one = list(everything().values()), list(everything().values())
    streams = [17 * i for i in range(len(many))]
    zo_chain_(many, streams, MIXED[:2], decay=0.5, out_rounding="sr")
    for tensor, stream in zip(one, streams, strict=True):
        zo_chain_([tensor], [stream], MIXED[:2], decay=0.5, out_rounding="sr")
    for a, b in zip(many, one, strict=True):
        assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_thread_count_changes_nothing(isa, set_threads, threads):
    def run() -> list[Tensor]:
        params = [weights(d)[:n].clone() for d in DTYPES for n in (1, 4097, 5999, 64)]
        zo_chain_(params, list(range(len(params))), MIXED, decay=0.9, out_rounding="sr")
        zo_perturb_(params, list(range(len(params))), 1, 2, 0.1)
        return params

    set_threads(1)
    first = run()
    set_threads(threads)
    for a, b in zip(first, run(), strict=True):
        assert torch.equal(bits(a), bits(b))


def test_streams_seeds_and_queries_tell_directions_apart():
    def moved(stream: int = 0, seed: int = 0, query: int = 0, dist: str = "gaussian") -> Tensor:
        w = torch.zeros(256)
        zo_perturb_([w], [stream], seed, query, 1.0, dist)
        return w

    directions = [
        moved(), moved(stream=1), moved(stream=2**31), moved(seed=1), moved(seed=2**32), moved(seed=2**63),
        moved(query=1), moved(query=2**16), moved(dist="rademacher"),
    ]  # fmt: skip
    for a, b in itertools.combinations(directions, 2):
        assert torch.corrcoef(torch.stack((a, b)))[0, 1].abs() < 0.3  # 4.8 standard deviations


def test_empty_lists_and_tensors_are_left_alone():
    zo_perturb_([], [], 1, 0, 0.1)
    zo_chain_([], [], [Term(1, 0, 0.1)])
    zo_adam_([], [], [], [], [Term(1, 0, 0.1)], lr=0.1, step=1)
    empty = [torch.empty(0), torch.empty(3, 0, 2, dtype=torch.bfloat16), torch.empty(2, 0).t()]
    zo_perturb_(empty, [0, 1, 2], 1, 0, 0.1)
    zo_adam_(empty, [torch.empty(t.shape) for t in empty], [torch.empty(t.shape) for t in empty], [0, 1, 2],
             [Term(1, 0, 0.1)], lr=0.1, step=1)  # fmt: skip
    assert [t.numel() for t in empty] == [0, 0, 0]
    assert zo_sample(1, n=0).shape == (0,)


def test_nothing_is_written_beside_a_tensor(isa):
    for dtype, n in itertools.product(DTYPES, (1, 3, 63, 65, 2047, 2049)):
        for out_rounding in ("rne", "sr"):
            buffer = torch.full((n + 200,), 3.0, dtype=dtype)
            m, v = torch.full(
                (2, n + 200), 5.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32
            )
            inside = slice(100, 100 + n)
            zo_chain_([buffer[inside]], [1], MIXED[:2], out_rounding=out_rounding)
            zo_perturb_([buffer[inside]], [1], 1, 1, 0.1)
            zo_adam_(
                [buffer[inside]],
                [m[inside]],
                [v[inside]],
                [1],
                MIXED[:2],
                lr=0.1,
                step=1,
                out_rounding=out_rounding,
            )
            for t, value in ((buffer, 3.0), (m, 5.0), (v, 5.0)):
                assert (t[:100] == value).all()
                assert (t[100 + n :] == value).all()
                assert n < 63 or (t[inside] != value).any()


# -- sources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_rounding", ["rne", "sr"])
def test_sources_are_read_and_params_written(isa, out_rounding):
    clean = {key: t for key, t in everything().items() if key[1] not in ("0", "empty matrix")}
    before = [t.clone() for t in clean.values()]
    live = [torch.full_like(t, 9.0, memory_format=torch.preserve_format) for t in clean.values()]
    streams = [STREAM] * len(live)
    options = {"decay": 0.9, "out_rounding": out_rounding}
    zo_chain_(live, streams, MIXED, sources=list(clean.values()), **options)
    check(dict(zip(clean, live, strict=True)), terms=MIXED, z_round=None, rounding_seed=None, **options)
    for kept, source in zip(before, clean.values(), strict=True):
        assert torch.equal(bits(kept), bits(source))


def test_sources_and_params_of_different_layouts(isa):
    for dtype in DTYPES:
        values = weights(dtype)[:4260].view(60, 71)
        apart = torch.empty(71, 60, dtype=dtype).t().copy_(values)
        for terms in (MIXED, (Term(1, 0, 0.1),)):
            want = values.clone()
            zo_chain_([want], [STREAM], terms)
            from_strided, to_strided = (
                torch.zeros(60, 71, dtype=dtype),
                torch.zeros(60, 142, dtype=dtype)[:, ::2],
            )
            zo_chain_([from_strided, to_strided], [STREAM] * 2, terms, sources=[apart, values])
            assert torch.equal(bits(from_strided), bits(want))
            assert torch.equal(bits(to_strided), bits(want))
            assert torch.equal(bits(apart), bits(values))


def test_params_may_be_their_own_sources(isa):
    for dtype in DTYPES:
        a, b = weights(dtype).clone(), weights(dtype).clone()
        zo_perturb_([a], [STREAM], 1, 0, 0.1, sources=[a])
        zo_perturb_([b], [STREAM], 1, 0, 0.1)
        assert torch.equal(bits(a), bits(b))


def test_one_source_may_feed_two_params():
    clean = torch.linspace(-1, 1, 3000)
    plus, minus = torch.empty(3000), torch.empty(3000)
    zo_perturb_([plus, minus], [4, 4], 1, 0, 0.1, sources=[clean, clean])
    one = clean.clone()
    zo_perturb_([one], [4], 1, 0, 0.1)
    assert torch.equal(plus, one)
    assert torch.equal(minus, one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_restoring_from_a_clean_copy_changes_no_bit(dtype):
    clean = weights(dtype).clone()
    live = clean.clone()
    for step in range(200):
        for c in (1e-3, -1e-3):
            zo_perturb_([live], [STREAM], step, 0, c, sources=[clean])
        assert not torch.equal(live, clean)
    assert torch.equal(bits(clean), bits(weights(dtype)))
    with torch.no_grad():
        live.copy_(clean)
    assert torch.equal(bits(live), bits(weights(dtype)))


def test_arithmetic_restore_drifts_and_is_bounded():
    # The contrast to the test above: adding and subtracting rounds, so some bits do not come back.
    w = weights(torch.bfloat16).clone()
    for step in range(20):
        for c in (1e-3, -2e-3, 1e-3):
            zo_perturb_([w], [STREAM], step, 0, c)
    ordinary = weights(torch.bfloat16).float().abs() < 1.5
    drift = (w.float() - weights(torch.bfloat16).float())[ordinary].abs()
    assert 0 < drift.max() < 0.1


@pytest.mark.parametrize("transpose_which", ["source", "param"])
def test_sources_that_view_the_params_otherwise_are_refused(transpose_which):
    """Reading one view of the memory while another is written has no defined result."""
    p = torch.arange(9.0).view(3, 3)
    kept = p.clone()
    param, source = (p, p.t()) if transpose_which == "source" else (p.t(), p)
    with pytest.raises(ValueError, match=r"sources\[0\]"):
        zo_perturb_([param], [0], 1, 0, 0.1, sources=[source])
    assert torch.equal(p, kept)


def test_sources_that_overlap_params_are_refused():
    memory = torch.arange(10_000.0)
    kept = memory.clone()
    with pytest.raises(ValueError, match=r"sources\[0\]"):
        zo_perturb_([memory[1:]], [0], 1, 0, 0.1, sources=[memory[:-1]])
    a, b = torch.zeros(100), torch.ones(100)
    with pytest.raises(ValueError, match=r"sources\[0\]"):
        zo_perturb_([a, b], [0, 1], 1, 0, 0.1, sources=[b, torch.ones(100)])
    assert torch.equal(memory, kept)
    assert torch.equal(b, torch.ones(100))


# -- special values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_rounding", ["rne", "sr"])
def test_nan_and_infinity_touch_only_their_element(isa, dtype, out_rounding):
    places = torch.tensor([0, 1, 17, 63, 64, 65, 1000, 2047, 2048, 2999])
    bad = torch.tensor([float("nan"), float("inf"), -float("inf")] * 4)[: len(places)].to(dtype)
    for terms, strided in itertools.product((MIXED, MIXED[:1], MIXED[1:2]), (False, True)):
        good, spoilt = torch.full((2, 3000), 0.5, dtype=dtype)
        if strided:
            spoilt = torch.full((3000, 2), 0.5, dtype=dtype)[:, 0]
        spoilt[places] = bad
        zo_chain_([good], [STREAM], terms, out_rounding=out_rounding)
        zo_chain_([spoilt], [STREAM], terms, out_rounding=out_rounding)
        assert torch.equal(torch.isnan(spoilt[places]), torch.isnan(bad))
        assert torch.equal(spoilt[places][~torch.isnan(bad)], bad[~torch.isnan(bad)])
        good[places], spoilt[places] = 0, 0
        assert torch.equal(bits(good), bits(spoilt))


def test_nan_in_an_adam_state_touches_only_its_element(isa):
    w, m, v = torch.ones(3, 3000).unbind()
    w2, m2, v2 = torch.ones(3, 3000).unbind()
    m[100], v[200], w[300] = float("nan"), float("inf"), float("nan")
    for p, a, b in ((w, m, v), (w2, m2, v2)):
        zo_adam_([p], [a], [b], [0], MIXED, lr=0.1, step=3)
    others = torch.ones(3000, dtype=torch.bool)
    others[[100, 200, 300]] = False
    for a, b in ((w, w2), (m, m2), (v, v2)):
        assert torch.equal(a[others], b[others])
    assert torch.isnan(w[[100, 300]]).all()
    assert torch.isfinite(w[200])


# -- Adam ---------------------------------------------------------------------------------------------------


def adam_state(dtype: torch.dtype, like: Tensor, value: float) -> Tensor:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.linspace(0, value, like.numel(), dtype=wide).view(like.shape)


@functools.cache
def adam_expected(
    dtype: torch.dtype, terms: tuple[Term, ...], out_rounding: str, z_round, steps: int, decay_rate: float
):
    w = weights(dtype).clone()
    m, v = adam_state(dtype, w, 0.0), adam_state(dtype, w, 0.0)
    for step in range(1, steps + 1):
        ref.adam_(
            [w], [m], [v], [STREAM], *ordered(list(terms)), 0.01, 0.9, 0.99, 1e-6, step,
            1 - 0.01 * decay_rate, z_round, out_rounding == "sr", terms[0].seed, terms[0].query,
        )  # fmt: skip
    return w, m, v


@pytest.mark.parametrize("z_round", [None, torch.bfloat16], ids=["z32", "zbf16"])
@pytest.mark.parametrize("out_rounding", ["rne", "sr"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_equals_the_reference(isa, set_threads, weight_decay, out_rounding, z_round):
    set_threads(2)
    terms = MIXED[:3] if weight_decay else MIXED[1:2]
    params = everything()
    m = {(d, n): adam_state(d, t, 0.0) for (d, n), t in params.items()}
    v = {(d, n): adam_state(d, t, 0.0) for (d, n), t in params.items()}
    lists = [list(x.values()) for x in (params, m, v)]
    for step in (1, 2):
        zo_adam_(
            *lists, [STREAM] * len(params), terms, lr=0.01, beta1=0.9, beta2=0.99, eps=1e-6, step=step,
            weight_decay=weight_decay, out_rounding=out_rounding, z_round=z_round,
        )  # fmt: skip
    for key, got in params.items():
        want = adam_expected(key[0], terms, out_rounding, z_round, 2, weight_decay)
        for which, x in zip(want, (got, m[key], v[key]), strict=True):
            assert torch.equal(bits(x), bits(which[: x.numel()].view(x.shape))), key


def test_adam_with_strided_states(isa):
    straight = [torch.linspace(0, 1, 4260).view(60, 71) for _ in range(3)]
    apart = [
        torch.empty(71, 60).t().copy_(straight[0]),
        torch.empty(60, 100)[:, 10:81].copy_(straight[1]),
        torch.empty(120, 71)[::2].copy_(straight[2]),
    ]
    for p, m, v in (straight, apart):
        zo_adam_([p], [m], [v], [STREAM], MIXED, lr=0.1, step=5, weight_decay=0.3)
    for a, b in zip(straight, apart, strict=True):
        assert torch.equal(bits(a), bits(b))


def test_adam_is_torch_adamw_on_the_same_gradient():
    w = torch.linspace(-1, 1, 3000, dtype=torch.float64)
    peer = torch.nn.Parameter(w.clone())
    adamw = torch.optim.AdamW([peer], lr=0.02, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.3)
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for step in range(1, 8):
        z = [
            zo_sample(step, STREAM, q, n=3000, dtype=torch.float64, dist=d)
            for q, d in ((0, "gaussian"), (1, "rademacher"))
        ]
        peer.grad = 0.7 * z[0] - 0.2 * z[1]
        adamw.step()
        terms = [Term(step, 0, 0.7), Term(step, 1, -0.2, "rademacher")]
        hyper = {"lr": 0.02, "beta1": 0.8, "beta2": 0.95, "eps": 1e-7, "weight_decay": 0.3}
        zo_adam_([w], [m], [v], [STREAM], terms, step=step, **hyper)
    assert torch.allclose(w, peer.detach(), rtol=0, atol=1e-12)


def test_adam_default_arguments_are_those_of_torch():
    w, m, v = torch.ones(100, dtype=torch.float64), *torch.zeros(2, 100, dtype=torch.float64)
    peer = torch.nn.Parameter(w.clone())
    peer.grad = 0.5 * zo_sample(1, n=100, dtype=torch.float64)
    torch.optim.Adam([peer], lr=0.1).step()
    zo_adam_([w], [m], [v], [0], [Term(1, 0, 0.5)], lr=0.1, step=1)
    assert torch.allclose(w, peer.detach(), rtol=0, atol=1e-14)


# -- the printed oracle -------------------------------------------------------------------------------------


def test_perturb_known_answer(isa):
    w = torch.tensor([0.01 * (i - 4) for i in range(8)])
    half = w.bfloat16()
    zo_perturb_([w, half], [0, 0], 42, 0, 1e-3)
    assert [f"{b & 0xFFFFFFFF:08x}" for b in bits(w).tolist()] == (
        ["bd27d05b", "bcf42bac", "bcadf653", "bc045181", "b899790a", "3c261ea0", "3c9ac632", "3cf86faa"]
    )
    assert [f"{b & 0xFFFF:04x}" for b in bits(half).tolist()] == [
        "bd28",
        "bcf4",
        "bcae",
        "bc04",
        "b899",
        "3c26",
        "3c9b",
        "3cf9",
    ]

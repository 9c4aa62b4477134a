"""Random shapes, strides, dtypes and coefficients against the reference; memory beside a view stays put."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenfold.kernels.zo import zo_reference as ref
from torch import Tensor

from tenfold import _native
from tenfold.ops import Term, stochastic_round, zo_adam_, zo_chain_, zo_sample

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
QUIET = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

seeds = st.integers(0, 2**64 - 1)
streams = st.integers(0, 2**32 - 1)
queries = st.integers(0, 2**24 - 1)
dtypes = st.sampled_from(DTYPES)
isas = st.sampled_from(_native.cpu.isa_available())
coefficients = st.one_of(
    st.floats(-2, 2, width=32),
    st.floats(-3.3e38, 3.3e38),
    st.floats(-1e-38, 1e-38),
    st.sampled_from([0.0, -0.0, 1.0, 2.0**-149, 2.0**127]),
)
terms = st.lists(
    st.builds(Term, seeds, queries, coefficients, st.sampled_from(["gaussian", "rademacher"])),
    min_size=1,
    max_size=4,
)


@pytest.fixture(autouse=True, scope="module")
def best_isa_afterwards():
    before = _native.cpu.isa_used()
    yield
    _native.cpu.use_isa(before)


@st.composite
def views(draw, dtype: torch.dtype, shape: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """(buffer, view into it that overlaps nowhere): permuted, stepped, offset; about 3,000 elements."""
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=5)))
        if draw(st.booleans()):
            shape = (draw(st.integers(0, 3000)),)
        while math.prod(shape) > 3000:
            shape = shape[1:]
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    lead = [draw(st.integers(0, 2)) for _ in shape]
    trail = [draw(st.integers(0, 2)) for _ in shape]
    outer = [lead[d] + max(shape[d] - 1, 0) * steps[d] + (shape[d] > 0) + trail[d] for d in order]
    offset = draw(st.integers(0, 5))
    buffer = torch.linspace(-2, 2, math.prod(outer) + offset + 7, dtype=torch.float64).to(dtype)
    inner = buffer[offset : offset + math.prod(outer)].view(outer)
    inner = inner.permute([order.index(d) for d in range(len(shape))])
    for d, n in enumerate(shape):
        inner = inner.narrow(d, lead[d], inner.shape[d] - lead[d])
        inner = inner[(slice(None),) * d + (slice(0, n * steps[d], steps[d]),)]
    assert inner.shape == shape
    return buffer, inner


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same(a: Tensor, b: Tensor) -> bool:
    nan = torch.isnan(a)
    return torch.equal(nan, torch.isnan(b)) and torch.equal(bits(a)[~nan], bits(b)[~nan])


def only_inside_changed(buffer: Tensor, inner: Tensor, before: Tensor) -> bool:
    """Put the old values back into the view; the whole buffer must then be as it was."""
    replica = buffer.clone()
    at = replica.as_strided(inner.shape, inner.stride(), inner.storage_offset())
    at.copy_(before.as_strided(inner.shape, inner.stride(), inner.storage_offset()))
    return torch.equal(bits(replica), bits(before))


def columns(chain: list[Term]) -> tuple[list[int], list[int], list[float], list[str]]:
    return [t.seed for t in chain], [t.query for t in chain], [t.coef for t in chain], [t.dist for t in chain]


@given(data=st.data(), isa=isas, chain=terms, stream=streams, decay=st.sampled_from([1.0, 0.5, -1e-3, 0.999]))
@QUIET
def test_chain(data, isa, chain, stream, decay):
    _native.cpu.use_isa(isa)
    dtype = data.draw(dtypes)
    buffer, inner = data.draw(views(dtype))
    before, want = buffer.clone(), inner.clone(memory_format=torch.contiguous_format)
    z_round = data.draw(st.sampled_from([None, torch.bfloat16, torch.float16]))
    rounding = data.draw(st.sampled_from(["rne", "sr"]))
    rounding_seed = data.draw(st.one_of(st.none(), seeds))
    zo_chain_(
        [inner],
        [stream],
        chain,
        decay=decay,
        z_round=z_round,
        out_rounding=rounding,
        rounding_seed=rounding_seed,
    )
    seed = chain[0].seed if rounding_seed is None else rounding_seed
    ref.chain_(
        [want], None, [stream], *columns(chain), decay, z_round, rounding == "sr", seed, chain[0].query
    )
    assert same(inner, want)
    assert only_inside_changed(buffer, inner, before)


@given(data=st.data(), isa=isas, chain=terms, stream=streams)
@QUIET
def test_sources(data, isa, chain, stream):
    _native.cpu.use_isa(isa)
    dtype = data.draw(dtypes)
    kept, source = data.draw(views(dtype))
    buffer, target = data.draw(views(dtype, tuple(source.shape)))
    before, untouched = buffer.clone(), kept.clone()
    want = source.clone(memory_format=torch.contiguous_format)
    zo_chain_([target], [stream], chain, sources=[source])
    ref.chain_([want], None, [stream], *columns(chain))
    assert same(target, want)
    assert torch.equal(bits(kept), bits(untouched))
    assert only_inside_changed(buffer, target, before)


@given(
    data=st.data(),
    isa=isas,
    chain=terms,
    step=st.integers(1, 1000),
    beta=st.one_of(st.just(0.0), st.floats(1e-6, 0.9999)),
)
@QUIET
def test_adam(data, isa, chain, step, beta):
    _native.cpu.use_isa(isa)
    dtype = data.draw(dtypes)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    chain = [t._replace(coef=max(-1e3, min(1e3, t.coef))) for t in chain]
    buffer, p = data.draw(views(dtype))
    m_buffer, m = data.draw(views(wide, tuple(p.shape)))
    v_buffer, v = data.draw(views(wide, tuple(p.shape)))
    v_buffer.abs_()
    before = buffer.clone(), m_buffer.clone(), v_buffer.clone()
    want = [t.clone(memory_format=torch.contiguous_format) for t in (p, m, v)]
    options = {"lr": 0.1, "beta1": beta, "beta2": 0.99, "eps": 1e-8, "step": step}
    zo_adam_([p], [m], [v], [9], chain, weight_decay=0.5, out_rounding="sr", **options)
    args = ([want[0]], [want[1]], [want[2]], [9], *columns(chain))
    ref.adam_(*args, **options, decay=1 - 0.1 * 0.5, stochastic=True, rounding_seed=chain[0].seed,
              rounding_query=chain[0].query)  # fmt: skip
    for got, expected, whole, old in zip((p, m, v), want, (buffer, m_buffer, v_buffer), before, strict=True):
        assert same(got, expected)
        assert only_inside_changed(whole, got, old)


@given(
    isa=isas, seed=seeds, stream=streams, query=queries, first=st.integers(0, 2**62), n=st.integers(0, 5000),
    dist=st.sampled_from(["gaussian", "rademacher", "uniform"]), dtype=dtypes, cut=st.floats(0, 1),
)  # fmt: skip
@QUIET
def test_sample(isa, seed, stream, query, first, n, dist, dtype, cut):
    _native.cpu.use_isa(isa)
    whole = zo_sample(seed, stream, query, first=first, n=n, dist=dist, dtype=dtype)
    assert same(whole, ref.sample(seed, stream, query, first, n, dist, dtype))
    k = min(int(cut * n), 2**62 - first)
    parts = [
        zo_sample(seed, stream, query, first=first + a, n=m, dist=dist, dtype=dtype)
        for a, m in ((0, k), (k, n - k))
    ]
    assert same(torch.cat(parts), whole)


@given(data=st.data(), isa=isas, seed=seeds, stream=streams, query=queries, first=st.integers(0, 2**40))
@QUIET
def test_stochastic_round(data, isa, seed, stream, query, first):
    _native.cpu.use_isa(isa)
    _, x = data.draw(views(data.draw(dtypes)))
    dtype = data.draw(dtypes)
    before = x.clone()
    got = stochastic_round(x, dtype, seed, stream=stream, query=query, first=first)
    assert got.shape == x.shape
    assert got.dtype == dtype
    if dtype == torch.float64:
        assert torch.equal(got, x.double())
    else:
        want = ref.stochastic_round(x.float().contiguous(), dtype, seed, stream, query, first)
        assert same(got, want)
        # Never further away than the next number in either direction.
        near = x.float().to(dtype).double()
        slack = near.abs() * torch.finfo(dtype).eps * 2 + torch.finfo(dtype).smallest_normal
        assert ((got.double() - x.double()).abs() <= slack).all()
    assert torch.equal(bits(before), bits(x))

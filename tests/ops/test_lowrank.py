"""Low-rank passes: every backend equals the reference bit for bit, and the reference equals the paper."""

from __future__ import annotations

import itertools

import pytest
import torch
from tenfold.kernels.lowrank import lowrank_reference as ref
from torch import Tensor

import tenfold
from tenfold.ops import LowRankTerm, lowrank_factor, random_words, zo_lowrank_, zo_lowrank_project, zo_sample

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SEED = 2**64 - 3
TERMS = [LowRankTerm(SEED - k, 2**24 - 1 - k, 1e-2 * (k + 1)) for k in range(3)]


def bits(x: Tensor) -> Tensor:
    x = x.detach().cpu().contiguous()
    whole = torch.where(x.isnan(), torch.full((), torch.nan, dtype=x.dtype), x)
    return whole.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def draw(*shape: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def matrices(dtype: torch.dtype, backend) -> tuple[list[Tensor], list[Tensor]]:
    """Shapes and layouts that a kernel treats apart, with a factor V of some rank for each."""
    put = lambda t: t.to(dtype).to(backend.device)  # noqa: E731  (before slicing: moved slices lose strides)
    wide = put(draw(37, 1100))  # more columns than a block of the CPU kernel has
    wide[0, :6] = put(torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-7], dtype=torch.float64))
    params = [
        wide,
        put(draw(19, 67)),
        put(draw(40, 33)).t(),
        put(draw(30, 90))[:, ::3],
        put(draw(26, 50))[3:, 5:45],
        put(draw(1, 1)),
        put(draw(0, 5)),
        put(draw(5, 0)),
        put(draw(3, 512)),
    ]
    ranks = (3, 1, 8, 2, 5, 4, 2, 2, 17)
    if backend.interpreted:  # its interpreter takes seconds for what the others do in milliseconds
        params = [p[:9, :70] for p in params[:1]] + [p[:5, :9] for p in params[1:]]
        ranks = (2, 1, 1, 1, 1, 1, 2, 2, 2)
    vs = [draw(p.shape[1], r, seed=1, scale=1.0).float() for p, r in zip(params, ranks, strict=True)]
    vs[1] = draw(2, params[1].shape[1], seed=1, scale=1.0).float()[:1].t()  # a factor need not be contiguous
    return params, [v.to(backend.device) for v in vs]


def clones(tensors: list[Tensor]) -> list[Tensor]:
    return [t.clone(memory_format=torch.preserve_format) for t in tensors]


def assert_same(got: list[Tensor], want: list[Tensor], *where: object) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(bits(a), bits(b)), (*where, i, tuple(a.shape))


# -- factors -----------------------------------------------------------------------------------------------


def test_factor_is_the_purposes_own_sequence():
    """Box-Muller on the words of purposes 5 and 6: pinned through random_words, not through the factor."""
    for side, purpose in (("u", "lowrank_u"), ("v", "lowrank_v")):
        factor = lowrank_factor(42, 3, 7, 11, 5, side=side).view(-1)
        words = random_words(42, stream=3, query=7, purpose=purpose, blocks=14)
        unit = (words[:, 0].double() + 0.5) / 2**32
        angle = 2 * torch.pi * words[:, 1].double() / 2**32
        exact = (-2 * unit.log()).sqrt() * angle.cos()
        assert torch.allclose(factor[::4].double(), exact[: factor[::4].numel()], atol=2e-6)
    u, v = (lowrank_factor(42, 3, 7, 500, 8, side=side) for side in "uv")
    z = zo_sample(42, 3, 7, n=4000).view(500, 8)
    for a, b in itertools.combinations((u, v, z), 2):
        assert abs(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) < 0.07  # 4.4 sd


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_factor_equals_the_reference(backend, dtype):
    for side, (rows, rank) in itertools.product("uv", ((0, 3), (1, 1), (7, 3), (300, 8), (3, 256))):
        got = lowrank_factor(
            SEED, 2**32 - 1, 2**24 - 1, rows, rank, side=side, dtype=dtype, device=backend.device
        )
        want = torch.empty(rows, rank, dtype=dtype)
        ref.factor_(want, SEED, 2**32 - 1, 2**24 - 1, side)
        assert torch.equal(bits(got), bits(want)), (side, rows, rank)


def test_project_equals_the_reference_and_the_sum(backend):
    for rows, rank in ((1, 1), (700, 3), (3, 256)):
        got = zo_lowrank_project(TERMS, 9, rows, rank, device=backend.device)
        want = torch.empty(rows, rank)
        ref.project_(want, *zip(*TERMS, strict=True), 9, "u")
        assert torch.equal(bits(got), bits(want)), (rows, rank)
        device = backend.device
        factors = [lowrank_factor(t.seed, 9, t.query, rows, rank, device=device) for t in TERMS]
        exact = sum(t.coef * u.cpu().double() for t, u in zip(TERMS, factors, strict=True))
        assert torch.allclose(got.cpu().double(), exact, atol=1e-8)


# -- passes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_rounding", ["rne", "sr"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_pass_equals_the_reference(backend, dtype, out_rounding):
    for terms, decay in ((TERMS[:1], 1.0), (TERMS, 0.9))[backend.interpreted :]:
        got, vs = matrices(dtype, backend)
        want = [p.cpu() for p in clones(got)]
        streams = [2**32 - 1 - i for i in range(len(got))]
        zo_lowrank_(got, vs, streams, terms, decay=decay, out_rounding=out_rounding, rounding_seed=77)
        stochastic = out_rounding == "sr"
        columns = zip(*terms, strict=True)
        factors = [v.cpu() for v in vs]
        ref.lowrank_(want, None, factors, None, streams, *columns, decay, stochastic, 77, terms[0].query)
        assert_same(got, want, len(terms))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_explicit_left_factors(backend, dtype):
    got, vs = matrices(dtype, backend)
    want = [p.cpu() for p in clones(got)]
    us = [
        draw(p.shape[0], v.shape[1], seed=3, scale=1.0).float().to(backend.device)
        for p, v in zip(got, vs, strict=True)
    ]
    streams = list(range(len(got)))
    zo_lowrank_(got, vs, streams, TERMS[:1], us=us, out_rounding="sr")
    seed, query, coef = TERMS[0]
    factors = [v.cpu() for v in vs], [u.cpu() for u in us]
    ref.lowrank_(want, None, *factors, streams, [seed], [query], [coef], 1.0, True, seed, query)
    assert_same(got, want)


def test_many_terms_and_high_ranks(backend):
    """More terms times rank than the CPU kernel keeps factors for."""
    terms = [LowRankTerm(5, k, 1e-3) for k in range(5)]
    rows, columns, rank = (5, 9, 2) if backend.interpreted else (37, 70, 100)
    got = [draw(rows, columns).float().to(backend.device)]
    want = [got[0].cpu().clone()]
    v = draw(columns, rank, scale=1.0).float()
    zo_lowrank_(got, [v.to(backend.device)], [4], terms)
    ref.lowrank_(want, None, [v], None, [4], *zip(*terms, strict=True))
    assert_same(got, want)


def test_sources_are_read_and_kept(backend):
    clean, vs = matrices(torch.bfloat16, backend)
    before = clones(clean)
    target = [torch.zeros_like(p) for p in clean]
    streams = list(range(len(clean)))
    zo_lowrank_(target, vs, streams, TERMS, sources=clean)
    assert_same(clean, before)
    zo_lowrank_(before, vs, streams, TERMS)
    assert_same(target, before)


def test_one_pass_is_the_explicit_product(backend):
    """Against float64: W + c U V^T within the rounding of the chain."""
    w, v = draw(10, 80).float(), lowrank_factor(1, 2, 3, 80, 4, side="v", device=backend.device)
    got = w.clone().to(backend.device)
    zo_lowrank_([got], [v], [7], [LowRankTerm(9, 5, -0.5)])
    u = lowrank_factor(9, 7, 5, 10, 4, device=backend.device)
    exact = w.double() - 0.5 * u.cpu().double() @ v.cpu().double().t()
    assert torch.allclose(got.cpu().double(), exact, atol=4e-6, rtol=0)


def test_factors_given_equal_factors_regenerated(backend):
    w, v = draw(10, 80).float().to(backend.device), draw(80, 4, scale=1.0).float().to(backend.device)
    a, b = w.clone(), w.clone()
    term = LowRankTerm(9, 5, -0.5)
    zo_lowrank_([a], [v], [7], [term])
    zo_lowrank_([b], [v], [7], [term], us=[lowrank_factor(9, 7, 5, 10, 4, device=backend.device)])
    assert torch.equal(a, b)


def test_chain_of_terms_is_one_rounding_away_from_their_sum(backend):
    w = torch.zeros(10, 40, device=backend.device)
    v = draw(40, 3, scale=1.0).float().to(backend.device)
    zo_lowrank_([w], [v], [1], TERMS)
    left = zo_lowrank_project(TERMS, 1, 10, 3, device=backend.device).cpu().double()
    assert torch.allclose(w.cpu().double(), left @ v.cpu().double().t(), atol=1e-6)


# -- what LOZO promises --------------------------------------------------------------------------------------


def test_change_has_the_rank_of_the_factor_and_keeps_its_row_space():
    """Steps that share V move W in the span of V's columns, whatever the queries; each draws a fresh U."""
    w = torch.zeros(64, 48, dtype=torch.float64)
    v = lowrank_factor(1, 0, 0, 48, 3, side="v")
    for step in range(5):
        zo_lowrank_([w], [v], [0], [LowRankTerm(100 + step, 0, 0.1)])
        singular = torch.linalg.svdvals(w)
        assert singular[2] > 1e-2
        assert singular[3] < 1e-12 * singular[0]
    basis = torch.linalg.qr(v.double()).Q
    assert torch.allclose(w - w @ basis @ basis.t(), torch.zeros_like(w), atol=1e-12)
    first, second = (lowrank_factor(100 + step, 0, 0, 64, 3) for step in range(2))
    assert abs(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0)) < 0.3  # 4 sd


def test_perturbation_and_update_use_the_same_direction():
    """Reference code of the paper draws another U for the update when V is renewed; here +eps -2eps +eps
    returns, and an update is parallel to the probe."""
    w0 = draw(64, 48)
    w, v = w0.clone(), lowrank_factor(3, 0, 0, 48, 2, side="v")
    zo_lowrank_([w], [v], [5], [LowRankTerm(8, 0, 1e-3)])
    probe = w - w0
    zo_lowrank_([w], [v], [5], [LowRankTerm(8, 0, -2e-3)])
    zo_lowrank_([w], [v], [5], [LowRankTerm(8, 0, 1e-3)])
    assert torch.allclose(w, w0, atol=1e-15, rtol=0)
    zo_lowrank_([w], [v], [5], [LowRankTerm(8, 0, -0.25)])
    assert torch.cosine_similarity((w - w0).flatten(), probe.flatten(), dim=0) < -1 + 1e-9


def test_entries_have_the_variance_of_the_rank():
    for rank in (1, 4):
        v = lowrank_factor(3, 0, 0, 300, rank, side="v")
        w = torch.zeros(300, 300)
        zo_lowrank_([w], [v], [5], [LowRankTerm(8, 0, 1.0)])
        assert w.square().mean().item() == pytest.approx(rank, rel=0.35 / rank**0.5)


# -- invariances ---------------------------------------------------------------------------------------------


def test_threads_change_nothing(isa, set_threads):
    results = []
    for threads in (1, 2, 7):
        set_threads(threads)
        w, v = draw(301, 257).bfloat16(), draw(257, 4, scale=1.0).float()
        zo_lowrank_([w], [v], [5], TERMS, out_rounding="sr", decay=0.99)
        results.append([w, lowrank_factor(1, 2, 3, 5001, 7), zo_lowrank_project(TERMS, 3, 5001, 7)])
    for other in results[1:]:
        assert_same(other, results[0])


def test_strides_change_nothing(backend):
    w, v = draw(11, 34).bfloat16().to(backend.device), draw(34, 2, scale=1.0).float().to(backend.device)
    transposed = w.t().contiguous().t()
    for x in (w, transposed):
        zo_lowrank_([x], [v], [5], TERMS, out_rounding="sr")
    assert torch.equal(w, transposed)


def test_one_column_more_changes_nothing_before_it(backend):
    """Vector and scalar columns give the same bits; rows move on by the width for rounding bits only."""
    v = draw(70, 3, scale=1.0).float().to(backend.device)
    full = torch.zeros(9, 70, device=backend.device)
    zo_lowrank_([full], [v], [5], TERMS)
    for n in range(1, 70, 30 if backend.interpreted else 7):
        part = torch.zeros(9, n, device=backend.device)
        zo_lowrank_([part], [v[:n]], [5], TERMS)
        assert torch.equal(part, full[:, :n]), n


def test_empty_lists_are_no_operation(backend):
    zo_lowrank_([], [], [], TERMS)


def test_numpy_arrays_are_moved_in_place():
    w, v = draw(6, 5).numpy(), draw(5, 2).float().numpy()
    want = torch.from_numpy(w.copy())
    zo_lowrank_([w], [v], [1], TERMS)
    zo_lowrank_([want], [torch.from_numpy(v)], [1], TERMS)
    assert torch.equal(torch.from_numpy(w), want)


def test_the_native_backend_is_the_default():
    assert tenfold._backend.chosen_backend("zo_lowrank_", "cpu") == "cpu"

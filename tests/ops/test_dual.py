"""Perturbed layers equal plain layers with perturbed weights, and never write a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tenfold.kernels.dual import dual_native, dual_reference
from tenfold.kernels.dual import linear as blocks
from torch import Tensor

import tenfold
from tenfold.ops import (
    zo_embedding_dual,
    zo_embedding_perturbed,
    zo_linear_dual,
    zo_linear_perturbed,
    zo_perturb_,
    zo_sample,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALVES = (torch.bfloat16, torch.float16)
DISTS = tenfold.ops.zo.DISTRIBUTIONS
SEED, EPS = 2**64 - 3, 1e-3


def bits(x: Tensor) -> Tensor:
    x = x.detach().cpu().contiguous()
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def digest(*tensors: Tensor) -> str:
    return hashlib.sha256(b"".join(bits(t).numpy().tobytes() for t in tensors)).hexdigest()


def moved(w: Tensor, stream: int, coef: float, query: int = 0, **options) -> Tensor:
    """A copy perturbed by the pass that the rest of the library uses."""
    with tenfold.use_backend("reference"):
        copy = w.detach().cpu().clone()
        zo_perturb_([copy], [stream], SEED, query, coef, **options)
    return copy


def exact_linear(x: Tensor, w: Tensor, b: Tensor | None, coef: float, query: int = 0) -> Tensor:
    """x (W + c Z)^T + b + c z in float64, streams 3 and 4."""
    with tenfold.use_backend("auto"):
        z = zo_sample(SEED, 3, query, n=w.numel(), dtype=torch.float64).view(w.shape)
        y = x.cpu().double() @ (w.cpu().double() + coef * z).t()
        if b is not None:
            y += b.cpu().double() + coef * zo_sample(SEED, 4, query, n=b.numel(), dtype=torch.float64)
    return y


def layer(
    n: int, k: int, dtype: torch.dtype, device: torch.device | str = "cpu", copies: int = 2, m: int = 5
) -> tuple[Tensor, Tensor, Tensor]:
    x, w, b = draw(copies, m, k), draw(n, k, seed=1, scale=0.02), draw(n, seed=2)
    return tuple(t.to(dtype).to(device) for t in (x, w, b))


def gemm_error(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """What a float32 product of this layer may be off by: the bound of Higham (2002), section 3.5."""
    k = w.shape[1] + 2
    return k * 2.0**-24 * (x.cpu().double().abs() @ w.cpu().double().abs().t() + b.cpu().double().abs())


# -- linear ------------------------------------------------------------------------------------------------

SHAPES = ((1, 1), (7, 5), (33, 70), (40, 129), (65, 64))
FEW = ((7, 5), (20, 36))  # for Triton's interpreter: the composite and the fused kernel


@pytest.mark.parametrize("mode", ["fold", "split"])
def test_dual_is_the_plain_layer_with_moved_weights_float32(backend, mode):
    """Within twice the rounding error that the plain product itself may have."""
    for n, k in FEW if backend.interpreted else SHAPES:
        x, w, b = layer(n, k, torch.float32, backend.device)
        y = zo_linear_dual(x, w, b, seed=SEED, stream=3, bias_stream=4, eps=EPS, mode=mode)
        for p, coef in enumerate((EPS, -EPS)):
            error = (y[p].cpu().double() - exact_linear(x[p], w, b, coef)).abs()
            assert (error <= 2 * gemm_error(x[p], w, b)).all(), (n, k, p)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_folded_weights_are_those_of_the_pass_in_place(backend, dtype):
    """One-hot inputs read single weights: fold gives the bits that zo_perturb_ would have written."""
    n, k = 21, 37
    _, w, _ = layer(n, k, dtype, backend.device)
    x = torch.eye(k, dtype=dtype, device=backend.device).expand(2, k, k)
    y = zo_linear_dual(x, w, seed=SEED, stream=3, eps=EPS, mode="fold", query=7)
    for p, coef in enumerate((EPS, -EPS)):
        assert torch.equal(bits(y[p].t()), bits(moved(w, 3, coef, 7))), p


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_plain_layer_of_a_zero_coefficient_or_no_stream(backend, dtype):
    x, w, b = layer(33, 70, dtype, backend.device)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    for options in (
        {"coefs": [0.0, 0.0], "stream": 3, "bias_stream": 4},
        {"coefs": [1.0, 2.0], "stream": None},
    ):
        y = zo_linear_perturbed(x, w, b, seed=1, queries=[0, 0], mode="fold", **options)
        assert torch.allclose(y, F.linear(x, w, b), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_split_keeps_what_folding_rounds_away(backend, dtype):
    """Difference of the two probes, which is all a step uses, against float64."""
    k = 32 if backend.interpreted else 128
    x, w, b = layer(60, k, dtype, backend.device, m=9)
    x = x[:1].expand(2, *x.shape[1:])
    errors = {}
    for mode in ("split", "fold"):
        options = {"seed": SEED, "stream": 3, "bias_stream": 4, "eps": EPS, "mode": mode}
        y = zo_linear_dual(x, w, b, out_dtype=torch.float32, **options).cpu().double()
        want = torch.stack([exact_linear(x[p], w, b, coef) for p, coef in enumerate((EPS, -EPS))])
        errors[mode] = (y - want).square().mean().sqrt().item()
        assert y.shape == (2, 9, 60)
    assert errors["split"] < errors["fold"] / 4
    assert errors["split"] < 0.02 * EPS * k**0.5  # of the size of what the probes differ by


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_split_by_default_and_return_their_dtype(backend, dtype):
    x, w, b = layer(33, 70, dtype, backend.device)
    options = {"seed": SEED, "stream": 3, "bias_stream": 4, "eps": EPS}
    y = zo_linear_dual(x, w, b, **options)
    assert y.dtype == dtype
    assert torch.equal(y, zo_linear_dual(x, w, b, mode="split", **options))
    wide = zo_linear_dual(x, w, b, out_dtype=torch.float32, **options)
    assert wide.dtype == torch.float32
    assert torch.allclose(wide.to(dtype).float(), y.float(), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("dist", DISTS)
def test_every_distribution_and_rounded_directions(backend, dist):
    n, k = 19, 131  # rows start anywhere in a block of the generator
    x = torch.eye(k, device=backend.device).expand(2, k, k)
    w = torch.zeros(n, k, device=backend.device)
    for z_round in (None, torch.bfloat16, torch.float16):
        y = zo_linear_dual(x, w, seed=SEED, stream=3, eps=1.0, dist=dist, z_round=z_round)
        z = moved(w, 3, 1.0, dist=dist, z_round=z_round)
        assert torch.equal(bits(y[0].t()), bits(z)), z_round
        assert torch.equal(y[1], -y[0])


def test_many_copies_with_queries_of_their_own(backend):
    """FZOO: eight one-sided probes and the plain loss in one call."""
    x, w, b = layer(33, 70, torch.float32, backend.device, copies=9)
    queries, coefs = [0, *range(8)], [0.0, *[EPS] * 8]
    options = {"stream": 3, "bias_stream": 4, "mode": "split"}
    y = zo_linear_perturbed(x, w, b, seed=SEED, queries=queries, coefs=coefs, **options)
    for p, (query, coef) in enumerate(zip(queries, coefs, strict=True)):
        want = exact_linear(x[p], w, b, coef, query)
        assert ((y[p].cpu().double() - want).abs() <= 2 * gemm_error(x[p], w, b)).all(), p


def test_a_list_of_queries_is_pairs_of_probes(backend):
    x, w, _ = layer(33, 70, torch.float32, backend.device, copies=4)
    y = zo_linear_dual(x, w, seed=SEED, stream=3, eps=EPS, query=[5, 6])
    again = [
        zo_linear_dual(x[2 * i : 2 * i + 2], w, seed=SEED, stream=3, eps=EPS, query=q)
        for i, q in enumerate((5, 6))
    ]
    assert torch.allclose(y, torch.cat(again), atol=1e-6)


def test_shapes_of_the_input(backend):
    _, w, _ = layer(6, 10, torch.float32, backend.device)
    for shape in ((2, 10), (2, 3, 4, 10), (2, 0, 10), (2, 3, 0, 10)):
        x = torch.ones(shape, device=backend.device)
        y = zo_linear_dual(x, w, seed=1, stream=0, eps=EPS)
        assert y.shape == (*shape[:-1], 6)
    empty = torch.ones(0, 10, device=backend.device)
    assert zo_linear_dual(
        torch.ones(2, 3, 10, device=backend.device), empty, seed=1, stream=0, eps=EPS
    ).shape == (2, 3, 0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weights_of_any_strides(backend, dtype):
    """z follows the logical element, whatever the memory."""
    x, w, b = layer(33, 70, dtype, backend.device)
    options = {"seed": SEED, "stream": 3, "bias_stream": 4, "eps": EPS, "mode": "fold"}
    want = zo_linear_dual(x, w, b, **options)
    layouts = [w.t().contiguous().t(), torch.cat((w, w), 1)[:, :70], torch.stack((w, w), 2)[:, :, 0]]
    spread = torch.stack((b, b), 1)[:, 0]
    for strided in layouts:
        before = digest(strided)
        assert torch.equal(zo_linear_dual(x, strided, spread, **options), want)
        assert digest(strided) == before


def test_weights_are_never_written(backend):
    x, w, b = layer(33, 70, torch.bfloat16, backend.device)
    ids = torch.arange(6, device=backend.device).view(2, 3)
    before, versions = digest(w, b, x), (w._version, b._version)
    for mode in ("fold", "split"):
        zo_linear_dual(x, w, b, seed=1, stream=0, bias_stream=1, eps=EPS, mode=mode)
    zo_embedding_dual(ids, w, seed=1, stream=0, eps=EPS)
    assert digest(w, b, x) == before
    assert (w._version, b._version) == versions


def test_tied_weights_serve_both_layers(backend):
    """Embedding and unembedding of one matrix see one perturbation."""
    _, w, _ = layer(12, 40, torch.float32, backend.device)
    ids = torch.arange(12, device=backend.device).expand(2, 12)
    rows = zo_embedding_dual(ids, w, seed=SEED, stream=3, eps=EPS)
    read = zo_linear_dual(
        torch.eye(40, device=backend.device).expand(2, 40, 40), w, seed=SEED, stream=3, eps=EPS
    )
    assert torch.equal(rows, read.transpose(1, 2))


def test_blocks_of_rows_change_nothing(isa, set_threads, monkeypatch):
    """Small blocks, ragged at the end, started between the generator's blocks; and every thread count."""
    x, w, b = layer(77, 131, torch.float32)
    options = {"seed": SEED, "stream": 3, "bias_stream": 4, "eps": EPS}
    want = zo_linear_dual(x, w, b, **options)
    monkeypatch.setitem(blocks.BLOCK_BYTES, "cpu", 2 * 16 * 131 * 4)
    calls = []
    fill = dual_native.fill
    monkeypatch.setattr(dual_native, "fill", lambda *a: (calls.append(a[1]), fill(*a)))
    for threads in (1, 2, 7):
        set_threads(threads)
        assert torch.allclose(zo_linear_dual(x, w, b, **options), want, atol=1e-6)
    assert calls == [0, 0, 16, 32, 48, 64] * 3  # the bias, then blocks of rows


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fill_equals_the_reference(isa, dtype, set_threads):
    """The native fill on every instruction set, thread count and offset, to the bit."""
    w = draw(150, 333, seed=1, scale=0.02).to(dtype)
    w[0, :3] = torch.tensor([torch.inf, -torch.inf, 0.0], dtype=dtype)
    out = {torch.float64: (torch.float64,), torch.float32: (torch.float32,)}.get(
        dtype, (dtype, torch.float32)
    )
    for threads, (row, rows), dist in (
        (1, (0, 150), "gaussian"),
        (3, (7, 120), "rademacher"),
        (2, (149, 1), "gaussian"),
    ):
        set_threads(threads)
        for to in out:
            runs = []
            for module in (dual_native, dual_reference):
                outs = [torch.empty(rows, 333, dtype=to) for _ in range(3)]
                module.fill(w, row, outs, [0.5, -0.25, 1e-9], SEED, 2**32 - 1, 2**24 - 1, dist, None)
                runs.append(torch.stack(outs))
            assert torch.equal(bits(runs[0]), bits(runs[1])), (threads, row, to)


# -- embedding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_embedding_rows_are_those_of_the_moved_table(backend, dtype):
    for v, k in ((9, 35),) if backend.interpreted else ((5, 1), (40, 70), (9, 131)):
        w = draw(v, k, seed=1, scale=0.02).to(dtype).to(backend.device)
        ids = torch.randint(0, v, (2, 3, 4), generator=torch.Generator().manual_seed(0)).to(backend.device)
        for index in (ids[:, :1], ids[:1].expand(2, 3, 4), ids.int()):
            y = zo_embedding_dual(index, w, seed=SEED, stream=3, eps=EPS, padding_idx=0)
            for p, coef in enumerate((EPS, -EPS)):
                want = F.embedding(index[p].cpu(), moved(w, 3, coef))
                assert torch.equal(bits(y[p]), bits(want)), (v, k, p)


def test_embedding_touches_only_looked_up_rows(backend):
    """The table around the rows is poison."""
    w = torch.full((1000, 24), torch.nan)
    w[::250] = draw(4, 24).float()
    ids = torch.tensor([[0, 250, 750], [500, 250, 0]], device=backend.device)
    y = zo_embedding_dual(ids, w.to(backend.device), seed=SEED, stream=3, eps=EPS)
    assert torch.equal(bits(y[1]), bits(F.embedding(ids[1].cpu(), moved(w, 3, -EPS))))
    strided = w.t().contiguous().t().to(backend.device)
    assert torch.equal(zo_embedding_dual(ids, strided, seed=SEED, stream=3, eps=EPS), y)


def test_embedding_of_many_copies(backend):
    w = draw(30, 50, seed=1).float().to(backend.device)
    ids = torch.arange(20, device=backend.device).view(4, 5)
    queries, coefs = [0, 7, 9, 7], [0.0, 0.5, 0.25, -0.5]
    y = zo_embedding_perturbed(ids, w, seed=SEED, stream=3, queries=queries, coefs=coefs)
    for p in range(4):
        assert torch.equal(y[p].cpu(), moved(w, 3, coefs[p], queries[p])[ids[p].cpu()]), p


def test_ids_outside_the_table():
    w = torch.zeros(5, 3)
    for bad in (5, -1):
        with pytest.raises(IndexError, match=rf"ids: expected integers in \[0, 5\), got {bad}"):
            zo_embedding_dual(torch.tensor([[0, bad], [1, 2]]), w, seed=1, stream=0, eps=EPS)
    assert zo_embedding_dual(torch.zeros(2, 0, dtype=torch.int64), w, seed=1, stream=0, eps=EPS).shape == (
        2,
        0,
        3,
    )


# -- a model -----------------------------------------------------------------------------------------------


def two_losses(evaluate: Callable[[Tensor], Tensor], ids: Tensor) -> tuple[float, float]:
    logits = evaluate(ids.expand(2, *ids.shape)).double()
    losses = F.cross_entropy(logits.flatten(1, -2).flatten(0, 1), ids.flatten().repeat(2), reduction="none")
    first, second = losses.view(2, -1).mean(1).tolist()
    return first, second


def test_projected_gradient_of_a_small_network_in_bfloat16():
    """Two layers and a tied table: the difference of the losses, in bfloat16 weights, against float64."""
    table, inner, bias = (
        t.bfloat16()
        for t in (
            draw(50, 64, seed=1, scale=0.3),
            draw(64, 64, seed=2, scale=0.1),
            draw(64, seed=3, scale=0.1),
        )
    )
    ids = torch.arange(50).view(5, 10)
    options = {"seed": SEED, "eps": EPS, "out_dtype": torch.float32}

    def dual(x: Tensor) -> Tensor:
        h = zo_embedding_dual(x, table.float(), seed=SEED, stream=0, eps=EPS).bfloat16()
        h = zo_linear_dual(h, inner, bias, stream=1, bias_stream=2, **options).relu().bfloat16()
        return zo_linear_dual(h, table, stream=0, **options)

    def exact(x: Tensor) -> Tensor:
        out = []
        for p, coef in enumerate((EPS, -EPS)):
            e, w, b = (
                t.double() + coef * zo_sample(SEED, s, n=t.numel(), dtype=torch.float64).view(t.shape)
                for s, t in enumerate((table, inner, bias))
            )
            out.append(F.linear(F.linear(F.embedding(x[p], e), w, b).relu(), e))
        return torch.stack(out)

    (plus, minus), (plus64, minus64) = two_losses(dual, ids), two_losses(exact, ids)
    assert plus == pytest.approx(plus64, rel=1e-2)
    assert plus - minus == pytest.approx(plus64 - minus64, rel=0.5)  # the activations are bfloat16 still

"""Selection of weights, masked Adam, saliency and attention columns on every backend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tenfold.kernels.erase import erase_reference
from torch import Tensor

import tenfold
from tenfold.ops import abs_quantile, attn_column_norm, masked_adam_, saliency_accum_, topk_mask

HALVES = [torch.bfloat16, torch.float16]
FLOATS = [torch.float32, torch.float64, *HALVES]


def drawn(*shapes: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(tuple(shape), generator=draw).to(dtype) for shape in shapes]


def at(backend, tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.to(backend.device) for t in tensors]


def magnitudes(tensors: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([t.cpu().double().abs().flatten().numpy() for t in tensors])


def kth_largest(tensors: Sequence[Tensor], q: float) -> tuple[float, int]:
    values = magnitudes(tensors)
    k = max(round(q * len(values)), 1)
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    return float(threshold), int((values >= threshold).sum())


def bits_of(masks: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    return [erase_reference.unpacked(m, t).cpu() for m, t in zip(masks, tensors, strict=True)]


# ---- the k-th magnitude ----------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1e-9, 0.01, 0.4, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantile_is_numpys(backend, dtype, q):
    tensors = at(backend, drawn((301,), (7, 50, 3), (0,), (1,), dtype=dtype))
    assert abs_quantile(tensors, q) == kth_largest(tensors, q)


@pytest.mark.parametrize("q", [0.001, 0.4, 0.97])
def test_quantile_over_many_weights(backend, q):
    count = 5000 if backend.interpreted else 1_000_003
    tensors = at(backend, drawn((count,), (17, 31), seed=2))
    assert abs_quantile(tensors, q) == kth_largest(tensors, q)


@pytest.mark.parametrize("kind", ["ties", "zeros", "denormal", "two values", "constant", "sorted", "huge"])
def test_quantile_of_awkward_values(backend, kind):
    count = 3000 if backend.interpreted else 400_000
    (x,) = drawn((count,), seed=3)
    made = {
        "ties": (x * 4).round() / 4,
        "zeros": torch.where(torch.arange(count) % 10 < 7, 0.0, x),
        "denormal": x * 1e-40,
        "two values": torch.where(x > 0.3, 2.0, -1.0),
        "constant": torch.full((count,), -0.75),
        "sorted": x.abs().sort().values,
        "huge": x * 1e38,
    }[kind].clamp(-3.4e38, 3.4e38)
    tensors = at(backend, [made[: count // 3], made[count // 3 :]])
    for q in (0.1, 0.25, 0.5, 0.9):
        expected = kth_largest(tensors, q)
        if expected[0] == 0:
            with pytest.warns(UserWarning, match="threshold is 0"):
                assert abs_quantile(tensors, q) == expected
        else:
            assert abs_quantile(tensors, q) == expected


def test_quantile_mixes_dtypes_without_rounding_the_threshold(backend):
    tensors = at(backend, [*drawn((400,), seed=4), *drawn((500,), seed=5, dtype=torch.bfloat16)])
    tensors.append(torch.rand(300, dtype=torch.float64, device=backend.device))
    for q in (0.2, 0.5, 0.8):
        assert abs_quantile(tensors, q) == kth_largest(tensors, q)
        chosen = torch.cat([b.flatten() for b in bits_of(topk_mask(tensors, q), tensors)])
        values = magnitudes(tensors)
        assert chosen.sum() == round(q * len(values))
        assert values[chosen.numpy()].min() >= values[~chosen.numpy()].max()


def test_quantile_reads_any_strides(backend):
    (x,) = at(backend, drawn((40, 60), seed=6))
    for view in (x.t(), x[::3, 5::2], x[:, None].expand(40, 2, 60), x.flip(0)[1:]):
        assert abs_quantile([view], 0.3) == kth_largest([view], 0.3)
        (mask,) = bits_of(topk_mask([view], 0.3), [view])
        same = topk_mask([view.contiguous()], 0.3)
        assert torch.equal(mask, bits_of(same, [view])[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantile_refuses_what_is_not_finite(backend, dtype, bad):
    tensors = at(backend, drawn((20,), (33, 5), dtype=dtype))
    tensors[1][7, 3] = bad
    with pytest.raises(ValueError, match=r"tensors: expected finite values, got 1 that are"):
        abs_quantile(tensors, 0.5)
    with pytest.raises(ValueError, match="finite"):
        topk_mask(tensors, 0.5)


def test_quantile_of_many_weights_finds_one_nan(backend):
    count = 3000 if backend.interpreted else 500_000
    (x,) = at(backend, drawn((count,)))
    x[count - 3] = math.nan
    with pytest.raises(ValueError, match="finite values"):
        abs_quantile([x], 0.5)


def test_quantile_does_not_depend_on_threads(set_threads):
    tensors = drawn((700_001,), (300, 301), seed=8)
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found.append((abs_quantile(tensors, 0.37), [m.tolist() for m in topk_mask(tensors, 0.37)]))
    assert found[0] == found[1] == found[2]


def test_quantile_of_arrays():
    x = np.random.default_rng(0).normal(size=(30, 7)).astype(np.float32)
    found = abs_quantile([x], 0.5)
    assert found == kth_largest([torch.from_numpy(x)], 0.5)
    (mask,) = topk_mask([x], 0.5)
    assert isinstance(mask, np.ndarray)
    chosen = np.unpackbits(mask, bitorder="little")[: x.size].reshape(x.shape).astype(bool)
    assert chosen.sum() == x.size // 2
    assert np.abs(x[chosen]).min() == np.float32(found.threshold)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: abs_quantile([], 0.5), ValueError, "tensors: expected at least one weight"),
        (lambda: abs_quantile([torch.ones(2)], 0.0), ValueError, "q: expected a finite number > 0"),
        (lambda: abs_quantile([torch.ones(2)], 1.5), ValueError, "q: expected a share of at most 1"),
        (lambda: abs_quantile([torch.ones(2, dtype=torch.int32)], 0.5), TypeError, "tensors.0.: expected"),
        (lambda: abs_quantile(torch.ones(2), 0.5), TypeError, "tensors: expected a list of tensors"),
        (lambda: topk_mask([torch.ones(2)], -0.1), ValueError, "q: expected"),
        (lambda: topk_mask([torch.ones(2)], 1.1), ValueError, "q: expected a share in"),
        (lambda: topk_mask([torch.ones(2)], 0.5, largest=1), TypeError, "largest: expected True or False"),
    ],
)
def test_selection_refuses(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


# ---- masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("q", [0.0, 0.003, 0.25, 0.5, 0.77, 1.0])
def test_masks_choose_exactly_the_share(backend, q, largest):
    tensors = at(backend, drawn((13,), (5, 9), (0,), (64,), (101,), seed=9))
    tensors = [(t * 3).round() / 3 for t in tensors]  # many ties
    values = magnitudes(tensors)
    k = round(q * len(values))
    order = np.argsort(-values if largest else values, kind="stable")[:k]  # among equals the first
    expected = np.zeros(len(values), dtype=bool)
    expected[order] = True
    masks = topk_mask(tensors, q, largest=largest)
    assert [m.shape for m in masks] == [((t.numel() + 7) // 8,) for t in tensors]
    chosen = torch.cat([b.flatten() for b in bits_of(masks, tensors)])
    assert np.array_equal(chosen.numpy(), expected)
    for mask, tensor in zip(masks, tensors, strict=True):
        if tensor.numel() % 8:
            assert int(mask[-1]) >> tensor.numel() % 8 == 0  # spare bits


def test_masks_of_equal_weights(backend):
    tensors = at(backend, [torch.zeros(70), torch.zeros(5, 6)])
    masks = topk_mask(tensors, 0.85)
    chosen = torch.cat([b.flatten() for b in bits_of(masks, tensors)])
    assert chosen.tolist() == [True] * 85 + [False] * 15


def test_masks_of_nothing(backend):
    assert topk_mask([], 0.5) == []
    (mask,) = topk_mask([torch.empty(0, device=backend.device)], 0.5)
    assert mask.shape == (0,)


# ---- saliency --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["signed", "abs", "product"])
@pytest.mark.parametrize("kind", FLOATS, ids=str)
@pytest.mark.parametrize("total", [torch.float32, torch.float64], ids=str)
def test_saliency_is_the_reference(backend, total, kind, mode):
    shapes = [(1031,), (0,), (6, 7, 2), (1,)]
    acc = at(backend, drawn(*shapes, seed=1, dtype=total))
    grads, weights = (at(backend, drawn(*shapes, seed=s, dtype=kind)) for s in (2, 3))
    weights = weights if mode == "product" else None
    expected = []
    for i, (a, g) in enumerate(zip(acc, grads, strict=True)):
        step = g.to(total) * weights[i].to(total) if weights else g.to(total)
        expected.append(a + (step if mode == "signed" else step.abs()))
    saliency_accum_(acc, grads, mode=mode, weights=weights)
    for a, b in zip(acc, expected, strict=True):
        assert torch.equal(a, b)


def test_saliency_of_strides_and_what_is_not_reached(backend):
    a, b, g = at(backend, drawn((8, 12), (12, 8), (12, 8), seed=5))
    expected = a.t() + g.abs()
    before = b.clone()
    saliency_accum_([a.t(), b], [g, None], mode="abs")
    assert torch.equal(a.t(), expected)
    assert torch.equal(b, before)
    saliency_accum_([], [])


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"mode": "max"}, ValueError, "mode: expected one of"),
        ({"grads": [torch.ones(2)]}, ValueError, "grads: expected 2 entries"),
        ({"grads": [torch.ones(2), torch.ones(4)]}, ValueError, r"grads\[1\]: expected shape"),
        ({"mode": "product"}, ValueError, "weights: expected tensors"),
        ({"weights": [torch.ones(2), torch.ones(3)]}, ValueError, "weights: expected tensors"),
        ({"acc": [torch.ones(2), torch.ones(3).half()]}, TypeError, r"acc\[1\].dtype: expected"),
    ],
)
def test_saliency_refuses(change, kind, words):
    acc = [torch.ones(2), torch.ones(3)]
    given = {"acc": acc, "grads": [torch.ones(2), torch.ones(3)]} | change
    before = [t.clone() for t in given["acc"]]
    with pytest.raises(kind, match=words):
        saliency_accum_(**given)
    assert all(torch.equal(a, b) for a, b in zip(given["acc"], before, strict=True))


# ---- masked Adam -----------------------------------------------------------------------------------------


def training(dtype: torch.dtype, states: torch.dtype, device: torch.device) -> dict[str, list[Tensor]]:
    shapes = [(1031,), (0,), (6, 7, 2), (64,), (1,)]
    names = ("params", "grads", "exp_avgs")
    made = {name: drawn(*shapes, seed=i, dtype=dtype) for i, name in enumerate(names)}
    made["exp_avgs"] = [m.to(states) for m in made["exp_avgs"]]
    made["exp_avg_sqs"] = [m.square() for m in made["exp_avgs"]]
    made["masks"] = topk_mask(drawn(*shapes, seed=7), 0.4)
    return {name: [t.to(device) for t in tensors] for name, tensors in made.items()}


@pytest.mark.parametrize(
    ("dtype", "states"),
    [(torch.float32,) * 2, (torch.float64,) * 2, *((h, s) for h in HALVES for s in (h, torch.float32))],
    ids=str,
)
def test_adam_is_the_reference_to_the_bit(backend, dtype, states):
    ours, theirs = (training(dtype, states, backend.device) for _ in range(2))
    for step in (1, 2, 3):
        options = {"step": step, "lr": 0.01, "weight_decay": 0.1}
        masked_adam_(*ours.values(), **options)
        with tenfold.use_backend("reference"):
            masked_adam_(*theirs.values(), **options)
    for name, tensors in ours.items():
        for a, b in zip(tensors, theirs[name], strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_masked_weights_and_moments_keep_every_bit(backend, dtype):
    given = training(dtype, dtype, backend.device)
    before = {name: [t.clone() for t in tensors] for name, tensors in given.items()}
    for step in range(1, 11):
        masked_adam_(*given.values(), step=step, lr=0.05, weight_decay=0.3)
    moved = 0
    for i, mask in enumerate(given["masks"]):
        live = erase_reference.unpacked(mask, given["params"][i])
        for name in ("params", "exp_avgs", "exp_avg_sqs"):
            new, old = given[name][i], before[name][i]
            kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[new.element_size()]
            assert torch.equal(new.view(kind)[~live], old.view(kind)[~live])
        moved += int((given["params"][i] != before["params"][i]).sum())
        assert bool((given["params"][i] != before["params"][i])[live].float().mean().nan_to_num(1) > 0.9)
    assert moved > 300


def test_adam_with_full_masks_is_torchs_adamw(backend):
    given = training(torch.float64, torch.float64, backend.device)
    for name in ("exp_avgs", "exp_avg_sqs"):
        given[name] = [torch.zeros_like(t) for t in given[name]]
    given["masks"] = [torch.full_like(m, 255) for m in given["masks"]]
    mine = [p.clone().requires_grad_() for p in given["params"]]
    theirs = torch.optim.AdamW(mine, lr=0.02, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)
    for step in range(1, 6):
        masked_adam_(*given.values(), step=step, lr=0.02, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6)
        for p, g in zip(mine, given["grads"], strict=True):
            p.grad = g.clone()
        theirs.step()
    for a, b in zip(given["params"], mine, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-12, atol=1e-12)


def test_adam_with_empty_masks_changes_nothing(backend):
    given = training(torch.float32, torch.float32, backend.device)
    given["masks"] = [torch.zeros_like(m) for m in given["masks"]]
    before = [t.clone() for name in ("params", "exp_avgs", "exp_avg_sqs") for t in given[name]]
    masked_adam_(*given.values(), step=1, lr=1.0, weight_decay=0.5)
    after = [t for name in ("params", "exp_avgs", "exp_avg_sqs") for t in given[name]]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_adam_of_strides(backend):
    (base, grad) = at(backend, drawn((12, 20), (20, 12), seed=3))
    params = [base.t()[::2], base.clone().t()[::2]]
    other = [params[1].contiguous()]
    mask = at(backend, topk_mask([torch.arange(120.0)], 0.5))
    states = [[torch.zeros(12, 20, device=backend.device).t()[::2]] for _ in range(2)]
    plain = [[torch.zeros(10, 12, device=backend.device)] for _ in range(2)]
    masked_adam_(params[:1], [grad[::2]], *states, mask, step=1, lr=0.1)
    masked_adam_(other, [grad[::2].contiguous()], *plain, mask, step=1, lr=0.1)
    assert torch.equal(params[0], other[0])
    assert torch.equal(states[1][0], plain[1][0])


def test_adam_does_not_depend_on_threads(set_threads):
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        params, grads = (drawn((300_007,), seed=s) for s in (1, 2))
        moments = [[torch.zeros(300_007)] for _ in range(2)]
        masked_adam_(params, grads, *moments, topk_mask(grads, 0.5), step=1, lr=0.1)
        found.append(params[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"step": 0}, ValueError, "step: expected"),
        ({"lr": -1.0}, ValueError, "lr: expected"),
        ({"beta1": 1.0}, ValueError, "beta1: expected"),
        ({"eps": math.nan}, ValueError, "eps: expected"),
        ({"grads": [torch.ones(3)]}, ValueError, r"grads\[0\]: expected shape"),
        ({"grads": [torch.ones(9).double()]}, TypeError, r"grads\[0\].dtype: expected"),
        ({"exp_avgs": [torch.ones(9).half()]}, TypeError, r"exp_avgs\[0\].dtype: expected"),
        ({"exp_avg_sqs": [torch.ones(9).double()]}, TypeError, r"exp_avg_sqs\[0\].dtype: expected"),
        ({"masks": [torch.zeros(1, dtype=torch.uint8)]}, ValueError, r"masks\[0\]: expected shape"),
        ({"masks": [torch.zeros(2)]}, TypeError, r"masks\[0\]: expected dtype uint8"),
        ({"masks": []}, ValueError, "masks: expected 1 entries"),
        ({"params": [torch.ones(9, requires_grad=True)]}, RuntimeError, r"params\[0\]: expected"),
    ],
)
def test_adam_refuses(change, kind, words):
    given = {name: [torch.ones(9)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")}
    given |= {"masks": [torch.full((2,), 255, dtype=torch.uint8)], "step": 1, "lr": 0.1} | change
    with pytest.raises(kind, match=words):
        masked_adam_(**given)
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        assert all(bool((t == 1).all()) for t in given[name])


def test_adam_refuses_shared_memory():
    x = torch.ones(9)
    mask = [torch.zeros(2, dtype=torch.uint8)]
    with pytest.raises(ValueError, match="shares memory with params"):
        masked_adam_([x], [torch.ones(9)], [x], [torch.ones(9)], mask, step=1, lr=0.1)


# ---- attention columns -----------------------------------------------------------------------------------


def attention(n: int, length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    q, k = drawn((2, 3, n, 10), (2, 3, length, 10), seed=n, dtype=dtype)
    mask = torch.zeros(2, length, dtype=torch.bool)
    mask[0, ::3] = True
    mask[1, length // 2 :] = True  # each picture's own
    return q, k, mask


def plain(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    p = (q @ k.mT * scale).softmax(-1)
    return (p * mask[:, None, None, :]).square().sum()


SIZES = [(1, 1), (5, 7), (70, 77), (33, 150)]


@pytest.mark.parametrize(("n", "length"), SIZES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_columns_and_their_gradients(backend, n, length, dtype):
    q, k, mask = attention(n, length, dtype)
    exact = [t.double().requires_grad_() for t in (q, k)]
    expected = plain(*exact, mask, 10**-0.5)
    (3 * expected).backward()
    ours = [t.to(backend.device).requires_grad_() for t in (q, k)]
    found = attn_column_norm(*ours, mask.to(backend.device))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (3 * found).backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert abs(found.item() - expected.item()) <= max(tolerance / 10, 1e-13) * expected.item()
    for a, b in zip(ours, exact, strict=True):
        assert a.grad.dtype == dtype
        limit = tolerance * b.grad.abs().max().item() + 1e-15
        assert (a.grad.cpu().double() - b.grad).abs().max() <= limit


def test_columns_belong_to_their_picture(backend):
    """Heads are the inner index of the batch: a mask that is repeated head-major mixes pictures up."""
    q, k, mask = (t.to(backend.device) for t in attention(9, 12))
    whole = attn_column_norm(q, k, mask)
    parts = sum(attn_column_norm(q[b : b + 1], k[b : b + 1], mask[b : b + 1]) for b in range(2))
    assert whole.item() == pytest.approx(parts.item(), rel=1e-12)
    wrong = (q @ k.mT * 10**-0.5).softmax(-1).flatten(0, 1) * mask.repeat(3, 1)[:, None]
    assert abs(whole.item() - wrong.square().sum().item()) > 1e-2


def test_columns_of_strides_scale_and_one_gradient(backend):
    q, k, mask = (t.to(backend.device) for t in attention(20, 30))
    rows = q.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()  # [B, n, heads, dk] underneath
    found = attn_column_norm(rows, k, mask, 0.7)
    assert found.item() == pytest.approx(plain(q, k, mask, 0.7).item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(found, rows)
    leaf = q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(plain(leaf, k, mask, 0.7), leaf)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    assert attn_column_norm(q, k, torch.zeros_like(mask)).item() == 0
    everything = attn_column_norm(q * 1e3, k * 1e3, torch.ones_like(mask))  # scores far beyond exp
    assert everything.item() == pytest.approx(2 * 3 * 20, rel=1e-6)


def test_columns_are_differentiated_once():
    q, k, mask = attention(4, 5)
    q.requires_grad_()
    (gradient,) = torch.autograd.grad(attn_column_norm(q, k, mask), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"q": torch.ones(2, 3, 4)}, ValueError, "q: expected shape"),
        ({"k": torch.ones(2, 2, 5, 10)}, ValueError, "k: expected shape"),
        ({"k": torch.ones(2, 3, 5, 10).half()}, TypeError, "k.dtype: expected"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, ValueError, "mask: expected shape"),
        ({"mask": torch.ones(2, 5)}, TypeError, "mask: expected dtype bool"),
        ({"scale": math.inf}, ValueError, "scale: expected"),
    ],
)
def test_columns_refuse(change, kind, words):
    given = {"q": torch.ones(2, 3, 4, 10), "k": torch.ones(2, 3, 5, 10)}
    given |= {"mask": torch.ones(2, 5, dtype=torch.bool)} | change
    with pytest.raises(kind, match=words):
        attn_column_norm(**given)


# ---- as ops of PyTorch -----------------------------------------------------------------------------------


def test_opcheck():
    x = drawn((30,), (5, 9))
    check = torch.library.opcheck
    ops = torch.ops.tenfold
    check(ops.abs_select.default, (x, 40))
    out = [torch.zeros(4, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)]
    check(ops.topk_bits_.default, (out, x, 0.5, 0, 0, True))
    check(ops.saliency_accum_.default, ([t.clone() for t in x], x, [], "abs"))
    given = training(torch.float32, torch.float32, torch.device("cpu"))
    check(ops.masked_adam_.default, (*given.values(), [0.99, 0.1, 0.999, 1e-3, 1.0, 1e-8, 0.01]))
    q, k, mask = attention(6, 7)
    check(ops.attn_column_norm.default, (q.requires_grad_(), k.requires_grad_(), mask, 0.3))


def test_gradcheck():
    q, k, mask = attention(5, 7)
    assert torch.autograd.gradcheck(
        lambda a, b: attn_column_norm(a, b, mask), (q.requires_grad_(), k.requires_grad_())
    )


def test_compiles_whole():
    q, k, mask = attention(6, 7, torch.float32)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(a: Tensor, b: Tensor) -> Tensor:
        return attn_column_norm(a, b, mask).sqrt()

    a, b = (t.clone().requires_grad_() for t in (q, k))
    loss(a, b).backward()
    expected = [t.clone().requires_grad_() for t in (q, k)]
    attn_column_norm(*expected, mask).sqrt().backward()
    torch.testing.assert_close(a.grad, expected[0].grad)
    torch.testing.assert_close(b.grad, expected[1].grad)

"""Unified Concept Editing against its normal equations in float64, and merges of low-rank factors."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from tenfold.ops import UceEdit, lowrank_apply_, uce_apply, uce_apply_, uce_edit

SCALES = {"lam": 0.1, "erase_scale": 1.0, "retain_scale": 0.1}


def rows(count: int, d: int = 48, seed: int = 0) -> Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def world(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """W [64, 48], C_o and C_n [14, 48], C_keep [108, 48]."""
    return tuple(
        t.to(dtype) for t in (rows(64, seed=1), rows(14, seed=2), rows(14, seed=3), rows(108, seed=4))
    )


def normal_equations(
    w: Tensor,
    old: Tensor,
    new: Tensor,
    keep: Tensor,
    blocks: tuple[int, ...] | None = None,
    *,
    lam: float,
    erase_scale: float,
    retain_scale: float,
) -> Tensor:
    """The closed form as it stands in the paper, solved densely; `blocks` for technique "tensor"."""
    w, old, new, keep = (t.double() for t in (w, old, new, keep))
    values = new @ w.T
    if blocks is not None:
        for first, last in pairwise(blocks):
            before = old[first:last] @ w.T
            unit = before / before.norm()
            values[first:last] -= (unit * values[first:last]).sum() * unit
    left = lam * w + erase_scale * values.T @ old + retain_scale * (w @ keep.T) @ keep
    right = lam * torch.eye(w.shape[1]).double() + erase_scale * old.T @ old + retain_scale * keep.T @ keep
    return torch.linalg.solve(right, left.T).T


@pytest.mark.parametrize(("lam", "se", "sp"), [(1, 0.05, 0.1), (0.1, 1, 0.1), (10, 0.01, 0.1), (1e-3, 5, 0)])
def test_edit_is_the_normal_equations(lam, se, sp):
    w, old, new, keep = world()
    scales = {"lam": lam, "erase_scale": se, "retain_scale": sp}
    expected = normal_equations(w, old, new, keep, **scales)
    edited = w.clone()
    change = uce_apply_([edited], uce_edit(old, new, keep, **scales))
    assert (edited - expected).abs().max() <= 1e-10 * expected.abs().max()
    assert change.largest == pytest.approx((expected - w).abs().max().item(), rel=1e-9)
    assert change.norms == pytest.approx([(expected - w).norm().item()], rel=1e-9)
    single = w.float()
    uce_apply_([single], uce_edit(*(t.float() for t in (old, new, keep)), **scales))
    exact = normal_equations(w.float(), old.float(), new.float(), keep.float(), **scales)
    assert (single.double() - exact).abs().max() <= 2e-6 * exact.abs().max()


@pytest.mark.parametrize("blocks", [(0, 14), (0, 5, 9, 14)])
def test_tensor_technique_is_the_normal_equations(blocks):
    w, old, new, keep = world()
    edit = uce_edit(old, new, keep, technique="tensor", block_ptr=blocks, **SCALES)
    expected = normal_equations(w, old, new, keep, blocks, **SCALES)
    (edited,) = uce_apply([w], edit)
    assert (edited - expected).abs().max() <= 1e-10 * expected.abs().max()
    (half,) = uce_apply([w.to(torch.bfloat16)], edit.to(torch.float32))
    exact = normal_equations(w.to(torch.bfloat16), old, new, keep, blocks, **SCALES)
    assert (half.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


def test_many_erased_rows_go_by_the_product():
    """With 2 m > d one product with D^T R takes fewer operations than two with the factors."""
    w, keep = rows(64, seed=1), rows(108, seed=4)
    old, new = rows(30, seed=5), rows(30, seed=6)
    (edited,) = uce_apply([w], uce_edit(old, new, keep, **SCALES))
    expected = normal_equations(w, old, new, keep, **SCALES)
    assert (edited - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_equal_rows_change_no_bit():
    w, old, _, keep = world(torch.float32)
    before = w.clone()
    change = uce_apply_([w], uce_edit(old, old, keep, **SCALES))
    assert torch.equal(w, before)
    assert change.largest == 0


def test_nothing_erased_changes_no_bit():
    w, old, new, keep = world(torch.float16)
    before = w.clone()
    edit = uce_edit(old[:0], new[:0], keep, **SCALES)
    uce_apply_([w], edit)
    assert torch.equal(w, before)
    assert edit.nbytes == 0


def test_repeated_rows_and_merged_rows():
    w, old, new, keep = world()
    twice = uce_edit(torch.cat([old, old]), torch.cat([new, new]), keep, **SCALES)
    heavier = uce_edit(old, new, keep, **(SCALES | {"erase_scale": 2 * SCALES["erase_scale"]}))
    assert torch.allclose(uce_apply([w], twice)[0], uce_apply([w], heavier)[0], rtol=1e-9, atol=1e-11)
    counts = torch.tensor([1.0, 2.0, 3.0] * 36)
    merged = uce_edit(old, new, keep, keep_weights=counts, **SCALES)
    spread = uce_edit(old, new, keep.repeat_interleave(counts.long(), 0), **SCALES)
    assert torch.allclose(merged.right, spread.right, rtol=1e-9, atol=1e-12)


def test_what_is_kept_moves_less_as_it_weighs_more():
    w, old, new, keep = world()
    keep = keep[:20]
    left = [
        ((uce_apply([w], uce_edit(old, new, keep, **(SCALES | {"retain_scale": s})))[0] - w) @ keep.T).norm()
        for s in (0.0, 0.1, 1.0, 10.0, 1e3, 1e6)
    ]
    assert all(a > b for a, b in pairwise(left))
    assert left[-1] < 1e-4 * (w @ keep.T).norm()


def test_half_precision_weights_with_outliers():
    """Embeddings as CLIP's, +28 and -33 in the first token's rows: at most one ulp from float64."""
    d, prompts, draw = 96, 957, torch.Generator().manual_seed(0)
    first = torch.randn(d, generator=draw)
    first[5], first[60] = 28.0, -33.0
    keep = torch.randn(prompts, 5, d, generator=draw)
    keep[:, 0] = first
    keep = keep.flatten(0, 1).half()
    old, new = (torch.randn(40, d, generator=draw).half() for _ in range(2))
    w = (0.03 * torch.randn(128, d, generator=draw)).half()
    scales = {"lam": 1.0, "erase_scale": 0.05, "retain_scale": 0.1}
    edit = uce_edit(old, new, keep, **scales).to(torch.float32)
    (edited,) = uce_apply([w], edit)
    exact = normal_equations(w, old, new, keep, **scales)
    ulp = torch.tensor(np.spacing(np.abs(exact.half().numpy())).astype(np.float64))
    assert ((edited.double() - exact).abs() <= ulp).all()
    assert edit.nbytes == 2 * 40 * d * 4


def test_matrices_of_any_shape_stride_and_dtype():
    _, old, new, keep = world()
    edit = uce_edit(old, new, keep, **SCALES)
    big = rows(5000, seed=9).float()
    wide = torch.zeros(48, 7, dtype=torch.float64).copy_(rows(7, seed=8).T).t()
    weights = [big, wide, rows(3, seed=7).to(torch.bfloat16), torch.empty(0, 48)]
    expected = [normal_equations(w, old, new, keep, **SCALES) for w in weights]
    change = uce_apply_(weights, edit)
    limits = (2e-6, 1e-10, 2**-8, 0)
    for w, exact, limit in zip(weights, expected, limits, strict=True):
        if len(w):
            assert (w.double() - exact).abs().max() <= limit * exact.abs().max()
    assert len(change.norms) == 4
    assert change.norms[3] == 0


def test_scale_is_a_share_of_the_edit():
    w, old, new, keep = world()
    edit = uce_edit(old, new, keep, **SCALES)
    (whole,), (half,) = uce_apply([w], edit), uce_apply([w], edit, scale=0.5)
    assert torch.allclose(half - w, (whole - w) / 2, rtol=1e-9, atol=1e-13)


def test_arrays_come_back_as_arrays():
    w, old, new, keep = (t.numpy() for t in world(torch.float32))
    before = w.copy()
    (edited,) = uce_apply([w], uce_edit(old, new, keep, **SCALES))
    assert isinstance(edited, np.ndarray)
    assert np.array_equal(w, before)
    uce_apply_([w], uce_edit(old, new, keep, **SCALES))
    assert np.array_equal(w, edited)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"new": rows(13)}, ValueError, "new: expected shape"),
        ({"keep": rows(5, 47)}, ValueError, "keep: expected 48 columns"),
        ({"old": rows(14)[0]}, ValueError, "old: expected rows"),
        ({"old": torch.ones(14, 48, dtype=torch.int64)}, TypeError, "old: expected"),
        ({"lam": -1.0}, ValueError, "lam: expected"),
        ({"erase_scale": math.nan}, ValueError, "erase_scale: expected"),
        ({"technique": "mean"}, ValueError, "technique: expected one of"),
        ({"block_ptr": (0, 9, 5, 14)}, ValueError, "block_ptr: expected integers that rise"),
        ({"block_ptr": (0, 5)}, ValueError, "block_ptr: expected"),
        ({"keep_weights": torch.ones(3)}, ValueError, "keep_weights: expected shape"),
        ({"keep_weights": -torch.ones(108)}, ValueError, "keep_weights: expected numbers >= 0"),
        ({"keep": rows(108) * math.inf}, ValueError, "keep: expected finite numbers"),
        ({"lam": 0.0, "keep": rows(9)}, RuntimeError, "lam: expected a positive definite system"),
    ],
)
def test_edit_refuses(change, kind, words):
    _, old, new, keep = world()
    with pytest.raises(kind, match=words):
        uce_edit(**({"old": old, "new": new, "keep": keep} | SCALES | change))


def test_apply_refuses_before_it_writes():
    w, old, new, keep = world()
    edit = uce_edit(old, new, keep, **SCALES)
    before = w.clone()
    with pytest.raises(ValueError, match=r"weights\[1\]: expected shape \[out, 48\]"):
        uce_apply_([w, rows(5, 47)], edit)
    with pytest.raises(ValueError, match="shares memory"):
        uce_apply_([w, w[3:]], edit)
    with pytest.raises(TypeError, match="edit: expected a UceEdit"):
        uce_apply_([w], (edit.right, edit.left))
    with pytest.raises(RuntimeError, match="requires grad"):
        uce_apply_([w.clone().requires_grad_()], edit)
    assert torch.equal(w, before)


def test_pivot_tells_a_system_that_is_hardly_posed():
    _, old, new, keep = world()
    well = uce_edit(old, new, keep, **SCALES)
    badly = uce_edit(old, new, keep[:5], lam=1e-9, erase_scale=1.0, retain_scale=0.1)
    assert isinstance(well, UceEdit)
    assert well.pivot > 0.1
    assert 0 < badly.pivot < 1e-6


# ---- low-rank merges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rank", [1, 4, 70])
def test_merge_is_one_rounding_of_the_exact_sum(dtype, rank):
    linear, conv = rows(300, 40, seed=1).to(dtype), rows(24, 90, seed=2).to(dtype).view(24, 10, 3, 3)
    down = [rows(rank, 40, seed=3), rows(rank, 90, seed=4).view(rank, 10, 3, 3)]
    up = [rows(300, rank, seed=5), rows(24, rank, seed=6).view(24, rank, 1, 1)]
    exact = [
        w.double() + 0.25 * (u.flatten(1) @ d.flatten(1)).view(w.shape)
        for w, d, u in zip((linear, conv), down, up, strict=True)
    ]
    merged = [linear.clone(), conv.clone(memory_format=torch.channels_last)]
    lowrank_apply_(merged, down, up, scale=0.25)
    for got, want in zip(merged, exact, strict=True):
        ulp = torch.finfo(dtype).eps * want.abs().max()
        assert (got.double() - want).abs().max() <= {torch.float64: 8, torch.float32: 4}.get(
            dtype, 0.51
        ) * ulp


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_undoing_comes_back_within_an_ulp(dtype):
    w = rows(500, 64, seed=1).to(dtype)
    down, up = rows(4, 64, seed=2).float(), rows(500, 4, seed=3).float()
    merged = w.clone()
    lowrank_apply_([merged], [down], [up], scale=0.3)
    assert not torch.equal(merged, w)
    back = merged.clone()
    lowrank_apply_([back], [down], [up], scale=-0.3)
    larger = torch.maximum(w.abs(), merged.abs()).double()
    ulp = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(larger))
    assert ((back.double() - w.double()).abs() <= ulp).all()


@pytest.mark.parametrize(
    ("downs", "ups", "words"),
    [
        ([torch.ones(2, 5)], [torch.ones(3, 2)], r"downs\[0\]: expected shape \[r, \*\[4\]\]"),
        ([torch.ones(2, 4)], [torch.ones(3, 1)], r"ups\[0\]: expected shape \[3, 2\]"),
        ([torch.ones(2, 4)], [torch.ones(3, 2, 2)], r"ups\[0\]: expected shape"),
        ([torch.ones(0, 4)], [torch.ones(3, 0)], r"downs\[0\]: expected"),
        ([], [], "downs: expected 1 entries"),
    ],
)
def test_merge_refuses(downs, ups, words):
    w = torch.ones(3, 4)
    with pytest.raises(ValueError, match=words):
        lowrank_apply_([w], downs, ups)
    assert bool((w == 1).all())

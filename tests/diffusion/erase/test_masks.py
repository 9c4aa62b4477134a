"""Saliency, masks of one bit per weight, Adam that leaves masked weights alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tenfold.diffusion.erase.masks import (
    MaskedAdam,
    abs_quantile,
    mask_density,
    masked_adam_,
    saliency_accum_,
    topk_mask,
    unpack_mask,
)


def tensors(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=generator) for shape in ((5, 7), (11,), (3, 2, 2))]
    found[0][0, :3] = 0
    found[1][:4] = 0.5  # ties
    return found


@pytest.mark.parametrize("q", [0.01, 0.2, 0.4, 0.5, 0.97, 1.0])
def test_the_threshold_is_numpy_s(q):
    values = np.concatenate([t.abs().numpy().ravel() for t in tensors()])
    k = max(round(q * len(values)), 1)
    with pytest.warns(UserWarning, match="threshold is 0") if q > 0.9 else _nothing():
        threshold, count = abs_quantile(tensors(), q)
    assert threshold == np.sort(values)[::-1][k - 1]
    assert count == (values >= threshold).sum() >= k


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


@pytest.mark.parametrize("q", [0.0, 0.1, 0.4, 0.5, 1.0])
def test_masks_choose_the_largest_and_exactly_as_many_as_asked(q):
    """The published mask marks the lowest gradients: its ranks rise where the paper's fall."""
    given = tensors()
    masks = topk_mask(given, q)
    chosen = torch.cat([unpack_mask(m, t).flatten() for m, t in zip(masks, given, strict=True)])
    values = torch.cat([t.abs().flatten() for t in given])
    assert int(chosen.sum()) == round(q * len(values))
    assert mask_density(masks, given) == pytest.approx(q, abs=1 / len(values))
    if 0 < q < 1:
        assert values[chosen].min() >= values[~chosen].max()
        low = topk_mask(given, q, largest=False)
        small = torch.cat([unpack_mask(m, t).flatten() for m, t in zip(low, given, strict=True)])
        assert values[small].max() <= values[~small].min()
    assert [m.numel() for m in masks] == [5, 2, 2]  # one bit per weight


def test_masks_refuse_what_has_no_order():
    with pytest.raises(ValueError, match="tensors: expected finite values, got NaN"):
        topk_mask([torch.tensor([1.0, torch.nan])], 0.5)
    with pytest.raises(ValueError, match="tensors: expected at least one weight, got none"):
        abs_quantile([], 0.5)
    with pytest.raises(ValueError, match=r"q: expected a share in \[0, 1\], got 1.5"):
        topk_mask(tensors(), 1.5)
    with pytest.raises(ValueError, match=r"mask: expected uint8 \[2\], got torch.uint8 \[1\]"):
        unpack_mask(torch.zeros(1, dtype=torch.uint8), torch.zeros(9))
    assert topk_mask([], 0.5) == []


def test_signed_gradients_cancel_and_magnitudes_do_not():
    grads = [torch.tensor([1.0, -2.0]), None]
    signed, plain = ([torch.zeros(2), torch.ones(1)] for _ in range(2))
    for sign in (1, -1):
        saliency_accum_(signed, [sign * grads[0], None])
        saliency_accum_(plain, [sign * grads[0], None], mode="abs")
    assert signed[0].tolist() == [0, 0]
    assert plain[0].tolist() == [2, 4]
    assert signed[1].tolist() == plain[1].tolist() == [1]
    with pytest.raises(ValueError, match=r"grads\[0\]: expected \[2\], got \[3\]"):
        saliency_accum_(signed, [torch.zeros(3), None])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_masked_adam_moves_chosen_weights_as_adam_and_no_other_bit(decay):
    start = tensors()
    free = [torch.nn.Parameter(t.clone()) for t in start]
    ours = [torch.nn.Parameter(t.clone()) for t in start]
    masks = topk_mask(start, 0.4)
    plain = torch.optim.AdamW(free, lr=0.03, weight_decay=decay)
    masked = MaskedAdam(ours, masks, lr=0.03, weight_decay=decay)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        for a, b in zip(free, ours, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        plain.step()
        masked.step()
    for before, a, b, bits in zip(start, free, ours, masks, strict=True):
        keep = unpack_mask(bits, before)
        torch.testing.assert_close(b[keep], a[keep])
        assert torch.equal(b[~keep], before[~keep])
        assert not masked.state[b]["exp_avg"][~keep].any()
    assert all(not torch.equal(b, t) for b, t in zip(ours, start, strict=True))


def test_masked_adam_takes_lists():
    params, grads = tensors(), tensors(1)
    means, squares = ([torch.zeros_like(p) for p in params] for _ in range(2))
    full = topk_mask(params, 1.0)
    masked_adam_(params, grads, means, squares, full, step=1, lr=0.1)
    for p, before, g in zip(params, tensors(), grads, strict=True):
        torch.testing.assert_close(p, before - 0.1 * g.sign())

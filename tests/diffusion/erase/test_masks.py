"""Saliency, masks of one bit per weight, Adam that leaves masked weights alone."""

from __future__ import annotations

import pytest
import torch

from tenfold.diffusion.erase.masks import MaskedAdam, mask_density, unpack_mask
from tenfold.ops import topk_mask


def tensors(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(shape, generator=generator) for shape in ((5, 7), (11,), (3, 2, 2))]
    found[0][0, :3] = 0
    found[1][:4] = 0.5  # ties
    return found


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


def test_bits_of_another_number_of_weights_are_refused():
    with pytest.raises(ValueError, match=r"mask: expected uint8 \[2\], got torch.uint8 \[1\]"):
        unpack_mask(torch.zeros(1, dtype=torch.uint8), torch.zeros(9))


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

"""The digital bound: successive cancellation by definition, the best JPEG that fits."""

from __future__ import annotations

import math

import pytest
import torch

from tenfold.semcom.digital import QUALITIES, capacity_bits, capacity_bound_jpeg, jpeg_ladder


def test_the_stronger_user_is_decoded_first() -> None:
    gains = torch.tensor([[2.0, 0.5], [1.0, 3.0]]).to(torch.complex64).view(1, 1, 2, 2)
    bits = capacity_bits(gains, (0.6, 0.4), torch.tensor([0.1]))
    a, b = 0.6 * 4, 0.4 * 1  # subcarrier 0: user 1 first
    c, d = 0.6 * 0.25, 0.4 * 9  # subcarrier 1: user 2 first
    first = math.log2(1 + a / (b + 0.1)) + math.log2(1 + c / 0.1)
    second = math.log2(1 + b / 0.1) + math.log2(1 + d / (c + 0.1))
    assert bits[0].tolist() == pytest.approx([first, second], rel=1e-5)
    total = math.log2(1 + (a + b) / 0.1) + math.log2(1 + (c + d) / 0.1)
    assert float(bits.sum()) == pytest.approx(total, rel=1e-5)  # the sum capacity, whatever the order


def test_the_best_jpeg_that_fits() -> None:
    pytest.importorskip("PIL")
    draw = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8, generator=draw), scale_factor=4)[None]
    images = (images * 255).round() / 255
    ladder = jpeg_ladder((images[0, 0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    sizes = [size for size, _ in ladder]
    assert len(ladder) == len(QUALITIES)
    assert sizes[0] < sizes[-1]

    def error(bits: float) -> float:
        return float((capacity_bound_jpeg(images, torch.tensor([[bits]])) - images).square().mean())

    assert error(1e9) < error(sizes[5]) < error(sizes[0])
    lost = capacity_bound_jpeg(images, torch.tensor([[sizes[0] - 1.0]]))
    assert torch.allclose(lost, images.mean().expand_as(lost))

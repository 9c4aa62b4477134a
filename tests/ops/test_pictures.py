"""Resizing against Pillow and PyTorch, statistics of feature maps, counts of judged answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.ops import adain_style_loss, answer_counts, channel_stats, gram, resize_antialias


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = [
    (37, 53, 19, 20),
    (37, 53, 80, 91),
    (64, 48, 64, 20),
    (64, 48, 31, 48),
    (5, 7, 1, 1),
    (1, 1, 3, 4),
    (130, 70, 29, 69),
    (90, 60, 30, 70),
    (64, 48, 32, 24),
]


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", SIZES)
def test_is_pillow(filter: str, size: tuple[int, int, int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    how = {"bilinear": image.Resampling.BILINEAR, "bicubic": image.Resampling.BICUBIC}[filter]
    x, to = picture(*size[:2]), size[2:]
    expected = np.asarray(image.fromarray(x).resize(to[::-1], how)).transpose(2, 0, 1)
    found = resize_antialias(torch.from_numpy(x), to, filter=filter)
    assert found.dtype == torch.float32
    # Pillow's order of the passes depends on its version and the sizes; turning the picture turns the order
    turned = torch.from_numpy(x).transpose(0, 1)
    columns_first = resize_antialias(turned, to[::-1], filter=filter).transpose(1, 2)
    assert any(np.array_equal(ours.numpy(), expected) for ours in (found, columns_first))
    if to[0] >= size[0]:  # the height does not shrink: rows first in every version
        assert np.array_equal(found.numpy(), expected)
    planes = [image.fromarray(x[..., c].astype(np.float32)).resize(to[::-1], how) for c in range(3)]
    floats = resize_antialias(x, to, filter=filter, quantize=False)
    assert isinstance(floats, np.ndarray)
    assert np.abs(floats - np.stack([np.asarray(p) for p in planes])).max() < 1e-4


def test_legacy_modes() -> None:
    x = torch.from_numpy(picture(41, 29))
    planes = x.permute(2, 0, 1)[None].double()
    expected = F.interpolate(planes, (17, 33), mode="bilinear", align_corners=False)[0]
    found = resize_antialias(x, (17, 33), mode="cv2", quantize=False)
    assert float((found - expected).abs().max()) < 1e-4
    found = resize_antialias(x, (17, 33), mode="tf1", quantize=False)
    rows, columns = torch.arange(17) * (41 / 17), torch.arange(33) * (29 / 33)
    at = [v.long().clamp(max=n - 2) for v, n in ((rows, 41), (columns, 29))]
    down = (rows - at[0]).clamp(max=1.0)[:, None]
    along = (columns - at[1]).clamp(max=1.0)[None]
    corner = [[planes[0][:, at[0] + i][:, :, at[1] + j] for j in (0, 1)] for i in (0, 1)]
    top, below = (a * (1 - along) + b * along for a, b in corner)
    assert float((found - (top * (1 - down) + below * down)).abs().max()) < 1e-3


def test_batches_strides_and_bad_input() -> None:
    x = torch.from_numpy(np.stack([picture(20, 30, s) for s in range(3)]))
    found = resize_antialias(x, (8, 9))
    assert found.shape == (3, 3, 8, 9)
    strided = x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    assert torch.equal(resize_antialias(strided, (8, 9)), found)
    assert torch.equal(resize_antialias(x[1], (8, 9)), found[1])
    assert resize_antialias(x[:0], (8, 9)).shape == (0, 3, 8, 9)
    with pytest.raises(TypeError, match="x: expected dtype uint8"):
        resize_antialias(x.float(), (8, 9))
    with pytest.raises(ValueError, match="x: expected shape"):
        resize_antialias(x[0, 0], (8, 9))
    with pytest.raises(ValueError, match="size: expected"):
        resize_antialias(x, (0, 9))
    with pytest.raises(ValueError, match="mode: expected filter='bilinear'"):
        resize_antialias(x, (8, 9), mode="cv2")


def test_channel_stats_gram_and_style_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 4, s, 7, dtype=torch.float64, generator=draw).requires_grad_() for s in (5, 6))
    mean, deviation = channel_stats(x)
    assert torch.allclose(mean, x.mean((2, 3)))
    assert torch.allclose(deviation, (x.flatten(2).var(2) + 1e-5).sqrt())
    expected = torch.einsum("nihw,njhw->nij", x, x) / (4 * 5 * 7)
    assert torch.allclose(gram(x), expected)
    assert float(adain_style_loss(x, x).detach()) == 0.0
    assert torch.autograd.gradcheck(adain_style_loss, (x, y))
    assert channel_stats(x.detach().bfloat16())[0].dtype == torch.float32
    with pytest.raises(ValueError, match="two pixels"):
        channel_stats(x[..., :1, :1])
    with pytest.raises(ValueError, match="target: expected"):
        adain_style_loss(x, y[:, :3])
    with pytest.raises(ValueError, match="features: expected shape"):
        gram(x[0])


def judged() -> tuple[Tensor, Tensor, Tensor]:
    """Six styles, four objects, five pictures of each cell."""
    draw = torch.Generator().manual_seed(3)
    cells = torch.cartesian_prod(torch.arange(6), torch.arange(4)).repeat(5, 1)
    style, objects = (torch.randint(0, 3, (120, k), generator=draw).float() for k in (6, 4))
    return style, objects, cells


def test_answer_counts() -> None:
    style, objects, cells = judged()
    found = answer_counts(style, objects, cells)
    counts, seen = np.zeros((6, 4, 4), int), np.zeros((6, 6), int)
    for s, o, (i, j) in zip(style.tolist(), objects.tolist(), cells.tolist(), strict=True):
        a, b = s.index(max(s)), o.index(max(o))  # the first of equal ones
        counts[i, j] += [1, a == i, b == j, a == i and b == j]
        seen[i, a] += 1
    assert np.array_equal(found.counts.numpy(), counts)
    assert np.array_equal(found.style_confusion.numpy(), seen)
    assert torch.equal(found.object_confusion.sum(1), torch.full((4,), 30))
    assert torch.equal(found.counts[..., 0], torch.full((6, 4), 5))
    none = answer_counts(style[:0], objects[:0], cells[:0])
    assert int(none.counts.sum()) == 0


def test_answer_counts_bad_input() -> None:
    style, objects, cells = judged()
    names = [f"picture{i}.png" for i in range(120)]
    broken = objects.clone()
    broken[7, 2] = float("nan")
    with pytest.raises(ValueError, match=r"object_logits: expected numbers, got NaN for picture7\.png"):
        answer_counts(style, broken, cells, names=names)
    with pytest.raises(ValueError, match="row 7"):
        answer_counts(style, broken, cells)
    with pytest.raises(ValueError, match="cells: expected styles below 6"):
        answer_counts(style, objects, cells + 3)
    with pytest.raises(ValueError, match="style_logits: expected shape"):
        answer_counts(style[1:], objects, cells)
    with pytest.raises(ValueError, match="names: expected 120"):
        answer_counts(style, objects, cells, names=names[1:])


def test_names_may_be_an_array() -> None:
    cells = torch.zeros(2, 2, dtype=torch.int64)
    logits = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
    with pytest.raises(ValueError, match="NaN for b"):
        answer_counts(logits, torch.rand(2, 3), cells, names=np.array(["a", "b"]))


def test_a_call_on_the_meta_device_leaves_later_ones_alone() -> None:
    with torch.device("meta"):
        found = resize_antialias(torch.zeros(37, 23, 3, dtype=torch.uint8, device="cpu"), (17, 19))
    assert found.device.type == "cpu"
    x = torch.full((37, 23, 3), 7, dtype=torch.uint8)
    assert bool((resize_antialias(x, (17, 19)) == 7).all())


def test_pieces_change_nothing() -> None:
    x = torch.randint(256, (40, 16, 16, 3), dtype=torch.uint8)
    whole = resize_antialias(x, (96, 96))
    assert torch.equal(whole, torch.stack([resize_antialias(one, (96, 96)) for one in x]))

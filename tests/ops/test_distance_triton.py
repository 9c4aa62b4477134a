"""The Triton distance kernels in small: through the interpreter where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from tenfold.kernels.distance import distance_reference, kmeans

from tenfold._backend import why_not

NOTHING = torch.tensor([], dtype=torch.int64)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def module():
    reason = why_not("triton", DEVICE.type)
    if reason:
        pytest.skip(reason)
    from tenfold.kernels.distance import distance_triton

    return distance_triton


def draw(n, d, dtype=torch.float32, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("n", "m", "d", "k", "cosine", "dtype"),
    [
        (6, 5, 2, 1, False, torch.float32),
        (5, 40, 20, 3, True, torch.bfloat16),
        (3, 3, 300, 5, False, torch.float16),
        (2, 600, 3, 2, False, torch.float32),
    ],
)
def test_nearest(module, n, m, d, k, cosine, dtype):
    x, centers = draw(n, d, dtype), draw(m, d, seed=1)
    centers[2] = centers[1]
    for reduced in (False, True):
        index, nearest = module.assign([x.to(DEVICE)], centers.to(DEVICE), k, None, cosine, reduced)
        want_index, want = distance_reference.assign([x], centers, k, None, cosine)
        assert torch.equal(index.cpu(), want_index)
        torch.testing.assert_close(nearest.cpu(), want, rtol=2e-7, atol=0)


@pytest.mark.parametrize("cosine", [False, True])
def test_kcenter(module, cosine):
    x = draw(12, 5)
    x[10] = x[2]
    for start, picks, k in ((NOTHING, torch.tensor([7]), 12), (torch.tensor([5, 9]), NOTHING, 5)):
        got = module.kcenter([x.to(DEVICE)], k, start, picks, cosine, 4, True)
        want = distance_reference.kcenter([x], k, start, picks, cosine, 4, True)
        assert got.picked.tolist() == want.picked.tolist()
        assert got.owner.tolist() == want.owner.tolist()
        torch.testing.assert_close(got.radius.cpu(), want.radius, rtol=2e-7, atol=0)
        torch.testing.assert_close(got.distance.cpu(), want.distance, rtol=2e-7, atol=0)


def test_kmeans(module):
    x = draw(14, 3)
    init = x[:4].clone()
    want = kmeans.lloyd(distance_reference, [x], init, 1, 0.0)
    got = kmeans.lloyd(module, [x.to(DEVICE)], init.to(DEVICE), 1, 0.0)
    assert torch.equal(got.labels.cpu(), want.labels)
    torch.testing.assert_close(got.centers.cpu(), want.centers, rtol=1e-6, atol=1e-7)
    rows = kmeans.plusplus(module, [x.to(DEVICE)], 4, 3)
    assert rows.tolist() == kmeans.plusplus(distance_reference, [x], 4, 3).tolist()

"""The distance kernels on a GPU, or their CUDA source on the host, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tenfold.kernels.distance import distance_cuda, distance_reference, kmeans
from torch import Tensor

NOTHING = torch.tensor([], dtype=torch.int64)


@pytest.fixture
def on(gpu: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, torch.device]:
    """The module under test, and where its tensors live."""
    if gpu.name == "triton":
        from tenfold.kernels.distance import distance_triton

        return distance_triton, gpu.device
    if gpu.name == "emulated":
        built = request.getfixturevalue("emulated_cuda")
        monkeypatch.setattr(distance_cuda, "module", lambda device: (built, 0))
    return distance_cuda, gpu.device


SIZES = [(33, 5, 2, 1), (40, 70, 17, 3), (25, 90, 70, 32), (9, 3, 65, 5)]


def draw(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0, offset: float = 0.0) -> Tensor:
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + offset).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("n", "m", "d", "k"), [(33, 5, 2, 1), (40, 70, 17, 3), (25, 90, 70, 32), (9, 3, 65, 5)]
)
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
def test_nearest(
    on: Any, dtype: torch.dtype, n: int, m: int, d: int, k: int, cosine: bool, reduced: bool
) -> None:
    module, device = on
    x, centers = draw(n, d, dtype), draw(m, d, seed=1)
    index, nearest = module.assign([x.to(device)], centers.to(device), k, None, cosine, reduced)
    want_index, want = distance_reference.assign([x], centers, k, None, cosine)
    assert torch.equal(index.cpu(), want_index)
    torch.testing.assert_close(nearest.cpu(), want, rtol=2e-7, atol=0)


def test_nearest_of_some_rows_in_shards(on: Any) -> None:
    module, device = on
    x, centers = draw(60, 9, offset=50.0), draw(20, 9, seed=1, offset=50.0)
    rows = torch.tensor([59, 3, 17, 30, 29])
    pieces = [x[:18].to(device), x[18:].to(device)]
    index, nearest = module.assign(pieces, centers.to(device), 2, rows.to(device), False)
    want_index, want = distance_reference.assign([x[rows]], centers, 2, None, False)
    assert torch.equal(index.cpu(), want_index)
    torch.testing.assert_close(nearest.cpu(), want, rtol=2e-7, atol=0)


def test_ties(on: Any) -> None:
    module, device = on
    same = torch.ones(70, 9, device=device)
    index, nearest = module.assign([same[:5]], same, 3, None, False)
    assert index.tolist() == [[0, 1, 2]] * 5
    assert not nearest.any()
    index, _ = module.assign(
        [torch.zeros(2, 3, device=device)], torch.ones(0, 3, device=device), 2, None, False
    )
    assert index.tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_kcenter(on: Any, cosine: bool, dtype: torch.dtype) -> None:
    module, device = on
    x = draw(150, 19, dtype)
    x[100:110] = x[3:13]
    for start, picks, k, lookahead in (
        (NOTHING, torch.tensor([7]), 40, 8),
        (torch.tensor([5, 9, 100]), NOTHING, 30, 32),
        (NOTHING, torch.tensor([0]), 150, 64),
    ):
        got = module.kcenter([x[:40].to(device), x[40:].to(device)], k, start, picks, cosine, lookahead, True)
        want = distance_reference.kcenter([x], k, start, picks, cosine, lookahead, True)
        assert got.picked.tolist() == want.picked.tolist()
        assert got.owner.tolist() == want.owner.tolist()
        torch.testing.assert_close(got.radius.cpu(), want.radius, rtol=2e-7, atol=0)
        torch.testing.assert_close(got.distance.cpu(), want.distance, rtol=2e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kmeans(on: Any, dtype: torch.dtype) -> None:
    module, device = on
    x = draw(120, 7, dtype)
    init = x[:9].float()
    want = kmeans.lloyd(distance_reference, [x], init, 4, 0.0)
    pieces = [x[:50].to(device), x[50:].to(device)]
    got = kmeans.lloyd(module, pieces, init.to(device), 4, 0.0)
    assert torch.equal(got.labels.cpu(), want.labels)
    assert torch.equal(got.counts.cpu(), want.counts)
    torch.testing.assert_close(got.centers.cpu(), want.centers, rtol=1e-6, atol=1e-7)
    rows = kmeans.plusplus(module, pieces, 12, 5)
    assert rows.tolist() == kmeans.plusplus(distance_reference, [x], 12, 5).tolist()


def test_single_passes(on: Any) -> None:
    module, device = on
    x = draw(90, 6)
    point = distance_reference.mean([x], False)
    assert module.first_bad_row([x.to(device)]) == -1
    assert module.farthest_from([x.to(device)], point.to(device), False) == distance_reference.farthest_from(
        [x], point, False
    )
    x[41, 2] = torch.nan
    x[77, 0] = torch.inf
    assert module.first_bad_row([x[:30].to(device), x[30:].to(device)]) == 41


@pytest.mark.gpu
def test_large(real_gpu: Any) -> None:
    """Many blocks of rows, pools of the full size, and products with TF32 allowed."""
    import tenfold
    from tenfold.ops import kcenter_greedy, nn_assign

    x = draw(30000, 96).cuda()
    with tenfold.use_backend(real_gpu.name):
        found = [kcenter_greedy(x, 700, init=0), nn_assign(x, x[:900] + 0.1, 4)]
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            loose = [kcenter_greedy(x, 700, init=0), nn_assign(x, x[:900] + 0.1, 4, precision="bf16")]
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    host = [kcenter_greedy(x.cpu(), 700, init=0), nn_assign(x.cpu(), x.cpu()[:900] + 0.1, 4)]
    for want, got, other in zip(host, found, loose, strict=True):
        for a, b, c in zip(want, got, other, strict=True):
            if a.dtype == torch.float32:
                torch.testing.assert_close(b.cpu(), a, rtol=2e-7, atol=0)
            else:
                assert torch.equal(b.cpu(), a)
            assert torch.equal(b, c)

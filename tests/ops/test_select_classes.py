"""Medians, votes, masks and budgets: published values, brute force, invariants, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold._backend import OPS
from tenfold.ops import (
    class_mask,
    class_median_distance,
    class_vote,
    moderate_select,
    stratified_budget,
    topk_stable,
)


def written(backend, op: str) -> None:
    if backend.name not in OPS[op]:
        pytest.skip(f"{op} is not written for {backend.name}")


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    return found.data.astype(np.float32), found.target.astype(np.int64)


# ---- medians and the moderate coreset --------------------------------------------------------------------


def test_moderate_coreset_of_the_digits(backend, digits):
    written(backend, "class_median_distance")
    x, y = (torch.from_numpy(t).to(backend.device) for t in digits)
    medians, distances = class_median_distance(x, y, 10)
    exact = np.stack([np.median(digits[0][digits[1] == c], axis=0) for c in range(10)])
    assert np.array_equal(medians.cpu().numpy(), exact.astype(np.float32))
    assert distances.double().sum().item() == pytest.approx(47928.5191818, rel=1e-6)
    chosen = moderate_select(distances, y, 100).cpu()
    assert chosen.sum() == 85300
    assert chosen.sort().values[:10].tolist() == [43, 49, 52, 66, 70, 100, 113, 120, 122, 164]
    assert torch.bincount(y.cpu()[chosen]).tolist() == [10] * 10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (9, 5), (200, 17), (333, 70)])
def test_medians_are_numpy_s(backend, dtype, shape):
    written(backend, "class_median_distance")
    generator = torch.Generator().manual_seed(shape[0])
    x = (
        torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-3, 4, shape, generator=generator)
    ).to(dtype)
    x[: shape[0] // 2] = x[: shape[0] // 2].round()  # many equal values, zeros of both signs
    labels = torch.randint(4, (shape[0],), generator=generator)
    labels[labels == 2] = 3  # class 2 stays empty
    found = class_median_distance(x.to(backend.device), labels.to(backend.device), 4)
    plain = x.double() if dtype == torch.float64 else x.float()
    for c in range(4):
        own = plain[labels == c].numpy()
        if len(own):
            assert np.array_equal(found.medians[c].cpu().numpy(), np.median(own, axis=0)), c
        else:
            assert found.medians[c].isnan().all()
    want = (x.double() - found.medians.cpu().double()[labels]).norm(dim=1)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found.distances.cpu().double(), want, rtol=tolerance, atol=0)


def test_median_layouts(backend):
    written(backend, "class_median_distance")
    x = torch.randn(40, 30, generator=torch.Generator().manual_seed(2)).to(backend.device)
    labels = (torch.arange(40) % 3).to(backend.device)
    for view in (x[:, ::2], x[:, 3:], x.T.contiguous().T, x[:1].expand(40, 30)):
        got = class_median_distance(view, labels, 3)
        want = class_median_distance(view.contiguous(), labels, 3)
        assert torch.equal(got.medians, want.medians)
        torch.testing.assert_close(got.distances, want.distances, rtol=1e-6, atol=0)
    empty = class_median_distance(x[:0], labels[:0], 2)
    assert empty.medians.shape == (2, 30)
    assert empty.medians.isnan().all()
    assert empty.distances.shape == (0,)
    assert class_median_distance(x[:, :0], labels, 3).distances.tolist() == [0.0] * 40


def test_medians_of_constant_and_single(backend):
    written(backend, "class_median_distance")
    x = torch.tensor([[3.0, -0.0], [3.0, 0.0], [3.0, 5.0], [1.0, 1.0]], device=backend.device)
    labels = torch.tensor([0, 0, 0, 1], device=backend.device)
    found = class_median_distance(x, labels, 2)
    assert found.medians.tolist() == [[3.0, 0.0], [1.0, 1.0]]
    assert found.distances.tolist() == [0.0, 0.0, 5.0, 0.0]


def test_median_threads(set_threads):
    x = torch.randn(500, 90, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(500) % 7
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found.append(class_median_distance(x, labels, 7))
    for other in found[1:]:
        assert torch.equal(found[0].medians, other.medians)
        assert torch.equal(found[0].distances, other.distances)


def test_moderate_gives_what_was_asked():
    generator = torch.Generator().manual_seed(5)
    for _ in range(30):
        n, classes = 60, 5
        distances = torch.rand(n, generator=generator).mul(8).round()  # many ties
        labels = torch.randint(classes, (n,), generator=generator)
        sizes = torch.bincount(labels, minlength=classes)
        budget = int(torch.randint(classes, n + 1, (1,), generator=generator))
        chosen = moderate_select(distances, labels, budget)
        assert torch.bincount(labels[chosen], minlength=classes).tolist() == [
            min(budget // classes, int(s)) for s in sizes
        ]
        assert len(set(chosen.tolist())) == chosen.numel()
        whole = moderate_select(distances, None, budget)
        assert whole.numel() == budget
        order = sorted(range(n), key=lambda i: (float(distances[i]), i))
        low = (n - budget) // 2
        assert whole.tolist() == order[low : low + budget]
    assert torch.equal(moderate_select(distances, labels, 3), moderate_select(distances, None, 3))
    assert moderate_select(distances, labels, 0).shape == (0,)
    assert moderate_select(distances[:0], labels[:0], 0).shape == (0,)
    assert moderate_select(distances, None, n).numel() == n


@pytest.mark.parametrize(("asked", "n", "got"), [(5, 5000, 4), (1, 5000, 0), (1, 10, 2), (50, 47, 1)])
def test_rounding_of_the_published_code(asked, n, got):
    """What its windows hold, measured on it: rarely what was asked."""
    distances = torch.arange(float(max(n, asked)))[:n]
    if asked <= n:
        assert moderate_select(distances, None, asked, rounding="reference").numel() == got
        assert moderate_select(distances, None, asked).numel() == asked
    labels = torch.cat([torch.zeros(n), torch.ones(asked)]).long()
    both = torch.cat([distances, torch.arange(float(asked))])
    chosen = (
        moderate_select(both, labels, 2 * asked, rounding="reference") if 2 * asked <= n + asked else None
    )
    if chosen is not None:
        assert (labels[chosen] == 0).sum() == got
    exact = moderate_select(both, labels, min(2 * asked, n + asked))
    assert (labels[exact] == 0).sum() == min(min(2 * asked, n + asked) // 2, n)


def test_moderate_bad_input():
    distances, labels = torch.rand(6), torch.tensor([0, 0, 0, 2, 2, 2])
    for arguments, options, error, message in (
        ((distances, labels, 7), {}, ValueError, r"budget: expected an integer in \[0, 6\]"),
        ((distances, labels, -1), {}, ValueError, "budget"),
        ((distances, labels[:5], 2), {}, ValueError, "labels: expected shape"),
        (
            (distances, labels, 3),
            {"num_classes": 3},
            ValueError,
            "samples of every class, got none of class 1",
        ),
        ((distances, labels, 3), {"num_classes": 2}, ValueError, r"labels in \[0, 2\), got 2"),
        ((distances / 0 * 0, labels, 3), {}, ValueError, "distances: expected numbers, got nan at index 0"),
        ((distances, labels, 3), {"rounding": "even"}, ValueError, "rounding"),
        ((distances[None], labels, 3), {}, ValueError, r"distances: expected shape \[N\]"),
    ):
        with pytest.raises(error, match=message):
            moderate_select(*arguments, **options)


def test_median_bad_input(backend):
    written(backend, "class_median_distance")
    x = torch.rand(6, 4, device=backend.device)
    labels = torch.tensor([0, 0, 1, 1, 2, 2], device=backend.device)
    for bad in (torch.nan, torch.inf, -torch.inf):
        worse = x.clone()
        worse[[3, 5], 2] = bad
        with pytest.raises(ValueError, match=f"x: expected finite entries, got {bad} in row 3"):
            class_median_distance(worse, labels, 3)
    assert class_median_distance(worse, labels, 3, check=False).distances[0].isfinite()
    with pytest.raises(ValueError, match=r"labels in \[0, 2\), got 2 in row 4"):
        class_median_distance(x, labels, 2)
    with pytest.raises(ValueError, match="labels: expected shape"):
        class_median_distance(x, labels[:3], 3)
    with pytest.raises(ValueError, match="num_classes"):
        class_median_distance(x, labels, 0)
    with pytest.raises(ValueError, match=r"x: expected shape \[N, d\]"):
        class_median_distance(x[0], labels, 3)


# ---- votes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (50, 3), (300, 40), (7, 2100), (70, 1000)])
def test_votes_are_the_argmax(backend, dtype, shape):
    generator = torch.Generator().manual_seed(shape[1])
    z = torch.randn(shape, generator=generator).mul(3).round().to(dtype)  # ties
    z[:, ::2] = -torch.inf if shape[1] > 1 else 0
    targets = torch.randint(4, (shape[0],), generator=generator)
    choice = z.double().argmax(1)
    found = class_vote(
        z.to(backend.device), shape[1], target_labels=targets.to(backend.device), num_target_classes=5
    )
    assert torch.equal(found.histogram.cpu(), torch.bincount(choice, minlength=shape[1]))
    matrix = torch.zeros(5, shape[1], dtype=torch.int64)
    matrix.index_put_((targets, choice), torch.ones_like(choice), accumulate=True)
    assert torch.equal(found.matrix.cpu(), matrix)
    by_prediction = class_vote(choice.to(backend.device), shape[1], target_labels=targets.to(backend.device))
    assert torch.equal(by_prediction.histogram.cpu(), found.histogram.cpu())
    assert by_prediction.matrix.shape == (int(targets.max()) + 1, shape[1])


def test_vote_layouts_and_threads(backend, set_threads):
    z = torch.randn(60, 21, generator=torch.Generator().manual_seed(1)).to(backend.device)
    for view in (z[::2, :17], z.T.contiguous().T, z[:, ::3], z[:0]):
        for threads in (1, 2):
            set_threads(threads)
            found = class_vote(view, view.shape[1])
            assert found.matrix is None
            want = torch.bincount(view.cpu().argmax(1), minlength=view.shape[1])
            assert torch.equal(found.histogram.cpu(), want)
    parts = class_vote([z[:7], z[7:]], 21)
    assert torch.equal(parts.histogram, class_vote(z, 21).histogram)


def test_votes_from_memory_maps(tmp_path):
    z = torch.randn(64, 20, generator=torch.Generator().manual_seed(4))
    want = torch.bincount(z.bfloat16().argmax(1), minlength=20)
    np.save(tmp_path / "z.npy", z.bfloat16().float().numpy())
    mapped = np.load(tmp_path / "z.npy", mmap_mode="r")
    found = class_vote(mapped, 20)
    assert isinstance(found.histogram, np.ndarray)
    assert np.array_equal(found.histogram, want.numpy())
    (tmp_path / "z.bin").write_bytes(z.bfloat16().view(torch.int16).numpy().tobytes())
    half = torch.from_file(str(tmp_path / "z.bin"), shared=True, size=64 * 20, dtype=torch.bfloat16)
    assert torch.equal(class_vote(half.view(64, 20), 20).histogram, want)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = np.memmap(tmp_path / "z.bin", dtype=ml_dtypes.bfloat16, mode="r", shape=(64, 20))
    assert np.array_equal(class_vote(half, 20).histogram, want.numpy())


def test_vote_bad_input(backend):
    z = torch.randn(6, 4).to(backend.device)
    worse = z.clone()
    worse[2, 3] = torch.nan
    with pytest.raises(ValueError, match="a largest entry in every row, got nan in row 2"):
        class_vote(worse, 4)
    worse[2] = -torch.inf
    with pytest.raises(ValueError, match="got nothing but -inf in row 2"):
        class_vote(worse, 4)
    with pytest.raises(ValueError, match="in row 8"):
        class_vote([z, worse], 4)
    for arguments, options, error, message in (
        ((z, 5), {}, ValueError, r"logits: expected shape \[N, Cs\] with 5 columns"),
        ((z.argmax(1), 2), {}, ValueError, r"logits: expected labels in \[0, 2\)"),
        ((z[None], 4), {}, ValueError, "logits: expected shape"),
        ((z, 4), {"target_labels": [0] * 6}, TypeError, "target_labels: expected"),
        ((z, 4), {"num_target_classes": 3}, ValueError, "target_labels: expected"),
        ((z, 4), {"target_labels": torch.arange(6), "num_target_classes": 4}, ValueError, r"\[0, 4\), got 4"),
        ((z, 4), {"target_labels": torch.arange(5)}, ValueError, "target_labels: expected shape"),
    ):
        options = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        with pytest.raises(error, match=message):
            class_vote(
                *(a.to(backend.device) if isinstance(a, torch.Tensor) else a for a in arguments), **options
            )


# ---- masks, top-k, strata --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_mask_is_isin(backend, dtype):
    written(backend, "class_mask")
    labels = torch.randint(50, (5000,), generator=torch.Generator().manual_seed(1)).to(dtype)
    keep = torch.tensor([3, 7, 49, 0])
    want = torch.isin(labels.long(), keep).nonzero()[:, 0]
    on = labels.to(backend.device)
    table = torch.zeros(50, dtype=torch.bool)
    table[keep] = True
    for given in (keep, keep.tolist(), table.to(backend.device), keep.numpy()):
        assert torch.equal(class_mask(on, given, 50).cpu(), want)
    assert class_mask(on, [], 50).shape == (0,)
    assert class_mask(on[:0], [1], 50).shape == (0,)
    assert (
        class_mask(on[::7], keep, 50).tolist()
        == torch.isin(labels[::7].long(), keep).nonzero()[:, 0].tolist()
    )
    with pytest.raises(ValueError, match=r"labels: expected labels in \[0, 49\), got 49"):
        class_mask(on, [3], 49)


def test_mask_bad_input():
    labels = torch.tensor([0, 1, 2])
    for keep, message in (
        ([3], r"keep\[0\]: expected"),
        (torch.tensor([True, False]), r"keep: expected shape \[3\]"),
        (torch.tensor([-1]), r"keep: expected labels in \[0, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            class_mask(labels, keep, 3)
    with pytest.raises(ValueError, match=r"labels: expected shape \[N\]"):
        class_mask(labels[None], [0], 3)


def test_topk_breaks_ties_by_index():
    counts = torch.tensor([3, 0, 0, 2, 0, 0, 0, 1])
    assert topk_stable(counts, 5).tolist() == [0, 3, 7, 1, 2]  # label mapping with votes for three classes
    assert topk_stable(counts, 3, largest=False).tolist() == [1, 2, 4]
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float16, torch.int32):
        scores = torch.rand(200, generator=generator).mul(10).round().to(dtype)
        for largest, sign in ((True, -1), (False, 1)):
            order = sorted(range(200), key=lambda i, s=sign: (s * float(scores[i]), i))
            for k in (0, 1, 7, 199, 200):
                assert topk_stable(scores, k, largest).tolist() == order[:k]
    assert isinstance(topk_stable(scores.numpy(), 3), np.ndarray)


@pytest.mark.parametrize("k", [9, -1])
def test_topk_bad_budget(k):
    with pytest.raises(ValueError, match=r"k: expected an integer in \[0, 8\]"):
        topk_stable(torch.zeros(8), k)


def test_topk_bad_scores():
    with pytest.raises(ValueError, match="scores: expected numbers, got nan at index 1"):
        topk_stable(torch.tensor([0.0, torch.nan]), 1)
    with pytest.raises(ValueError, match=r"scores: expected shape \[N\]"):
        topk_stable(torch.zeros(2, 2), 1)


def test_strata_fill_like_water():
    assert stratified_budget([1, 0, 9, 30, 2], 20).tolist() == [1, 0, 8, 9, 2]
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        counts = torch.randint(
            0, 20, (int(torch.randint(1, 9, (1,), generator=generator)),), generator=generator
        )
        budget = int(torch.randint(0, int(counts.sum()) + 1, (1,), generator=generator))
        found = stratified_budget(counts, budget)
        assert found.sum() == budget
        assert (found <= counts).all()
        level = found.max()  # who gives less than the fullest by two or more gives all it has
        assert ((found == counts) | (found >= level - 1)).all()
    assert stratified_budget([], 0).shape == (0,)
    assert isinstance(stratified_budget(np.array([3, 4]), 2), np.ndarray)
    with pytest.raises(ValueError, match=r"budget: expected an integer in \[0, 7\]"):
        stratified_budget([3, 4], 8)
    with pytest.raises(ValueError, match=r"counts\[1\]"):
        stratified_budget([3, -4], 1)


def test_torch_machinery(inductor):
    x, labels = torch.randn(9, 5), torch.arange(9) % 3
    ops = torch.ops.tenfold
    torch.library.opcheck(ops.class_median_distance.default, (x, labels, 3, True))
    torch.library.opcheck(ops.class_vote.default, (x, 5, labels, 3, 0))
    torch.library.opcheck(ops.class_vote.default, (labels, 3, None, 0, 0))
    torch.library.opcheck(ops.class_mask.default, (labels, torch.tensor([True, False, True])))
    compiled = torch.compile(
        lambda a, b: class_median_distance(a, b, 3).distances + 1, fullgraph=True, backend=inductor
    )
    torch.testing.assert_close(compiled(x, labels), class_median_distance(x, labels, 3).distances + 1)
    votes = torch.compile(lambda a: class_vote(a, 5).histogram + 1, fullgraph=True, backend=inductor)
    assert torch.equal(votes(x), class_vote(x, 5).histogram + 1)


@pytest.mark.slow
def test_a_million_rows_of_bfloat16_from_a_file(tmp_path):
    """1.28 million rows of 1000 classes, 2.56 GB, read in place in one pass."""
    rows, classes = 1_280_000, 1000
    z = torch.from_file(str(tmp_path / "z.bin"), shared=True, size=rows * classes, dtype=torch.bfloat16).view(
        rows, classes
    )  # a file of zeros without blocks: every row votes for class 0
    changed = torch.arange(0, rows, 4001)
    z[changed, changed % classes] = 1.0
    anonymous = _anonymous_kib()
    found = class_vote(z, classes)
    assert _anonymous_kib() - anonymous < 50_000  # nothing of the size of the logits was made
    want = torch.bincount(changed % classes, minlength=classes)
    want[0] += rows - changed.numel()
    assert torch.equal(found.histogram, want)


def _anonymous_kib() -> int:
    """Memory of the process that is no file's, in KiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        pytest.skip("this system does not tell a process its memory")
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

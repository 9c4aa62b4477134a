"""Drop-ins against the published loops and against the library itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tenfold.selection.compat import FacilityLocationSelection, KCenterGreedy, sparse_projection

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


def published_k_center(rows, size, first):
    """The loop that anomalib publishes: the distance of all rows to the last one, minima, the largest."""
    picks, distance, last = [], None, first
    for _ in range(size):
        own = torch.linalg.vector_norm(rows.double() - rows[last].double(), dim=1)
        distance = own if distance is None else torch.minimum(distance, own)
        last = int(distance.argmax())
        distance[last] = 0
        picks.append(last)
    return picks


def test_anomalibs_coreset_without_its_first_row():
    embedding = torch.randn(80, 12, generator=torch.Generator().manual_seed(0))
    theirs = published_k_center(embedding, 20, 17)
    own = KCenterGreedy(embedding, 0.25, projection=False, first=17, include_first=False)
    assert own.coreset_size == 20
    assert own.select_coreset_idxs() == theirs
    assert torch.equal(own.sample_coreset(), embedding[theirs])
    assert 17 not in theirs  # its distance is 0 from the start
    whole = KCenterGreedy(embedding, 0.25, projection=False, first=17)
    assert whole.select_coreset_idxs() == [17, *theirs[:19]]
    d = torch.cdist(embedding.double(), embedding[whole.select_coreset_idxs()].double()).amin(1)
    torch.testing.assert_close(whole.min_distances.double(), d, rtol=1e-6, atol=1e-6)


def test_anomalibs_coreset_of_projected_rows():
    embedding = torch.randn(60, 300, generator=torch.Generator().manual_seed(0))
    own = KCenterGreedy(embedding, 0.1, first=3, seed=9, include_first=False)
    rows = own.features()
    assert rows.shape == (60, 101)  # 4 ln 60 / (.9^2 / 2 - .9^3 / 3)
    assert own.select_coreset_idxs() == published_k_center(rows, 6, 3)
    assert (
        KCenterGreedy(embedding, 0.1, seed=9).select_coreset_idxs()
        == own.__class__(embedding, 0.1, seed=9, verbose=True).select_coreset_idxs()
    )
    started = KCenterGreedy(embedding, 0.1, projection=False).select_coreset_idxs([5, 8])
    assert not {5, 8} & set(started)
    assert len(started) == 6
    images = embedding.reshape(60, 3, 10, 10)
    flat = KCenterGreedy(images, 0.1, first=3, include_first=False).select_coreset_idxs()
    assert flat == published_k_center(embedding, 6, 3)


def test_projections_keep_distances():
    points = torch.randn(40, 2000, generator=torch.Generator().manual_seed(0))
    matrix = sparse_projection(40, 2000, seed=1)
    assert (matrix == 0).float().mean() > 0.95
    before, after = torch.pdist(points), torch.pdist(points @ matrix)
    ratio = (after / before).square()
    assert float(ratio.min()) > 0.1
    assert float(ratio.max()) < 1.9
    assert float(ratio.mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: KCenterGreedy(x, 1.0, include_first=False),
            "sampling_ratio: expected fewer than all rows, or include_first=True",
        ),
        (lambda x: KCenterGreedy(x, 1.5), r"sampling_ratio: expected a share in \(0, 1\], got 1.5"),
        (lambda x: KCenterGreedy(x, 0.0), "sampling_ratio: expected a finite number > 0"),
        (lambda x: KCenterGreedy(x[0], 0.5), r"embedding: expected a tensor \[N, d\]"),
        (lambda x: KCenterGreedy(x, 0.5, first=9), "first: expected an integer in"),
        (
            lambda x: KCenterGreedy(x, 0.5, projection=False).select_coreset_idxs([0, 1, 2, 3, 4, 5]),
            "selected_idxs: expected at most 5 rows beside the 4 to pick, got 6",
        ),
    ],
)
def test_anomalibs_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))


def test_all_rows_with_the_first():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(KCenterGreedy(x, 1.0).select_coreset_idxs()) == list(range(9))
    with pytest.raises(ValueError, match="sampling_ratio: expected a share that keeps one of 9 rows"):
        KCenterGreedy(x, 0.05)


# ---- apricot -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "precomputed"])
@pytest.mark.parametrize("start", [None, [3, 40]])
def test_apricot(metric, start):
    apricot = pytest.importorskip("apricot")
    draw = np.random.default_rng(0)
    X = draw.normal(size=(70, 6))
    if metric == "precomputed":
        X = np.exp(-((X[:, None] - X[None]) ** 2).sum(2))
    options = {"metric": metric, "optimizer": "naive", "initial_subset": start}
    theirs = apricot.FacilityLocationSelection(12, **options).fit(X)
    own = FacilityLocationSelection(12, **options).fit(X)
    assert own.ranking.tolist() == np.asarray(theirs.ranking).tolist()
    np.testing.assert_allclose(own.gains, theirs.gains, rtol=1e-5)
    y = np.arange(len(X))
    chosen, labels = own.transform(X, y)
    assert labels.tolist() == own.ranking.tolist()
    np.testing.assert_array_equal(chosen, theirs.transform(X))
    if metric != "precomputed":
        np.testing.assert_array_equal(own.subset, X[own.ranking])


def test_apricots_manners(everything):
    base = FacilityLocationSelection(8).fit(everything.X).ranking.tolist()
    for optimizer in ("lazy", "naive", "two-stage"):
        assert FacilityLocationSelection(8, optimizer=optimizer).fit(everything.X).ranking.tolist() == base
    mask = np.zeros(60, bool)
    mask[base[:3]] = True
    assert FacilityLocationSelection(5, initial_subset=mask).fit(everything.X).ranking.tolist() == base[3:]
    for optimizer in ("stochastic", "approximate-lazy"):
        drawn = FacilityLocationSelection(8, optimizer=optimizer, random_state=1).fit(everything.X)
        assert len(set(drawn.ranking.tolist())) == 8
    rows, labels, weights = FacilityLocationSelection(8).fit_transform(
        everything.X, everything.y, np.ones(60)
    )
    assert rows.shape == (8, 5)
    assert len(labels) == len(weights) == 8
    dear = FacilityLocationSelection(7).fit(everything.X, sample_cost=np.full(60, 2.0))
    assert len(dear.ranking) == 3
    with pytest.raises(ValueError, match="optimizer: expected one of"):
        FacilityLocationSelection(8, optimizer="bidirectional").fit(everything.X)
    with pytest.raises(ValueError, match="optimizer_kwds: expected 'epsilon' alone"):
        FacilityLocationSelection(8, optimizer_kwds={"beta": 1}).fit(everything.X)
    with pytest.raises(ValueError, match="expected a fitted one"):
        FacilityLocationSelection(8).transform(everything.X)

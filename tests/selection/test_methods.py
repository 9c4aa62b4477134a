"""Single methods against their definitions, written out without any kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tenfold import selection
from tenfold.ops import stratified_budget
from tenfold.selection import Recorder, grand_scores, select
from tenfold.selection.strata import strata_of

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


def softmax(z):
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def kl(p, q):
    return float((p * (np.log(p) - np.log(q))).sum())


def knn(X, k):
    d = np.sqrt(((X[:, None].astype(float) - X[None]) ** 2).sum(2))
    np.fill_diagonal(d, np.inf)
    near = np.argsort(d, axis=1, kind="stable")[:, :k]
    return near, np.take_along_axis(d, near, 1)


def test_contextual_diversity(everything):
    p = softmax(everything.logits.astype(float))
    d = np.array([[0.5 * kl(a, b) + 0.5 * kl(b, a) for b in p] for a in p])
    first = int(np.argmax([0.5 * kl(a, p.mean(0)) + 0.5 * kl(p.mean(0), a) for a in p]))
    picks, gains = [first], []
    while len(picks) < 12:
        far = d[:, picks].min(1)
        far[picks] = -1
        picks.append(int(far.argmax()))
        gains.append(far.max())
    chosen = select("contextual_diversity", logits=everything.logits, k=12)
    assert chosen.indices.tolist() == picks
    np.testing.assert_allclose(chosen.gains[1:], gains, rtol=1e-9)
    assert select("contextual_diversity", logits=everything.logits, k=3, init=4).indices[0] == 4


def test_cal(everything):
    p = softmax(everything.logits.astype(float))
    near, _ = knn(everything.X, 10)
    scores = np.array([np.mean([kl(p[j], p[i]) for j in near[i]]) for i in range(60)])
    chosen = select("cal", everything.X, everything.logits, k=8)
    np.testing.assert_allclose(chosen.scores, scores, rtol=1e-6)
    assert chosen.indices.tolist() == np.argsort(-scores, kind="stable")[:8].tolist()
    pool = [3, 14, 15, 9, 26]
    d = ((everything.X[:, None].astype(float) - everything.X[pool][None]) ** 2).sum(2)
    close = np.array(pool)[np.argsort(d, axis=1, kind="stable")[:, :3]]
    scores = np.array([np.mean([kl(p[j], p[i]) for j in close[i]]) for i in range(60)])
    selector = everything.fit(selection.Cal(neighbors=3, labelled=pool))
    free = [i for i in np.argsort(-scores, kind="stable") if i not in pool]
    assert selector.select(8).indices.tolist() == free[:8]
    with pytest.raises(ValueError, match="budget: expected at most the 55 rows outside the pool, got 56"):
        selector.select(56)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 2.0])
def test_d2(everything, gamma):
    near, d = knn(everything.X, 4)
    s = everything.scores
    rho = s + (np.exp(-d) * s[near]).sum(1)
    left, picks, gains = rho.copy(), [], []
    for _ in range(20):
        masked = left.copy()
        masked[picks] = -np.inf
        j = int(masked.argmax())
        picks.append(j)
        gains.append(left[j])
        left[near[j]] -= np.exp(-gamma * d[j]) * left[j]
    chosen = select("d2", everything.X, scores=s, k=20, neighbors=4, gamma=gamma)
    assert chosen.indices.tolist() == picks
    np.testing.assert_allclose(chosen.gains, gains, rtol=1e-6)


def test_neighbours_of_duplicates():
    X = np.zeros((5, 2), np.float32)
    near, distance = selection.strata.neighbours(X, 2)
    assert near.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert not distance.any()
    near, _ = selection.strata.neighbours(X[:2], 5)
    assert near.tolist() == [[1], [0]]


def test_ccs_drops_the_hardest_and_covers_the_rest():
    draw = np.random.default_rng(0)
    scores = np.concatenate([draw.normal(0, 1, 300), draw.normal(8, 0.5, 700)])
    chosen = select("ccs", scores=scores, k=200, beta=0.1, strata=10)
    cut = np.sort(scores)[100]
    assert scores[chosen.indices].min() >= cut
    assert chosen.info["dropped"] == 100
    kept = scores[scores >= cut]
    width = (kept.max() * 1.0001 - kept.min()) / 10
    stratum = np.floor((kept - kept.min()) / width).astype(int)
    sizes = np.bincount(stratum, minlength=10)
    assert chosen.info["strata"] == sizes.tolist()
    budgets = stratified_budget(sizes, 200)
    found = np.bincount(np.floor((scores[chosen.indices] - kept.min()) / width).astype(int), minlength=10)
    assert found.tolist() == budgets.tolist()
    assert sorted(chosen) != sorted(select("ccs", scores=scores, k=200, beta=0.1, strata=10, seed=1))
    hard = select("ccs", scores=-scores, k=200, beta=0.1, strata=10, hard="large")
    assert scores[hard.indices].min() >= cut


def test_strata_share_a_budget_from_the_smallest_on():
    assert np.asarray(stratified_budget([1, 0, 9, 30, 2], 20)).tolist() == [1, 0, 8, 9, 2]


def test_ccs_draws_each_row_of_a_stratum_alike():
    """Counts over seeds are binomial; five standard deviations."""
    counts = np.zeros(12)
    for seed in range(600):
        counts[select("ccs", scores=np.zeros(12), k=3, beta=0.0, seed=seed).indices] += 1
    assert np.abs(counts - 150).max() < 5 * (600 * 0.25 * 0.75) ** 0.5


def test_strata_whose_largest_score_is_negative():
    """1.0001 times a negative maximum lies below it; ours is inside whatever the sign."""
    scores = np.linspace(-5, -1, 101)
    assert np.bincount(strata_of(scores, 4), minlength=4).tolist() == [26, 25, 25, 25]
    assert strata_of(np.full(4, -2.0), 7).max() <= 6
    assert strata_of(np.zeros(4), 7).tolist() == [0] * 4


def test_ccs_takes_the_margin_of_a_run(everything):
    run = selection.CCS(beta=0.2).fit(dynamics=everything.dynamics).select(10)
    own = selection.CCS(beta=0.2).fit(scores=everything.dynamics.scores("aum")).select(10)
    assert list(run) == list(own)
    with pytest.raises(ValueError, match="scores: expected finite scores"):
        select("ccs", scores=[1.0, np.inf], k=1)


def test_ssp_is_the_distance_to_a_prototype(everything):
    hard = selection.SSP(num_clusters=4).fit(everything.X)
    chosen = hard.select(10)
    from tenfold.ops import kmeans

    centers = np.asarray(kmeans(everything.X, 4).centers)
    d = np.sqrt(((everything.X[:, None].astype(float) - centers[None]) ** 2).sum(2)).min(1)
    np.testing.assert_allclose(chosen.scores, d, rtol=1e-5)
    assert chosen.indices.tolist() == np.argsort(-d, kind="stable")[:10].tolist()
    easy = selection.SSP(num_clusters=4, keep="easy").fit(everything.X).select(10)
    assert easy.indices.tolist() == np.argsort(d, kind="stable")[:10].tolist()


def test_k_means_coresets_have_a_row_per_cluster(everything):
    chosen = selection.KMeansCoreset(weighted=True).fit(everything.X).select(6)
    from tenfold.ops import kmeans

    found = kmeans(everything.X, 6)
    assert found.labels[chosen.indices].tolist() == list(range(6))
    assert chosen.weights.tolist() == found.counts.tolist()
    for c, row in enumerate(chosen):
        mine = np.flatnonzero(found.labels == c)
        d = ((everything.X[mine].astype(float) - found.centers[c]) ** 2).sum(1)
        assert row == mine[d.argmin()]
    same = selection.KMeansCoreset().fit(np.ones((7, 2), np.float32)).select(4)
    assert sorted(same) == [0, 1, 2, 3]


def dense_gradients(data):
    p = softmax(data.logits.astype(float))
    e = p - np.eye(3)[data.y]
    h = np.concatenate([np.ones((60, 1)), data.X], 1)
    return (e[:, :, None] * h[:, None, :]).reshape(60, -1)


def test_craig_covers_the_gradients(everything):
    G = dense_gradients(everything)
    d = np.sqrt(((G[:, None] - G[None]) ** 2).sum(2))
    near, picks = np.full(60, d.max()), []
    for _ in range(7):
        gains = np.maximum(0, near[:, None] - d).sum(0)
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        near = np.minimum(near, d[:, picks[-1]])
    chosen = everything.fit(selection.CRAIG()).select(7)
    assert chosen.indices.tolist() == picks
    assert chosen.weights.tolist() == np.bincount(d[:, picks].argmin(1), minlength=7).tolist()
    assert chosen.weights.sum() == 60
    by_class = everything.fit(selection.CRAIG(balanced=True)).select(7)
    assert by_class.weights.sum() == 60
    features = selection.CRAIG(space="features").fit(everything.X).select(7)
    assert features.weights.sum() == 60
    covered = selection.FacilityLocation(kind="euclidean").fit(everything.X).select(7)
    assert features.indices.tolist() == covered.indices.tolist()


def test_gradmatch_is_matching_pursuit_on_dense_gradients(everything):
    G = dense_gradients(everything)
    target, picks = G.mean(0), []
    residual, x = target, np.zeros(0)
    for t in range(6):
        inner = G @ residual
        inner[picks] = -np.inf
        picks.append(int(inner.argmax()))
        S = G[picks]
        gram = S @ S.T + (np.eye(t + 1) if t else 0)
        x = np.linalg.solve(gram, S @ target)
        residual = target - S.T @ x
    from scipy.optimize import nnls

    S = G[picks]
    matrix = S @ S.T + np.eye(6)
    root = np.linalg.cholesky(matrix)  # min ||L^T x - L^-1 b|| has the normal equations M x = b
    weights = nnls(root.T, np.linalg.solve(root, S @ target))[0]
    chosen = everything.fit(selection.GradMatch(), validation=None).select(6)
    keep = weights > 0
    assert chosen.indices.tolist() == np.array(picks)[keep].tolist()
    np.testing.assert_allclose(chosen.weights, weights[keep], rtol=1e-4)
    assert chosen.info["asked"] == 6
    against = everything.fit(selection.GradMatch()).select(6)
    assert against.indices.tolist() != chosen.indices.tolist()  # the validation gradient is another target


def test_glister_looks_again_after_each_round(everything):
    """One round ranks by the first validation gradient; more rounds move the last layer in between."""
    once = everything.fit(selection.Glister(rounds=1)).select(20)
    often = everything.fit(selection.Glister(rounds=20, eta=1.0)).select(20)
    G = dense_gradients(everything)
    p = softmax(everything.validation[1].astype(float))
    e = p - np.eye(3)[everything.validation[2]]
    h = np.concatenate([np.ones((30, 1)), everything.validation[0]], 1)
    gains = G @ (e.T @ h / 30).reshape(-1)
    assert once.indices.tolist() == np.argsort(-gains, kind="stable")[:20].tolist()
    assert often.indices.tolist() != once.indices.tolist()
    own = everything.fit(selection.Glister(rounds=1), validation=None).select(5)
    G_own = G @ G.mean(0)
    assert own.indices.tolist() == np.argsort(-G_own, kind="stable")[:5].tolist()


def test_full_gradient_norms(everything):
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    data = torch.utils.data.TensorDataset(torch.from_numpy(everything.X), torch.from_numpy(everything.y))
    norms = grand_scores(model, torch.utils.data.DataLoader(data, batch_size=13), chunk_size=5)
    for i in (0, 17, 59):
        model.zero_grad()
        x, y = data[i]
        torch.nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        own = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
        assert norms[i] == pytest.approx(float(own), rel=1e-5)
    last = torch.nn.Linear(5, 3)
    linear = grand_scores(last, torch.utils.data.DataLoader(data, batch_size=13))
    with torch.no_grad():
        logits = last(torch.from_numpy(everything.X))
    closed = select("grand", everything.X, logits, everything.y, k=0).scores
    np.testing.assert_allclose(linear, closed, rtol=1e-5)
    mixing = torch.nn.Sequential(torch.nn.BatchNorm1d(5), last)
    with pytest.raises(ValueError, match=r"model: expected evaluation mode .*got 0 in training mode"):
        grand_scores(mixing, torch.utils.data.DataLoader(data, batch_size=13))


def test_forgetting_and_never_learned():
    recorder = Recorder(4)
    right, wrong = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    history = [(right, wrong, right, wrong), (wrong, wrong, right, wrong), (right, wrong, right, right)]
    history += [(wrong, wrong, right, wrong)]
    for epoch in history:
        recorder.update(torch.arange(4), torch.stack(epoch), torch.zeros(4, dtype=torch.int64))
    chosen = selection.Forgetting().fit(dynamics=recorder).select(4)
    assert chosen.scores.tolist() == [2, np.inf, 0, 1]
    assert chosen.indices.tolist() == [1, 0, 3, 2]
    assert chosen.info["never_learned"] == 1
    zero = selection.Forgetting(never_learned="zero").fit(dynamics=recorder).select(4)
    assert zero.indices.tolist() == [0, 3, 1, 2]
    few = selection.Correctness().fit(dynamics=recorder).select(4)
    assert few.scores.tolist() == [2, 0, 4, 1]
    assert few.indices.tolist() == [1, 3, 0, 2]


def test_memorisation_from_a_file(tmp_path):
    (tmp_path / "scores.csv").write_text("0,0.5\n2,0.9\n1,0.1\n")
    chosen = selection.Memorization(path=str(tmp_path / "scores.csv")).fit().select(2)
    assert chosen.indices.tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"X: expected|scores: expected"):
        selection.Memorization(path=str(tmp_path / "scores.csv")).fit(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="scores: expected scores, or the parameter path"):
        selection.Memorization().fit(np.zeros((4, 2)))


def test_uncertainty_keeps_the_uncertain():
    logits = np.array([[9, 0, 0], [1, 0.9, 0.8], [4, 0, 0], [0.1, 0, 0.1]], np.float32)
    for method in ("entropy", "margin", "least_confidence"):
        assert select(method, logits=logits, k=2).indices[0] in (1, 3), method
        assert set(select(method, logits=logits, k=2)) == {1, 3}, method
        easy = select(method, logits=logits, k=2, keep="easy")
        assert easy.indices.tolist() == [0, 2], method
        y = np.array([0, 0, 1, 1])
        assert set(select(method, logits=logits, labels=y, k=2, balanced=True)) == {1, 3}, method


def test_facility_location_options(everything):
    X = everything.X
    base = selection.FacilityLocation().fit(X).select(10)
    lazy = selection.FacilityLocation(optimizer="naive").fit(X).select(10)
    assert lazy.indices.tolist() == base.indices.tolist()
    assert (np.diff(base.gains) <= 1e-6 * base.gains[0]).all()
    d = ((X[:, None].astype(float) - X[None]) ** 2).sum(2)
    given = selection.FacilityLocation(kind="precomputed").fit(d.max() - d).select(10)
    assert given.indices.tolist() == base.indices.tolist()
    with pytest.raises(ValueError, match="balanced: expected False with kind 'precomputed'"):
        selection.FacilityLocation(kind="precomputed", balanced=True).fit(d.max() - d, everything.y)
    started = selection.FacilityLocation(initial=base.indices[:3].tolist()).fit(X).select(7)
    assert started.indices.tolist() == base.indices[3:].tolist()
    dear = selection.FacilityLocation(costs=np.full(60, 2.0), max_cost=9.0).fit(X).select(60)
    assert len(dear) == 4
    one = selection.FacilityLocation(sample_weight=np.eye(60)[5]).fit(X).select(1)
    assert one.indices.tolist() == [5]
    near = selection.FacilityLocation(neighbors=60).fit(X).select(5)
    assert near.indices.tolist() == base.indices[:5].tolist()


def test_k_center_weights_count_owners(everything):
    chosen = selection.KCenterGreedy(weighted=True).fit(everything.X).select(6)
    d = ((everything.X[:, None].astype(float) - everything.X[chosen.indices][None]) ** 2).sum(2)
    assert chosen.weights.tolist() == np.bincount(d.argmin(1), minlength=6).tolist()
    assert chosen.gains[-1] == pytest.approx(np.sqrt(d.min(1).max()), rel=1e-6)
    after = selection.KCenterGreedy(init=chosen.indices[:2].tolist()).fit(everything.X).select(4)
    assert after.indices.tolist() == chosen.indices[2:].tolist()

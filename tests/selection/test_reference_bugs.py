"""What published code gets wrong and this library must not: see docs/errata/selection.md."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from tenfold import selection
from tenfold.selection import inputs, select

pytestmark = pytest.mark.filterwarnings("ignore::tenfold.PerformanceWarning")


def test_log_determinant_spreads():
    """Three near-duplicates and two points far away: one of the three, and both others."""
    X = np.array([[0, 0], [0.01, 0], [0, 0.01], [3, 0], [0, 3]], np.float32)
    chosen = select("log_determinant", X, k=3, gamma=0.5)
    assert {3, 4} < set(chosen)
    s = np.exp(-0.5 * ((X[:, None] - X[None]) ** 2).sum(2).astype(float))
    volumes = [np.linalg.slogdet(s[np.ix_(chosen.indices[:t], chosen.indices[:t])])[1] for t in (1, 2, 3)]
    np.testing.assert_allclose(np.cumsum(chosen.gains), volumes, atol=1e-6)


def test_herding_approaches_the_mean():
    X = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    mean, total, picks = X.astype(float).mean(0), np.zeros(4), []
    for t in range(1, 11):
        error = np.linalg.norm(t * mean - (total + X), axis=1)
        error[picks] = np.inf
        picks.append(int(error.argmin()))
        total += X[picks[-1]]
    chosen = select("herding", X, k=10)
    assert chosen.indices.tolist() == picks
    drawn = [np.linalg.norm(X[select("random", X, k=10, seed=s).indices].mean(0) - mean) for s in range(20)]
    assert np.linalg.norm(X[chosen.indices].mean(0) - mean) < min(drawn)


def test_facility_location_gains_are_their_definition():
    """Each pick has the largest of all gains sum_i max(0, s_ij - covered_i), made anew in each step."""
    X = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    d = ((X[:, None].astype(float) - X[None]) ** 2).sum(2)
    s = (X.astype(float)[:, None] ** 2).sum(2).max() * 4 - d  # another constant changes the first gain alone
    chosen = select("facility_location", X, k=8)
    covered = np.zeros(40)
    for t, (pick, gain) in enumerate(zip(chosen, chosen.gains, strict=True)):
        gains = np.maximum(0, s - covered[:, None]).sum(0) if t else s.sum(0)
        assert pick == gains.argmax()
        if t:
            assert gain == pytest.approx(gains[pick], rel=1e-4)
        covered = np.maximum(covered, s[:, pick]) if t else s[:, pick]


def test_least_confidence_is_of_probabilities():
    logits = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    shift = np.random.default_rng(3).normal(size=(30, 1)).astype(np.float32) * 5
    own = select("least_confidence", logits=logits, k=10)
    assert own.scores.min() >= 0
    assert own.scores.max() <= 0.75
    moved = select("least_confidence", logits=logits + shift, k=10)  # the same probabilities
    assert moved.indices.tolist() == own.indices.tolist()


def test_moderate_counts_are_exact():
    draw = np.random.default_rng(4)
    X = draw.normal(size=(5000, 2)).astype(np.float32)
    exact = selection.Moderate().fit(X)
    reference = selection.Moderate(rounding="reference").fit(X)
    assert [len(exact.select(k)) for k in (0, 1, 5, 17, 2500, 5000)] == [0, 1, 5, 17, 2500, 5000]
    assert [len(reference.select(k)) for k in (1, 5)] == [0, 4]
    small = selection.Moderate(rounding="reference").fit(X[:10])
    assert len(small.select(1)) == 2
    y = np.repeat([0, 1], [47, 4953])
    by_class = selection.Moderate(balanced=True).fit(X, y).select(100)
    assert np.bincount(y[by_class.indices]).tolist() == [47, 50]
    theirs = selection.Moderate(balanced=True, rounding="reference").fit(X, y).select(100)
    assert np.bincount(y[theirs.indices])[0] == 1


def test_random_candidates_keep_their_guarantee():
    X = np.random.default_rng(5).normal(size=(300, 4)).astype(np.float32)
    greedy = selection.FacilityLocation().fit(X).select(15)
    for optimizer in ("stochastic", "lazier"):
        selector = selection.FacilityLocation(optimizer=optimizer)
        assert 1 - 1 / math.e - selector.epsilon > 0.6
        found = np.mean([selector.set_params(seed=s).fit(X).select(15).info["objective"] for s in range(5)])
        assert found >= (1 - 1 / math.e - selector.epsilon) * greedy.info["objective"]


def test_the_order_of_selection_is_kept(digits):
    chosen = select("kcenter", digits[0], k=20, init=700)
    assert chosen.indices[0] == 700
    assert chosen.indices.tolist() != sorted(chosen)
    assert (np.diff(chosen.gains) <= 0).all()
    assert chosen.head(7).indices.tolist() == select("kcenter", digits[0], k=7, init=700).indices.tolist()


def test_logits_in_a_file_are_read_in_pieces(tmp_path, monkeypatch):
    """16 MiB of logits, pieces of 1 MiB: what NumPy holds at a time stays below the file."""
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 2**20)
    path = tmp_path / "logits.npy"
    values = np.random.default_rng(6).normal(size=(2**17, 32)).astype(np.float32)
    np.save(path, values)
    expected = select("entropy", logits=values, k=9)
    del values
    tracemalloc.start()
    chosen = select("entropy", logits=path, k=9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chosen.indices.tolist() == expected.indices.tolist()
    assert peak < 8 * 2**20

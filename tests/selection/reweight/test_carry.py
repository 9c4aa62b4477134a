"""Weights carried from a coreset to all rows."""

from __future__ import annotations

import numpy as np
import pytest

from tenfold.selection.reweight import broadcast, constant, normalised, shuffled


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels, coreset rows, their weights."""
    g = np.random.default_rng(0)
    x = g.normal(size=(200, 4)).astype(np.float32)
    y = g.integers(0, 3, 200)
    core = np.sort(g.permutation(200)[:20])
    return x, y, core, g.random(20).astype(np.float32)


def distances(x: np.ndarray, core: np.ndarray) -> np.ndarray:
    return ((x[:, None].astype(np.float64) - x[core][None]) ** 2).sum(-1)


def test_nn_is_the_nearest_whatever_its_label(case) -> None:
    x, _, core, w = case
    found = broadcast(w, x, core).weights
    assert (found == w[distances(x, core).argmin(1)]).all()
    assert (found[core] == w).all()


def test_classwise_is_the_nearest_of_the_same_label(case) -> None:
    x, y, core, w = case
    d = distances(x, core)
    d[y[:, None] != y[core][None]] = np.inf
    found = broadcast(w, x, core, "classwise", labels=y)
    assert (found.weights == w[d.argmin(1)]).all()
    assert not found.notes


def test_labels_that_the_coreset_has_not(case) -> None:
    x, y, core, w = case
    y = y.copy()
    y[core] = y[core] % 2  # no 2 in the coreset
    found = broadcast(w, x, core, "classwise", labels=y)
    alone = y == 2
    assert alone.any()
    assert (found.weights[alone] == w[distances(x, core).argmin(1)][alone]).all()
    assert found.notes[0].startswith(f"labels [2] are not in the coreset: {alone.sum()} samples")
    published = broadcast(w, x, core, "classwise", labels=y, compat="reference")
    assert (published.weights[alone] == 0).all()
    assert "weight 0" in published.notes[0]


def test_label_aware_counts_the_neighbours_with_the_label(case) -> None:
    x, y, core, w = case
    near = np.argsort(distances(x, core), axis=1, kind="stable")[:, :5]
    share = (y[core][near] == y[:, None]).mean(1)
    found = broadcast(w, x, core, "label_aware", labels=y)
    np.testing.assert_allclose(found.weights, w[near[:, 0]] * share, rtol=1e-6)
    scaled = broadcast(w, x, core, "label_aware", labels=y, normalise=True).weights
    assert scaled.mean() == pytest.approx(1, abs=1e-5)
    one = broadcast(w[:1], x, core[:1], "label_aware", labels=y)  # fewer neighbours than asked for
    assert set(one.weights.tolist()) <= {0.0, float(w[0])}


def test_function_takes_vs_weights(case) -> None:
    x, _, core, w = case
    own = np.linspace(0.1, 0.9, 200).astype(np.float32)
    assert (broadcast(w, x, core, "function", function_weights=own).weights == own).all()


def test_controls() -> None:
    w = np.array([0.1, 0.2, 0.9], np.float32)
    assert constant(w) == pytest.approx(np.full(3, 0.4))
    assert sorted(shuffled(w, np.random.default_rng(1)).tolist()) == sorted(w.tolist())
    assert normalised(w).mean() == pytest.approx(1)


def test_what_is_refused(case) -> None:
    x, y, core, w = case
    bad = x.copy()
    bad[7, 1] = np.nan
    for call, error, message in (
        (lambda: broadcast(w, x, core, "soft"), ValueError, "mode: expected one of"),
        (lambda: broadcast(w[:0], x, core[:0]), ValueError, "core: expected at least one row"),
        (lambda: broadcast(w[:3], x, core), ValueError, "core_weights: expected 20 entries"),
        (lambda: broadcast(-w, x, core), ValueError, "core_weights: expected finite numbers >= 0"),
        (lambda: broadcast(0 * w, x, core), ValueError, "core_weights: expected a weight above 0"),
        (lambda: broadcast(w, x[:50], core), ValueError, "core: expected rows below 50"),
        (lambda: broadcast(w, x, core, "classwise"), TypeError, "labels: expected the labels of all"),
        (
            lambda: broadcast(w, x, core, "classwise", labels=y[:9]),
            ValueError,
            "labels: expected 200",
        ),
        (lambda: broadcast(w, x, core, "function"), TypeError, "function_weights: expected"),
        (lambda: broadcast(w, bad, core), ValueError, "row 7"),
        (lambda: normalised(0 * w), ValueError, "weights: expected a weight above 0"),
    ):
        with pytest.raises(error, match=message):
            call()
